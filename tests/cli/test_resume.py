"""A run may be cut off anywhere; what it hands on is bit for bit what an undisturbed run hands on."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.conftest import Bench
from wmtp import assemble, job
from wmtp.training import checkpoint, loop, run, tracking

Same = Callable[[dict[str, torch.Tensor], dict[str, torch.Tensor]], bool]
STOPPING = (
    "--set",
    "train.early_stopping={enabled: true, monitor: eval_loss, patience: 30, restore_best: true}",
)


class KilledError(BaseException):
    """Stands for `kill -9` at a place that the test chooses; nothing catches it."""


PLACES: list[tuple[Any, str]] = [
    (loop, "train_step"),
    (loop, "evaluate"),
    (run.Run, "record"),
    (run.Run, "save"),
    (checkpoint, "_write"),
    (checkpoint, "_delete"),
    (checkpoint, "sync_folder"),
    (tracking.MetricsFile, "append"),
    (assemble, "documents"),
    (assemble, "save_model"),
    (job, "write_report"),
]


def kill_at(monkeypatch: pytest.MonkeyPatch, place: tuple[Any, str], call: int, *, after: bool) -> None:
    """The `call`-th call of a function dies, before or after its work."""
    owner, name = place
    original, calls = getattr(owner, name), 0

    def dying(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            raise KilledError
        result = original(*args, **kwargs)
        if calls == call:
            raise KilledError
        return result

    monkeypatch.setattr(owner, name, dying)


def logged(bench: Bench, name: str) -> list[dict[str, float]]:
    """Rows of the log without what depends on the clock."""
    clock = {"time", "seconds"}
    return [{key: value for key, value in row.items() if key not in clock} for row in bench.rows(name)]


def test_killed_anywhere_and_resumed(bench: Bench, monkeypatch: pytest.MonkeyPatch, same_weights: Same) -> None:
    """Every place, several moments, before and after: weights, log and summary as undisturbed."""
    assert bench.train("--run-name", "whole", *STOPPING).code == 0
    choose, killed = random.Random(0), 0
    for place in PLACES:
        name = f"{place[1].strip('_')}"
        for _ in range(2):
            with monkeypatch.context() as patched:
                kill_at(patched, place, choose.randint(1, 4), after=choose.random() < 0.5)
                try:
                    bench.train("--run-name", name, *STOPPING, "--resume", "auto")
                except KilledError:
                    killed += 1
        assert bench.train("--run-name", name, *STOPPING, "--resume", "auto").code == 0
        assert same_weights(bench.weights(name), bench.weights("whole")), place
        assert logged(bench, name) == logged(bench, "whole"), place
        ours, whole = (bench.json("summary.json", n)["train"] for n in (name, "whole"))
        for key in ("total_steps", "stop_reason", "final_loss", "tokens", "best_step", "best_value", "first", "last"):
            assert ours[key] == whole[key], (place, key)
    assert killed > len(PLACES)


def test_sigterm_saves_and_says_75(bench: Bench, same_weights: Same) -> None:
    assert bench.train("--run-name", "whole").code == 0
    process = bench.start()
    log = bench.folder / "runs" / "small" / "metrics.jsonl"
    wait_for(lambda: log.is_file() and log.stat().st_size > 0)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 75, error
    assert "--resume auto" in error
    status = bench.json("status.json")
    assert (status["state"], status["reason"]) == ("preempted", "SIGTERM")
    assert Path(str(status["checkpoint"])).is_dir()
    assert bench.train("--resume", "auto").code == 0
    assert same_weights(bench.weights(), bench.weights("whole"))


def test_kill_9_and_the_lock(bench: Bench, same_weights: Same) -> None:
    """A process killed for real leaves no lock and a run that goes on; a second process on a live run is refused."""
    assert bench.train("--run-name", "whole").code == 0
    process = bench.start()
    log = bench.folder / "runs" / "small" / "metrics.jsonl"
    wait_for(lambda: log.is_file() and log.stat().st_size > 0)
    second = bench.train("--resume", "auto")
    assert second.code == 2
    assert str(process.pid) in second.err
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert bench.train("--resume", "auto").code == 0
    assert same_weights(bench.weights(), bench.weights("whole"))


def test_a_flipped_bit_is_named_and_the_checkpoint_before_used(bench: Bench, same_weights: Same) -> None:
    assert bench.train().code == 0
    whole = bench.weights()
    saved = sorted((bench.folder / "runs" / "small" / "checkpoints" / "train").iterdir())
    assert [entry.name for entry in saved] == ["step-00000008", "step-00000010", "step-00000012"]
    [victim] = saved[-1].glob("*.distcp")
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 4
    victim.write_bytes(data)
    again = bench.train("--resume", "auto")
    assert again.code == 0, again.err
    assert victim.name in again.err
    assert "step-00000012" in again.err
    assert "resuming stage train at step 10" in again.err
    assert same_weights(bench.weights(), whole)


def test_going_back_to_a_named_checkpoint(bench: Bench, same_weights: Same) -> None:
    assert bench.train().code == 0
    whole = bench.weights()
    again = bench.train("--resume", "runs/small/checkpoints/train/step-00000008")
    assert again.code == 0, again.err
    assert "at step 8" in again.err
    assert same_weights(bench.weights(), whole)
    assert [row["step"] for row in bench.rows()] == list(range(13))


def test_a_changed_recipe_is_refused_with_a_diff(bench: Bench) -> None:
    assert bench.train().code == 0
    refused = bench.train("--resume", "auto", "--set", "optim.lr=0.5", "--set", "model.horizon=3")
    assert refused.code == 2
    assert "optim.lr: 0.001 -> 0.5" in refused.err
    assert "model.horizon: 2 -> 3" in refused.err
    assert bench.train("--resume", "auto", "--set", "log_interval=1", "--set", "run.tags=[x]").code == 0
    longer = bench.train("--resume", "auto", "--set", "train.max_steps=14", "--allow-change")
    assert longer.code == 0, longer.err
    assert bench.json("summary.json")["train"]["total_steps"] == 14


def test_changed_data_is_refused(bench: Bench) -> None:
    assert bench.train().code == 0
    file = bench.folder / "data" / "train.jsonl"
    file.write_text(file.read_text().replace("add 7", "plus 7"))
    refused = bench.train("--resume", "auto")
    assert refused.code == 2
    assert "other data" in refused.err
    saved = bench.folder / "runs" / "small" / "checkpoints" / "train"
    assert bench.train("--resume", "runs/small/checkpoints/train/step-00000008").code == 2
    assert [entry.name for entry in sorted(saved.iterdir())][-1] == "step-00000012", "a refusal deletes nothing"
    assert bench.train("--resume", "auto", "--allow-change").code == 0


def test_a_run_is_not_overwritten(bench: Bench) -> None:
    assert bench.train().code == 0
    refused = bench.train()
    assert refused.code == 2
    assert "--resume auto" in refused.err


def test_a_stopped_run_trains_on_only_if_told(bench: Bench) -> None:
    stop = ("--set", "train.early_stopping={enabled: true, monitor: loss, patience: 1, min_delta: 100}")
    assert bench.train(*stop).code == 0
    stage = bench.json("summary.json")["train"]
    assert (stage["total_steps"], stage["stop_reason"]) == (2, "converged")
    assert bench.train(*stop, "--resume", "auto").code == 0
    assert bench.json("summary.json")["train"]["total_steps"] == 2
    assert bench.train(*stop, "--resume", "auto", "--continue-stopped").code == 0
    assert bench.json("summary.json")["train"]["total_steps"] == 4


def test_a_reached_limit_holds_though_told_to_continue(bench: Bench) -> None:
    assert bench.train().code == 0
    assert bench.train("--resume", "auto", "--continue-stopped").code == 0
    stage = bench.json("summary.json")["train"]
    assert (stage["total_steps"], stage["stop_reason"]) == (12, "max_steps")


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_changed_stopping_settings_are_taken_and_said(bench: Bench) -> None:
    """In a process of its own: pytest turns warnings into errors."""
    stop = "train.early_stopping={enabled: true, monitor: eval_loss, patience: PATIENCE}"
    assert bench.train("--set", stop.replace("PATIENCE", "50"), "--set", "train.max_steps=6").code == 0
    again = bench.start("--resume", "auto", "--set", stop.replace("PATIENCE", "40"), "--set", "train.max_steps=6")
    _, error = again.communicate(timeout=60)
    assert again.returncode == 0, error
    assert "\nwarning: early-stopping settings have changed" in error
    assert "patience 50 -> 40" in error
