"""A small run for several processes."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests.distributed.ranks import JOBS
from wmtp.data import load_tokenizer
from wmtp.model.builtin import tiny_config, tokenizer_file

RECIPE = """
run: {name: small}
model: {horizon: 2, head: residual}
train: {algo: baseline-mtp, num_epochs: 50, max_steps: 30, eval_interval: 6, save_interval: 3}
optim: {lr: 1e-3, warmup_ratio: 0.1}
data:
  train: {sources: [custom], max_length: 48, batch_size: 5, pack_sequences: false}
  eval: {sources: [custom], max_length: 48, batch_size: 5, pack_sequences: false}
"""
CONFIG = """
log_interval: 4
mlflow: {enabled: false}
paths: {models: {base: model}, datasets: {custom: data}}
"""
TRAIN = ("train", "-r", "recipe.yaml", "-c", "config.yaml", "--no-eval")


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`builtin:tiny` made smaller, with widths that 4 does not divide."""
    folder = tmp_path_factory.mktemp("model") / "small"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        smaller = {"hidden_size": 66, "intermediate_size": 130, "num_hidden_layers": 2}
        config = LlamaConfig(**tiny_config() | smaller | {"num_attention_heads": 3, "num_key_value_heads": 3})
        LlamaForCausalLM(config).save_pretrained(folder)
    load_tokenizer(str(tokenizer_file())).save_pretrained(folder)
    return folder


@pytest.fixture
def place(tmp_path: Path, small_model: Path) -> Generator[Path]:
    """A folder with recipe, config and data: 33 documents of four lengths, so no batch divides evenly."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "model").symlink_to(small_model)
    (tmp_path / "data").mkdir()
    for split, first, count in (("train", 0, 33), ("validation", 100, 6)):
        rows = [
            {
                "prompt": f"# add {n}\n",
                "response": f"def f(x):\n    return x + {n}\n" + "    # more\n" * (n % 4),
                "test_list": [f"assert f(1) == {n + 1}", f"assert f({n}) == {2 * n}"],
            }
            for n in range(first, first + count)
        ]
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    yield tmp_path
    while JOBS:
        JOBS.pop().kill()


def weights(place: Path, name: str = "small") -> dict[str, torch.Tensor]:
    """What a run has handed on."""
    model = place / "runs" / name / "model"
    heads = model / "mtp_heads.safetensors"
    more = {f"heads.{k}": v for k, v in load_file(heads).items()} if heads.is_file() else {}
    return load_file(model / "model.safetensors") | more


def status(place: Path, name: str = "small") -> dict[str, object]:
    return json.loads((place / "runs" / name / "status.json").read_text())


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
