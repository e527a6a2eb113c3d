"""critic-wmtp as a person runs it: stage 1, stage 2, resumed between and within them."""

from __future__ import annotations

import json
import math
import warnings
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.conftest import Bench

RECIPE = """
run: {name: small}
model: {horizon: 2, head: residual}
pretrain: {max_steps: 6, lr: 1e-3}
train: {algo: critic-wmtp, max_steps: 3, eval_interval: 3, save_interval: 1}
optim: {lr: 1e-3}
data: {train: {sources: [custom], max_length: 48, batch_size: 4, pack_sequences: true}}
critic: {}
"""


@pytest.fixture
def critic(bench: Bench) -> Bench:
    (bench.folder / "recipe.yaml").write_text(RECIPE)
    rows = [{"prompt": f"# {n}\n", "response": "def f(x):\n    return x" + " + 1" * (n % 7) + "\n"} for n in range(30)]
    (bench.folder / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return bench


@pytest.fixture(autouse=True)
def _useless_is_no_error() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the value head explains nothing")
        yield


def test_both_stages(critic: Bench) -> None:
    result = critic.train("--json")
    assert result.code == 0, result.err
    stage1, stage2 = (json.loads(result.out)[name] for name in ("pretrain", "train"))
    wanted = {"saved", "final_loss", "total_steps", "early_stopped", "stop_reason"}
    assert wanted <= stage1.keys()
    assert (stage1["total_steps"], stage1["early_stopped"], stage1["stop_reason"]) == (6, False, "max_steps")
    assert math.isfinite(stage1["final_loss"])
    assert stage1["final_loss"] == stage1["last"]["value_loss"]
    assert {"explained_variance", "variance_ratio", "value_variance", "eval_explained_variance"} <= stage1[
        "last"
    ].keys()
    assert stage2["total_steps"] == 3
    assert {"weight_ess", "value_loss", "explained_variance"} <= stage2["last"].keys()
    assert 0 < stage2["last"]["weight_ess"] < 1  # the weights are not all equal
    meta = json.loads((critic.folder / "runs/small/value_head/value_head.json").read_text())
    assert stage1["saved"].endswith("small/value_head")
    head = load_file(critic.folder / "runs/small/value_head/value_head.safetensors")
    assert head["out.weight"].abs().sum() > 0
    assert meta["scale"] > 0
    # The model's folder holds what predicts tokens, and no value head.
    assert not any("value" in name for name in critic.weights())


@pytest.mark.parametrize("cut", [3, 6, 8])
def test_resumed_runs_are_equal(critic: Bench, monkeypatch: pytest.MonkeyPatch, same_weights, cut: int) -> None:
    """Preempted in stage 1, at its end, and in stage 2."""
    from wmtp.training import run as run_module

    assert critic.train("--run-name", "whole").code == 0
    settled = []
    record = run_module.Run.record

    def counted(self: Any, *rest: Any) -> None:
        record(self, *rest)
        settled.append(1)

    monkeypatch.setattr(run_module.Run, "record", counted)
    from wmtp.training.preemption import Preemption

    asked = Preemption.__call__
    monkeypatch.setattr(Preemption, "__call__", lambda self: len(settled) == cut or asked(self))
    assert critic.train().code == 75
    settled += [1] * 1000
    assert critic.train("--resume", "auto").code == 0
    assert same_weights(critic.weights(), critic.weights("whole"))
    both = [critic.folder / f"runs/{name}/value_head/value_head.safetensors" for name in ("small", "whole")]
    ours, whole = (load_file(path) for path in both)
    assert all(torch.equal(ours[name], whole[name]) for name in whole)


def test_states_and_rewards_are_computed_once(critic: Bench) -> None:
    first, second = (critic.train("--run-name", name).err for name in ("one", "two"))
    assert "hidden states of" in first
    assert "pseudo rewards of" in first
    assert "hidden states of" not in second
    assert "pseudo rewards of" not in second


def test_a_saved_head_and_one_of_another_model(critic: Bench) -> None:
    assert critic.train().code == 0
    saved = ["--set", "pretrain.enabled=false", "--set", "paths.models.value_head=runs/small/value_head"]
    again = critic.train("--run-name", "again", *saved)
    assert again.code == 0, again.err
    assert "pretrain" not in critic.json("summary.json", "again")
    other = critic.train("--run-name", "other", *saved, "--set", "seed=7")  # another seed: other fresh weights
    assert other.code == 2
    assert "this value head was trained on hidden states of model" in other.err


def test_without_stage_1_it_says_so(critic: Bench) -> None:
    result = critic.train("--set", "pretrain.enabled=false")
    assert result.code == 0, result.err
    assert "no stage 1, so the value head is fresh" in result.err
    first = critic.rows()[1]
    assert first["weight_ess"] == pytest.approx(1)  # a head that says the same everywhere weighs nothing


def test_a_useless_critic(critic: Bench) -> None:
    nothing = ["--set", "pretrain.lr=1e-12", "--set", "pretrain.max_steps=1"]
    failed = critic.train(*nothing, "--set", "critic.on_useless=fail")
    assert (failed.code, "explains nothing of the held-out rewards" in failed.err) == (2, True)
    uniform = critic.train(*nothing, "--set", "critic.on_useless=uniform", "--run-name", "uniform")
    assert uniform.code == 0, uniform.err
    rows = [row for row in critic.rows("uniform") if "weight_ess" in row]
    assert all(row["weight_ess"] == pytest.approx(1) for row in rows)


@pytest.mark.parametrize("mode", ["uniform", "length", "attention"])
def test_spreads(critic: Bench, mode: str) -> None:
    result = critic.train(
        "--set", f"critic.token_spread={mode}", "--set", "pretrain.max_steps=2", "--set", "train.max_steps=1"
    )
    assert result.code == 0, result.err


def test_a_causal_reward_model(critic: Bench) -> None:
    assert critic.train("--set", "train.algo=baseline-mtp", "--set", "pretrain=null", "--run-name", "rm").code == 0
    result = critic.train("--set", "paths.models.rm=runs/rm/model")
    assert result.code == 0, result.err
    assert "rewards of 30 documents from runs/rm/model" in result.err


def test_the_value_head_is_no_part_of_what_writes_programs(critic: Bench) -> None:
    """`wmtp eval` after the run takes over what the run's own evaluation has made."""
    recipe = critic.folder / "recipe.yaml"
    recipe.write_text(
        RECIPE.replace("sources: [custom]", "sources: [custom, mbpp]").replace("max_steps: 3", "max_steps: 1")
        + "eval: {sampling: {temperature: 0}, metrics: [mbpp_pass@1], limit: 2, max_new_tokens: 4}\n"
    )
    rows = [
        {"task_id": n, "text": "one", "code": "def f():\n    return 1\n", "test_list": ["assert f() == 1"]}
        for n in (11, 12, 511, 512, 601, 602)
    ]
    (critic.folder / "mbpp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = critic.train("--set", "paths.datasets.mbpp=mbpp.jsonl")
    assert result.code == 0, result.err
    again = critic.run("eval", "runs/small", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["tasks"][0]["samples"] == {"file": "samples.jsonl", "rows": 2, "reused": 2}


@pytest.mark.parametrize(("factor", "at_most"), [(0.0, 6), (1000.0, 1)])
def test_a_head_that_collapses_or_explodes_stops_stage_1_within_two_windows(
    critic: Bench, monkeypatch: pytest.MonkeyPatch, factor: float, at_most: int
) -> None:
    """The specification's bounds, on batches of four: the window is 3 steps. The fresh head itself is waited for."""
    from wmtp.model.value_head import ValueHead

    forward, steps, broken_from = ValueHead.forward, [0], 61

    def breaking(self: ValueHead, hidden: torch.Tensor) -> torch.Tensor:
        steps[0] += self.training and torch.is_grad_enabled()
        return forward(self, hidden) * (factor if steps[0] >= broken_from else 1.0)

    monkeypatch.setattr(ValueHead, "forward", breaking)
    stopping = {
        "enabled": True, "mode": "any", "patience": 1000, "monitor": "value_loss", "grad_norm_threshold": 50.0,
        "grad_norm_window_size": 10, "grad_norm_threshold_ratio": 0.7, "variance_min": 0.1, "variance_max": 5.0,
    }  # fmt: skip
    overrides = [
        f"pretrain.early_stopping={json.dumps(stopping)}",
        "pretrain.batch_size=4",
        "pretrain.max_steps=100",
        "pretrain.num_epochs=20",
        "pretrain.lr=1e-3",
        "train.max_steps=1",
        "train.eval_interval=1000",
    ]
    result = critic.train("--json", *[part for override in overrides for part in ("--set", override)])
    assert result.code == 0, result.err
    stage1 = json.loads(result.out)["pretrain"]
    rows = [row for row in critic.rows() if row["stage"] == "pretrain" and "value_variance" in row]
    assert rows[0]["value_variance"] < 0.1, "a fresh head's variance is below the bound"
    assert 0.1 <= rows[broken_from - 2]["value_variance"] <= 5, "sound before it breaks"
    assert stage1["stop_reason"] == "variance_invalid"
    assert broken_from <= stage1["total_steps"] < broken_from + at_most
