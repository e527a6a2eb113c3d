"""What happens to one of several processes, and what the others make of it."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.place import TRAIN, same, status, weights
from tests.distributed.ranks import Job, start
from tests.distributed.test_updates import rows, settings

LONG = settings("train.max_steps=3000", "optim.scheduler=constant", "train.num_epochs=1000")
SHORT = settings("devices.distributed={timeout: 4, start_timeout: 60}")


def steps(place: Path, name: str = "small") -> int:
    """How many rows the run has logged."""
    log = place / "runs" / name / "metrics.jsonl"
    return len(log.read_text().splitlines()) if log.is_file() else 0


def under_way(place: Path, job: Job, least: int = 8) -> None:
    deadline = time.monotonic() + 60
    while steps(place) < least:
        assert time.monotonic() < deadline, job.log()
        assert all(rank.is_alive() for rank in job.ranks), job.log() + job.log(1)
        time.sleep(0.02)


def goes_on(place: Path) -> None:
    """The run can be resumed, and ends."""
    newest = max(
        int(path.name[5:]) for path in (place / "runs/small/checkpoints/train").iterdir() if ".tmp" not in path.name
    )
    more = (
        "--set",
        f"train.max_steps={newest + 4}",
        "--resume",
        "auto",
        "--allow-change",
        "--set",
        "train.num_epochs=1000",
    )
    job = start(place, 2, *TRAIN, "--set", "optim.scheduler=constant", *more)
    assert job.wait() == [0, 0], job.log()
    assert f"resuming stage train at step {newest}" in job.log()


@pytest.mark.parametrize("told", [(), (0,), (1,)], ids=["all", "rank 0", "rank 1"])
def test_sigterm_saves_the_same_step_everywhere(place: Path, told: tuple[int, ...]) -> None:
    job = start(place, 2, *TRAIN, *LONG)
    under_way(place, job)
    job.send(signal.SIGTERM, *told)
    job.send(signal.SIGTERM, *told)  # as from a launcher and a scheduler; it is one request
    asked = time.monotonic()
    assert job.wait() == [75, 75], job.log() + job.log(1)
    assert time.monotonic() - asked < 30
    ended = status(place)
    assert ended["state"] == "preempted"
    state = json.loads((Path(str(ended["checkpoint"])) / "run_state.json").read_text())
    assert state["progress"]["step"] == ended["step"]
    assert "go on with: --resume auto" in job.log()
    goes_on(place)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_job_and_is_named(place: Path, rank: int) -> None:
    job = start(place, 2, *TRAIN, *LONG)
    under_way(place, job)
    job.send(signal.SIGKILL, rank)
    killed = time.monotonic()
    time.sleep(0.1)
    job.send(signal.SIGTERM, 1 - rank)  # so does a launcher; that is not why the run ends
    codes = job.wait()
    assert time.monotonic() - killed < 60
    assert codes[rank] == -signal.SIGKILL
    assert codes[1 - rank] == 4
    assert f"process {rank} of the run's 2 is gone or does not answer" in job.log(1 - rank)
    assert "Traceback" not in job.log(1 - rank)
    assert status(place)["state"] == "failed"
    assert f"process {rank}" in str(status(place)["reason"])
    goes_on(place)


def test_when_the_launcher_is_killed_its_processes_save_and_leave(place: Path) -> None:
    """They would hold the GPUs and the run's lock for nobody."""
    command = [sys.executable, "-m", "wmtp", *TRAIN, *LONG, "--nproc", "2"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "WMTP_CACHE": str(place / "cache")}
    launcher = subprocess.Popen(command, cwd=place, env=env)
    deadline = time.monotonic() + 120
    while steps(place) < 8:
        assert time.monotonic() < deadline
        assert launcher.poll() is None
        time.sleep(0.05)
    launcher.kill()
    launcher.wait()
    deadline = time.monotonic() + 30
    while status(place)["state"] == "running":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert status(place)["state"] == "preempted"
    assert status(place)["reason"] == "end of the launcher"
    time.sleep(2)  # they are nobody's children now, and can't be waited for
    goes_on(place)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_hangs_ends_the_job_after_the_timeout_and_is_named(place: Path, rank: int) -> None:
    job = start(place, 2, *TRAIN, *LONG, *SHORT)
    under_way(place, job)
    job.send(signal.SIGSTOP, rank)
    stopped = time.monotonic()
    codes = job.wait(hear=0)
    assert time.monotonic() - stopped < 60
    assert codes[1 - rank] == 4, job.log(1 - rank)
    assert f"process {rank} of the run's 2 is gone or does not answer" in job.log(1 - rank)
    goes_on(place)


