"""Checkpoints written while training goes on: one at a time, from a copy, with a bounded wait."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from wmtp.errors import CheckpointError
from wmtp.training.distributed import World
from wmtp.training.optim import Tensors

MOST_FAILURES = 3
"""Checkpoints in a row that may fail: the run that goes on has more and more to lose."""


class Saver:
    """Runs one save at a time in a thread. All processes call its methods together, and hold the same outcome."""

    def __init__(self, world: World, patience: float, say: Callable[[str], None], *, background: bool) -> None:
        """A saver at rest.

        Args:
            world: the processes.
            patience: seconds that a save waits for the one before to end.
            say: is told of a save that failed or was left out, if training goes on.
            background: whether `save` returns before the checkpoint is written.
        """
        self._world, self._patience, self._say, self._background = world, patience, say, background
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._running: tuple[str, Future[None]] | None = None
        self._failures = 0

    def save(self, name: str, tensors: Tensors, write: Callable[[Tensors], None], *, wait: bool) -> None:
        """Have `write` save a copy of `tensors`, as they are now.

        Args:
            name: of the checkpoint, for messages.
            tensors: the live ones, which training changes as soon as this returns.
            write: raises `CheckpointError`, on all processes, if it fails.
            wait: until it is done.

        Raises:
            CheckpointError: with `wait` if it fails; else if it is the third in a row that does.
        """
        if not self._ended():
            if wait:
                raise CheckpointError(f"{name} can't be saved: the one before it is not done in {self._patience:g} s")
            self._say(f"warning: {name} is not saved: the checkpoint before it is still being written")
            return
        self._collect(last=False)
        copy = tensors if wait or not self._background else _copy(tensors)
        self._running = (name, self._pool.submit(write, copy))
        if wait or not self._background:
            self.wait(last=wait)

    def wait(self, *, last: bool = False) -> None:
        """Until nothing is being saved; with `last` a failure is an error, else it is told."""
        if self._running is not None:
            self._running[1].exception()
            self._collect(last=last)

    def close(self) -> None:
        """Let what is being saved end."""
        self._pool.shutdown(cancel_futures=True)

    def _ended(self) -> bool:
        if self._running is None:
            return True
        _, late = wait([self._running[1]], timeout=self._patience)
        return not self._world.any(bool(late))

    def _collect(self, *, last: bool) -> None:
        if self._running is None:
            return
        (name, ended), self._running = self._running, None
        try:
            ended.result()
            self._failures = 0
        except CheckpointError as error:
            self._failures += 1
            if last or self._failures == MOST_FAILURES:
                raise
            self._say(f"warning: {name} is not saved, training goes on: {error}")


def _copy(tensors: Tensors) -> Tensors:
    return {
        group: {name: x.detach().to("cpu", copy=True) for name, x in some.items()} for group, some in tensors.items()
    }
