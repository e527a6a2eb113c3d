"""The whole job killed again and again: what it hands on is bit for bit what an undisturbed one hands on."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from tests.distributed.place import TRAIN, same, status, weights
from tests.distributed.ranks import start


def killed_until_done(place: Path, kills: int, seconds: float, seed: int) -> int:
    """Start and kill at random moments up to `seconds`, at most `kills` times, then let it end; the number of kills."""
    choose, killed = random.Random(seed), 0
    for _ in range(kills):
        job = start(place, 2, *TRAIN, "--resume", "auto")
        moment = time.monotonic() + choose.uniform(0.2, seconds)
        while time.monotonic() < moment and any(rank.is_alive() for rank in job.ranks):
            time.sleep(0.01)
        killed += any(rank.is_alive() for rank in job.ranks)
        job.kill()
    last = start(place, 2, *TRAIN, "--resume", "auto")
    assert last.wait() == [0, 0], last.log()
    return killed


@pytest.mark.parametrize(
    ("kills", "steps"), [(4, 90), pytest.param(50, 4000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_random_kills_of_both_processes(place: Path, kills: int, steps: int) -> None:
    recipe = (place / "recipe.yaml").read_text()
    (place / "recipe.yaml").write_text(recipe.replace("max_steps: 30", f"max_steps: {steps}"))
    start(place, 1).wait()  # the first one waits for imports, which no other does
    began = time.monotonic()
    whole = start(place, 2, *TRAIN, "--run-name", "whole")
    while not (place / "runs/whole/metrics.jsonl").is_file():
        assert time.monotonic() < began + 60, whole.log()
        time.sleep(0.01)
    before = time.monotonic() - began
    assert whole.wait(600) == [0, 0], whole.log()
    training = json.loads((place / "runs/whole/summary.json").read_text())["train"]["seconds"]
    # All of them together get through little more than half of the steps, however fast the machine is.
    killed = killed_until_done(place, kills, before + 1.2 * training / kills, seed=0)
    assert killed == kills
    assert same(weights(place), weights(place, "whole"))
    assert status(place)["state"] == "finished"
    assert not list((place / "runs/small/checkpoints").glob("*/*.tmp-*")), "nothing is left over"
