"""Stage 1 from settings to objects: a value head that learns on the frozen hidden states of the base model."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from wmtp.data import TokenStore
from wmtp.data.state_loader import StateLoader, TokenRewards
from wmtp.data.states import StateStore
from wmtp.errors import UserError
from wmtp.frozen import Frozen, rewards_of
from wmtp.inputs import Rewarded
from wmtp.model.value_head import ValueHead, load_value_head, save_value_head
from wmtp.objectives.value import ValueObjective
from wmtp.rewards.sequence import Scale, scale_of
from wmtp.settings import Settings
from wmtp.stopping import ValueHeadEarlyStopping
from wmtp.training.loop import Progress, Stage
from wmtp.training.optim import make_optimizer
from wmtp.training.step import Hardware
from wmtp.types import JSON, StateBatch

ENOUGH = 10
"""Sequences that the variance of values is taken over: within one alone it says nothing of a critic."""
NO_AUXILIARY = (
    "critic.target: verified: no value loss in the main stage: its programs are all right, and a head that learnt from "
    "them would forget what wrong is; it stays as stage 1 leaves it, critic.auxiliary_loss_coef and value_lr do nothing"
)


@dataclass(frozen=True, slots=True)
class Critic:
    """A value head, and what it learns from.

    Attributes:
        head: fresh, or as it was saved; on the device.
        rewards: standardised, of the tokens of the training data; None where they are all the same (verified programs),
            so that there is nothing to go on learning.
        stage: stage 1, None if the recipe leaves it out.
        finish: called when stage 1 has ended, with how it ended and the run's folder; gives what the summary tells.
    """

    head: ValueHead
    rewards: TokenRewards | None
    stage: Stage[StateBatch] | None
    finish: Callable[[Progress, Path], dict[str, JSON]]


def make_critic(
    settings: Settings,
    frozen: Frozen,
    train: TokenStore,
    held_out: TokenStore,
    verified: tuple[Rewarded, Rewarded] | None = None,
) -> Critic:
    """Rewards, states and value head as `critic` and `pretrain` ask for them.

    Args:
        settings: recipe and config.
        frozen: the base model.
        train, held_out: the data of stage 2, and of stage 1 if `verified` is None.
        verified: right and wrong programs to learn from and held out, for `critic.target: verified` with stage 1.

    Raises:
        UserError: rewards that can't be had, or a value head of another model.
    """
    recipe, config = settings.recipe, settings.config
    critic, pretrain = recipe.critic, recipe.pretrain
    assert critic is not None, "checked with the settings"
    if critic.target == "verified":
        frozen.say(NO_AUXILIARY)
        if verified is None:
            head = _saved_head(settings, frozen)
            return Critic(
                head, None, None, partial(_finish, settings, frozen.identity, head, frozen.hardware.world.main)
            )
        (train, rewards), origin = verified[0], "critic.target: verified"
    else:
        rewards, origin = rewards_of(settings, frozen, train)
    scale = scale_of(rewards, origin)
    if config.paths.models.value_head is None:
        torch.manual_seed(config.seed)
        head = ValueHead(frozen.model.width, mean=scale.mean, scale=scale.scale).to(frozen.hardware.device)
    else:
        head = _saved_head(settings, frozen)
        scale = Scale(float(head.mean), float(head.scale))
    attention = critic.token_spread == "attention"
    stage_1 = pretrain is not None and pretrain.enabled
    states = frozen.states(train, attention=attention) if stage_1 or attention else None
    paid = states.attention if states is not None else None
    spread = TokenRewards.spread(train, scale.apply(rewards), critic.token_spread, paid)
    stage: Stage[StateBatch] | None = None
    if stage_1:
        assert states is not None
        held_out, held_rewards = verified[1] if verified else (held_out, rewards_of(settings, frozen, held_out)[0])
        held_states = frozen.states(held_out, attention=attention)
        held = TokenRewards.spread(held_out, scale.apply(held_rewards), critic.token_spread, held_states.attention)
        stage = _stage(settings, head, (states, spread), (held_states, held), frozen.hardware)
    elif config.paths.models.value_head is None:
        frozen.say("critic: no stage 1, so the value head is fresh: its weights begin as the baseline's")
    learnt = None if verified else spread.to(frozen.hardware.device)
    return Critic(head, learnt, stage, partial(_finish, settings, frozen.identity, head, frozen.hardware.world.main))


def _saved_head(settings: Settings, frozen: Frozen) -> ValueHead:
    """The value head that the config names, on the device."""
    place = settings.config.paths.models.value_head
    if place is None:
        raise UserError(
            "critic.target: verified: without stage 1 the value head would never learn; set `pretrain.enabled: true`, "
            "or name a saved head in paths.models.value_head"
        )
    return load_value_head(Path(place), trunk=frozen.identity).to(frozen.hardware.device)


def _finish(
    settings: Settings, trunk: str, head: ValueHead, main: bool, progress: Progress, folder: Path
) -> dict[str, JSON]:
    """Judge and save the head that stage 1 has left; what the summary tells of it."""
    critic, pretrain = settings.recipe.critic, settings.recipe.pretrain
    assert critic is not None
    _useful(critic.on_useless, progress.last.get("eval_explained_variance"))
    if pretrain is None or not pretrain.save_value_head:
        return {"saved": None}
    if main:
        save_value_head(head, folder / "value_head", trunk=trunk)
    return {"saved": str(folder / "value_head")}


def explains_nothing(last: Mapping[str, float]) -> bool:
    """Whether stage 1's `last` metrics say that on held-out data a constant would do as well as its value head."""
    explained = last.get("eval_explained_variance")
    return explained is not None and not explained > 0


