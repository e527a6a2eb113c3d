"""Saved by some processes, resumed by more or fewer: the same state, and the data goes on where it was."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.distributed.place import TRAIN, weights
from tests.distributed.ranks import start
from tests.distributed.test_updates import rows, settings
from wmtp.training.checkpoint import newest_valid
from wmtp.training.tensor_files import read_tensors

SGD = settings("optim={optimizer: sgd, lr: 0.05, scheduler: constant}")
HALF = settings("train.max_steps=12")


def silent(text: str) -> None:
    raise AssertionError(text)


def loaded_and_saved_again(rank: int, *, root: Path, again: Path) -> None:
    """Read the newest checkpoint into the pieces of this process, and save them elsewhere."""
    from wmtp.model import load_model, model_skeleton
    from wmtp.training.checkpoint import save
    from wmtp.training.distributed import join_world
    from wmtp.training.optim import like_parameters, load_tensors_into, make_optimizer, tensors_of
    from wmtp.training.sharding import Sharding, spread

    cpu = torch.device("cpu")
    with join_world(cpu, "gloo", 60) as world:
        whole = load_model("model", horizon=2, head="residual") if world.main else None
        if world.size > 1:
            model = model_skeleton("model", horizon=2, head="residual")
            spread(model, whole, world, cpu, Sharding())
        else:
            assert whole is not None
            model = whole
        optimizer = make_optimizer(model, "adamw", lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95))
        found = newest_valid(root, silent, world)
        assert found is not None
        load_tensors_into(model, optimizer, read_tensors(found.path, like=like_parameters(model)))
        save(again, found.step, tensors_of(model, optimizer), found.run_state, say=silent, world=world)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 4), pytest.param(4, 3, marks=pytest.mark.slow)])
def test_weights_and_optimizer_are_the_same_bits(place: Path, before: int, after: int) -> None:
    """3 divides no vocabulary of 1,024 tokens, 4 no width of 66 or 130."""
    job = start(place, before, *TRAIN, *HALF)
    assert job.wait() == [0] * before, job.log()
    root, again = place / "runs/small/checkpoints/train", place / "again"
    reader = start(place, after, prepare=partial(loaded_and_saved_again, root=root, again=again))
    assert reader.wait() == [0] * after, reader.log()
    was, now = (newest_valid(folder, silent) for folder in (root, again))
    assert was is not None
    assert now is not None
    (ours, theirs) = (read_tensors(one.path) for one in (now, was))
    assert ours.keys() == theirs.keys() == {"model", "optimizer"}
    for group, some in theirs.items():
        assert ours[group].keys() == some.keys()
        assert all(torch.equal(ours[group][name], value) for name, value in some.items())
        assert len(some) > 10


@pytest.mark.parametrize(("before", "after"), [(2, 1), (2, 4), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_the_run_goes_on_as_if_nothing_had_happened(place: Path, before: int, after: int) -> None:
    whole = start(place, 1, *TRAIN, *SGD, "--run-name", "whole", "--set", "train.max_steps=24")
    assert whole.wait() == [0], whole.log()
    first = start(place, before, *TRAIN, *SGD, *HALF)
    assert first.wait() == [0] * before, first.log()
    more = ("--set", "train.max_steps=24", "--resume", "auto", "--allow-change")
    second = start(place, after, *TRAIN, *SGD, *more)
    assert second.wait() == [0] * after, second.log()
    assert "resuming stage train at step 12" in second.log()
    for name, weight in weights(place).items():
        assert float((weight - weights(place, "whole")[name]).abs().max()) <= 1e-6, name
    seen = [[row["tokens"] for row in rows(place, name)] for name in ("small", "whole")]
    assert seen[0] == seen[1]
    assert json.loads((place / "runs/small/summary.json").read_text())["train"]["total_steps"] == 24
