"""What holds of every plan: each document once, no row too long, the same for the same seed and epoch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wmtp.data import Loader, TokenCounts, TokenStore


def make_loader(lengths: list[int], max_length: int, pack: bool, seed: int, shuffle: bool = True) -> Loader:
    offsets = np.array([0, *np.cumsum(lengths)], dtype=np.int64)
    count = len(lengths)
    tokens, prompts = np.zeros(sum(lengths), dtype=np.int32), np.zeros(count, dtype=np.int32)
    store = TokenStore("key", tokens, offsets, prompts, TokenCounts(count, count, sum(lengths), 0, 0, 0))
    return Loader(store, 3, max_length, pack, mask_prompt=True, pad_id=0, seed=seed, shuffle=shuffle)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), pack=st.booleans(), shuffle=st.booleans(), seed=st.integers(0, 2**32))
def test_plan(data, pack, shuffle, seed):
    max_length = data.draw(st.integers(1, 50))
    lengths = data.draw(st.lists(st.integers(1, max_length), min_size=1, max_size=60))
    loader = make_loader(lengths, max_length, pack, seed, shuffle)
    again = make_loader(lengths, max_length, pack, seed, shuffle)
    for epoch in (0, 1, 7):
        plan = loader.plan(epoch)
        assert sorted(document for row in plan for document in row) == list(range(len(lengths)))
        assert all(row and sum(lengths[document] for document in row) <= max_length for row in plan)
        assert plan == again.plan(epoch)
        assert len(plan) == len(loader.plan(0))  # so steps and epochs convert without a table
    tokens = sum(int((batch.documents >= 0).sum()) for batch in loader.batches(1))
    assert tokens == sum(lengths)


@pytest.mark.parametrize("pack", [True, False])
def test_epochs_and_seeds_differ(pack):
    lengths = np.random.default_rng(0).integers(1, 100, size=300).tolist()
    plans = [make_loader(lengths, 100, pack, seed).plan(epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len({str(plan) for plan in plans}) == 6
    # not only the order of the rows: which documents share a row changes too, where lengths allow
    if pack:
        assert len({str(sorted(map(sorted, plan))) for plan in plans}) == 6


@pytest.mark.parametrize("shape", ["uniform", "log-normal", "short"])
def test_rows_are_full(shape):
    random = np.random.default_rng(1)
    lengths = {
        "uniform": random.integers(1, 2049, size=3000),
        "log-normal": np.clip(random.lognormal(5, 1, size=3000), 2, 2048).astype(int),
        "short": random.integers(20, 300, size=3000),
    }[shape]
    rows = make_loader(lengths.tolist(), 2048, True, 0).plan(0)
    assert lengths.sum() / (len(rows) * 2048) >= 0.95
