"""The tensors of a checkpoint, as `torch.distributed.checkpoint` writes and reads them."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from wmtp.errors import CheckpointError
from wmtp.training.distributed import ALONE, World


def flatten(tensors: Mapping[str, Mapping[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """("model/norm.weight", tensor) pairs; a group's name has no slash."""
    for group, members in tensors.items():
        for name, tensor in members.items():
            yield f"{group}/{name}", tensor


def write_tensors(folder: Path, flat: dict[str, Tensor], world: World) -> None:
    """Together: each process writes its part into the new folder. The disk may not have it yet.

    Raises:
        OSError: the disk's word; which process it spoke to, if not to all.
    """
    # One thread: with more, torch 2.13 loses an error of the others and reports success (a "saved" checkpoint
    # without its tensors). Waiting for the disk is left to the manifest, which hashes meanwhile.
    writer = _Writer(folder, thread_count=1, sync_files=False, overwrite=False)
    with _plain_errors(world):
        state_dict_saver.save(  # pyright: ignore[reportUnknownMemberType]
            flat, storage_writer=writer, process_group=world.group, no_dist=world.size == 1
        )


def whole(key: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """A new tensor on the CPU for what is saved under `key`."""
    del key
    return torch.empty(shape, dtype=dtype)


def read_tensors(
    folder: Path, only: str = "", like: Callable[[str, torch.Size, torch.dtype], Tensor] = whole
) -> dict[str, dict[str, Tensor]]:
    """The tensors that were saved, bit for bit: in groups as given to `checkpoint.save`, or the group `only`.

    Args:
        folder: of a checkpoint, verified.
        only: what keys ("model/norm.weight") begin with.
        like: makes the tensor that a saved one is read into; of a sharded one this process's part is read.

    Raises:
        CheckpointError: this torch can't read it.
    """
    reader = FileSystemReader(folder)
    try:
        saved = cast("Mapping[str, TensorStorageMetadata]", reader.read_metadata().state_dict_metadata)
        flat = {key: like(key, meta.size, meta.properties.dtype) for key, meta in saved.items() if key.startswith(only)}
        with _plain_errors():
            state_dict_loader.load(flat, storage_reader=reader, no_dist=True)  # pyright: ignore[reportUnknownMemberType]
    except (OSError, RuntimeError, pickle.UnpicklingError, AttributeError, ImportError) as error:
        raise CheckpointError(f"{folder}: torch {torch.__version__} can't read it: {error}") from error
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in flat.items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = tensor
    return groups


class _Writer(FileSystemWriter):
    """Says what the disk said: of "no space left on device" torch.save makes "unexpected pos"."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            if isinstance(disk := error.__context__, OSError):
                raise disk from error
            raise


@contextmanager
def _plain_errors(world: World = ALONE) -> Generator[None]:
    """Raises the error itself; torch wraps it into a `BaseException`, which no `except Exception` catches."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            yield
        except CheckpointException as error:
            causes = {rank: cause for rank, (cause, _) in sorted(error.failures.items())}
            first = next(iter(causes.values()))
            if len(causes) < world.size and all(isinstance(cause, OSError) for cause in causes.values()):
                raise OSError("; ".join(f"process {rank}: {cause}" for rank, cause in causes.items())) from error
            raise first from error
