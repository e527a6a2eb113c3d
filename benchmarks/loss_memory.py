"""Time and peak memory of one training step: our loss beside one that materialises the logits [B,S,H,V].

    python benchmarks/loss_memory.py --model FOLDER_OR_GGUF --rows 4 --length 256 --precision bf16

Both variants run the same model, batch and heads, alternating in the same session (machines are noisy: read the ratio).
Each runs in a process of its own, so that the peak is its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import torch
from torch import Tensor, nn

from wmtp.model import load_model
from wmtp.model.mtp import MTPModel
from wmtp.objectives import WeightedMTP
from wmtp.ops.targets import shift_targets
from wmtp.training.step import Hardware
from wmtp.types import IGNORE, Batch
from wmtp.weighting import Uniform


def make_batch(rows: int, length: int, vocabulary: int) -> Batch:
    torch.manual_seed(0)
    tokens = torch.randint(0, vocabulary, (rows, length))
    return Batch(tokens, tokens.clone(), torch.arange(rows)[:, None].expand(rows, length).clone(),
                 torch.arange(length).expand(rows, length))  # fmt: skip


def materialised(model: MTPModel, batch: Batch) -> Tensor:
    """The loss as one writes it first: all logits at once, then cross-entropy."""
    targets = shift_targets(batch.labels, batch.documents, model.horizon)
    hiddens, _ = model._hiddens(batch)
    weight, bias = model._unembedding(detached=False)
    logits = nn.functional.linear(torch.stack(hiddens, dim=2), weight, bias).float()
    ce = nn.functional.cross_entropy(logits.flatten(0, 2), targets.flatten(), ignore_index=IGNORE, reduction="sum")
    return ce / (targets != IGNORE).sum()


def ours(model: MTPModel, batch: Batch) -> Tensor:
    objective = WeightedMTP(Uniform(), model.horizon)
    return objective(model, batch).loss / objective.num_targets(batch)


def measure(args: argparse.Namespace) -> dict[str, float]:
    model = load_model(args.model, horizon=args.horizon)
    precision = {"fp32": torch.float32, "bf16": torch.bfloat16}[args.precision]
    hardware = Hardware(torch.device("cpu"), precision)
    batch = make_batch(args.rows, args.length, model.trunk.unembedding.out_features)
    loss_of = {"ours": ours, "materialised": materialised}[args.variant]
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds: list[float] = []
    for _ in range(args.steps):
        model.zero_grad(set_to_none=True)
        started = time.perf_counter()
        with hardware.autocast():
            loss = loss_of(model, batch)
        loss.backward()
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    return {"seconds": min(seconds), "peak_gb": peak / 2**20, "above_load_gb": (peak - base) / 2**20,
            "loss": float(loss), "grad_norm": float(norm)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="builtin:tiny")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--horizon", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--variant", choices=["ours", "materialised"], help="one, in this process")
    args = parser.parse_args()
    if args.variant:
        print(json.dumps(measure(args)))
        return
    best: dict[str, dict[str, float]] = {}
    for _ in range(args.rounds):
        for variant in ("materialised", "ours"):
            command = [sys.executable, *sys.argv, "--variant", variant]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            if variant not in best or found["seconds"] < best[variant]["seconds"]:
                best[variant] = found
    tokens = args.rows * args.length
    print(
        f"{args.model.rsplit('/', 1)[-1]}, {args.rows} x {args.length} tokens, {args.horizon} heads, {args.precision}"
    )
    print("variant        s/step  tokens/s  peak GB  above load GB  loss       grad norm")
    for name, row in best.items():
        print(f"{name:13}  {row['seconds']:6.2f}  {tokens / row['seconds']:8.0f}  {row['peak_gb']:7.2f}  "
              f"{row['above_load_gb']:13.2f}  {row['loss']:.6f}  {row['grad_norm']:.5f}")  # fmt: skip
    a, b = best["ours"], best["materialised"]
    print(f"ours / materialised: time {a['seconds'] / b['seconds']:.2f}, peak {a['peak_gb'] / b['peak_gb']:.2f}, "
          f"above load {a['above_load_gb'] / b['above_load_gb']:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