def test_a_job_that_was_stopped_as_a_whole_goes_on(place: Path) -> None:
    """As by a scheduler that suspends it, or a laptop that sleeps: nobody was waited for in vain."""
    job = start(place, 2, *TRAIN, *LONG, *SHORT)
    under_way(place, job)
    job.send(signal.SIGSTOP)
    time.sleep(10)
    job.send(signal.SIGCONT)
    under_way(place, job, steps(place) + 20)
    time.sleep(6)  # the clock would have struck by now
    assert all(rank.is_alive() for rank in job.ranks), job.log() + job.log(1)
    job.send(signal.SIGTERM)
    assert job.wait() == [75, 75], job.log() + job.log(1)


def slow_cache(rank: int, *, seconds: float) -> None:
    """Process 0 takes its time to tokenise; below zero it stops for good."""
    from wmtp import assemble

    original = assemble.documents

    def documents(*args: Any) -> Any:
        if seconds < 0:
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(seconds)
        return original(*args)

    if rank == 0:
        assemble.documents = documents


def test_a_cache_may_take_longer_than_the_timeout_to_fill(place: Path) -> None:
    words = [*TRAIN, *settings("devices.distributed.start_timeout=4", "train.max_steps=2")]
    job = start(place, 2, *words, prepare=partial(slow_cache, seconds=9))
    assert job.wait() == [0, 0], job.log() + job.log(1)


def test_a_process_that_stops_while_it_fills_a_cache_is_named(place: Path) -> None:
    words = [*TRAIN, *settings("devices.distributed.start_timeout=4", "train.max_steps=2")]
    job = start(place, 2, *words, prepare=partial(slow_cache, seconds=-1))
    assert job.wait(60, hear=0)[1] == 4, job.log(1)
    assert "process 0 of the run's 2 is gone or does not answer" in job.log(1)
    assert not (place / "runs/small/status.json").exists(), "the run had not begun"


def stops_in_its_last_save(rank: int) -> None:
    from wmtp.training import checkpoint

    def hash_files(files: Any) -> Any:
        os.kill(os.getpid(), signal.SIGSTOP)

    if rank == 1:
        checkpoint.hash_files = hash_files


def test_a_process_that_stops_in_the_last_save_is_named(place: Path) -> None:
    """Where no step is waited for, it is known by its silence."""
    job = start(place, 2, *TRAIN, *SHORT, *settings("train.max_steps=2"), prepare=stops_in_its_last_save)
    codes = job.wait(60, hear=0)
    assert codes[0] == 4, job.log()
    assert "process 1 of the run's 2 is gone or does not answer" in job.log()
    assert status(place)["state"] == "failed"


def broken_on(rank: int, *, target: int, change: Callable[[dict[str, Any]], None]) -> None:
    """On process `target`, from its sixth update on, `change` the metrics that the objective gives."""
    from wmtp.objectives import WeightedMTP

    original, calls = WeightedMTP.__call__, 0

    def patched(self: WeightedMTP, model: Any, batch: Any) -> Any:
        nonlocal calls
        output = original(self, model, batch)
        calls += torch.is_grad_enabled()
        if rank == target and calls > 5 and torch.is_grad_enabled():
            change(output.metrics)
        return output

    WeightedMTP.__call__ = patched  # type: ignore[method-assign]


def nan_loss(metrics: dict[str, Any]) -> None:
    metrics["loss"] = metrics["loss"] * math.nan


def no_loss(metrics: dict[str, Any]) -> None:
    del metrics["loss_h2"]


