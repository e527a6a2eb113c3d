"""From settings to the weighting of stage 2: where the weights of its targets come from."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import assert_never

import torch
from torch import Tensor

from wmtp.data import Loader, TokenStore, load_tokenizer, pad_id
from wmtp.data.reference import reference_losses
from wmtp.data.state_loader import TokenRewards
from wmtp.data.tokenize import check_same_tokens
from wmtp.frozen import identity_of
from wmtp.inputs import Context, examples_of, groups_of, spread_model
from wmtp.model import fetch_model, load_model, model_skeleton, tokenizer_location
from wmtp.ops.weights import Scaling
from wmtp.protocols import TokenWeighting
from wmtp.types import Batch
from wmtp.verified_data import differences
from wmtp.weighting import Critic, Diff, RandomMatched, Rho1, Shuffled, Uniform


def make_weighting(
    context: Context, value: Callable[[Tensor], Tensor] | None, train: TokenStore, loader: Loader
) -> TokenWeighting:
    """The weighting that `train.algo` names, under its control if the recipe asks for one.

    Args:
        context: what the job has at hand.
        value: value head of critic-wmtp, on the device; other algorithms need none.
        train, loader: the training data, whose tokens rho1-wmtp's reference is asked about.

    Raises:
        UserError: a reference that can't be had or reads text with other tokens.
        SandboxError: diff-wmtp's programs must be run and no box can be had.
    """
    recipe, seed = context.settings.recipe, context.settings.config.seed
    match recipe.train.algo:
        case "baseline-mtp":
            weighting: TokenWeighting = Uniform()
        case "critic-wmtp":
            assert value is not None, "made before"
            weighting = _critic(context, value)
        case "rho1-wmtp":
            weighting = _rho1(context, train, loader)
        case "diff-wmtp":
            weighting = _diff(context, train)
        case _:
            assert_never(recipe.train.algo)
    match recipe.loss.control:
        case "none":
            return weighting
        case "shuffled":
            return Shuffled(weighting, seed)
        case "random_matched":
            return RandomMatched(weighting, seed)
        case _:
            assert_never(recipe.loss.control)


def _scaling(context: Context) -> Scaling:
    loss = context.settings.recipe.loss
    return Scaling(loss.weight_norm, loss.lambda_, loss.weight_temperature, loss.epsilon, loss.max_weight)


def _critic(context: Context, value: Callable[[Tensor], Tensor]) -> Critic:
    given = context.settings.recipe.critic
    assert given is not None, "checked with the settings"
    return Critic(
        value,
        _scaling(context),
        delta_mode=given.delta_mode,
        normalize=given.normalize,
        discount=given.discount_lambda,
    )


def _rho1(context: Context, train: TokenStore, loader: Loader) -> Rho1:
    given = context.settings.recipe.rho1
    assert given is not None, "checked with the settings"
    return Rho1(
        _reference(context, train, loader, live=given.reference == "live"),
        _scaling(context),
        selection_mode=given.selection_mode,
        skip_share=given.skip_threshold_percentile,
        min_difference=given.min_ce_diff,
        score_from=given.score_from,
    )


def _reference(context: Context, train: TokenStore, loader: Loader, *, live: bool) -> Callable[[Batch], Tensor]:
    """The reference model's loss for each token of a batch: looked up, or computed as training goes."""
    config, hardware, world = context.settings.config, context.hardware, context.hardware.world
    ref = config.paths.models.ref
    assert ref is not None, "checked with the settings"
    with world.first():
        path = fetch_model(ref, context.cache, "paths.models.ref")
        examples = examples_of(context.settings, "train")
        other = load_tokenizer(tokenizer_location(path))
        check_same_tokens(context.tokenizer, other, examples, f"paths.models.ref: {ref}")
    if world.main or (world.local_rank == 0 and not live):
        context.say(f"loading {ref}, the reference")
        whole = load_model(path, horizon=None, native_mtp="drop", seed=config.seed)
    else:
        whole = None
    identity = world.share("" if whole is None else identity_of(whole, hardware))
    skeleton = partial(model_skeleton, path, horizon=None)
    if live:
        model = spread_model(context.settings, whole, skeleton, hardware)
    else:
        model = skeleton() if whole is None else whole.to(hardware.device)
    model.eval().requires_grad_(False)

    def losses(batch: Batch) -> Tensor:
        with hardware.autocast():
            return model.token_losses(batch.to(hardware.device))

    if live:
        return losses
    with world.first():
        return reference_losses(
            context.cache / "reference",
            train,
            losses,
            model=identity,
            pad_id=pad_id(context.tokenizer),
            batch_size=hardware.micro_batch_size or loader.batch_size,
            max_length=loader.max_length,
            mask_prompt=loader.mask_prompt,
            device=hardware.device,
            say=context.say,
        )


def _diff(context: Context, train: TokenStore) -> Diff:
    longest = context.settings.recipe.data.train.max_length
    with context.hardware.world.first():
        groups = groups_of(context, "train")
        shares, documents = differences(groups, train, context.tokenizer, longest, context.cache / "tokens")
    if rest := len(train) - documents:
        context.say(
            f"diff-wmtp: {rest} of {len(train)} documents have no wrong program beside them: their weights are 1"
        )
    table = TokenRewards.of_responses(train, torch.from_numpy(shares)).to(context.hardware.device)
    return Diff(lambda batch: table.of(batch)[0], _scaling(context))
