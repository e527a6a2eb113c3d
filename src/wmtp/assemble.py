"""The composition root: from settings to objects. The only file that knows every concrete class."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from wmtp.data import Loader, TokenStore, load_tokenizer
from wmtp.data.tokenize import Tokenizer
from wmtp.errors import UserError
from wmtp.frozen import Frozen, identity_of
from wmtp.inputs import (
    Context,
    Say,
    cache_folder,
    check_vocabulary,
    documents,
    make_loader,
    rewarded_programs,
    spread_model,
)
from wmtp.model import (
    MTPModel,
    fetch_model,
    load_model,
    model_of,
    model_skeleton,
    save_model,
    tokenizer_location,
)
from wmtp.objectives import WeightedMTP
from wmtp.objectives.value import AuxiliaryValue
from wmtp.ops.schedule import lr_factor
from wmtp.pretraining import Critic, explains_nothing, make_critic
from wmtp.settings import Config, Settings
from wmtp.stopping import LossEarlyStopping
from wmtp.training.distributed import ALONE, World
from wmtp.training.loop import Progress, Stage
from wmtp.training.optim import make_optimizer
from wmtp.training.sharding import recompute, whole_weights
from wmtp.training.step import Hardware
from wmtp.types import JSON, Batch
from wmtp.weight_source import make_weighting
from wmtp.weighting import Uniform


@dataclass(frozen=True, kw_only=True)
class Job:
    """A recipe made into objects, ready to run.

    Attributes:
        stages: in the order in which they are trained.
        model, tokenizer: what is saved at the end.
        train, held_out: the data, for a summary.
        after: called when a stage has ended, with its name, how it ended, and the run's folder; what it gives belongs
            into the summary.
        fresh: makes the model as it was before training, whole; `skeleton`: without values.
    """

    stages: list[Stage[Any]]
    model: MTPModel
    tokenizer: Tokenizer
    train: TokenStore
    held_out: TokenStore
    after: Callable[[str, Progress, Path], dict[str, JSON]]
    fresh: Callable[[], MTPModel]
    skeleton: Callable[[], MTPModel]

    def save(self, folder: Path) -> None:
        """Together: save model and tokenizer to `folder`, whole or not at all."""
        world = self.stages[-1].hardware.world
        if world.size == 1:
            save_model(self.model, self.tokenizer, folder)
            return
        weights = whole_weights(self.model, world)
        if world.main:
            save_model(model_of(weights, self.skeleton()), self.tokenizer, folder)
        world.wait()


def assemble(settings: Settings, hardware: Hardware, say: Say, *, accept_unsandboxed: bool = False) -> Job:
    """Together: read data and model, and connect everything that `settings` ask for.

    Args:
        settings: recipe and config.
        hardware: from `make_hardware`.
        say: is told what takes long, and what is worth knowing of the data.
        accept_unsandboxed: where programs must be run and no box can be had, run them all the same.

    Raises:
        UserError: data or model can't be had or don't fit the recipe.
        SandboxError: programs must be run and no box can be had.
    """
    recipe, config, world = settings.recipe, settings.config, hardware.world
    cache = cache_folder(config)
    with world.first():
        path = fetch_model(config.paths.models.base, cache)
        tokenizer = load_tokenizer(tokenizer_location(path))
        train, held_out = documents(settings, tokenizer, cache, say)
    context = Context(settings, tokenizer, hardware, cache, say, accept_unsandboxed)
    loaders = (
        make_loader(train, recipe.data.train, tokenizer, config.seed, world=world),
        make_loader(held_out, recipe.data.eval, tokenizer, config.seed, shuffle=False, world=world),
    )
    whole = _load(settings, path, say) if world.local_rank == 0 else None
    if whole is not None:
        check_vocabulary(whole, train, held_out, config.paths.models.base)
    skeleton = partial(_skeleton, settings, path)
    critic = None
    if recipe.train.algo == "critic-wmtp":
        critic = _critic(context, skeleton() if whole is None else whole, train, held_out)
    model = spread_model(settings, whole, skeleton, hardware)
    if critic is not None:
        model.value_head = critic.head
    objective = WeightedMTP(
        make_weighting(context, model.value_head, train, loaders[0]),
        recipe.model.horizon,
        recipe.model.head_coefficients,
        tells_weights=recipe.train.algo != "baseline-mtp",
        auxiliary=None if critic is None else _auxiliary(settings, critic),
    )
    main = _main_stage(settings, model, objective, *loaders, hardware)

    def after(name: str, progress: Progress, folder: Path) -> dict[str, JSON]:
        if name == main.name or critic is None:
            return {}
        told = critic.finish(progress, folder)
        if explains_nothing(progress.last) and recipe.critic is not None and recipe.critic.on_useless == "uniform":
            objective.weighting = Uniform()
        return told

    stages: list[Stage[Any]] = [main] if critic is None or critic.stage is None else [critic.stage, main]
    return Job(
        stages=stages,
        model=model,
        tokenizer=tokenizer,
        train=train,
        held_out=held_out,
        after=after,
        fresh=partial(_load, settings, path, lambda _: None),
        skeleton=skeleton,
    )


def _critic(context: Context, model: MTPModel, train: TokenStore, held_out: TokenStore) -> Critic:
    """Together: what the critic needs, of the base model, which is whole on one process of each machine."""
    hardware = context.hardware
    world, whole = hardware.world, hardware.world.local_rank == 0
    model = model.to(hardware.device) if whole else model
    identity = world.share(identity_of(model, hardware) if whole else "")
    with world.first():
        frozen = Frozen(model, identity, context.tokenizer, hardware, context.cache, context.say)
        return make_critic(context.settings, frozen, train, held_out, rewarded_programs(context))


def _skeleton(settings: Settings, path: str) -> MTPModel:
    """The base model with its heads, without values."""
    recipe = settings.recipe.model
    model = model_skeleton(path, horizon=recipe.horizon, head=recipe.head, detach_heads=recipe.detach_heads)
    if settings.config.devices.activation_checkpointing:
        recompute(model)
    return model


def _load(settings: Settings, path: str, say: Say) -> MTPModel:
    """The base model with its heads, on the CPU."""
    recipe, base = settings.recipe, settings.config.paths.models.base
    say(f"loading {base}")
    model = load_model(
        path,
        horizon=recipe.model.horizon,
        head=recipe.model.head,
        detach_heads=recipe.model.detach_heads,
        native_mtp=recipe.model.native_mtp,
        seed=settings.config.seed,
    )
    if settings.config.devices.activation_checkpointing:
        recompute(model)
    if (recipe.data.train.pack_sequences or recipe.data.eval.pack_sequences) and not model.keeps_documents_apart():
        raise UserError(
            f"data.train.pack_sequences: true: {base} can't keep packed documents apart (what stands before a "
            "document changes what is computed for it); set pack_sequences: false for train and eval"
        )
    return model


def _auxiliary(settings: Settings, critic: Critic) -> AuxiliaryValue | None:
    given = settings.recipe.critic
    assert given is not None, "checked with the settings"
    if critic.rewards is None:
        return None
    return AuxiliaryValue(
        critic.head,
        critic.rewards.of,
        given.auxiliary_loss_coef,
        gamma=given.gamma,
        gae_lambda=given.gae_lambda,
    )


def make_device(config: Config) -> torch.device:
    """Where tensors live; `UserError` if this machine lacks what is asked for."""
    have = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    asked = config.devices.compute_backend
    kind = next(name for name, there in have.items() if there) if asked == "auto" else asked
    if not have[kind]:
        raise UserError(f"devices.compute_backend: {kind}: this machine has none that torch can use; set auto or cpu")
    return torch.device(kind)


def make_hardware(config: Config, device: torch.device, world: World = ALONE) -> Hardware:
    """Device, precision and processes; `UserError` if they don't go together."""
    precision = config.devices.mixed_precision
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if precision == "fp16" and world.size > 1:
        raise UserError("devices.mixed_precision: fp16: not with several processes (its loss scale is one's); set bf16")
    if config.devices.fsdp.cpu_offload and device.type != "cuda":
        raise UserError(f"devices.fsdp.cpu_offload: true: the run is on {device.type} already; remove it")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    return Hardware(device, dtype, config.devices.micro_batch_size, world)


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has bf16 products: they train the embedded model twice as fast as fp32 ones."""
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # not in torch 2.10
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def _main_stage(
    settings: Settings,
    model: MTPModel,
    objective: WeightedMTP,
    train: Loader,
    held_out: Loader,
    hardware: Hardware,
) -> Stage[Batch]:
    recipe = settings.recipe
    horizon, optim, limits = recipe.model.horizon, recipe.optim, recipe.train
    model.train_trunk(limits.full_finetune)
    model.drops_targets = (
        recipe.train.algo == "rho1-wmtp" and recipe.rho1 is not None and recipe.rho1.selection_mode == "token_skip"
    )
    by_epochs = train.total_batches(limits.num_epochs)
    total = by_epochs if limits.max_steps is None else min(by_epochs, limits.max_steps)
    warmup = recipe.model.head_warmup_steps if limits.full_finetune else 0

    def before_step(step: int) -> None:
        if warmup:
            model.train_trunk(step >= warmup)

    return Stage(
        name="train",
        model=model,
        objective=objective,
        optimizer=_optimizer(settings, model),
        lr_factor=partial(
            lr_factor, total_steps=total, warmup_steps=math.ceil(optim.warmup_ratio * total), kind=optim.scheduler
        ),
        batches=train,
        total_steps=total,
        limit="epochs_done" if total == by_epochs else "max_steps",
        stopper=LossEarlyStopping(limits.early_stopping),
        held_out=(WeightedMTP(Uniform(), horizon), held_out.batches),
        eval_interval=limits.eval_interval,
        hardware=hardware,
        seed=settings.config.seed,
        grad_clip=optim.grad_clip,
        before_step=before_step,
        restore_best=limits.early_stopping.restore_best,
    )


def _optimizer(settings: Settings, model: MTPModel) -> Optimizer:
    """Over the weights that learn; the extra heads and the value head may have rates of their own."""
    recipe, optim = settings.recipe, settings.recipe.optim
    own_rates: dict[nn.Module, float] = {} if optim.heads_lr is None else {model.heads: optim.heads_lr}
    if model.value_head is not None and recipe.critic is not None:
        own_rates[model.value_head] = recipe.critic.value_lr
    return make_optimizer(
        model, optim.optimizer, lr=optim.lr, weight_decay=optim.weight_decay, betas=optim.betas, own_rates=own_rates
    )
