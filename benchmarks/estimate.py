"""`wmtp check`'s estimate of memory against what real training steps take; and the table of docs/cluster.md.

    python benchmarks/estimate.py --model FOLDER_OR_GGUF  # estimate / measured, of models made on the fly and this one
    python benchmarks/estimate.py --table                 # what the estimate says of large models, as Markdown

Measured: the peak of a fresh process in three updates, less what it held before the model was made. Models made on the
fly have random weights: what they are does not change what a step holds. Two processes (over gloo) hold a shard each;
the larger peak is told. CPU only: allocators of GPUs round and fragment otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from wmtp.estimate import GPUS, UTILISATION, Machine, estimate_model
from wmtp.model import MTPModel, load_model, model_skeleton
from wmtp.model.trunk import CausalTrunk
from wmtp.objectives import WeightedMTP
from wmtp.settings import Config, Recipe, Settings, load_recipe
from wmtp.training.distributed import join_world
from wmtp.training.optim import make_optimizer
from wmtp.training.sharding import Sharding, recompute, spread
from wmtp.training.step import Hardware, make_scaler, train_step
from wmtp.types import Batch
from wmtp.weighting import Uniform

ROOT = Path(__file__).parents[1]
SIZES: dict[str, dict[str, Any]] = {
    "5M": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4,
           "vocab_size": 4096},
    "20M": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6,
            "vocab_size": 16384, "tie_word_embeddings": True},
    "60M": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 12, "num_attention_heads": 8,
            "num_key_value_heads": 4, "vocab_size": 32000, "tie_word_embeddings": True},
    # Shapes of published models: Llama 3.2 1B and 3B, Llama 2 7B and 13B.
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True},
    "3B": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
           "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "tie_word_embeddings": True},
    "7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
           "vocab_size": 32000},
    "13B": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
            "vocab_size": 32000},
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A setting that is estimated and measured."""

    size: str
    horizon: int = 4
    rows: int = 4
    length: int = 256
    micro: int | None = None
    precision: str = "fp32"
    checkpointing: bool = False
    optimizer: str = "adamw"
    ranks: int = 1

    def settings(self) -> Settings:
        part = {"sources": ["mbpp"], "max_length": self.length, "batch_size": self.rows}
        recipe = {"run": {"name": "x"}, "model": {"horizon": self.horizon}, "train": {"algo": "baseline-mtp"},
                  "data": {"train": part}, "optim": {"optimizer": self.optimizer}}  # fmt: skip
        devices = {"compute_backend": "cpu", "mixed_precision": self.precision, "micro_batch_size": self.micro,
                   "activation_checkpointing": self.checkpointing}  # fmt: skip
        return Settings(Recipe.model_validate(recipe), Config.model_validate({"devices": devices}))


CASES = [
    Case("5M"),
    Case("5M", horizon=1, rows=16),
    Case("20M"),
    Case("20M", horizon=1),
    Case("20M", rows=16),
    Case("20M", rows=16, checkpointing=True),
    Case("20M", rows=16, micro=4),
    Case("20M", rows=16, precision="bf16"),
    Case("20M", optimizer="lion"),
    Case("20M", rows=1, length=1024),
    Case("60M"),
    Case("60M", rows=4, length=512, horizon=1, checkpointing=True),
    Case("20M", rows=16, ranks=2),
    Case("20M", rows=16, checkpointing=True, ranks=2),
    Case("60M", rows=8, ranks=2),
]


def skeleton(size: str, horizon: int) -> MTPModel:
    """On the meta device; `size` may be a place where a model is."""
    if size not in SIZES:
        return model_skeleton(size, horizon=horizon)
    with torch.device("meta"):
        return MTPModel(CausalTrunk(AutoModelForCausalLM.from_config(LlamaConfig(**SIZES[size])), size), horizon)


def real(size: str, horizon: int) -> MTPModel:
    if size not in SIZES:
        return load_model(size, horizon=horizon)
    return MTPModel(CausalTrunk(AutoModelForCausalLM.from_config(LlamaConfig(**SIZES[size])), size), horizon)


