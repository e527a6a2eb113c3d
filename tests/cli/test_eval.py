"""Evaluation as a person meets it: at the end of `wmtp train`, alone, and of the judge itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Bench

EVALUATED = """
run: {name: small}
model: {horizon: 2, head: residual}
train: {algo: baseline-mtp, max_steps: 2, eval_interval: 2, save_interval: 2}
data: {train: {sources: [mbpp], max_length: 96, batch_size: 4, pack_sequences: false}}
eval:
  sampling: {temperature: 0}
  metrics: [mbpp_exact, mbpp_pass@1]
  before: true
  limit: 3
  max_new_tokens: 8
"""


@pytest.fixture
def evaluated(bench: Bench) -> Bench:
    (bench.folder / "recipe.yaml").write_text(EVALUATED)
    return bench


def samples(bench: Bench) -> list[dict[str, object]]:
    return [json.loads(line) for line in (bench.folder / "runs/small/samples.jsonl").read_text().splitlines()]


def test_training_ends_with_the_evaluation_and_wmtp_eval_repeats_it(evaluated: Bench) -> None:
    result = evaluated.train("--json")
    assert result.code == 0, result.err
    summary = json.loads(result.out)
    assert summary["eval"] == evaluated.json("summary.json")["eval"]
    assert summary["eval"]["before"].keys() == summary["eval"]["after"].keys() == {"mbpp_exact", "mbpp_pass@1"}
    assert "mbpp_pass@1: 0.0% before training, 0.0% after" in result.err
    before, after = evaluated.json("eval_before.json"), evaluated.json("eval.json")
    assert before["model"]["weights_sha256"] != after["model"]["weights_sha256"]  # type: ignore[index]
    assert after["sandbox"]["level"] == "strong"  # type: ignore[index]
    rows = samples(evaluated)
    assert len(rows) == len({row["key"] for row in rows}) == 6
    page = (evaluated.folder / "runs/small/report.html").read_text()
    assert "Programs, run against their tests" in page
    assert "3 problems, meta-mtp v1, n 1" in page

    again = evaluated.run("eval", "runs/small", "--json")
    assert again.code == 0, again.err
    [repeated], [first] = json.loads(again.out)["tasks"], after["tasks"]  # type: ignore[misc]
    assert repeated["samples"] == {"file": "samples.jsonl", "rows": 3, "reused": 3}
    assert repeated["scores"] == first["scores"]
    assert len(samples(evaluated)) == 6

    other = evaluated.run("eval", "runs/small/model", "--data", "mbpp", "--limit", "2", "--output", "elsewhere",
                          "--set", "eval.max_new_tokens=4", "--set", "eval.speculative=true")  # fmt: skip
    assert other.code == 0, other.err
    task = json.loads((evaluated.folder / "elsewhere/eval.json").read_text())["tasks"][0]
    assert (task["sampling"]["speculative"], len(task["data"]["problems"])) == (True, 2)


def test_a_run_is_finished_when_its_evaluation_is(evaluated: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from wmtp import job

    states: list[object] = []
    evaluate = job.evaluate_model

    def seen(*args: Any, **named: Any) -> Any:
        states.append(evaluated.json("status.json")["state"])
        return evaluate(*args, **named)

    monkeypatch.setattr(job, "evaluate_model", seen)
    assert evaluated.train().code == 0
    assert states == ["running", "running"]  # before and after training
    assert evaluated.json("status.json")["state"] == "finished"


def test_no_eval(evaluated: Bench) -> None:
    assert evaluated.train("--no-eval").code == 0
    assert not (evaluated.folder / "runs/small/eval.json").exists()
    assert "eval" not in evaluated.json("summary.json")


def test_missing_problems_are_told_before_training(evaluated: Bench) -> None:
    result = evaluated.train(
        "--set", "eval.metrics=[humaneval_pass@1]", "--set", "paths.datasets.humaneval=absent.jsonl"
    )
    assert (result.code, "absent.jsonl" in result.err, "Traceback" in result.err) == (2, True, False)
    assert "train 0/" not in result.err


def test_self_check(bench: Bench) -> None:
    result = bench.run("eval", "--self-check", "--data", "mbpp", "--limit", "5", "--json")
    assert result.code == 0, result.err
    told = json.loads(result.out)["mbpp"]
    assert (told["references"], told["references_passed"], told["passed_by_trivial_programs"]) == (5, 5, {})
    assert "mbpp: 5 of 5 references pass, 0 of 5 problems pass a program that does nothing" in result.err


def test_self_check_names_what_is_wrong(bench: Bench) -> None:
    rows = [
        {
            "prompt": "one\n",
            "task_id": "right",
            "response": "def f():\n    return 1\n",
            "test_list": ["assert f() == 1"],
        },
        {
            "prompt": "two\n",
            "task_id": "wrong",
            "response": "def f():\n    return 1\n",
            "test_list": ["assert f() == 2"],
        },
        {"prompt": "three\n", "task_id": "any", "response": "def f():\n    return 1\n", "test_list": ["f()"]},
    ]
    Path("own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = bench.run("eval", "--self-check", "--data", "custom:own.jsonl")
    assert result.code == 1
    assert "custom: 2 of 3 references pass, 1 of 3 problems pass a program that does nothing" in result.err
    assert "custom/wrong: the reference fails (wrong: AssertionError" in result.err
    assert "custom/any: passes the program 'return None'" in result.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["eval"], "give the folder of a run, or a model"),
        (["eval", "builtin:tiny"], "say what with --data mbpp"),
        (["eval", "builtin:tiny", "--data", "mpbb"], "unknown source 'mpbb'; there are mbpp, humaneval"),
        (["eval", "builtin:tiny", "--data", "humaneval"], "where is it? Give humaneval:PATH"),
        (["eval", "builtin:tiny", "--data", "mbpp:nowhere"], "nowhere"),
        (["eval", "builtin:tiny", "--data", "mbpp", "--protocol", "humanevil"], "humaneval"),
        (["eval", "absent/folder/x", "--data", "mbpp"], "absent/folder/x: no such file or folder"),
        (["eval", "--self-check", "--data", "mbpp", "builtin:tiny"], "--self-check alone"),
    ],
)
def test_mistakes(bench: Bench, words: list[str], told: str) -> None:
    result = bench.run(*words)
    assert (result.code, told in result.err, "Traceback" in result.err) == (2, True, False), result.err


def test_doctor(bench: Bench) -> None:
    found = json.loads(bench.run("doctor", "--json").out)
    assert found["sandbox"]["levels"]["strong"] == {"had": True}
    told = bench.run("doctor").out
    assert "  strong: yes" in told
    assert "box for the programs that models write:" in told
