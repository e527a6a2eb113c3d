"""Where the checkpoints of a stage are: in a local folder, or at a URL with the local folder before it.

A checkpoint is always written to the local folder first, whole and hashed. If there is a URL, every process then
sends what it has written, and the manifest goes last; the local copy stays until that is done. So if the storage
fails, nothing is lost that was saved, and the next checkpoint that arrives takes the place of all before it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from wmtp.errors import CheckpointError
from wmtp.training import checkpoint
from wmtp.training.checkpoint import Checkpoint
from wmtp.training.distributed import World
from wmtp.training.manifest import MANIFEST
from wmtp.training.remote import RemoteFolder
from wmtp.types import JSON

T = TypeVar("T")


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one stage. Every method is called by all processes together.

    Attributes:
        root: the local folder.
        world: the processes.
        say: is told what is damaged or can't be deleted.
        keep_last: newest checkpoints that are kept, beside protected ones.
        remote: the folder at a URL, None for the local one alone.
    """

    root: Path
    world: World
    say: Callable[[str], None]
    keep_last: int
    remote: RemoteFolder | None = None

    def save(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        run_state: Mapping[str, JSON],
        protect: Collection[int],
    ) -> str:
        """Save a checkpoint, then delete old ones, but none of the steps in `protect`; gives where it is.

        Raises:
            CheckpointError: it could not be written or sent; earlier ones are as they were.
        """
        path = checkpoint.save(
            self.root,
            step,
            tensors,
            run_state,
            keep_last=self.keep_last,
            protect=protect,
            say=self.say,
            world=self.world,
        )
        if self.remote is None:
            return str(path)
        self._send(self.remote, path)
        if self.world.main:
            self._prune(self.remote, {f"step-{kept:08d}" for kept in (step, *protect)})
        if self.world.local_rank == 0:
            for _, folder in checkpoint.folders(self.root):
                shutil.rmtree(folder, ignore_errors=True)
        self.world.wait()  # all end together: whoever asks next does not wait for the one that deletes
        return f"{self.remote.url}/{path.name}"

    def newest_valid(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, None where there has never been one.

        Raises:
            CheckpointError: there are checkpoints, all of them damaged; or the storage gives no answer.
        """
        if self.remote is None:
            return checkpoint.newest_valid(self.root, self.say, self.world)
        steps = self._agreed(self._steps)[0]
        for step in reversed(steps):
            try:
                return self.at(step)
            except CheckpointError as error:
                self.say(f"not used: {error}")
        if steps:
            raise CheckpointError(f"{self.remote.url}: none of the {len(steps)} checkpoints can be used")
        return None

    def at(self, step: int) -> Checkpoint:
        """The checkpoint of `step`, verified.

        Raises:
            CheckpointError: it is not there, can't be fetched, or is damaged; names the file.
        """
        path = self.root / f"step-{step:08d}"
        try:
            return checkpoint.open_checkpoint(path, self.world)
        except CheckpointError:
            if self.remote is None:
                raise
        self._agreed(lambda: self._fetch(path))
        return checkpoint.open_checkpoint(path, self.world)

    def discard_after(self, step: int) -> None:
        """Delete the checkpoints later than `step`: a run resumed there makes its own.

        Raises:
            CheckpointError: one can't be deleted.
        """
        self._agreed(lambda: self._discard(step))

    def _discard(self, step: int) -> None:
        if self.world.local_rank == 0:
            checkpoint.discard_after(self.root, step)
        if self.remote is not None and self.world.main:
            for name in (*self.remote.names(), *self.remote.leftovers()):
                if _step(name) > step:
                    self.remote.delete(name)

    def _steps(self) -> list[int]:
        """On the main process: of all checkpoints, whole or not."""
        if self.remote is None or not self.world.main:
            return []
        here = {step for step, _ in checkpoint.folders(self.root)}
        return sorted(here | {_step(name) for name in self.remote.names()})

    def _agreed(self, act: Callable[[], T]) -> list[T]:
        """What every process's `act` gives; if it fails on one of them, `CheckpointError` on all."""
        try:
            return self.world.together(act)
        except OSError as error:
            raise CheckpointError(str(error)) from error

    def _fetch(self, path: Path) -> None:
        if self.world.local_rank == 0 and self.remote is not None:
            shutil.rmtree(path, ignore_errors=True)
            self.remote.fetch(path.name, path)

    def _send(self, remote: RemoteFolder, path: Path) -> None:
        world = self.world
        try:
            self._agreed(lambda: remote.put(path.name, checkpoint.own_files(path, world)))
            self._agreed(lambda: remote.publish(path.name, path / MANIFEST) if world.main else None)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; the checkpoint stays in {path}") from error

    def _prune(self, remote: RemoteFolder, protect: Collection[str]) -> None:
        try:
            names = remote.names()
            kept = {*names[-self.keep_last :], *protect}
            for name in (*names, *remote.leftovers()):
                if name not in kept:
                    remote.delete(name)
        except CheckpointError as error:
            self.say(f"old checkpoints can't be deleted: {error}")


def _step(name: str) -> int:
    return int(name.removeprefix("step-"))
