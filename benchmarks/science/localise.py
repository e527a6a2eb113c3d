"""Does a critic find the mistake in a program, having only been told which programs fail? Set-up and reading: README.md
in this folder.

    python benchmarks/science/localise.py --output FOLDER
    python benchmarks/science/localise.py --output FOLDER --model FILE.gguf --data mbpp:FOLDER

Each finished (method, seed) is a line of FOLDER/localise.jsonl; begun again, what is there is not done again. Programs
are run and hidden states computed once, kept in FOLDER/cache. At the end FOLDER/localise.md has the table and
FOLDER/localise.html the figures.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from localise_page import write_results
from localise_world import (
    BUILTIN_MODEL,
    Settings,
    World,
    auroc,
    hits,
    looks_of,
    make_world,
    part,
    prepare,
    surprise_of,
)
from noise import Curve, rows_of
from numpy.typing import NDArray

from wmtp.assemble import cpu_multiplies_bf16
from wmtp.data.rows import BUILTIN
from wmtp.model.value_head import ValueHead
from wmtp.pretraining import make_critic
from wmtp.settings import Config, Recipe, check_settings
from wmtp.training.loop import fit
from wmtp.weighting.critic import value_deltas

METHODS = {
    "gae": "critic, token_spread gae, as it ships",
    "balanced": "critic, right programs as often as wrong ones",
    "uniform": "critic, token_spread uniform",
    "length": "critic, token_spread length",
    "attention": "critic, token_spread attention",
    "permuted": "control: rewards permuted over programs",
    "looks": "control: looks alone (tokens that wrong programs have)",
    "surprise": "no critic: the base model's own surprise",
    "surprise_text": "the base model's surprise, end-of-text token left out",
}


def train_head(
    world: World, given: Settings, seed: int, spread: str, train: NDArray[np.int64], *, permuted: bool = False
) -> tuple[ValueHead, float]:
    """Stage 1 as `wmtp train` runs it, on `train`; the head, and the explained variance of held-out rewards."""
    recipe = {
        "run": {"name": "localise"},
        "pretrain": {"max_steps": given.steps, "num_epochs": 10**6, "lr": given.lr, "batch_size": given.batch_size},
        "train": {"algo": "critic-wmtp", "eval_interval": given.steps},
        "data": {"train": {"sources": ["mbpp"]}},
        "critic": {
            "target": "verified",
            "token_spread": spread,
            "gamma": given.gamma,
            "gae_lambda": given.gae_lambda,
        },
    }
    settings = check_settings(Recipe.model_validate(recipe), Config.model_validate({"seed": seed}))
    programs = world.programs
    sides = [(part(programs.store, side), programs.rewards[side]) for side in (train, world.held_out)]
    if permuted:
        sides[0] = (sides[0][0], np.random.default_rng([seed, 6]).permutation(sides[0][1]))
    critic = make_critic(settings, world.frozen, sides[0][0], sides[1][0], (sides[0], sides[1]))
    assert critic.stage is not None
    progress = fit(critic.stage, Curve())
    return critic.head.eval(), progress.last["eval_explained_variance"]


@torch.no_grad()
def values_of(head: ValueHead, world: World) -> list[torch.Tensor]:
    """Of each held-out program [1+T] values, standardised, the first being that of the last prompt token."""
    states = world.frozen.all_states
    return [head(states.read([int(i)]))[0] for i in world.held_out]


def deltas_of(values: list[torch.Tensor], mode: str, discount: float) -> list[NDArray[np.float64]]:
    """Of each program [T] changes of value, by the critic's own rule."""
    return [
        value_deltas(V[None], torch.zeros(1, len(V), dtype=torch.int64), mode, discount)[0, 1:].numpy() for V in values
    ]


