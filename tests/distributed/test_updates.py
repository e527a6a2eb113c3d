"""Several processes make the updates that one makes: every algorithm, both stages, uneven lengths and row counts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.place import TRAIN, weights
from tests.distributed.ranks import start

# SGD: AdamW divides by the root of a gradient that may be next to nothing, and rounding is all that is left.
SGD = ("optim={optimizer: sgd, lr: 0.05, scheduler: constant}", "train.max_steps=10", "train.eval_interval=4")
RULE = "{any: [{target: {below: 5.5}}, {budget: {tokens: 900}}, trend, {divergence: {monitor: loss}}]}"
STOP = "train.early_stopping={enabled: true, monitor: eval_loss, rule: " + RULE + "}"
VARIANTS: dict[str, tuple[str, ...]] = {
    "baseline": (
        "model={horizon: 4, head: transformer}",
        STOP,
        "train.eval_interval=1",
        "devices.fsdp={sharding: hybrid, shard_size: 2}",
    ),
    "one head": ("model={horizon: 1}", "devices.fsdp={sharding: none}", "devices.micro_batch_size=1"),
    "warm-up": ("model={horizon: 3, head: transformer, head_warmup_steps: 4, detach_heads: true}",),
    "frozen trunk": ("train.full_finetune=false", "devices.activation_checkpointing=true"),
    "packed": (
        "data.train.pack_sequences=true",
        "devices.micro_batch_size=2",
        "devices.fsdp={reshard_after_forward: false}",
    ),
    "critic": (
        "train.algo=critic-wmtp",
        "critic={}",
        "pretrain={max_steps: 8, lr: 1e-3, batch_size: 5}",
        "pretrain.early_stopping={enabled: true, monitor: value_loss, patience: 3}",
    ),
    "rho1": (
        "train.algo=rho1-wmtp",
        "rho1={}",
        "paths.models.ref=builtin:tiny",
        "devices.activation_checkpointing=true",
    ),
    "rho1 live": (
        "train.algo=rho1-wmtp",
        "rho1={reference: live, selection_mode: token_skip, score_from: per_head}",
        "paths.models.ref=builtin:tiny",
    ),
    "diff": ("train.algo=diff-wmtp",),
    "verified": ("train.algo=critic-wmtp", "critic={target: verified}", "pretrain={max_steps: 6, lr: 1e-3}"),
    "shuffled": ("train.algo=rho1-wmtp", "rho1={}", "loss.control=random_matched", "paths.models.ref=builtin:tiny"),
}
CLOCK = {"time", "seconds"}


def settings(*texts: str) -> list[str]:
    return [word for text in texts for word in ("--set", text)]


def rows(place: Path, name: str) -> list[dict[str, Any]]:
    lines = (place / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in CLOCK} for line in lines]


def close(a: Any, b: Any) -> bool:
    """Equal, but for the rounding of numbers."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(close, a, b))
    return math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-6) if isinstance(a, float) else a == b


@pytest.mark.parametrize(
    ("variant", "ranks"),
    [
        pytest.param(
            variant, ranks, marks=[pytest.mark.slow] if ranks == 4 and variant not in ("baseline", "critic") else []
        )
        for variant in VARIANTS
        for ranks in (2, 4)
    ],
)
def test_the_same_as_one_process(place: Path, variant: str, ranks: int) -> None:
    words = [*TRAIN, *settings(*SGD, *VARIANTS[variant])]
    one, many = start(place, 1, *words, "--run-name", "one"), start(place, ranks, *words, "--run-name", "many")
    assert one.wait() == [0], one.log()
    assert many.wait() == [0] * ranks, many.log() + many.log(1)
    ours, theirs = weights(place, "many"), weights(place, "one")
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert float((weight - theirs[name]).abs().max()) <= 1e-6, name
    assert len(rows(place, "one")) > 3
    for ours_row, one_row in zip(rows(place, "many"), rows(place, "one"), strict=True):
        assert close(ours_row, one_row), (ours_row, one_row)
    ended = [json.loads((place / "runs" / name / "summary.json").read_text()) for name in ("many", "one")]
    for stage in {"pretrain", "train"} & ended[1].keys():
        for key in ("total_steps", "stop_reason", "early_stopped", "tokens"):
            assert ended[0][stage][key] == ended[1][stage][key], (stage, key)
    if variant == "baseline":
        assert ended[1]["train"]["stop_reason"] in ("target_reached", "budget_spent"), "the rule has stopped it"


def test_gathered_in_bf16_it_is_nearly_the_same(place: Path) -> None:
    """Parameters and gradients travel in bf16; what is kept, and so what is handed on, is fp32."""
    words = [*TRAIN, *settings(*SGD)]
    one, many = (
        start(place, 1, *words, "--run-name", "one"),
        start(place, 2, *words, "--set", "devices.fsdp={param_dtype: bf16}", "--run-name", "many"),
    )
    assert one.wait() == [0], one.log()
    assert many.wait() == [0, 0], many.log()
    ours, theirs = weights(place, "many"), weights(place, "one")
    far = max(float((weight - theirs[name]).abs().max()) for name, weight in ours.items())
    assert 1e-6 < far < 3e-3
    last = [rows(place, name)[-1]["eval_loss"] for name in ("many", "one")]
    assert math.isclose(*last, rel_tol=5e-3)
