"""kill -9 at random moments, resume each time: the final weights must equal those of an undisturbed run bit for bit.

    python benchmarks/kill_resume.py --kills 20

Moments are drawn from the whole life of a process: imports, tokenising, steps, evaluations, saves, the final export.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

RECIPE = """
run: {name: NAME}
train:
  algo: baseline-mtp
  num_epochs: 9
  max_steps: STEPS
  eval_interval: 20
  save_interval: 5
  early_stopping: {enabled: true, monitor: eval_loss, patience: 100, restore_best: true}
optim: {lr: 1e-3}
data: {train: {sources: [mbpp], max_length: 128, batch_size: 2}}
"""


def start(folder: Path, name: str, steps: int) -> subprocess.Popen[bytes]:
    recipe = folder / f"{name}.yaml"
    recipe.write_text(RECIPE.replace("NAME", name).replace("STEPS", str(steps)))
    command = [sys.executable, "-m", "wmtp", "train", "-r", str(recipe), "--resume", "auto",
               "--set", f"paths.output={folder}", "--set", "mlflow.enabled=false"]  # fmt: skip
    log = (folder / f"{name}.log").open("ab")
    return subprocess.Popen(command, stderr=log, env=os.environ | {"WMTP_CACHE": str(folder / "cache")})


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    model = folder / name / "model"
    heads = {f"heads.{key}": value for key, value in load_file(model / "mtp_heads.safetensors").items()}
    return load_file(model / "model.safetensors") | heads


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=330)
    parser.add_argument("--life", type=float, default=16.0, help="seconds that a process lives at most")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    choose = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begun = time.monotonic()
        assert start(folder, "whole", args.steps).wait() == 0
        whole = time.monotonic() - begun
        print(f"undisturbed: {whole:.0f} s")
        reached: list[int] = []
        while len(reached) < args.kills:
            process = start(folder, "killed", args.steps)
            try:
                process.wait(timeout=choose.uniform(0, args.life))
                print(f"the run ended after {len(reached)} kills; give more --steps")
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            log = folder / "killed" / "metrics.jsonl"
            lines = log.read_text().splitlines() if log.exists() else []
            reached.append(json.loads(lines[-1])["step"] if len(lines) > 1 else 0)
        assert start(folder, "killed", args.steps).wait() == 0
        a, b = weights(folder, "whole"), weights(folder, "killed")
        same = a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
        print(f"killed {len(reached)} times, last logged steps {reached}")
        verdict = "equal bit for bit" if same else "DIFFER"
        print(f"{len(a)} tensors, {sum(t.numel() for t in a.values()):,} weights: {verdict}")
        sys.exit(not same)


if __name__ == "__main__":
    main()