def _useful(on_useless: str, explained: float | None) -> None:
    if explained is None or explained > 0:
        return
    text = f"the value head explains nothing of the held-out rewards (explained variance {explained:.3f})"
    if on_useless == "fail":
        raise UserError(f"{text}; more data or steps in `pretrain`, or critic.on_useless: warn or uniform")
    follows = "all weights are 1" if on_useless == "uniform" else "its weights do harm, if anything"
    warnings.warn(f"{text}: {follows} (critic.on_useless: {on_useless})", stacklevel=2)


def _stage(
    settings: Settings,
    head: ValueHead,
    train: tuple[StateStore, TokenRewards],
    held_out: tuple[StateStore, TokenRewards],
    hardware: Hardware,
) -> Stage[StateBatch]:
    recipe, seed = settings.recipe, settings.config.seed
    critic, pretrain = recipe.critic, recipe.pretrain
    assert critic is not None
    assert pretrain is not None
    size = pretrain.batch_size or recipe.data.train.batch_size
    rank, ranks = hardware.world.rank, hardware.world.size
    batches = StateLoader(train[0].read, train[1], size, seed, rank=rank, ranks=ranks)
    by_epochs = batches.total_batches(pretrain.num_epochs)
    total = min(by_epochs, pretrain.max_steps)
    return Stage(
        name="pretrain",
        model=head,
        objective=ValueObjective(
            gamma=critic.gamma, gae_lambda=critic.gae_lambda, window=max(1, math.ceil(ENOUGH / size))
        ),
        optimizer=make_optimizer(head, "adamw", lr=pretrain.lr, weight_decay=0.0, betas=(0.9, 0.999)),
        lr_factor=lambda _: 1.0,
        batches=batches,
        total_steps=total,
        limit="epochs_done" if total == by_epochs else "max_steps",
        stopper=ValueHeadEarlyStopping(pretrain.early_stopping),
        # With lambda 1 the targets are the rewards alone, and what is explained of them is no compliment to itself.
        held_out=(
            ValueObjective(gamma=critic.gamma, gae_lambda=1.0),
            StateLoader(held_out[0].read, held_out[1], max(size, ENOUGH), seed, False, rank, ranks).batches,
        ),
        eval_interval=min(recipe.train.eval_interval, batches.batches_per_epoch),
        hardware=hardware,
        seed=seed,
        grad_clip=recipe.optim.grad_clip,
        restore_best=pretrain.early_stopping.restore_best,
    )
