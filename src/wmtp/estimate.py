"""What a setting needs before it is run: memory of each process, disk, and time; for `wmtp check`.

Counts of parameters are exact. Memory is what one update holds (`wmtp.training.footprint`) beside weights and
optimizer, spread as FSDP spreads them. Time is arithmetic over a throughput that is given or assumed: nothing here has
run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from torch import nn

from wmtp.errors import ModelError, SettingsError
from wmtp.model import MTPModel, model_skeleton
from wmtp.model.value_head import ValueHead
from wmtp.settings import Recipe, Settings
from wmtp.training.footprint import Pass
from wmtp.training.memory import count, pieces_of, update_memory
from wmtp.training.sharding import Sharding
from wmtp.types import JSON

GPUS: dict[str, tuple[float, float]] = {
    "A10": (125, 24e9),
    "A100": (312, 80e9),
    "A100-40GB": (312, 40e9),
    "B200": (2250, 180e9),
    "H100": (989, 80e9),
    "H200": (989, 141e9),
    "L4": (121, 24e9),
    "L40S": (362, 48e9),
    "MI300X": (1307, 192e9),
    "RTX4090": (165, 24e9),
}
"""Makers' dense bf16 peak in TFLOP/s, and bytes of memory."""
UTILISATION = 0.4
"""Share of the peak that is assumed to be reached: what well-set training of dense models reports is 0.3 to 0.5."""
CONTEXT = 1.5e9
"""Bytes of a GPU that CUDA's context, its libraries and NCCL's buffers are assumed to take."""
TIGHT = 0.9
"""Share of the memory above which fragmentation may end a run."""
ON_ONE_MACHINE = 8
"""GPUs of a machine, for hybrid sharding where the config doesn't say how many share a copy."""
SLOTS = {"adamw": 2, "lion": 1, "sgd": 1}
"""fp32 numbers that an optimizer keeps of each parameter."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What a setting is to run on.

    Attributes:
        device: kind of device.
        gpus: processes, one a GPU (or one CPU process).
        memory: bytes that each has, None if nobody said.
        tflops: 1e12 floating-point operations a second that each is taken to do, None if nobody said; `told`: by the
            user, not out of the table.
    """

    device: Literal["cuda", "cpu", "mps"]
    gpus: int
    memory: float | None = None
    tflops: float | None = None
    told: bool = False


def machine_of(
    settings: Settings, gpus: int | None, gpu: str | None, memory: str | None, tflops: float | None
) -> Machine:
    """The machine that the options of `wmtp check` describe; a GPU as soon as one of them speaks of it.

    Raises:
        SettingsError: an option that says nothing.
    """
    if gpu is not None and gpu not in GPUS:
        raise SettingsError(
            f"--gpu {gpu}: not in the table, which has {', '.join(GPUS)}; give --gpu-memory and --tflops"
        )
    peak, own = GPUS[gpu] if gpu is not None else (None, None)
    device = settings.config.devices.compute_backend
    if device == "auto":
        meant = gpus is not None or gpu is not None or memory is not None
        device = "cuda" if meant or torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return Machine(
        device,
        gpus or settings.config.devices.num_proc,
        own if memory is None else _bytes(memory),
        tflops or (peak * UTILISATION if peak else None),
        told=tflops is not None,
    )


def estimate(settings: Settings, machine: Machine) -> dict[str, JSON]:
    """What `settings` need on `machine`, as `estimate_model`; `{"missing": reason}` where the model is not here."""
    models, recipe = settings.config.paths.models, settings.recipe
    try:
        place = _local(models.base)
        model = model_skeleton(
            place, horizon=recipe.model.horizon, head=recipe.model.head, detach_heads=recipe.model.detach_heads
        )
        live = recipe.rho1 is not None and recipe.train.algo == "rho1-wmtp" and recipe.rho1.reference == "live"
        reference = model_skeleton(_local(models.ref), horizon=None) if live and models.ref else None
    except (ModelError, OSError, ValueError, KeyError) as error:
        return _missing(error)
    try:
        return estimate_model(model, settings, machine, reference)
    except ModelError as error:
        return _missing(error)


def _missing(error: Exception) -> dict[str, JSON]:
    return {"missing": f"no estimate: {' '.join(str(error).split())}"}


