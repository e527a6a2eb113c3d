"""Does Rho-1 find corrupted training tokens, and does it help? Set-up and reading: README.md in this folder.

    python benchmarks/science/noise.py --seeds 0 1 2 3 4 --jobs 2 --output FOLDER

Each finished (method, seed) is a line of FOLDER/noise.jsonl; begun again, what is there is not done again. At the end
FOLDER/noise.md has the table and FOLDER/noise.html the figures.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from noise_page import write_results
from noise_world import HORIZON, MODEL, Absolute, Settings, Watched, World, make_world
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from wmtp.assemble import cpu_multiplies_bf16
from wmtp.data import Loader, TokenStore
from wmtp.data.reference import ReferenceLosses, reference_losses
from wmtp.data.rows import BUILTIN
from wmtp.model import MTPModel, load_model
from wmtp.objectives import WeightedMTP
from wmtp.ops.schedule import lr_factor
from wmtp.ops.weights import Scaling
from wmtp.protocols import TokenWeighting
from wmtp.stopping import LossEarlyStopping
from wmtp.training.loop import Progress, Stage, fit
from wmtp.training.optim import make_optimizer
from wmtp.types import Batch, Verdict
from wmtp.weighting import Diff, RandomMatched, Rho1, Shuffled, Uniform

METHODS = {
    "baseline": "baseline",
    "weighted": "rho1 weighted",
    "skip": "rho1 token_skip",
    "random_weighted": "random_matched, weighted",
    "random_skip": "random_matched, token_skip",
    "shuffled_weighted": "shuffled, weighted",
    "absolute_weighted": "absolute, weighted",
    "absolute_skip": "absolute, token_skip",
    "oracle": "oracle (told the mask)",
    "baseline_scored": "baseline, + compute of scoring",
    "baseline_all": "baseline, + scoring and reference",
}


class Curve:
    """A run that keeps nothing but its held-out losses (a `RunLog`)."""

    def __init__(self) -> None:
        self.held_out: dict[int, dict[str, float]] = {}

    def begin(self, stage: Stage[Any], progress: Progress) -> None:
        del stage, progress

    def preempted(self) -> bool:
        return False

    def save_due(self, step: int, *, ended: bool) -> bool:
        del step, ended
        return False

    def save(self, *_: object) -> None:
        raise AssertionError("never due")

    def restore(self, stage: str) -> None:
        del stage

    def weights_at(self, stage: str, step: int) -> None:
        del stage, step

    def record(self, stage: Stage[Any], progress: Progress, metrics: dict[str, float], verdict: Verdict) -> None:
        del stage, verdict
        found = {key.removeprefix("eval_"): value for key, value in metrics.items() if key.startswith("eval_loss")}
        if found:
            self.held_out[progress.step] = found


def loader(world: World, store: TokenStore, given: Settings, seed: int, *, shuffle: bool = True) -> Loader:
    return Loader(store, given.batch_size, given.max_length, pack=False, mask_prompt=True, pad_id=world.pad,
                  seed=seed, shuffle=shuffle)  # fmt: skip


def train(
    model: MTPModel, weighting: TokenWeighting, world: World, store: TokenStore, given: Settings, steps: int, seed: int
) -> dict[int, dict[str, float]]:
    """Step -> clean held-out losses."""
    curve = Curve()
    warmup = math.ceil(0.05 * steps)
    stage = Stage(
        name="train",
        model=model,
        objective=WeightedMTP(weighting, model.horizon),
        optimizer=make_optimizer(model, "adamw", lr=given.lr, weight_decay=0.1, betas=(0.9, 0.95)),
        lr_factor=partial(lr_factor, total_steps=steps, warmup_steps=warmup, kind="cosine"),
        batches=loader(world, store, given, seed),
        total_steps=steps,
        limit="max_steps",
        stopper=LossEarlyStopping(),
        held_out=(
            WeightedMTP(Uniform(), model.horizon),
            loader(world, world.held_out, given, seed, shuffle=False).batches,
        ),
        eval_interval=max(1, math.ceil(steps / 4)),
        hardware=given.hardware,
        seed=seed,
        grad_clip=1.0,
    )
    fit(stage, curve)
    return curve.held_out


def reference(world: World, given: Settings, folder: Path, seed: int) -> tuple[ReferenceLosses, dict[int, Any]]:
    """Losses of a next-token model trained on clean data apart, kept in `folder`; and its held-out losses if trained
    now."""
    trained: list[MTPModel] = []
    curve: dict[int, Any] = {}

    def losses(batch: Batch) -> Tensor:
        if not trained:
            model = load_model(MODEL, horizon=1, seed=1000 + seed)
            curve.update(train(model, Uniform(), world, world.apart, given, given.reference_steps, seed))
            trained.append(model.eval())
        with given.hardware.autocast():
            return trained[0].token_losses(batch)

    found = reference_losses(
        folder / "cache", world.train, losses, model=json.dumps([given.of_reference, seed]),
        mask_prompt=True, pad_id=world.pad,
        batch_size=given.batch_size, max_length=given.max_length, device=torch.device("cpu"), say=lambda _: None,
    )  # fmt: skip
    return found, curve


def weighting_of(method: str, world: World, given: Settings, folder: Path, seed: int) -> TokenWeighting:
    if method.startswith("baseline"):
        return Uniform()
    if method == "oracle":
        sharp = Scaling(strength=1.0, temperature=0.01, epsilon=0.0, max_weight=100.0)
        return Diff(lambda batch: 1.0 - world.corrupted(batch), sharp)
    losses, _ = reference(world, given, folder, seed)
    scaling = Scaling(strength=given.strength, temperature=given.temperature)
    control, _, mode = method.rpartition("_")
    kind = Absolute if control == "absolute" else Rho1
    rho1 = kind(losses, scaling, selection_mode="token_skip" if mode == "skip" else "weighted",
                skip_share=given.skip_share, score_from=given.score_from)  # fmt: skip
    match control:
        case "random":
            return RandomMatched(rho1, seed)
        case "shuffled":
            return Shuffled(rho1, seed)
        case _:
            return rho1


def costs(world: World, given: Settings) -> dict[str, float]:
    """What things cost, in steps of the baseline, by the matrix products that are counted on one batch."""
    batch = loader(world, world.train, given, 0).at(0)[1]

    def products(horizon: int, *, backward: bool) -> float:
        model = load_model(MODEL, horizon=horizon)
        with FlopCounterMode(display=False) as counter:
            loss = WeightedMTP(Uniform(), horizon)(model, batch).loss
            if backward:
                loss.backward()
        return float(counter.get_total_flops())

    step = products(HORIZON, backward=True)
    passes = len(world.train) / given.batch_size
    return {
        "scoring": passes * products(1, backward=False) / step,
        "reference": given.reference_steps * products(1, backward=True) / step,
    }


def run(method: str, seed: int, given: Settings, folder: Path) -> dict[str, Any]:
    """One line of the results."""
    started = time.process_time()
    world = make_world(given, seed)
    row: dict[str, Any] = {"method": method, "seed": seed, "settings": asdict(given)}
    if method == "reference":
        _, curve = reference(world, given, folder, seed)
        row["curve"] = curve
        return row | {"seconds": time.process_time() - started}
    extra = costs(world, given) if method.startswith("baseline_") else {}
    more = extra.get("scoring", 0.0) + (extra["reference"] if method == "baseline_all" else 0.0)
    steps = given.steps + round(more)
    watched = Watched(weighting_of(method, world, given, folder, seed), world.corrupted)
    model = load_model(MODEL, horizon=HORIZON, seed=seed)
    model.drops_targets = method.endswith("skip")
    curve = train(model, watched, world, world.train, given, steps, seed)
    tenth = max(1, len(watched.auroc) // 10)
    return row | {
        "steps": steps,
        "curve": curve,
        "auroc": float(np.mean(watched.auroc)),
        "auroc_first": float(np.mean(watched.auroc[:tenth])),
        "auroc_last": float(np.mean(watched.auroc[-tenth:])),
        "auroc_curve": [float(np.mean(part)) for part in np.array_split(watched.auroc, min(20, len(watched.auroc)))],
        "weight_of_corrupted": float(np.mean(watched.weight)),
        "seconds": time.process_time() - started,
    }


def rows_of(file: Path, given: Settings) -> list[dict[str, Any]]:
    """What was done with these settings; a line that a killed run left half written is none."""
    rows: list[dict[str, Any]] = []
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [row for row in rows if row["settings"] == asdict(given)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--data", default=BUILTIN, help="builtin:tasks, stdlib, or a folder of .py files")
    parser.add_argument("--noise", type=float, default=0.2, help="share of the response tokens that is redrawn")
    parser.add_argument("--documents", type=int, default=2000, help="to train on, and as many for the reference")
    parser.add_argument("--steps", type=int, default=350)
    parser.add_argument("--reference-steps", type=int, default=250)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1.2e-3)
    parser.add_argument("--strength", type=float, default=1.0, help="lambda")
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--skip-share", type=float, default=0.3)
    parser.add_argument("--score-from", choices=["head1", "per_head"], default="head1")
    fastest = "bf16" if cpu_multiplies_bf16() else "fp32"
    parser.add_argument("--precision", choices=["fp32", "bf16"], default=fastest, help="default: the faster one here")
    args = vars(parser.parse_args())
    folder, seeds, methods, jobs = (args.pop(name) for name in ("output", "seeds", "methods", "jobs"))
    given = Settings(**args)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "noise.jsonl"
    done = {(row["method"], row["seed"]) for row in rows_of(file, given)}
    # Every seed's reference first: whoever comes later finds its losses in the cache.
    for wanted in (["reference"], methods):
        todo = [(method, seed) for seed in seeds for method in wanted if (method, seed) not in done]
        with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            futures = [pool.submit(run, method, seed, given, folder) for method, seed in todo]
            for future in as_completed(futures):
                row = future.result()
                with file.open("a") as out:
                    out.write("\n" * (file.stat().st_size > 0) + json.dumps(row))
                print(f"seed {row['seed']} {row['method']}: {row['seconds']:.0f} s of CPU time", flush=True)
    rows = [row for row in rows_of(file, given) if row["seed"] in seeds and row["method"] in {*methods, "reference"}]
    print(write_results(rows, METHODS, folder))


if __name__ == "__main__":
    main()
