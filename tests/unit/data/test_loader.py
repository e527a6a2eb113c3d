"""The order of the data, and where in it a run is."""

from __future__ import annotations

import numpy as np
import pytest

from wmtp.data import Loader, TokenCounts, TokenStore
from wmtp.data.loader import pack


def make_loader(lengths: list[int], **changes) -> Loader:
    store = TokenStore(
        "key",
        np.arange(sum(lengths), dtype=np.int32),
        np.array([0, *np.cumsum(lengths)], dtype=np.int64),
        np.zeros(len(lengths), dtype=np.int32),
        TokenCounts(len(lengths), len(lengths), sum(lengths), 0, 0, 0),
    )
    settings = {"batch_size": 4, "max_length": 20, "pack": True, "mask_prompt": True, "pad_id": 0, "seed": 1}
    return Loader(store, **(settings | changes))


def documents(batch) -> list[list[int]]:
    """Of each row, in order."""
    return [list(dict.fromkeys(d for d in row if d >= 0)) for row in batch.documents.tolist()]


LENGTHS = np.random.default_rng(0).integers(1, 21, size=101).tolist()


def test_best_fit_by_hand():
    # 6 -> row 0 (4 left); 5 -> row 1 (5 left); 4 -> row 0, which it fills; 3, 2 -> row 1
    assert pack(np.array([6, 5, 4, 3, 2]), np.arange(5), 10) == [[0, 2], [1, 3, 4]]
    # of documents of one length the given order decides
    assert pack(np.array([5, 5, 5]), np.array([2, 0, 1]), 10) == [[2, 0], [1]]


@pytest.mark.parametrize("seed", range(5))
def test_best_fit_against_a_search(seed):
    random = np.random.default_rng(seed)
    capacity = int(random.integers(5, 60))
    lengths = random.integers(1, capacity + 1, size=200)
    free: list[int] = []
    for length in sorted(lengths.tolist(), reverse=True):
        fits = [i for i, space in enumerate(free) if space >= length]
        if fits:
            free[min(fits, key=lambda i: free[i])] -= length
        else:
            free.append(capacity - length)
    rows = pack(lengths, random.permutation(200), capacity)
    assert sorted(capacity - lengths[row].sum() for row in rows) == sorted(free)


def test_batches_are_consecutive_rows_of_the_plan():
    loader = make_loader(LENGTHS)
    plan = loader.plan(3)
    batches = [documents(batch) for batch in loader.batches(3)]
    assert [row for batch in batches for row in batch] == plan
    assert [len(batch) for batch in batches[:-1]] == [4] * (len(batches) - 1)
    assert 1 <= len(batches[-1]) <= 4
    assert len(batches) == loader.batches_per_epoch == -(-len(plan) // 4)


def test_a_step_tells_its_batch_whatever_was_loaded_before():
    loader = make_loader(LENGTHS)
    n = loader.batches_per_epoch
    assert loader.total_batches(3) == 3 * n
    assert [loader.locate(step) for step in (0, n - 1, n, 2 * n + 1)] == [(0, 0), (0, n - 1), (1, 0), (2, 1)]
    straight = [documents(loader.at(step)[1]) for step in range(3 * n)]
    for step in (2 * n + 1, 0, n, n - 1, 3 * n - 1):
        fresh = make_loader(LENGTHS)  # as after a resume
        epochs, batch = fresh.at(step)
        assert documents(batch) == straight[step]
        assert epochs == pytest.approx((step + 1) / n)
    assert loader.at(3 * n - 1)[0] == 3.0


@pytest.mark.parametrize("packed", [True, False])
def test_held_out_data_keeps_one_order(packed):
    loader = make_loader(LENGTHS, shuffle=False, pack=packed)
    assert loader.plan(0) == loader.plan(5) == make_loader(LENGTHS, shuffle=False, pack=packed, seed=9).plan(1)
    if not packed:
        assert loader.plan(0) == [[i] for i in range(len(LENGTHS))]


def test_seed_and_epoch_are_not_interchangeable():
    plans = [make_loader(LENGTHS, seed=seed).plan(epoch) for seed in (0, 1, 2) for epoch in (0, 1, 2)]
    assert all(plans[i] != plans[j] for i in range(9) for j in range(i))