def measured(method: str, world: World, given: Settings, seed: int) -> dict[str, Any]:
    """What a method says of the held-out programs."""
    right = world.programs.rewards[world.held_out] == 1
    if method == "looks":
        scores = looks_of(world)
        found = hits(world, scores, seed)
        return {"td": found, "diff": found, "auroc": auroc(np.array([score.sum() for score in scores]), right)}
    if method.startswith("surprise"):
        losses = surprise_of(world, given)
        if method == "surprise_text":  # no token is less surprising than the one left out
            losses = [np.append(loss[:-1], 0.0) for loss in losses]
        likely = np.array([-loss.mean() for loss in losses])
        lowest = np.array([-loss.max() for loss in losses])
        found = hits(world, [-loss for loss in losses], seed)
        return {"td": found, "diff": found, "auroc": auroc(likely, right), "auroc_lowest": auroc(lowest, right)}
    train = world.balanced if method == "balanced" else world.train
    spread = "gae" if method in ("balanced", "permuted") else method
    head, explained = train_head(world, given, seed, spread, train, permuted=method == "permuted")
    values = values_of(head, world)
    last = np.array([float(V[-1]) for V in values])
    deltas = {mode: hits(world, deltas_of(values, mode, given.discount), seed) for mode in ("td", "diff")}
    return {**deltas, "auroc": auroc(last, right), "explained": explained}


def run(methods: list[str], seed: int, given: Settings, cache: Path) -> list[dict[str, Any]]:
    """Lines of the results: all methods of a seed share the frozen model and the tasks."""
    world = make_world(given, seed, cache)
    sizes = {"train": len(world.train), "held_out": len(world.held_out)}

    def rows() -> Iterator[dict[str, Any]]:
        for method in methods:
            started = time.process_time()
            row = {"method": method, "seed": seed, "settings": asdict(given), **sizes}
            row |= measured(method, world, given, seed)
            yield row | {"seconds": time.process_time() - started}

    return list(rows())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--cache", type=Path, help="folder for what is computed once; default: OUTPUT/cache")
    parser.add_argument("--model", default=BUILTIN_MODEL, help="builtin:tiny, a folder or a .gguf file")
    parser.add_argument("--data", default=BUILTIN, help="builtin:tasks, or mbpp:FOLDER")
    parser.add_argument("--tasks", type=int, default=4000, help="the data's first ones")
    parser.add_argument("--held-out", type=float, default=0.2, help="share of the tasks")
    parser.add_argument("--max-length", type=int, default=512, help="tasks with a longer program are left out")
    parser.add_argument("--base-steps", type=int, default=1500, help="of builtin:tiny, before it is frozen")
    parser.add_argument("--base-lr", type=float, default=1.2e-3)
    parser.add_argument("--base-batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2000, help="of the value head")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--gamma", type=float, default=1.0)
    parser.add_argument("--gae-lambda", type=float, default=1.0)
    parser.add_argument("--discount", type=float, default=0.95, help="discount_lambda, of delta_mode td")
    fastest = "bf16" if cpu_multiplies_bf16() else "fp32"
    parser.add_argument("--precision", choices=["fp32", "bf16"], default=fastest, help="default: the faster one here")
    args = vars(parser.parse_args())
    folder, seeds, methods, jobs = (args.pop(name) for name in ("output", "seeds", "methods", "jobs"))
    cache = args.pop("cache") or folder / "cache"
    given = Settings(**args)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "localise.jsonl"
    done = {(row["method"], row["seed"]) for row in rows_of(file, given)}
    todo = {seed: [method for method in methods if (method, seed) not in done] for seed in seeds}
    todo = {seed: wanted for seed, wanted in todo.items() if wanted}
    with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        if todo:  # programs are run, and the states of a model that no seed changes computed, before seeds share them
            states = any(method != "looks" for wanted in todo.values() for method in wanted)
            pool.submit(partial(prepare, states=states), given, cache).result()
        futures = [pool.submit(run, wanted, seed, given, cache) for seed, wanted in todo.items()]
        for future in as_completed(futures):
            with file.open("a") as out:
                for row in future.result():
                    out.write("\n" * (out.tell() > 0) + json.dumps(row))
                    print(f"seed {row['seed']} {row['method']}: {row['seconds']:.0f} s of CPU time", flush=True)
    rows = [row for row in rows_of(file, given) if row["seed"] in seeds and row["method"] in methods]
    print(write_results(rows, METHODS, folder))


if __name__ == "__main__":
    main()
