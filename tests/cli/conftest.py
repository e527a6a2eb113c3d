"""A small recipe on a small data set, and the commands run as a person runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from wmtp import cli

RECIPE = """
run: {name: small}
model: {horizon: 2, head: residual}
train:
  algo: baseline-mtp
  num_epochs: 50
  max_steps: 12
  eval_interval: 3
  save_interval: 2
optim: {lr: 1e-3, warmup_ratio: 0.1}
data:
  train: {sources: [custom], max_length: 48, batch_size: 4, pack_sequences: true}
"""
CONFIG = """
log_interval: 4
mlflow: {enabled: false}
"""


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Bench:
    """A folder with recipe, config and data, where commands are run."""

    folder: Path
    capture: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch

    def run(self, *words: str) -> Result:
        """A command in this process."""
        self.monkeypatch.setattr(sys, "argv", ["wmtp", *words])
        self.capture.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        captured = self.capture.readouterr()
        return Result(code, captured.out, captured.err)

    def train(self, *words: str) -> Result:
        return self.run("train", "-r", "recipe.yaml", "-c", "config.yaml", *words)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """`wmtp train` as a process of its own."""
        command = [sys.executable, "-m", "wmtp", "train", "-r", "recipe.yaml", "-c", "config.yaml", *words]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, cwd=self.folder, stderr=subprocess.PIPE, text=True, env=environment)

    def rows(self, name: str = "small") -> list[dict[str, float]]:
        return [json.loads(line) for line in (self.folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]

    def json(self, file: str, name: str = "small") -> dict[str, object]:
        return json.loads((self.folder / "runs" / name / file).read_text())

    def weights(self, name: str = "small") -> dict[str, torch.Tensor]:
        model = self.folder / "runs" / name / "model"
        heads = {f"heads.{k}": v for k, v in load_file(model / "mtp_heads.safetensors").items()}
        return load_file(model / "model.safetensors") | heads


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bench:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WMTP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "config.yaml").write_text(CONFIG + "paths: {datasets: {custom: data}}\n")
    (tmp_path / "data").mkdir()
    for split, start, count in (("train", 0, 30), ("validation", 100, 6)):
        rows = [
            {"prompt": f"# add {n}\n", "response": f"def f(x):\n    return x + {n}\n"}
            for n in range(start, start + count)
        ]
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Bench(tmp_path, capsys, monkeypatch)


@pytest.fixture
def same_weights() -> Callable[[dict[str, torch.Tensor], dict[str, torch.Tensor]], bool]:
    def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
        return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

    return same
