"""The settings that a run was begun with: written into its folder, and compared when it is resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

from wmtp.errors import CheckpointError
from wmtp.evaluation import CONFIG, RECIPE
from wmtp.settings import Settings, dump_yaml, load_config, load_recipe
from wmtp.training.run_folder import RunFolder, write_text_atomic

# What may differ between a run and its resumption: it changes neither data nor updates. A changed early-stopping block
# is taken with a warning (SPEC 3.3).
FREE = (
    "run.tags",
    "train.early_stopping",
    "pretrain.early_stopping",
    "eval.",
    "log_interval",
    "mlflow",
    "paths.output",
    "paths.cache",
    "paths.checkpoints",
    "train.save_interval",
    "devices.micro_batch_size",
    "devices.num_proc",
    "devices.activation_checkpointing",
    "devices.distributed",
    "devices.fsdp",
)


def refuse_changes(folder: RunFolder, settings: Settings, allow_change: bool) -> None:
    """`CheckpointError` with a diff if the run was begun with other settings."""
    recipe, config = folder.path / RECIPE, folder.path / CONFIG
    if allow_change or not (recipe.is_file() and config.is_file()):
        return
    if changes := list(_changes(Settings(load_recipe(recipe), load_config(config)), settings)):
        listed = "\n  ".join(changes)
        raise CheckpointError(
            f"{folder.path}: the run was begun with other settings:\n  {listed}\n"
            "set them back, give the run another name, or add --allow-change to go on with the new ones"
        )


def write_settings(folder: RunFolder, settings: Settings) -> None:
    """Write both files, with all defaults."""
    write_text_atomic(folder.path / RECIPE, dump_yaml(settings.recipe))
    write_text_atomic(folder.path / CONFIG, dump_yaml(settings.config))


def _changes(before: Settings, now: Settings) -> Iterator[str]:
    for old, new in ((before.recipe, now.recipe), (before.config, now.config)):
        was, will = (dict(_flat(part.model_dump(mode="json", by_alias=True))) for part in (old, new))
        for key in sorted(was.keys() | will.keys()):
            if was.get(key) != will.get(key) and not key.startswith(FREE):
                yield f"{key}: {json.dumps(was.get(key))} -> {json.dumps(will.get(key))}"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(cast("Mapping[str, Any]", value), f"{prefix}{key}.")
        else:
            yield prefix + key, value
