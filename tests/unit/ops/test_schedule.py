"""The learning rate, against numbers by hand and the schedules of `transformers`."""

from __future__ import annotations

import warnings

import pytest
import torch

from wmtp.ops.schedule import lr_factor


def test_by_hand() -> None:
    assert [lr_factor(s, 10, 4, "constant") for s in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert [lr_factor(s, 8, 4, "linear") for s in range(9)] == [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    # Half a cosine: (1 + cos(pi/2)) / 2 = 1/2 in the middle, (1 + cos(pi/3)) / 2 = 3/4 after a third.
    assert lr_factor(6, 12, 0, "cosine") == pytest.approx(0.5, abs=1e-15)
    assert lr_factor(4, 12, 0, "cosine") == pytest.approx(0.75, abs=1e-15)
    assert lr_factor(0, 12, 0, "cosine") == 1.0


@pytest.mark.parametrize("kind", ["linear", "cosine"])
@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (7, 7), (5, 9), (3, 1)])
def test_bounds_at_odd_lengths(kind: str, total: int, warmup: int) -> None:
    factors = [lr_factor(s, total, warmup, kind) for s in range(total + 5)]  # type: ignore[arg-type]
    assert all(0.0 <= f <= 1.0 for f in factors)
    assert factors[0] > 0.0, "the first update is never wasted"
    assert factors[max(total, warmup) + 1 :] == [0.0] * (total + 4 - max(total, warmup)), "no rise after the end"


@pytest.mark.parametrize("warmup", [0, 5])
@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_equals_transformers_but_for_the_first_step_of_the_warmup(kind: str, warmup: int) -> None:
    from transformers import get_scheduler

    total = 37
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    name = "constant_with_warmup" if kind == "constant" else kind
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    theirs = []
    for _ in range(total + 1):
        theirs.append(scheduler.get_last_lr()[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch wants optimizer.step() in between, which has no bearing on the rate
            scheduler.step()
    ours = [lr_factor(s, total, warmup, kind) for s in range(total + 1)]  # type: ignore[arg-type]
    assert ours[warmup:] == pytest.approx(theirs[warmup:], abs=1e-12)
    # Theirs begins with a rate of 0, an update that does nothing; ours is one step ahead during the warm-up.
    assert ours[:warmup] == pytest.approx([*theirs[1:warmup], 1.0] if warmup else [], abs=1e-12)