@pytest.mark.parametrize("target", [0, 1])
def test_nan_on_one_process_ends_all_before_the_update(place: Path, target: int) -> None:
    job = start(place, 2, *TRAIN, prepare=partial(broken_on, target=target, change=nan_loss))
    assert job.wait() == [3, 3], job.log() + job.log(1)
    assert "loss not finite; this update was not made" in job.log()
    assert f"documents process {target}:" in job.log()
    assert "loss_h1" in job.log(), "the losses of all heads are told"
    assert [row["step"] for row in rows(place, "small")] == [0, 1, 2, 3, 4, 5]
    assert status(place)["state"] == "failed"
    goes_on(place)


def test_a_metric_missing_on_one_process_holds_nobody_up(place: Path) -> None:
    job = start(place, 2, *TRAIN, prepare=partial(broken_on, target=1, change=no_loss))
    assert job.wait() == [0, 0], job.log() + job.log(1)
    assert all(math.isfinite(row["loss_h2"]) for row in rows(place, "small")[1:])


def slow_loader(rank: int) -> None:
    from wmtp.data import Loader

    original = Loader.at

    def at(self: Loader, step: int) -> Any:
        time.sleep(0.5 * (rank == 1))
        return original(self, step)

    Loader.at = at  # type: ignore[method-assign]


def test_a_slow_process_is_named(place: Path) -> None:
    job = start(place, 2, *TRAIN, "--set", "train.max_steps=12", prepare=slow_loader)
    assert job.wait() == [0, 0], job.log()
    assert "all wait for process 1" in job.log()


def failing_disk(rank: int, *, target: int, times: int) -> None:
    """On process `target`, the first `times` checkpoints can't be hashed: the disk gives an error."""
    from wmtp.training import checkpoint

    original, calls = checkpoint.hash_files, 0

    def hash_files(files: Any) -> Any:
        nonlocal calls
        calls += 1
        if rank == target and calls <= times:
            raise OSError(28, "No space left on device")
        return original(files)

    checkpoint.hash_files = hash_files


@pytest.mark.parametrize("target", [0, 1])
def test_a_save_that_fails_on_one_process_is_told_and_training_goes_on(place: Path, target: int) -> None:
    whole = start(place, 2, *TRAIN, "--run-name", "whole")
    assert whole.wait() == [0, 0]
    job = start(place, 2, *TRAIN, prepare=partial(failing_disk, target=target, times=2))
    assert job.wait() == [0, 0], job.log() + job.log(1)
    assert job.log().count(f"is not saved, training goes on: {place}") == 2
    assert f"process {target}: [Errno 28] No space left on device" in job.log()
    assert same(weights(place), weights(place, "whole"))
    assert not list((place / "runs/small/checkpoints/train").glob("*.tmp-*"))


def full_disk(rank: int) -> None:
    """Process 1 can't write a file of more than 4 kB; the system says so in the middle of a shard."""
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


def test_what_the_disk_says_on_another_process_is_told(place: Path) -> None:
    job = start(place, 2, *TRAIN, *settings("train.max_steps=4"), prepare=full_disk)
    job.wait()
    assert "process 1: [Errno 27] File too large" in job.log()
    assert "Traceback" not in job.log()
    assert not list((place / "runs/small/checkpoints/train").glob("*"))


def no_room(rank: int) -> None:
    """Process 0 can't write a file of more than 4 kB."""
    full_disk(1 - rank)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_disk_full_for_everything_ends_the_run_with_a_line(place: Path, ranks: int) -> None:
    job = start(place, ranks, *TRAIN, *settings("train.save_interval=1000"), prepare=no_room)
    assert job.wait()[0] == 2, job.log()
    assert "metrics.jsonl can't be written, its rows wait in memory: [Errno 27] File too large" in job.log()
    assert "train 30/30" in job.log(), "training went on"
    assert "the checkpoint can't be written" in job.log()
    assert "Traceback" not in job.log() + job.log(ranks - 1)
    assert status(place)["state"] == "failed"


