"""`wmtp train` as a person meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import Bench
from wmtp.model import load_model

SPEC = Path(__file__).parents[3] / "shared" / "spec" / "recipe.critic_wmtp.yaml"


def test_a_run_leaves_what_the_spec_says(bench: Bench) -> None:
    result = bench.train("--json", "--tags", "a,b")
    assert result.code == 0, result.err
    folder = bench.folder / "runs" / "small"
    expected = {"recipe.resolved.yaml", "config.resolved.yaml", "metrics.jsonl", "summary.json", "status.json", "model"}
    assert expected <= {entry.name for entry in folder.iterdir()}
    assert [row["step"] for row in bench.rows()] == list(range(13))
    assert [row["step"] for row in bench.rows() if "eval_loss" in row] == [0, 3, 6, 9, 12]
    summary = bench.json("summary.json")
    assert json.loads(result.out) == summary
    stage = summary["train"]
    assert stage["total_steps"] == 12
    assert stage["stop_reason"] == "max_steps"
    assert stage["early_stopped"] is False
    assert stage["final_loss"] == bench.rows()[-1]["loss"]
    assert stage["last"]["eval_loss"] < stage["first"]["eval_loss"] - 0.5
    assert bench.json("status.json") | {"pid": 0} == {
        "state": "finished", "step": 12, "stage": "train", "reason": "max_steps", "pid": 0,
        "checkpoint": str(folder / "checkpoints" / "train" / "step-00000012"),
    }  # fmt: skip
    assert "held-out loss:" in result.err
    assert str(Path("runs") / "small") in result.err


def test_saved_model_is_the_trained_one(bench: Bench) -> None:
    """The folder that is handed on gives the held-out loss that the run reported."""
    assert bench.train().code == 0
    reported = bench.rows()[-1]["eval_loss"]
    again = bench.train(
        "--run-name", "again", "--set", "paths.models.base=runs/small/model", "--set", "train.max_steps=1"
    )
    assert again.code == 0, again.err
    assert bench.rows("again")[0]["eval_loss"] == pytest.approx(reported, rel=1e-6)


def test_early_stop_restores_the_best(bench: Bench) -> None:
    """A learning rate at which the loss gets worse: stopped, told why, and the best weights are handed on."""
    stop = "{enabled: true, monitor: eval_loss, patience: 2, mode: loss_only, restore_best: true}"
    result = bench.train(
        "--set", f"train.early_stopping={stop}", "--set", "optim.lr=0.2", "--set", "train.max_steps=60"
    )
    assert result.code == 0, result.err
    stage = bench.json("summary.json")["train"]
    assert stage["early_stopped"] is True
    assert stage["stop_reason"] in ("converged", "diverged")
    assert stage["total_steps"] < 60
    values = {row["step"]: row["eval_loss"] for row in bench.rows() if "eval_loss" in row}
    best = min(values, key=values.__getitem__)
    assert (stage["best_step"], stage["best_value"]) == (best, values[best])
    assert stage["total_steps"] == best + 6  # two evaluations without an improvement
    checked = bench.train(
        "--run-name", "b", "--set", "paths.models.base=runs/small/model", "--set", "train.max_steps=1"
    )
    assert checked.code == 0
    assert bench.rows("b")[0]["eval_loss"] == pytest.approx(values[best], rel=1e-6)
    again = bench.train(
        "--set",
        f"train.early_stopping={stop}",
        "--set",
        "optim.lr=0.2",
        "--set",
        "train.max_steps=60",
        "--resume",
        "auto",
    )
    assert again.code == 0
    assert bench.json("summary.json")["train"]["total_steps"] == stage["total_steps"]  # stays stopped


def test_rules_in_the_shadow_never_stop_and_say_where_they_would_have(bench: Bench) -> None:
    eager = "{patience: {monitor: eval_loss, patience: 1, min_delta: 100}}"  # no evaluation improves by so much
    result = bench.train("--shadow", eager, "--shadow", "divergence")
    assert result.code == 0, result.err
    summary = bench.json("summary.json")["train"]
    assert (summary["total_steps"], summary["stop_reason"]) == (12, "max_steps")
    # Evaluations are before step 1 and after every third: the second one is the first without an improvement.
    assert "in the shadow: shadow_1 would have stopped at step 3 (converged)" in result.err
    assert "in the shadow: divergence would have stopped nowhere" in result.err
    told = [row["early_stopping"]["shadow_rules"]["shadow_1"] for row in bench.rows()]
    assert told == [None] * 3 + [{"step": 3, "reason": "converged"}] * 10
    wrong = bench.train("--run-name", "b", "--shadow", "trendy")
    assert wrong.code == 2
    assert "did you mean trend" in wrong.err


def test_frozen_trunk_and_head_warm_up(bench: Bench) -> None:
    base = load_model("builtin:tiny", horizon=2, head="residual", seed=42)
    assert bench.train("--run-name", "frozen", "--set", "train.full_finetune=false").code == 0
    frozen = load_model("runs/frozen/model", horizon=2, head="residual")
    assert all(torch.equal(a, b) for a, b in zip(base.trunk.parameters(), frozen.trunk.parameters(), strict=True))
    assert any(p.abs().max() > 0 for p in frozen.heads.parameters())

    warm = ("--set", "model.head_warmup_steps=2", "--set", "train.max_steps=2")
    assert bench.train("--run-name", "warm", *warm).code == 0
    warmed = load_model("runs/warm/model", horizon=2, head="residual")
    assert all(torch.equal(a, b) for a, b in zip(base.trunk.parameters(), warmed.trunk.parameters(), strict=True))
    assert bench.train("--run-name", "warm3", *warm, "--set", "train.max_steps=3").code == 0
    learnt = load_model("runs/warm3/model", horizon=2, head="residual")
    assert not any(torch.equal(a, b) for a, b in zip(base.trunk.parameters(), learnt.trunk.parameters(), strict=True))


def test_a_broken_run_says_so_and_keeps_its_checkpoint(bench: Bench) -> None:
    result = bench.train("--set", "optim.lr=1e30", "--set", "optim.grad_clip=null", "--set", "optim.optimizer=sgd")
    assert result.code == 3
    assert "not finite" in result.err
    assert "Traceback" not in result.err
    assert bench.json("status.json")["state"] == "failed"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--set", "train.algo=rho1-wmtp", "--set", "rho1={}"), "needs a reference model"),
        (("--set", "paths.models.base=nowhere/at/all"), "no such file"),
        (("--set", "paths.datasets.custom=missing.jsonl"), "paths.datasets.custom"),
        (("--set", "devices.compute_backend=cuda"), "compute_backend"),
        (("--set", "train.lr=3"), "train.lr"),
        (("--resume", "runs/small/checkpoints/train/step-00000099"), "not a checkpoint"),
    ],
)
def test_mistakes_are_one_message(bench: Bench, words: tuple[str, ...], said: str) -> None:
    result = bench.train(*words)
    assert result.code == 2
    assert said in result.err
    assert "Traceback" not in result.err


def test_dry_run_takes_no_step(bench: Bench) -> None:
    result = bench.train("--dry-run")
    assert result.code == 0, result.err
    assert "12 steps at most" in result.err
    assert not (bench.folder / "runs").exists()


def test_demo_runs_offline(bench: Bench) -> None:
    """The command of the README, cut to a few steps."""
    short = ("--set", "train.max_steps=2", "--set", "train.eval_interval=2", "--set", "mlflow.enabled=false")
    result = bench.run("demo", "--output", "runs", *short, "--set", "data.train.batch_size=2")
    assert result.code == 0, result.err
    assert "held-out loss:" in result.err


@pytest.mark.skipif(not SPEC.exists(), reason="the shared specification is not beside the project")
def test_check_takes_the_verbatim_recipe(bench: Bench) -> None:
    result = bench.run("check", "-r", str(SPEC), "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["recipe"]["critic"]["value_lr"] == 5e-5
