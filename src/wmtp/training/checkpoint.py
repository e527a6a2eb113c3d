"""Checkpoints that are whole or not there, and that notice a flipped bit.

`step-00001200/` holds the tensors as `torch.distributed.checkpoint` writes them, `run_state.json`, and a
manifest with a hash of every file. It is made under a temporary name, the manifest last, and then renamed.

Several processes write one checkpoint, each its own shards, into a folder that all of them see; the main one names
and publishes it. What fails on one of them fails on all, with the same message.

Limits. For resuming one's own run only: `.metadata` is a pickle. Nobody else writes there: the main process holds the
run's lock.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeAlias
from uuid import uuid4

from torch import Tensor

from wmtp.errors import CheckpointError
from wmtp.training.distributed import ALONE, World, local
from wmtp.training.manifest import Entries, find_damage, hash_files, write_manifest
from wmtp.training.run_folder import sync_folder, write_text_synced
from wmtp.training.tensor_files import flatten, write_tensors
from wmtp.types import JSON

Say: TypeAlias = Callable[[str], None]
"""Where a sentence for the user goes."""

_RUN_STATE = "run_state.json"
_NAME = re.compile(r"step-(\d{8,})")
_UNFINISHED = re.compile(r"step-\d{8,}\.tmp-[0-9a-f]{32}")
_SPARE = 1.1
"""Free space asked for, per byte of tensors: files have headers, and a full disk is trouble anyway."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose files are as they were written.

    Attributes:
        path: its folder.
        step: the step after which it was saved.
        run_state: the JSON object given to `save`.
    """

    path: Path
    step: int
    run_state: Mapping[str, JSON]


def save(
    root: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    run_state: Mapping[str, JSON],
    *,
    say: Say,
    keep_last: int | None = None,
    protect: Collection[int] = (),
    world: World = ALONE,
) -> Path:
    """Together: writes checkpoint `root/step-<step>`, then prunes.

    A whole checkpoint that is already there under this step is left as it is: a run's step has one state,
    and a run that goes back must `discard_after` first. A damaged one is replaced.

    Args:
        root: the run's folder of checkpoints; made if need be.
        step: names the checkpoint.
        tensors: groups of named tensors, on any device, whole or sharded. Plain values belong into `run_state`.
        run_state: what else resuming needs; the main process's counts. Non-finite floats come back as they are.
        say: told of old checkpoints that can't be deleted, which does not stop the run.
        keep_last: how many of the newest to keep, >= 1; None keeps all.
        protect: steps never deleted (the best).
        world: the processes that hold `tensors`.

    Raises:
        CheckpointError: it can't be written. What was there before is untouched, what was begun is removed.
    """
    path = root / f"step-{step:08d}"
    if world.share(path.exists()) and _damage(path, world) is None:
        return path
    flat = dict(flatten(tensors))
    needed = sum(world.gather(int(_SPARE * sum(local(tensor).nbytes for tensor in flat.values()))))
    temporary = world.share(_temporary(path))
    try:
        world.together(lambda: _make_room(root, needed))
        _write(temporary, flat, run_state, world)
        world.together(lambda: _publish(temporary, path) if world.main else None)
    except OSError as error:
        _refuse(root, str(error), needed, error)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if keep_last is not None and world.main:
        prune(root, keep_last, {step, *protect}, say)
    return path


def newest_valid(root: Path, say: Say, world: World = ALONE) -> Checkpoint | None:
    """Together: the newest checkpoint under `root` whose every file is intact, or None where there has never been one.

    Args:
        root: the run's folder of checkpoints.
        say: told which newer checkpoints are damaged, in which file, and how.
        world: the processes that share the work of looking at the files.

    Raises:
        CheckpointError: there are checkpoints, all of them damaged. Starting anew is for the user to decide.
    """
    found = world.share(folders(root))
    for step, folder in reversed(found):
        damage = _damage(folder, world)
        if damage is None:
            return _opened(folder, step)
        say(f"checkpoint {folder.name} is damaged and not used: {damage}")
    if found:
        raise CheckpointError(f"{root}: every checkpoint is damaged; remove the folder to start anew")
    return None


def open_checkpoint(path: Path, world: World = ALONE) -> Checkpoint:
    """Together: the checkpoint in folder `path`, verified.

    Raises:
        CheckpointError: it is none, or damaged; names the file.
    """
    name = _NAME.fullmatch(path.name)
    if name is None:
        raise CheckpointError(f"{path} is not a checkpoint: those are folders named like step-00001200")
    damage = _damage(path, world)
    if damage is not None:
        raise CheckpointError(f"checkpoint {path} is damaged: {damage}")
    return _opened(path, int(name[1]))


def prune(root: Path, keep_last: int, protect: Collection[int], say: Say) -> None:
    """Deletes old checkpoints, and what dead runs left unfinished.

    Args:
        root: the run's folder of checkpoints; the caller holds the lock, so nobody else is writing there.
        keep_last: how many of the newest to keep, >= 1. Only those count that have all their files in full
            length, so wrecks use up no place.
        protect: steps never deleted: the best, and the one just written, which alone is known to be intact.
        say: told what can't be deleted.
    """
    if keep_last < 1:
        raise ValueError(f"keep_last is {keep_last}; it must be at least 1")
    found = folders(root)
    finished = [step for step, folder in found if find_damage(folder, lengths_only=True) is None]
    kept = {*finished[-keep_last:], *protect}
    doomed = [folder for step, folder in found if finished and step not in kept]
    doomed += [entry for entry in root.glob("step-*") if _UNFINISHED.fullmatch(entry.name)]
    for folder in doomed:
        try:
            _delete(folder)
        except OSError as error:
            say(f"old checkpoint {folder} can't be deleted: {error}")


def discard_after(root: Path, step: int) -> None:
    """Deletes the checkpoints later than `step`, whole or damaged: a run resumed at `step` makes its own.

    Raises:
        CheckpointError: one can't be deleted.
    """
    try:
        for later, folder in folders(root):
            if later > step:
                _delete(folder)
    except OSError as error:
        raise CheckpointError(f"{root}: later checkpoints can't be deleted: {error}") from error


def _write(folder: Path, flat: dict[str, Tensor], run_state: Mapping[str, JSON], world: World) -> None:
    """Fills the new folder and waits until the disk has all of it."""
    write_tensors(folder, flat, world)

    def finish() -> Entries:
        if world.main:
            write_text_synced(folder / _RUN_STATE, json.dumps(run_state, indent=1) + "\n")
        return hash_files(own_files(folder, world))

    entries = {name: entry for some in world.together(finish) for name, entry in some.items()}
    world.together(lambda: write_manifest(folder, entries) if world.main else None)


def own_files(folder: Path, world: World) -> list[Path]:
    """The files of a checkpoint that this process has written; all of them if it is alone. The manifest is none."""
    shards = sorted(folder.glob(f"__{world.rank}_*.distcp"))
    return [*shards, folder / ".metadata", folder / _RUN_STATE] if world.main else shards


def _publish(temporary: Path, path: Path) -> None:
    if path.exists():
        _delete(path)
    temporary.rename(path)
    sync_folder(path.parent)


def _make_room(root: Path, needed: int) -> None:
    root.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(root).free < needed:
        raise OSError("the disk is full")


def _damage(folder: Path, world: World) -> str | None:
    """Together: what is wrong with the folder's files, None if nothing; each process looks at some."""
    found = world.gather(find_damage(folder, rank=world.rank, ranks=world.size))
    return "; ".join(dict.fromkeys(filter(None, found))) or None