def test_the_end_of_an_earlier_run_is_not_taken_for_this_ones(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wmtp import job
    from wmtp.settings import load_settings

    monkeypatch.chdir(place)
    found = load_settings(Path("recipe.yaml"), Path("config.yaml"), ["devices.num_proc=2"])
    run = place / "runs/small"
    run.mkdir(parents=True)
    (run / "status.json").write_text('{"state": "finished"}')
    monkeypatch.setattr(job, "launch", lambda words, processes: 143)  # SIGTERM came before it had begun
    assert job.train_in_processes(found, ["train"]) == 143

    def preempted(words: object, processes: int) -> int:
        (run / "status.json").write_text('{"state": "preempted"}')
        return 143

    monkeypatch.setattr(job, "launch", preempted)
    assert job.train_in_processes(found, ["train"]) == 75


def test_the_third_failed_save_in_a_row_ends_the_run(place: Path) -> None:
    job = start(place, 2, *TRAIN, prepare=partial(failing_disk, target=1, times=100))
    assert job.wait()[0] == 2, job.log()
    assert "earlier checkpoints are as they were" in job.log()
    assert "Traceback" not in job.log()
    assert steps(place) < 30
    assert status(place)["state"] == "failed"


def slow_disk(rank: int) -> None:
    from wmtp.training import checkpoint

    original = checkpoint.hash_files

    def hash_files(files: Any) -> Any:
        time.sleep(1.5 * (rank == 1))
        return original(files)

    checkpoint.hash_files = hash_files


def test_a_checkpoint_is_left_out_while_the_one_before_is_being_written(place: Path) -> None:
    job = start(
        place, 2, *TRAIN, *settings("devices.distributed={save_wait: 0.2}", "train.max_steps=29"), prepare=slow_disk
    )
    codes = job.wait()
    assert "is not saved: the checkpoint before it is still being written" in job.log()
    # The last one has to be saved, and can't wait for longer than it may.
    assert codes[0] in (0, 2), job.log()
    assert "Traceback" not in job.log()


def test_killed_while_the_last_words_are_written(place: Path) -> None:
    """As by torchrun, 30 s after SIGTERM: the checkpoint before is the one that counts."""
    job = start(place, 2, *TRAIN, *LONG, prepare=slow_disk)
    under_way(place, job, 10)
    before = {path.name for path in (place / "runs/small/checkpoints/train").glob("step-????????")}
    job.send(signal.SIGTERM)
    deadline = time.monotonic() + 30
    while "launchers such as torchrun wait 30 seconds for it" not in job.log():
        assert time.monotonic() < deadline, job.log()
        time.sleep(0.01)
    job.kill()
    after = {path.name for path in (place / "runs/small/checkpoints/train").glob("step-????????")}
    assert len(after) <= len(before) + 1
    goes_on(place)


def test_a_run_that_was_moved_to_a_place_with_spaces_goes_on(place: Path) -> None:
    job = start(place, 2, *TRAIN, *LONG)
    under_way(place, job)
    job.kill()
    moved = place.with_name(f"{place.name} ü é")
    place.rename(moved)
    goes_on(moved)


def test_of_two_jobs_on_one_run_the_second_ends_at_once(place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    job = start(place, 2, *TRAIN, *LONG)
    under_way(place, job)
    elsewhere = tmp_path_factory.mktemp("second") / "place"
    shutil.copytree(place, elsewhere, symlinks=True, ignore=shutil.ignore_patterns("runs"))
    second = start(elsewhere, 2, *TRAIN, *LONG, "--set", f"paths.output={place / 'runs'}", "--resume", "auto")
    assert second.wait() == [2, 4], "the other one is not waited for"
    assert "another process is at work on this run" in second.log()
    assert "Traceback" not in second.log() + second.log(1)
    assert all(rank.is_alive() for rank in job.ranks)
    assert status(place)["state"] == "running"


def test_a_launcher_that_says_half_of_it_is_a_mistake(place: Path) -> None:
    env = {**os.environ, "WORLD_SIZE": "2", "RANK": "0", "WMTP_CACHE": str(place / "cache")}
    done = subprocess.run([sys.executable, "-m", "wmtp", *TRAIN], cwd=place, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: WORLD_SIZE is set, but not LOCAL_RANK, LOCAL_WORLD_SIZE: use torchrun")
    assert "Traceback" not in done.stderr


def test_a_mistake_that_one_process_finds_is_told_before_its_launcher_ends_it() -> None:
    """A launcher ends all as soon as one has: a neighbour, after `NOTICE`."""
    from wmtp import cli
    from wmtp.training import distributed

    assert cli.ECHO < distributed.NOTICE
