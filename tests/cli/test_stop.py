"""`wmtp stop replay`: on real runs it decides what the run itself decided; on others' logs it is told what to try."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from tests.cli.conftest import Bench
from wmtp.past_runs import stopper_of
from wmtp.settings import load_recipe
from wmtp.stopping import EarlyStopping, Observation, Verdict
from wmtp.stopping.history import read_histories
from wmtp.stopping.replay import verdicts
from wmtp.training.tracking import MlflowTracker

PLAIN = {"enabled": True, "monitor": "loss", "min_delta": 0.3, "patience": 3}
NESTED = {
    "enabled": True,
    "monitor": "eval_loss",
    "rule": {"any": ["trend", {"divergence": {"monitor": "loss"}}, {"patience": {"patience": 3, "min_delta": 0.3}}]},
}


class KilledError(BaseException):
    """Stands for `kill -9`; nothing catches it."""


def replayed(bench: Bench, *words: str) -> list[dict[str, Any]]:
    result = bench.run("stop", "replay", *words, "--json")
    assert result.code == 0, result.err
    return json.loads(result.out)


def log(bench: Bench, name: str, losses: list[float], **more: list[float]) -> str:
    folder = bench.folder / name
    folder.mkdir()
    series = {"loss": losses, **more}
    rows = [{"step": i + 1} | {key: values[i] for key, values in series.items()} for i in range(len(losses))]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": rows}))
    return str(folder)


@pytest.mark.parametrize("block", [PLAIN, NESTED], ids=["plain", "nested"])
def test_a_run_is_replayed_as_it_was(bench: Bench, monkeypatch: pytest.MonkeyPatch, block: dict[str, Any]) -> None:
    """Killed on its way, resumed, stopped early: every observation and every verdict is the same, and so the end."""
    setting = ("--set", f"train.early_stopping={json.dumps(block)}", "--set", "train.max_steps=40", "--resume", "auto")
    seen = list[tuple[Observation, Verdict]]()
    observe = EarlyStopping.observe

    def spy(self: EarlyStopping, observation: Observation) -> Verdict:
        was = replace(observation, metrics=dict(observation.metrics))  # the loop adds a last evaluation
        seen.append((was, observe(self, observation)))
        if len(seen) == 6:
            raise KilledError
        return seen[-1][1]

    with monkeypatch.context() as patched:
        patched.setattr(EarlyStopping, "observe", spy)
        with pytest.raises(KilledError):
            bench.train(*setting)
        assert bench.train(*setting).code == 0
    resumed_at = seen[6][0].step
    live = [pair for pair in seen[:6] if pair[0].step < resumed_at] + seen[6:]
    summary = cast("dict[str, Any]", bench.json("summary.json")["train"])
    assert 0 < resumed_at < 6, "the test needs a run that was resumed"
    assert summary["early_stopped"], "the test needs a run that was stopped"

    run = bench.folder / "runs" / "small"
    (history,) = read_histories(run)
    assert list(history.observations) == [observation for observation, _ in live]
    own = load_recipe(run / "recipe.resolved.yaml").train.early_stopping
    assert list(verdicts(history, stopper_of("train", own))) == live

    first, *others = replayed(bench, "runs/small")
    assert (first["rule"], first["run"], first["stage"]) == ("the run's own", "small", "train")
    assert (first["stopped"], first["step"], first["reason"]) == (True, summary["total_steps"], summary["stop_reason"])
    assert first["equals_live"], first["live"]
    assert f"stopped at step {summary['total_steps']}" in first["live"]
    assert [other["rule"] for other in others][1:] == ["trend", "trend or divergence"]


@pytest.mark.filterwarnings("ignore:the value head explains nothing")
def test_both_stages_are_replayed_by_their_own_rules(bench: Bench) -> None:
    """Stage 1 by the class whose "loss" is the value loss; a rule in the shadow as one that stops."""
    recipe = yaml.safe_load((bench.folder / "recipe.yaml").read_text())
    recipe["train"] |= {"algo": "critic-wmtp", "max_steps": 8}
    variance = {"variance_min": 0.001, "grad_norm_threshold": 1.0e-9, "grad_norm_window_size": 4}
    shadow = {"enabled": True, "shadow": True, "patience": 2, "min_delta": 5, "shadow_rules": {"noisy": "trend"}}
    recipe |= {"pretrain": {"max_steps": 9, "lr": 1e-3, "early_stopping": {"enabled": True, **variance}}, "critic": {}}
    recipe["train"]["early_stopping"] = shadow
    (bench.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert bench.train().code == 0
    found = replayed(bench, "runs/small")
    own = [one for one in found if one["rule"] == "the run's own"]
    assert [(one["stage"], one["monitor"], one["stopped"]) for one in own] == [
        ("pretrain", "value_loss", True),
        ("train", "loss", True),
    ]
    end = cast("dict[str, Any]", bench.json("summary.json")["pretrain"])
    assert end["stop_reason"] == "gradient_unstable"
    assert (own[0]["step"], own[0]["reason"]) == (end["total_steps"], end["stop_reason"])
    assert all(one["equals_live"] for one in own), [one["live"] for one in own]
    assert own[1]["step"] == 3  # step 1 is the best, two more are no 5 below it
    assert "not stopped" in own[1]["live"]
    assert [one["rule"] for one in found if one["stage"] == "train"][:2] == ["the run's own", "shadow rule noisy"]
    assert {one["stage"] for one in replayed(bench, "runs/small", "--stage", "pretrain")} == {"pretrain"}


def test_a_log_that_was_changed_is_found_out(bench: Bench) -> None:
    block = {"enabled": True, "monitor": "loss", "patience": 30}
    assert bench.train("--set", f"train.early_stopping={json.dumps(block)}").code == 0
    file = bench.folder / "runs" / "small" / "metrics.jsonl"
    text = bench.run("stop", "replay", "runs/small").out
    assert "small: equals the live run: not stopped, with the same evidence at all 12 checks" in text
    rows = [row | ({"loss": 0.5} if row["step"] == 7 else {}) for row in bench.rows()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first = replayed(bench, str(file))[0]
    assert not first["equals_live"]
    assert "step 7" in first["live"]


def test_a_run_that_went_on_after_its_stop_is_told(bench: Bench) -> None:
    setting = ("--set", "train.early_stopping={enabled: true, patience: 1, min_delta: 100}", "--resume", "auto")
    assert bench.train(*setting).code == 0
    assert bench.train(*setting, "--continue-stopped").code == 0
    first = replayed(bench, "runs/small")[0]
    assert (first["step"], first["equals_live"]) == (2, False)
    assert "the run went on to step 4" in first["live"]


def test_replaying_with_settings(bench: Bench) -> None:
    # Best so far at the stop: 3, of all: 2, so 1 of the 3 in all is lost; 4 of 10 steps are not run.
    source = log(bench, "run", [5, 4, 3, 3, 3, 3, 3, 3, 2, 2])
    [found] = replayed(bench, source, "--set", "patience=3")
    expected = {"run": "run", "stage": "", "rule": "patience=3", "monitor": "loss", "stopped": True, "step": 6}
    expected |= {"reason": "converged", "saved": 0.4, "regret": pytest.approx(1 / 3)}
    assert {key: found[key] for key in expected} == expected
    text = bench.run("stop", "replay", source, "--set", "patience=3")
    assert text.out.splitlines()[1].split() == ["run", "patience=3", "6", "10", "converged", "40.0%", "33.33%"]


def test_several_rules_runs_and_a_page(bench: Bench) -> None:
    falls = [1 + 1 / step for step in range(1, 201)]
    log(bench, "logs", falls)
    Path("all").mkdir()
    for name in ("a", "b"):
        Path(log(bench, name, falls)).rename(f"all/{name}")
    table = "step,val\n" + "".join(f"{step},{value}\n" for step, value in enumerate(falls))
    Path("all/c.csv").write_text(table)
    rules = ("--rule", "plain", "--rule", "{any: [{patience: {patience: 5, min_delta: 0.01}}, {budget: {steps: 50}}]}")
    result = bench.run("stop", "replay", "all", "logs", *rules, "--page", "<p>.html", "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert [(one["run"], one["stopped"]) for one in found] == [
        (run, stops) for run in ("a", "b", "logs") for stops in (False, True)
    ]
    # 1/n - 1/(n+1) is at most 0.01 from step 10 on; patience counts five steps from where it was last 0.01 better.
    assert {one["step"] for one in found if one["stopped"]} <= set(range(10, 51))
    assert result.err.count("no metric 'loss' is logged; there are val") == 2
    page = Path("<p>.html").read_text()
    assert "<script" in page
    assert "<script src" not in page
    assert all(f"<h2>{run}</h2>" in page for run in ("a", "b", "logs"))


def test_held_out_loss_judges_a_rule_on_the_training_loss(bench: Bench) -> None:
    source = log(bench, "run", [2.0, 1.0, 1.0, 1.0, 1.0, 1.0], eval_loss=[9.0, 8.0, 8.0, 7.0, 5.0, 6.0])
    [found] = replayed(bench, source, "--set", "patience=2", "--judge", "eval_loss")
    assert (found["step"], found["judge"], found["regret"]) == (4, "eval_loss", 0.5)


def test_an_mlflow_run_is_replayed(bench: Bench) -> None:
    uri = f"sqlite:///{bench.folder}/mlflow.db"
    file, said = bench.folder / "id", list[str]()
    tracker = MlflowTracker(
        uri, experiment="x", run_name="theirs", params={}, tags={}, id_file=file, say=said.append, close_timeout=60
    )
    for step, loss in enumerate([5.0, 3.0, math.inf, 3.0, 3.0, 2.0]):
        more = {"pretrain/value_loss": 1.0} if step < 4 else {"system/cpu": 1.0}
        tracker.log(step, {"loss": loss, "epoch": 1.0, **more})
    tracker.log(99, {"system/cpu": 1.0})
    tracker.finish("finished")
    assert not said
    run = file.read_text().strip()
    where = ("--tracking-uri", uri)
    of_values, found = replayed(bench, f"mlflow:{run}", *where, "--set", "patience=2")
    assert (of_values["run"], of_values["stage"]) == ("theirs", "pretrain")
    assert (of_values["monitor"], of_values["step"]) == ("value_loss", 2)
    assert (found["stage"], found["step"], found["last_step"], found["regret"]) == ("", 4, 5, pytest.approx(1 / 3))
    refused = bench.run("stop", "replay", "mlflow:nosuch", *where)
    assert refused.code == 2
    assert "nosuch" in refused.err


def test_mistakes_are_told(bench: Bench) -> None:
    source = log(bench, "run", [2.0, 1.0], eval_loss=[2.0, 1.0])
    for words, said in (
        (("--set", "patience=0"), "early_stopping.patience: 0 is too small"),
        (("--set", "patients=3"), "did you mean patience?"),
        (("--set", "patience"), "--set patience: must look like patience=20"),
        (("--set", "monitor=eval_los"), "no metric 'eval_los' is logged; did you mean eval_loss?"),
        (("--rule", "{any: ["), "--rule {any: [: not valid YAML"),
        (("--rule", "trent"), "trend"),
        (("--stage", "train"), "--stage train: no run has such a stage"),
        (("--judge", "eval_bleu"), "no metric 'eval_bleu' is logged"),
        (("--page", "no/such/folder.html"), "--page no/such/folder.html: can't be written"),
    ):
        result = bench.run("stop", "replay", source, *words)
        assert (result.code, said in result.err) == (2, True), result.err
        assert "Traceback" not in result.err
    Path("empty").mkdir()
    for gone in ("nowhere", "empty"):
        result = bench.run("stop", "replay", gone)
        assert result.code == 2
        assert "give a run's folder" in result.err


def test_tuning_on_past_runs(bench: Bench) -> None:
    Path("all").mkdir()
    for number in range(4):
        falls = 20 + 5 * number
        Path(log(bench, f"run{number}", [3 - min(step / falls, 1) for step in range(80)])).rename(f"all/run{number}")
    words = ("stop", "tune", "all", "--trials", "12", "--seed", "2")
    result = bench.run(*words, "--page", "tune.html", "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert sorted(found["chosen_on"] + found["reported_on"]) == ["run0", "run1", "run2", "run3"]
    assert found["best"]["chosen_on"]["false_stops"] == 0
    assert found["best"] in found["front"]
    assert "rule 1 of 12" in result.err
    assert Path("tune.html").is_file()
    text = bench.run(*words).out
    block = yaml.safe_load(text[text.index("early_stopping:") :])
    assert block["early_stopping"] == found["early_stopping"]
    # What is pasted is what was found: it saves as much when it is replayed.
    names = [f"all/{name}" for name in found["chosen_on"]]
    again = replayed(bench, *names, "--rule", json.dumps(block["early_stopping"]["rule"]))
    assert sum(one["saved"] for one in again) / len(again) == pytest.approx(found["best"]["chosen_on"]["saved"])
    refused = bench.run("stop", "tune", "all/run0")
    assert refused.code == 2
    assert "1 runs to tune on" in refused.err
