"""Documents into the rows of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch

from wmtp.data.cache import TokenStore
from wmtp.types import IGNORE, Batch


def collate(store: TokenStore, rows: Sequence[Sequence[int]], pad_id: int, mask_prompt: bool) -> Batch:
    """Rows of documents (indices in `store`), each row's after one another, as wide as the longest row.

    Args:
        store: the documents.
        rows: for each of the B rows its documents; a row without any is all padding.
        pad_id: token that fills short rows; its label is `IGNORE` and its document -1.
        mask_prompt: whether prompt tokens are not learnt.
    """
    documents = np.fromiter(chain.from_iterable(rows), dtype=np.int64)
    row_of = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    lengths = store.offsets[documents + 1] - store.offsets[documents]
    widths = np.bincount(row_of, weights=lengths, minlength=len(rows)).astype(np.int64)
    B, S = len(rows), max(1, int(widths.max()))

    starts = np.cumsum(lengths) - lengths  # of each document among all tokens of the batch
    row_starts = np.cumsum(widths) - widths
    position = np.arange(int(lengths.sum())) - np.repeat(starts, lengths)
    target = position + np.repeat(row_of * S + starts - row_starts[row_of], lengths)
    ids = store.tokens[position + np.repeat(store.offsets[documents], lengths)]
    prompts = store.prompt_lengths[documents] if mask_prompt else np.zeros_like(documents)

    # Padding counts on from the row's last document: a row with one document then needs no attention mask.
    counts = np.bincount(row_of, minlength=len(rows))
    last = np.append(lengths, 0)[np.where(counts, np.cumsum(counts) - 1, -1)]
    padding = np.arange(S) + (last - widths)[:, None]  # what stands before the padding is overwritten below
    flat = {
        "tokens": np.full(B * S, pad_id, dtype=np.int64),
        "labels": np.full(B * S, IGNORE, dtype=np.int64),
        "documents": np.full(B * S, -1, dtype=np.int64),
        "positions": padding.reshape(-1),
    }
    flat["tokens"][target] = ids
    flat["labels"][target] = np.where(position >= np.repeat(prompts, lengths), ids, IGNORE)
    flat["documents"][target] = np.repeat(documents, lengths)
    flat["positions"][target] = position
    return Batch(**{name: torch.as_tensor(values.reshape(B, S)) for name, values in flat.items()})
