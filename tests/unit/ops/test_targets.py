"""Targets of every head, against a loop over tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wmtp.ops.targets import shift_targets
from wmtp.types import IGNORE


def slow_targets(labels: Tensor, documents: Tensor, horizon: int) -> Tensor:
    B, S = labels.shape
    targets = torch.full((B, S, horizon), IGNORE)
    for b in range(B):
        for t in range(S):
            for k in range(1, horizon + 1):
                if t + k < S and documents[b, t] == documents[b, t + k]:
                    targets[b, t, k - 1] = labels[b, t + k]
    return targets


def test_two_documents_a_prompt_and_padding_by_hand() -> None:
    labels = torch.tensor([[IGNORE, IGNORE, 12, 13, 20, 21, IGNORE]])
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, -1]])
    no = IGNORE
    expected = [  # token by token: head 1, head 2, head 3
        [no, 12, 13],
        [12, 13, no],
        [13, no, no],  # the next document's tokens are not predicted from this one
        [no, no, no],
        [21, no, no],
        [no, no, no],
        [no, no, no],
    ]
    assert shift_targets(labels, documents, 3).tolist() == [expected]


@pytest.mark.parametrize("seed", range(20))
def test_random_rows_equal_the_loop(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    B, S, H = (int(torch.randint(1, high, (), generator=random)) for high in (5, 14, 8))
    labels = torch.randint(0, 50, (B, S), generator=random)
    labels[torch.rand(B, S, generator=random) < 0.3] = IGNORE
    documents = (torch.rand(B, S, generator=random) < 0.25).cumsum(1) + 100 * torch.arange(B)[:, None]
    padding = torch.randint(0, S + 1, (B, 1), generator=random) <= torch.arange(S)
    labels[padding], documents[padding] = IGNORE, -1

    targets = shift_targets(labels, documents, H)

    assert targets.dtype == torch.int64
    assert torch.equal(targets, slow_targets(labels, documents, H))


@pytest.mark.parametrize("S", [1, 2, 3])
def test_more_heads_than_tokens(S: int) -> None:
    labels, documents = torch.arange(S)[None] + 7, torch.zeros(1, S, dtype=torch.int64)
    targets = shift_targets(labels, documents, 6)
    assert targets.shape == (1, S, 6)
    assert int((targets != IGNORE).sum()) == S * (S - 1) // 2
    assert torch.equal(targets, slow_targets(labels, documents, 6))


def test_the_mask_follows_the_target_and_not_the_position_that_predicts_it() -> None:
    labels = torch.tensor([[IGNORE, 11, IGNORE, 13, 14]])
    documents = torch.zeros(1, 5, dtype=torch.int64)
    targets = shift_targets(labels, documents, 2)
    assert targets[0, :, 0].tolist() == [11, IGNORE, 13, 14, IGNORE]
    assert targets[0, :, 1].tolist() == [IGNORE, 13, 14, IGNORE, IGNORE]


def test_the_arguments_are_left_as_they_are() -> None:
    labels, documents = torch.arange(12).reshape(2, 6), torch.zeros(2, 6, dtype=torch.int64)
    before = labels.clone()
    shift_targets(labels, documents, 4)[:] = 0
    assert torch.equal(labels, before)
