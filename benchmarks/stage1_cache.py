"""Stage 1 on hidden states that are computed once and kept, against computing them for each batch of each epoch.

    python benchmarks/stage1_cache.py --model FOLDER_OR_GGUF --epochs 3 --rounds 3

Both train the same head on the same batches in the same order and round states to fp16; their losses must agree. The
time of building the cache is part of the cached run. Rounds alternate; what is told is the median ratio and its range.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wmtp.data import load_examples, load_tokenizer, pad_id, tokenise
from wmtp.data.rows import BUILTIN
from wmtp.data.state_loader import StateLoader, TokenRewards
from wmtp.data.states import compute_states, open_or_build_states
from wmtp.frozen import BATCH_TOKENS
from wmtp.model import load_model, tokenizer_location
from wmtp.model.value_head import ValueHead
from wmtp.objectives.value import ValueObjective
from wmtp.training.optim import make_optimizer
from wmtp.training.step import Hardware, make_scaler, train_step
from wmtp.types import Batch

TOLERANCE = 1e-3
"""Relative: the two compute states in batches of other widths, whose rounding differs (in bf16 by a percent)."""


def learn(
    read: Callable[[Sequence[int]], Tensor], rewards: TokenRewards, width: int, args: argparse.Namespace
) -> list[float]:
    """Losses of all steps of stage 1, with the recipe's defaults."""
    torch.manual_seed(0)
    head = ValueHead(width)
    objective = ValueObjective(gamma=0.99, gae_lambda=0.95)
    optimizer = make_optimizer(head, "adamw", lr=1e-4, weight_decay=0.0, betas=(0.9, 0.999))
    loader = StateLoader(read, rewards, args.batch_size, seed=0)
    hardware = Hardware(torch.device("cpu"))
    scaler = make_scaler(hardware)
    losses: list[float] = []
    for step in range(loader.total_batches(args.epochs)):
        told = train_step(
            head, objective, loader.at(step)[1], optimizer, scaler, hardware, lr_factor=1.0, grad_clip=1.0
        )
        losses.append(told["value_loss"])
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:tiny", help="builtin:tiny, a folder or a .gguf file")
    parser.add_argument("--mbpp", default=BUILTIN, help="location of the data")
    parser.add_argument("--documents", type=int, default=374)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = load_tokenizer(tokenizer_location(args.model))
    examples = load_examples("mbpp", args.mbpp, "train")[: args.documents]
    store = tokenise(examples, tokenizer, args.max_length)
    model = load_model(args.model, horizon=1).eval()
    hardware = Hardware(torch.device("cpu"), {"fp32": torch.float32, "bf16": torch.bfloat16}[args.precision])
    # Rewards that the states can foresee in part, so that losses fall: each document's mean token id.
    means = np.array([store.document(i)[0].mean() for i in range(len(store))])
    rewards = TokenRewards.spread(store, (means - means.mean()) / means.std(), "gae", None)
    pad = pad_id(tokenizer)

    def forward(batch: Batch) -> tuple[Tensor, None]:
        with hardware.autocast():
            return model.trunk(batch.tokens, batch.positions).hidden, None

    def recomputed() -> list[float]:
        return learn(lambda chosen: compute_states(store, chosen, forward, pad)[0].half(), rewards, model.width, args)

    def cached() -> list[float]:
        with tempfile.TemporaryDirectory() as folder:
            states = open_or_build_states(
                Path(folder), store, forward, model="this", width=model.width, attention=False, pad_id=pad,
                batch_tokens=BATCH_TOKENS, say=lambda _: None,
            )  # fmt: skip
            return learn(states.read, rewards, model.width, args)

    seconds: dict[str, list[float]] = {"recomputed": [], "cached": []}
    losses: dict[str, list[float]] = {}
    for _ in range(args.rounds):
        for name, way in (("recomputed", recomputed), ("cached", cached)):
            started = time.perf_counter()
            losses[name] = way()
            seconds[name].append(time.perf_counter() - started)
    a, b = np.array(losses["cached"]), np.array(losses["recomputed"])
    differ = float(np.abs(a / b - 1).max())
    first, last = (part.mean() for part in (a.reshape(args.epochs, -1)[0], a.reshape(args.epochs, -1)[-1]))
    assert last < first, f"the head learns nothing ({first:.4f}, then {last:.4f}): equal losses would say little"
    assert differ < (TOLERANCE if args.precision == "fp32" else 0.03), f"losses differ by {differ:.2g} of themselves"
    ratios = np.array(seconds["cached"]) / np.array(seconds["recomputed"])
    print(f"{args.model.rsplit('/', 1)[-1]}, {len(store)} documents, {len(store.tokens)} tokens, {args.epochs} epochs, "
          f"{args.precision}, {args.threads} threads")  # fmt: skip
    print(f"recomputed {np.median(seconds['recomputed']):.2f} s, cached (with building) "
          f"{np.median(seconds['cached']):.2f} s; cached / recomputed {np.median(ratios):.3f} "
          f"[{ratios.min():.3f}, {ratios.max():.3f}] in {args.rounds} rounds")  # fmt: skip
    print(f"{len(a)} losses, mean of the first epoch {first:.4f}, of the last {last:.4f}; "
          f"largest relative difference {differ:.1e}")  # fmt: skip


if __name__ == "__main__":
    main()
