"""What several processes cost and give: tokens/s of N processes against one with as many threads, and agreeing to stop.

    python benchmarks/processes.py [--model FOLDER_OR_GGUF --mbpp FOLDER --precision bf16] [--processes 2] [--rounds 3]

Both train the same global batches; they take turns, each time as new processes, and the first steps are not counted.
"tokens/s" is the median over steps, the ratio is taken within a round. Agreeing to stop: what decides is added up over
processes in the one vector that logging needs anyway, so its cost is at most that of this vector. It is timed alone,
when all processes are there (waiting for a slower one is no cost of agreeing), and told as a share of the step, with
the time of the decision itself added.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import torch

from wmtp.data import Loader, load_examples, load_tokenizer, pad_id, tokenise
from wmtp.data.rows import BUILTIN
from wmtp.model import load_model, model_skeleton, tokenizer_location
from wmtp.objectives import WeightedMTP
from wmtp.stopping import LossEarlyStopping
from wmtp.training.distributed import World, join_world
from wmtp.training.optim import make_optimizer
from wmtp.training.sharding import Sharding, spread
from wmtp.training.step import Hardware, make_scaler, train_step
from wmtp.types import Observation
from wmtp.weighting import Uniform

RULE = {
    "enabled": True,
    "monitor": "loss",
    "rule": {"any": ["trend", "divergence", {"patience": {"patience": 10_000}}]},
}
RULES = ["trend", "divergence", {"patience": {"patience": 10_000}}]
WORDS = 16
"""Numbers that processes exchange at the end of a step, more than enough for four heads."""


def worker(args: argparse.Namespace) -> None:
    """Train some steps; process 0 prints seconds and tokens of each, and what agreeing takes."""
    torch.set_num_threads(args.threads)
    cpu = torch.device("cpu")
    with join_world(cpu, "gloo", 600) as world:
        tokenizer = load_tokenizer(tokenizer_location(args.model))
        store = tokenise(load_examples("mbpp", args.mbpp, "train"), tokenizer, args.max_length)
        loader = Loader(store, args.batch_size, args.max_length, pack=args.pack, mask_prompt=True,
                        pad_id=pad_id(tokenizer), seed=0, rank=world.rank, ranks=world.size)  # fmt: skip
        model = load_model(args.model, horizon=args.horizon) if world.main else None
        if world.size > 1:
            whole, model = model, model_skeleton(args.model, horizon=args.horizon)
            spread(model, whole, world, cpu, Sharding(args.sharding))
            del whole
        assert model is not None
        hardware = Hardware(cpu, {"fp32": torch.float32, "bf16": torch.bfloat16}[args.precision], None, world)
        optimizer = make_optimizer(model, "adamw", lr=1e-5, weight_decay=0.1, betas=(0.9, 0.95))
        objective, scaler = WeightedMTP(Uniform(), args.horizon), make_scaler(hardware)
        rows: list[tuple[float, float]] = []
        for i in range(args.warmup + args.steps):
            batch = loader.at(i)[1]
            tokens = float((batch.documents >= 0).sum())
            world.wait()
            started = time.perf_counter()
            metrics = train_step(model, objective, batch, optimizer, scaler, hardware, lr_factor=1.0, grad_clip=1.0,
                                 tell=lambda tokens=tokens: {"tokens": tokens})  # fmt: skip
            rows.append((time.perf_counter() - started, metrics["tokens"]))
        told = {"rows": rows[args.warmup :], "agreeing": exchange(world), "deciding": decide()}
        if world.main:
            print(json.dumps(told))


def exchange(world: World, rounds: int = 300) -> float:
    """Median seconds of adding up the vector, when everybody is there."""
    values, seconds = torch.zeros(WORDS, dtype=torch.float64), list[float]()
    for _ in range(rounds):
        world.wait()
        started = time.perf_counter()
        world.sum(values)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def decide(steps: int = 2000) -> float:
    """Median seconds of a decision."""
    stopper, seconds = LossEarlyStopping({"enabled": True, "monitor": "loss", "rule": {"any": RULES}}), list[float]()
    for step in range(1, steps):
        seen = Observation(step, {"loss": 2.0 + 1.0 / step, "grad_norm": 1.0}, total_steps=steps)
        started = time.perf_counter()
        stopper.observe(seen)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def start(processes: int, threads: int) -> dict[str, float]:
    """Run the worker; median tokens/s and seconds of a step, and what it told."""
    words = [*sys.argv[1:], "--worker", "--threads", str(threads)]
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    here = os.environ | {"OMP_NUM_THREADS": str(threads), "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, *many, __file__, *words]
    told = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=here).stdout)
    speed = statistics.median(tokens / seconds for seconds, tokens in told["rows"])
    step = statistics.median(seconds for seconds, _ in told["rows"])
    return {"speed": speed, "step": step, "agreeing": told["agreeing"], "deciding": told["deciding"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:tiny", help="builtin:tiny, a folder or a .gguf file")
    parser.add_argument("--mbpp", default=BUILTIN, help="location of the data")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--sharding", choices=["full", "none"], default="full")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--pack", action="store_true")
    parser.add_argument("--horizon", type=int, default=4)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--worker", action="store_true", help="be one of the processes")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.worker:
        worker(args)
        return
    ratios: list[float] = []
    print(f"{args.model.rsplit('/', 1)[-1]}, {args.batch_size} rows, {args.horizon} heads, {args.precision}")
    for turn in range(args.rounds):
        one = start(1, args.processes)
        many = start(args.processes, 1)
        ratios.append(many["speed"] / one["speed"])
        share = (many["agreeing"] + many["deciding"]) / many["step"]
        print(
            f"round {turn + 1}: 1 process x {args.processes} threads {one['speed']:,.0f} tokens/s, "
            f"{args.processes} x 1 {many['speed']:,.0f} ({ratios[-1]:.3f}); step {many['step'] * 1e3:.0f} ms, "
            f"agreeing {many['agreeing'] * 1e6:.0f} us + deciding {many['deciding'] * 1e6:.0f} us = {share:.2%} of it"
        )
    print(f"median ratio {statistics.median(ratios):.3f} [{min(ratios):.3f}, {max(ratios):.3f}]")


if __name__ == "__main__":
    main()
