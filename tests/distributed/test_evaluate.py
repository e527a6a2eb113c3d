"""An evaluation shared by processes: the scores and programs of one, and nothing judged twice after a kill."""

from __future__ import annotations

import json
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.place import TRAIN, status
from tests.distributed.ranks import Job, start
from tests.distributed.test_updates import settings

EVAL = [
    *(word for word in TRAIN if word != "--no-eval"),
    *settings(
        "eval={metrics: [custom_pass@1, custom_exact], before: true, max_new_tokens: 24, sampling: {n: 3}}",
        "eval.sampling.temperature=0.8",
        "train.max_steps=2",
    ),
]
PROBLEMS, SAMPLES = 5, 3


@pytest.fixture
def tested(place: Path) -> Path:
    """`place`, with five problems: 15 programs, which don't divide by 2 nor by 4."""
    rows = [
        {
            "prompt": f"# add {n}\n",
            "response": f"def f(x):\n    return x + {n}\n",
            "test_list": [f"assert f(1) == {n + 1}"],
        }
        for n in range(200, 200 + PROBLEMS)
    ]
    (place / "data" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def programs(place: Path, name: str, file: str = "samples.jsonl") -> dict[str, dict[str, Any]]:
    """Rows by key; each key once."""
    path = place / "runs" / name / file
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    assert len({row["key"] for row in rows}) == len(rows)
    return {row["key"]: row for row in rows}


def result(place: Path, name: str, file: str) -> dict[str, Any]:
    return json.loads((place / "runs" / name / file).read_text())


def slow_judge(rank: int, *, seconds: float = 0.3) -> None:
    from wmtp.evaluate import run

    original = run.judge_one

    def judge_one(*args: Any) -> Any:
        time.sleep(seconds)
        return original(*args)

    run.judge_one = judge_one


def slow_judge_of_one(rank: int, *, target: int) -> None:
    slow_judge(rank, seconds=2.0 * (rank == target))


def wait_for_rows(place: Path, job: Job, *, ranks: int) -> None:
    """Until every process has written some programs."""
    files = ["samples.jsonl", *(f"samples.process-{rank}.jsonl" for rank in range(1, ranks))]
    deadline = time.monotonic() + 60
    while not all(
        (place / "runs/small" / file).is_file() and (place / "runs/small" / file).stat().st_size for file in files
    ):
        assert time.monotonic() < deadline, job.log()
        time.sleep(0.01)


def test_scores_and_programs_are_those_of_one_process(tested: Path) -> None:
    for name, ranks in (("one", 1), ("many", 2)):
        job = start(tested, ranks, *EVAL, "--run-name", name)
        assert job.wait() == [0] * ranks, job.log() + job.log(ranks - 1)
    # Before training the weights are the same bits, and so is every program.
    one, many = (result(tested, name, "eval_before.json") for name in ("one", "many"))
    assert many["model"]["weights_sha256"] == one["model"]["weights_sha256"]
    for task in (one["tasks"][0], many["tasks"][0]):
        del task["seconds"]
    assert many["tasks"] == one["tasks"]
    (ours, theirs) = (
        {k: row | {"seconds": 0} for k, row in programs(tested, name).items()} for name in ("many", "one")
    )
    before = {key for key, row in theirs.items() if key in ours}
    assert {key: ours[key] for key in before} == {key: theirs[key] for key in before}
    assert len(before) == PROBLEMS * SAMPLES
    assert len({row["completion"] for row in ours.values()}) > PROBLEMS, "they are not all alike"
    assert len(ours) == len(theirs) == 2 * PROBLEMS * SAMPLES, "before and after"
    assert result(tested, "many", "eval.json")["tasks"][0]["samples"] == {
        "file": "samples.jsonl",
        "rows": 15,
        "reused": 0,
    }
    assert not list((tested / "runs/many").glob("samples.process-*"))


@pytest.mark.parametrize(("ranks", "after"), [(2, 2), (2, 1)])
def test_killed_in_the_middle_what_all_have_written_is_used_again(tested: Path, ranks: int, after: int) -> None:
    job = start(tested, ranks, *EVAL, prepare=slow_judge)
    wait_for_rows(tested, job, ranks=ranks)
    job.kill()
    written = programs(tested, "small") | programs(tested, "small", "samples.process-1.jsonl")
    assert len(written) < PROBLEMS * SAMPLES
    job = start(tested, after, *EVAL, "--resume", "auto")
    assert job.wait() == [0] * after, job.log()
    now = programs(tested, "small")
    assert {key: now[key] for key in written} == written, "to the microsecond that judging took"
    assert len(now) == 2 * PROBLEMS * SAMPLES
    assert result(tested, "small", "eval_before.json")["tasks"][0]["samples"]["reused"] == len(written)
    assert not list((tested / "runs/small").glob("samples.process-*"))


@pytest.mark.parametrize("told", [0, 1])
def test_sigterm_while_programs_are_judged(tested: Path, told: int) -> None:
    job = start(tested, 2, *EVAL, prepare=partial(slow_judge, seconds=0.5))
    wait_for_rows(tested, job, ranks=2)
    job.send(signal.SIGTERM, told)
    job.ranks[told].join(30)
    job.send(signal.SIGTERM, 1 - told)  # a launcher ends the others when one has left
    assert job.wait() == [75, 75], job.log() + job.log(1)
    assert "Traceback" not in job.log() + job.log(1)
    assert status(tested)["state"] == "preempted"
    job = start(tested, 2, *EVAL, "--resume", "auto")
    assert job.wait() == [0, 0], job.log()
    assert status(tested)["state"] == "finished"


def test_sigterm_to_one_that_waits_for_the_other(tested: Path) -> None:
    """Process 0 has judged its part and waits for process 1, which leaves: that is no failure."""
    job = start(tested, 2, *EVAL, prepare=partial(slow_judge_of_one, target=1))
    samples = tested / "runs/small/samples.jsonl"
    deadline = time.monotonic() + 60
    while not samples.is_file() or len(samples.read_text().splitlines()) < (PROBLEMS * SAMPLES + 1) // 2:
        assert time.monotonic() < deadline, job.log()
        time.sleep(0.01)
    job.send(signal.SIGTERM)
    assert job.wait() == [75, 75], job.log() + job.log(1)
    assert "Traceback" not in job.log() + job.log(1)
    assert status(tested)["state"] == "preempted"