def _local(location: str) -> str:
    """Where the model is on this machine: nothing is downloaded for an estimate."""
    if location.startswith("builtin:") or Path(location).exists():
        return location
    try:
        return snapshot_download(location, allow_patterns=["*.json"], local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise ModelError(f"{location} is not on this machine; the estimate needs its config.json at least") from error


def estimate_model(
    model: MTPModel, settings: Settings, machine: Machine, reference: MTPModel | None = None
) -> dict[str, JSON]:
    """What training `model` (on the meta device) as `settings` say needs on each of the machine's GPUs.

    Returns:
        JSON data in bytes, seconds and FLOPs: `parameters`, `memory` by part, `fits`, `disk`, `flops_per_token`,
        `step`.
    """
    recipe, devices = settings.recipe, settings.config.devices
    model.train_trunk(recipe.train.full_finetune)
    if recipe.train.algo == "critic-wmtp":
        with torch.device("meta"):
            model.value_head = ValueHead(model.width)
    rows = math.ceil(recipe.data.train.batch_size / machine.gpus)
    micro = min(devices.micro_batch_size or rows, rows)
    memory = _memory(model, settings, machine, (rows, micro), reference)
    total = sum(size for part, size in memory.items() if part != "offloaded")
    flops = flops_per_token(model, recipe.data.train.max_length, checkpointing=devices.activation_checkpointing)
    tokens = recipe.data.train.batch_size * recipe.data.train.max_length
    seconds = flops * tokens / machine.gpus / machine.tflops / 1e12 if machine.tflops else None
    disk = _disk(model, settings)
    pieces = pieces_of(_sharding(settings, machine), machine.gpus)
    parameters: dict[str, JSON] = {"trunk": count(model.trunk), "heads": count(model.heads), "all": count(model)}
    return {
        "device": machine.device,
        "gpus": machine.gpus,
        "precision": _precision(settings, machine)[1],
        "parameters": parameters | {"learnt": count(model, learnt=True)},
        "micro_batch": {"rows": micro, "of": rows, "length": recipe.data.train.max_length},
        "memory": {**{part: round(size) for part, size in memory.items()}, "total": round(total)},
        "gpu_memory": machine.memory,
        "fits": None if machine.memory is None else _fits(total, machine.memory),
        "host": {"load": 4 * count(model), "save": round(disk["checkpoint"] / pieces)},
        "disk": {**disk},
        "flops_per_token": flops,
        "step": {"tokens": tokens, "tflops": machine.tflops, "told": machine.told, "seconds": seconds},
    }


def _fits(total: float, memory: float) -> str:
    return "yes" if total <= TIGHT * memory else "tight" if total <= memory else "no"


def _precision(settings: Settings, machine: Machine) -> tuple[torch.dtype, str]:
    name = settings.config.devices.mixed_precision
    if name == "auto":
        name = "bf16" if machine.device == "cuda" else "fp32"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name], name


def _memory(
    model: MTPModel, settings: Settings, machine: Machine, rows: tuple[int, int], reference: MTPModel | None
) -> dict[str, float]:
    """Bytes of each process by part."""
    recipe, (precision, _) = settings.recipe, _precision(settings, machine)
    checkpointing = settings.config.devices.activation_checkpointing
    parts = update_memory(
        model,
        Pass(rows[1], recipe.data.train.max_length, precision, machine.device, checkpointing),
        accumulates=rows[0] > rows[1],
        slots=_slots(recipe),
        processes=machine.gpus,
        sharding=_sharding(settings, machine),
        reference=reference,
    )
    return parts | {"other": CONTEXT if machine.device == "cuda" else 0.0}


def _sharding(settings: Settings, machine: Machine) -> Sharding:
    fsdp, (_, precision) = settings.config.devices.fsdp, _precision(settings, machine)
    half = fsdp.param_dtype == "bf16" or (fsdp.param_dtype, machine.device, precision) == ("auto", "cuda", "bf16")
    return Sharding(
        fsdp.sharding if machine.gpus > 1 else "none",
        fsdp.shard_size or min(ON_ONE_MACHINE, machine.gpus),
        torch.bfloat16 if half else torch.float32,
        fsdp.cpu_offload,
        fsdp.reshard_after_forward,
    )


def _slots(recipe: Recipe) -> int:
    return 0 if recipe.optim.optimizer == "sgd" and recipe.optim.betas[0] == 0 else SLOTS[recipe.optim.optimizer]


