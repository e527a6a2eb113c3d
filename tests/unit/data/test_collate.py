"""Batches agree with a loop over single tokens."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from wmtp.data import TokenCounts, TokenStore, collate
from wmtp.types import IGNORE, Batch

PAD = 7


def make_store(documents: list[list[int]], prompt_lengths: list[int]) -> TokenStore:
    lengths = [len(document) for document in documents]
    return TokenStore(
        "key",
        np.array([token for document in documents for token in document], dtype=np.int32),
        np.array([0, *np.cumsum(lengths)], dtype=np.int64),
        np.array(prompt_lengths, dtype=np.int32),
        TokenCounts(len(lengths), len(lengths), sum(lengths), 0, 0, 0),
    )


def slow(store: TokenStore, rows: list[list[int]], mask_prompt: bool) -> list[list[list[tuple[int, ...]]]]:
    """Row by row, token by token: (token, label, document, position)."""
    table = []
    for row in rows:
        cells = []
        for index in row:
            tokens, prompt = store.document(index)
            for position, token in enumerate(tokens.tolist()):
                label = IGNORE if mask_prompt and position < prompt else token
                cells.append((token, label, index, position))
        table.append(cells)
    width = max(map(len, table))
    return [cells + [(PAD, IGNORE, -1, cells[-1][3] + 1 + i) for i in range(width - len(cells))] for cells in table]


def cells(batch: Batch) -> list[list[tuple[int, ...]]]:
    parts = (batch.tokens, batch.labels, batch.documents, batch.positions)
    assert all(part.dtype == torch.int64 and part.is_contiguous() for part in parts)
    return [list(zip(*(part[i].tolist() for part in parts), strict=True)) for i in range(len(batch))]


def test_by_hand():
    store = make_store([[10, 11, 12], [20, 21], [30, PAD, 31, 32]], [1, 0, 2])
    batch = collate(store, [[2, 1], [0]], PAD, mask_prompt=True)
    assert batch.tokens.tolist() == [[30, PAD, 31, 32, 20, 21], [10, 11, 12, PAD, PAD, PAD]]
    assert batch.labels.tolist() == [[-100, -100, 31, 32, 20, 21], [-100, 11, 12, -100, -100, -100]]
    assert batch.documents.tolist() == [[2, 2, 2, 2, 1, 1], [0, 0, 0, -1, -1, -1]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("mask_prompt", [True, False])
@pytest.mark.parametrize("seed", range(10))
def test_against_a_loop(seed, mask_prompt):
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 30, size=40)
    store = make_store(
        [random.integers(0, 9, size=n).tolist() for n in lengths],  # the padding token among them
        [int(random.integers(0, n)) for n in lengths],
    )
    order = random.permutation(40).tolist()
    cuts = [0, *sorted(random.choice(range(1, 40), size=seed, replace=False).tolist()), 40]
    rows = [order[a:b] for a, b in pairwise(cuts)]
    assert cells(collate(store, rows, PAD, mask_prompt)) == slow(store, rows, mask_prompt)


def test_labels_are_not_the_tokens_themselves():
    """Changing one must not change the other, nor the store."""
    store = make_store([[1, 2, 3]], [0])
    batch = collate(store, [[0]], PAD, mask_prompt=False)
    batch.tokens[0, 0] = 99
    assert batch.labels.tolist() == [[1, 2, 3]]
    assert store.tokens.tolist() == [1, 2, 3]