def make_batch(rows: int, length: int, vocabulary: int) -> Batch:
    """Two documents a row, all learnt."""
    tokens = torch.randint(0, vocabulary, (rows, length))
    half = torch.arange(length) // (length // 2)
    documents = 2 * torch.arange(rows)[:, None] + half
    return Batch(tokens, tokens.clone(), documents, (torch.arange(length) - half * (length // 2)).expand(rows, length))


def status(name: str) -> int:
    """Bytes, of this process's status in Linux: VmRSS now, VmHWM at the peak."""
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(rows[name].split()[0]) * 1024


def measure(case: Case) -> int:
    """Bytes, in this process."""
    torch.manual_seed(0)
    device = torch.device("cpu")
    objective = WeightedMTP(Uniform(), case.horizon)
    with join_world(device, "gloo", 60) as world:
        # What libraries load on their first use belongs to no model.
        step(real("5M", 2), Case("5M", horizon=2, rows=1, precision=case.precision), objective, Hardware(device))
        before = status("VmRSS")
        model = real(case.size, case.horizon) if world.main else skeleton(case.size, case.horizon)
        hardware = Hardware(device, {"fp32": torch.float32, "bf16": torch.bfloat16}[case.precision], case.micro, world)
        if case.ranks > 1:
            whole, model = model if world.main else None, skeleton(case.size, case.horizon)
        if case.checkpointing:
            recompute(model)
        if case.ranks > 1:
            spread(model, whole, world, device, Sharding())
            del whole
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten: loading has one of its own
        step(model, case, objective, hardware)
        return status("VmHWM") - before


def step(model: MTPModel, case: Case, objective: WeightedMTP, hardware: Hardware) -> None:
    """Three updates."""
    vocabulary = model.trunk.lm.config.vocab_size
    optimizer = make_optimizer(model, case.optimizer, lr=1e-5, weight_decay=0.1, betas=(0.9, 0.95))
    batch = make_batch(case.rows // case.ranks, case.length, vocabulary)
    for _ in range(3):
        train_step(model, objective, batch, optimizer, make_scaler(hardware), hardware, lr_factor=1.0, grad_clip=1.0)


def measured(case: Case) -> int:
    """Bytes, in a process of its own (or several, the first one's)."""
    command = [sys.executable, __file__, "--case", json.dumps(vars(case))]
    if case.ranks > 1:
        command[1:2] = ["-m", "torch.distributed.run", "--nproc-per-node", str(case.ranks), __file__]
    # Freed memory goes back at once, as far as the allocator can.
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "0",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return max(json.loads(line) for line in done.stdout.splitlines() if line.isdigit())


def estimated(case: Case) -> dict[str, Any]:
    """What the estimate says of `case`, as JSON data."""
    return estimate_model(skeleton(case.size, case.horizon), case.settings(), Machine("cpu", case.ranks))


def compare(cases: list[Case]) -> None:
    """Markdown, row by row."""
    print(
        "| model | heads | rows x length | processes | | estimate | measured | estimate / measured |\n"
        + "|---" * 8
        + "|"
    )
    for case in cases:
        said, found = estimated(case)["memory"]["total"], measured(case)
        what = [case.precision, case.optimizer]
        what += [f"micro-batches of {case.micro}"] * bool(case.micro) + ["checkpointing"] * case.checkpointing
        row = [Path(case.size).stem, case.horizon, f"{case.rows} x {case.length}", case.ranks, ", ".join(what)]
        row += [f"{said / 1e6:.0f} MB", f"{found / 1e6:.0f} MB", f"{said / found:.2f}"]
        print(f"| {' | '.join(map(str, row))} |", flush=True)


RECIPE = ROOT / "recipes" / "critic.7b.cluster.yaml"
GPU, COUNTS = "H100", (1, 2, 4, 8, 16, 64)


def table() -> str:
    """Markdown: models of several sizes, trained as the recipe of the cluster says."""
    recipe = load_recipe(RECIPE)
    devices = {"compute_backend": "cuda", "micro_batch_size": 1, "activation_checkpointing": True}
    settings = Settings(recipe, Config.model_validate({"devices": devices}))
    peak, memory = GPUS[GPU]
    rows = [f"| model | parameters | {' | '.join(f'{n} GPU' + 's' * (n > 1) for n in COUNTS)} |",
            "|---|---" + "|---" * len(COUNTS) + "|"]  # fmt: skip
    for size in ("1B", "3B", "7B", "13B"):
        model = skeleton(size, recipe.model.horizon)
        cells: list[str] = []
        for gpus in COUNTS:
            found: Any = estimate_model(model, settings, Machine("cuda", gpus, memory, peak * UTILISATION))
            mark = {"yes": "", "tight": " (tight)", "no": " (does not fit)"}[found["fits"]]
            cells.append(f"{found['memory']['total'] / 1e9:.0f} GB{mark}, {found['step']['seconds']:.2g} s")
        rows.append(f"| {size} | {found['parameters']['all'] / 1e9:.2f} B | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", default=[], help="also this one: a folder or a .gguf file")
    parser.add_argument("--table", action="store_true", help="print the table of docs/cluster.md")
    parser.add_argument("--case", help="measure this one, in this process")
    args = parser.parse_args()
    if args.case:
        print(measure(Case(**json.loads(args.case))), flush=True)
    elif args.table:
        print(table())
    else:
        own = [replace(case, size=model) for model in args.model for case in (Case("", rows=2), Case("", horizon=1))]
        compare([*CASES, *own])


if __name__ == "__main__":
    main()