def folders(root: Path) -> list[tuple[int, Path]]:
    """(step, folder) of all in `root` that is named like a checkpoint, whole or not, oldest first."""
    names = ((_NAME.fullmatch(entry.name), entry) for entry in root.glob("step-*"))
    return sorted((int(name[1]), entry) for name, entry in names if name is not None)


def _opened(folder: Path, step: int) -> Checkpoint:
    return Checkpoint(folder, step, json.loads((folder / _RUN_STATE).read_text(encoding="utf-8")))


def _temporary(path: Path) -> Path:
    """A name never used before, which nobody takes for a checkpoint."""
    return path.with_name(f"{path.name}.tmp-{uuid4().hex}")


def _delete(folder: Path) -> None:
    """Renames first, so that a folder half deleted when the power fails is no checkpoint."""
    shutil.rmtree(folder if _UNFINISHED.fullmatch(folder.name) else folder.rename(_temporary(folder)))


def _refuse(root: Path, reason: str, needed: int, error: OSError | None = None) -> NoReturn:
    free = shutil.disk_usage(root).free if root.exists() else 0
    raise CheckpointError(
        f"{root}: the checkpoint can't be written: {reason} (needs {needed / 1e6:,.1f} MB, free are "
        f"{free / 1e6:,.1f} MB); earlier checkpoints are as they were"
    ) from error