def _disk(model: MTPModel, settings: Settings) -> dict[str, int]:
    recipe = settings.recipe
    critic = recipe.critic if recipe.train.algo == "critic-wmtp" else None
    stage_1 = recipe.pretrain is not None and recipe.pretrain.enabled
    attention = critic is not None and critic.token_spread == "attention"
    checkpoint = 4 * (1 + _slots(recipe)) * count(model, learnt=True)
    states = 1000 * (2 * model.width + 4 * attention) if critic is not None and (stage_1 or attention) else 0
    kept = settings.config.paths.checkpoints.keep_last + recipe.train.early_stopping.restore_best
    return {
        "checkpoint": checkpoint,
        "checkpoints": kept * checkpoint,
        "model": 4 * (count(model.trunk) + count(model.heads)),
        "states_per_1000_tokens": states,
    }


def flops_per_token(model: MTPModel, length: int, *, checkpointing: bool) -> float:
    """Floating-point operations of an update for each position.

    As Chowdhery et al. 2022 (PaLM, appendix B): 2 for each weight of a matrix forward, twice that backward, and
    attention over the whole length; but the loss multiplies four times with the unembedding, for each head
    (`wmtp.ops.ce`), layers that keep only their inputs go forward twice (but for their last product, which torch leaves
    out), and a frozen trunk never goes backward.
    """
    trunk = cast(Any, model.trunk)
    config = trunk.lm.config
    attention = 4 * length * config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )  # fmt: skip
    heads_attend = model.head == "transformer"

    def of(layer: nn.Module, *, attends: bool) -> float:
        forward = 2 * sum(p.numel() for p in layer.parameters() if p.ndim >= 2) + attention * attends
        learns = any(p.requires_grad for p in layer.parameters())
        return forward * (3 + checkpointing if learns else 1)

    layers = sum(of(layer, attends=True) for layer in trunk.layers)
    heads = sum(of(head, attends=heads_attend) for head in model.heads)
    return float(layers + heads + 4 * 2 * model.horizon * trunk.unembedding.weight.numel())


def lines(found: Mapping[str, JSON]) -> Iterator[str]:
    """What `estimate` found, for a person."""
    if "missing" in found:
        yield str(found["missing"])
        return
    all_of = cast("dict[str, Any]", found)
    number, memory, disk, step, rows = (all_of[k] for k in ("parameters", "memory", "disk", "step", "micro_batch"))
    yield (f"parameters: {number['all']:,} (trunk {number['trunk']:,}, extra heads {number['heads']:,}), "
           f"{number['learnt']:,} learn")  # fmt: skip
    where = f"each of {all_of['gpus']} processes" if all_of["gpus"] > 1 else "one process"
    yield (f"memory of {where} ({all_of['device']}, {all_of['precision']}), {rows['rows']} of its {rows['of']} rows of "
           f"{rows['length']} tokens at a time: {memory['total'] / 1e9:.2f} GB")  # fmt: skip
    yield "  " + ", ".join(f"{part} {size / 1e9:.2f}" for part, size in memory.items() if part != "total" and size)
    if all_of["fits"]:
        yield f"  fits in {all_of['gpu_memory'] / 1e9:.0f} GB: {all_of['fits']}"
    host = all_of["host"]
    yield (f"memory of the machine beside: {host['load'] / 1e9:.2f} GB once, to load it; {host['save'] / 1e9:.2f} GB a "
           "process while a checkpoint is written")  # fmt: skip
    yield (f"disk: {disk['checkpoint'] / 1e9:.2f} GB a checkpoint, {disk['checkpoints'] / 1e9:.2f} GB for all that are "
           f"kept, {disk['model'] / 1e9:.2f} GB for the model")  # fmt: skip
    if disk["states_per_1000_tokens"]:
        yield f"  stage 1's states: {disk['states_per_1000_tokens'] / 1e6:.2f} MB for each 1,000 response tokens"
    yield f"compute: {all_of['flops_per_token'] / 1e9:.3g} GFLOP a token, {step['tokens']:,} tokens a step"
    if step["seconds"]:
        speed = "as told" if step["told"] else f"assumed: {UTILISATION:.0%} of its peak"
        yield (f"  {step['seconds']:.3g} s a step if each does {step['tflops']:.0f} TFLOP/s ({speed}); communication, "
               "evaluation and stage 1 are not in it")  # fmt: skip


def _bytes(text: str) -> float:
    """80GB, 80GiB or 80 (GB) in bytes."""
    found = re.fullmatch(r"\s*([0-9.]+)\s*(GB|GiB|)\s*", text, re.IGNORECASE)
    try:
        number = float(found[1]) if found else 0.0
    except ValueError:
        number = 0.0
    if not found or number <= 0:
        raise SettingsError(f"--gpu-memory {text}: not a size; write 80GB")
    return number * (2**30 if found[2].lower() == "gib" else 1e9)
