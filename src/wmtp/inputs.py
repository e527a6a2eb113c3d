"""Data from settings: examples, tokenised documents, batches, and programs known to be right and wrong."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from wmtp.data import (
    Example,
    Loader,
    Location,
    Source,
    Split,
    TokenStore,
    check_disjoint,
    load_examples,
    pad_id,
    tokenise,
)
from wmtp.data.tokenize import Tokenizer
from wmtp.errors import DataError, ModelError
from wmtp.evaluate.problems import load_tested
from wmtp.model import MTPModel
from wmtp.settings import Config, DataPart, Settings
from wmtp.training.distributed import ALONE, World
from wmtp.training.sharding import Sharding, spread
from wmtp.training.step import Hardware
from wmtp.verified_data import Group, rewarded_documents, verified_groups

Say = Callable[[str], None]
Rewarded: TypeAlias = "tuple[TokenStore, NDArray[np.float64]]"
"""N documents, and [N] their rewards."""


@dataclass(frozen=True, slots=True)
class Context:
    """What the parts of a job share.

    Attributes:
        settings: recipe and config.
        tokenizer: the base model's.
        hardware: where forward passes run.
        cache: folder for what is computed once.
        say: is told what takes long.
        accept_unsandboxed: where programs must be run and no box can be had, run them all the same.
    """

    settings: Settings
    tokenizer: Tokenizer
    hardware: Hardware
    cache: Path
    say: Say
    accept_unsandboxed: bool


def documents(settings: Settings, tokenizer: Tokenizer, cache: Path, say: Say) -> tuple[TokenStore, TokenStore]:
    """Training and held-out documents, tokenised."""
    data = settings.recipe.data
    examples = {name: examples_of(settings, name) for name in ("train", "eval")}
    if shared := check_disjoint(examples["train"], examples["eval"]):
        say(f"warning: {shared} of {len(examples['eval'])} held-out documents are in the training data too")
    stores: dict[str, TokenStore] = {}
    for name, part in (("train", data.train), ("eval", data.eval)):
        stores[name] = store = tokenise(examples[name], tokenizer, part.max_length, cache / "tokens")
        counts = store.counts
        notes = {"cut at max_length": counts.truncated, "cut into pieces": counts.split, "dropped": counts.dropped}
        said = "".join(f", {number} {what}" for what, number in notes.items() if number)
        say(f"data.{name}: {counts.documents} documents, {counts.tokens} tokens{said}")
    return stores["train"], stores["eval"]


def training_documents(settings: Settings, tokenizer: Tokenizer, cache: Path) -> TokenStore:
    """The training data alone."""
    return tokenise(examples_of(settings, "train"), tokenizer, settings.recipe.data.train.max_length, cache / "tokens")


def make_loader(
    store: TokenStore, part: DataPart, tokenizer: Tokenizer, seed: int, *, shuffle: bool = True, world: World = ALONE
) -> Loader:
    """Batches of `store` as `part` of the recipe asks for them; of them the share of this process of `world`."""
    return Loader(
        store,
        batch_size=part.batch_size,
        max_length=part.max_length,
        pack=part.pack_sequences,
        mask_prompt=part.mask_prompt,
        pad_id=pad_id(tokenizer),
        seed=seed,
        shuffle=shuffle,
        rank=world.rank,
        ranks=world.size,
    )


def check_vocabulary(model: MTPModel, train: TokenStore, held_out: TokenStore, name: str) -> None:
    """Raise `ModelError` if documents have tokens that the model `name` doesn't know: they are no index into it."""
    known = model.vocabulary
    for part, store in (("train", train), ("eval", held_out)):
        if (highest := int(store.tokens.max(initial=0))) >= known:
            raise ModelError(
                f"paths.models.base: {name}: its tokenizer gives token {highest} (in data.{part}), but the model knows "
                f"{known} tokens alone; use the tokenizer it was trained with, or resize its embeddings"
            )


def spread_model(
    settings: Settings, whole: MTPModel | None, skeleton: Callable[[], MTPModel], hardware: Hardware
) -> MTPModel:
    """Together: the model on the device, in pieces if there are several processes.

    Args:
        settings: `devices` says how.
        whole: with values; of several processes the main one's counts.
        skeleton: makes the same without values.
        hardware: where it goes.
    """
    devices, world = settings.config.devices, hardware.world
    if world.size == 1:
        assert whole is not None
        return whole.to(hardware.device)
    fsdp = devices.fsdp
    gathered = fsdp.param_dtype
    if gathered == "auto":
        bf16 = hardware.precision == torch.bfloat16 and hardware.device.type == "cuda"
        gathered = "bf16" if bf16 else "fp32"
    how = Sharding(
        fsdp.sharding,
        fsdp.shard_size,
        {"bf16": torch.bfloat16, "fp32": torch.float32}[gathered],
        fsdp.cpu_offload,
        fsdp.reshard_after_forward,
    )
    model = skeleton()
    spread(model, whole if world.main else None, world, hardware.device, how)
    return model


def examples_of(settings: Settings, name: str) -> list[Example]:
    """The examples of `data.train` or `data.eval` (`name`: train, eval); `DataError` if there are none."""
    examples = [example for place in _places(settings, name) for example in load_examples(*place)]
    if not examples:
        sources = ", ".join(getattr(settings.recipe.data, name).sources)
        raise DataError(f"data.{name}.sources: {sources}: no documents in there")
    return examples


def groups_of(context: Context, name: str) -> list[Group]:
    """Right programs of `data.train` or `data.eval`, each with wrong ones: run once, and kept."""
    rows = [row for place in _places(context.settings, name) for row in load_tested(*place)]
    return verified_groups(
        context.cache / "verified",
        rows,
        key=f"data.{name}",
        accept_unsandboxed=context.accept_unsandboxed,
        say=context.say,
    )


def rewarded_programs(context: Context) -> tuple[Rewarded, Rewarded] | None:
    """Right and wrong programs that stage 1 learns from, and held-out ones; None if it doesn't ask for them."""
    recipe = context.settings.recipe
    if recipe.critic is None or recipe.critic.target != "verified":
        return None
    if recipe.pretrain is None or not recipe.pretrain.enabled:
        return None

    def side(name: str, part: DataPart) -> Rewarded:
        return rewarded_documents(
            groups_of(context, name),
            context.tokenizer,
            part.max_length,
            context.cache / "tokens",
            key=f"data.{name}",
            say=context.say,
        )

    return side("train", recipe.data.train), side("eval", recipe.data.eval)


def _places(settings: Settings, name: str) -> Iterator[tuple[Source, Location, Split, str]]:
    """What `load_examples` is asked for: `data.train` or `data.eval`, source by source."""
    recipe, datasets = settings.recipe, settings.config.paths.datasets
    part, split = (recipe.data.train, "train") if name == "train" else (recipe.data.eval, "validation")
    for source in part.sources:
        location = getattr(datasets, source)
        # HumanEval has a test split alone: as held-out data that is what is meant.
        wanted = "test" if source == "humaneval" else split
        where = location if isinstance(location, str) else location.model_dump(exclude_none=True)
        yield source, where, wanted, f"paths.datasets.{source}"


def cache_folder(config: Config) -> Path:
    """Where tokenised data and downloaded models are kept."""
    given = config.paths.cache or os.environ.get("WMTP_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "wmtp"
