"""The processes of a run: who they are, and the few words that they exchange.

Where there is one process there is no process group, and every method here gives back what it got. With several, each
method marked *together* must be called by all of them at the same point; small things go as Python objects, sums as
one tensor. A process that is lost is noticed by the others in such a call: at once if it died, else after the timeout.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.tensor import DTensor

from wmtp.errors import CheckpointError, LostProcessError, UserError
from wmtp.training.watchdog import Watchdog, within

T = TypeVar("T")

NOTICE = 3.0
"""Seconds in which all processes that live notice that one is gone."""


@dataclass(frozen=True, eq=False)
class World:
    """All processes of a run, as one of them sees them.

    Attributes:
        rank: this process, from 0; `size`: how many there are.
        local_rank, local_size: the same among those of this machine.
        group: through which they talk, None for the one that all have by default.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    group: dist.ProcessGroup | None = None
    _stores: list[Store] = field(default_factory=list[Store], repr=False)
    _watchdog: list[Watchdog] = field(default_factory=list[Watchdog], repr=False)
    _names: WeakKeyDictionary[object, list[str]] = field(
        default_factory=lambda: WeakKeyDictionary[object, list[str]](), repr=False
    )

    @property
    def main(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Together: the sum of everybody's `values`, the same bits everywhere."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values, group=self.group)
        return values

    def any(self, flag: bool) -> bool:
        """Together: whether anybody's flag is set."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(int(flag))))

    def share(self, value: T) -> T:
        """Together: the value that process 0 gave."""
        if self.size == 1:
            return value
        box = [value if self.main else None]
        dist.broadcast_object_list(box, group=self.group)
        return cast(T, box[0])

    def gather(self, value: T) -> list[T]:
        """Together: everybody's value, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return cast("list[T]", values)

    def wait(self) -> None:
        """Together: until all are here."""
        self.any(False)

    def together(self, act: Callable[[], T]) -> list[T]:
        """Together: what every process's `act` gives.

        Raises:
            OSError: it failed on some process, with an `OSError` or `CheckpointError` there; on all of them.
        """
        try:
            own, failure = act(), None
        except (OSError, CheckpointError) as error:
            own, failure = None, error
        everybody = self.gather((own, "" if failure is None else str(failure) or repr(failure)))
        if failures := {rank: text for rank, (_, text) in enumerate(everybody) if text}:
            # What fails everywhere does so for one reason.
            some = [f"process {rank}: {text}" for rank, text in failures.items()]
            raise OSError(failures[0] if len(failures) == self.size else "; ".join(some)) from failure
        return [cast(T, result) for result, _ in everybody]

    @contextmanager
    def first(self) -> Generator[bool]:
        """Together: one process of each machine goes first, the others follow; gives whether this is the one.

        For what is computed once and kept in a cache, which may take hours. If the first one fails, so does the job.
        """
        patient = self.apart()
        if self.local_rank > 0:
            patient.wait()
        yield self.local_rank == 0
        if self.local_rank == 0:
            patient.wait()
        if patient.group is not None:
            dist.destroy_process_group(patient.group)

    def apart(self) -> World:
        """Together: the same processes, talking through a group of its own: for a thread, beside what others say.

        Here they wait for each other for as long as it takes: to send a large file, to compute a large cache.
        """
        if self.size == 1:
            return self
        self.wait()  # by which one that has left is noticed; making a group, it would be waited for all that time
        group = dist.new_group(backend="gloo", timeout=timedelta(days=1))
        assert isinstance(group, dist.ProcessGroup), "this process is a member"
        return World(self.rank, self.size, self.local_rank, self.local_size, group)

    def names(self, owner: object, own: Iterable[str]) -> list[str]:
        """Names of `owner`'s metrics in one order: of all processes together, agreed upon when it is first asked about.

        So a metric that is missing on one process, then or later, is a metric without values there, and nobody waits.
        """
        if self.size == 1:
            return list(own)
        if owner not in self._names:
            everybody = self.gather(list(own))
            self._names[owner] = list(dict.fromkeys(name for names in everybody for name in names))
        agreed = self._names[owner]
        strange = sorted(set(own) - set(agreed))
        assert not strange, f"metrics that nobody had at first: {strange}"
        return agreed

    def sum_gradients(self, model: nn.Module) -> None:
        """Together: sum the gradients of what every process has whole; FSDP sums those of what is sharded."""
        if self.size == 1:
            return
        whole = [p.grad for p in model.parameters() if p.grad is not None and not isinstance(p.grad, DTensor)]
        if whole:
            flat = self.sum(torch.cat([grad.reshape(-1) for grad in whole]))
            sizes = [grad.numel() for grad in whole]
            totals = cast("tuple[Tensor, ...]", flat.split(sizes))  # pyright: ignore[reportUnknownMemberType]
            for grad, total in zip(whole, totals, strict=True):
                grad.copy_(total.view_as(grad))

    def copies(self, parameter: Tensor) -> int:
        """How many processes hold the same piece of it."""
        if not isinstance(parameter, DTensor):
            return self.size
        sizes = zip(parameter.placements, parameter.device_mesh.shape, strict=True)
        return math.prod(size for placement, size in sizes if placement.is_replicate())

    @contextmanager
    def watched(self, seconds: float, last_words: Callable[[LostProcessError], None]) -> Generator[None]:
        """Inside, this process ends itself if for more than `seconds` another one gives no sign of life, or is waited
        for in what is `in_time`.

        `last_words` is called before, in another thread, and told who is missing. May be nested.
        """
        if self.size == 1:
            yield
            return
        store = PrefixStore(f"watchdog-{len(self._watchdog)}", _store())
        self._watchdog.append(Watchdog(self.rank, self.size, store, seconds, last_words))
        try:
            yield
        finally:
            self._watchdog.pop().stop()

    @contextmanager
    def in_time(self) -> Generator[Callable[[], None]]:
        """Watched, if anything is; gives what is called between two pieces of work, each of which has its own time."""
        if not self._watchdog:
            yield lambda: None
            return
        with self._watchdog[-1].watching():
            yield self._watchdog[-1].next_piece

    def lost(self, error: RuntimeError) -> LostProcessError | None:
        """What to say if `error` comes of another process that is gone or hangs; None if it does not.

        Whoever notices leaves a note in the launcher's store; after a few seconds those without one are the lost.
        """
        if self.size == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            return None

        def others() -> list[int]:
            store.set(f"wmtp/noticed/{self.rank}", "")
            time.sleep(NOTICE)
            return [rank for rank in range(self.size) if not store.check([f"wmtp/noticed/{rank}"])]

        store = self._stores[0]
        missing = within(2 * NOTICE, others, [0])  # if the store is gone, it was that of the first
        who = f"process {', '.join(map(str, missing))}" if missing else "a process"
        reason = re.sub(r"^\[\S+\] | This is typically.*", "", str(error), flags=re.DOTALL)  # gloo's advice
        return LostProcessError(f"{who} of the run's {self.size} is gone or does not answer: {reason}", tuple(missing))

    def leave(self) -> None:
        """Tell the others that this process was asked to leave: it is not lost."""
        if self.size > 1:
            within(NOTICE, lambda: self._stores[0].set(f"wmtp/left/{self.rank}", ""), None)

    def left(self, ranks: Sequence[int]) -> bool:
        """Whether all of `ranks`, some at least, have said that they were asked to leave."""
        keys = [f"wmtp/left/{rank}" for rank in ranks]
        return bool(keys) and within(NOTICE, lambda: self._stores[0].check(keys), False)


ALONE = World()
"""The only process of a run."""


def launched() -> bool:
    """Whether torchrun, or something like it, has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def join_world(device: torch.device, backend: str, timeout: float) -> Generator[World]:
    """The world that the launcher's environment describes; `ALONE` without one.

    Args:
        device: what kind tensors are on.
        backend: auto, gloo or nccl.
        timeout: seconds that the others are waited for, where nothing else is said (`World.watched`).

    Raises:
        UserError: the backend does not fit the device, or the other processes can't be reached.
        LostProcessError: one of them is gone; for what was raised of it inside.
    """
    if not launched():
        yield ALONE
        return
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if absent := [name for name in names if name not in os.environ]:
        raise UserError(f"WORLD_SIZE is set, but not {', '.join(absent)}: use torchrun or --nproc, or set what they do")
    rank, size, local_rank, local_size = (int(os.environ[name]) for name in names)
    world = World(rank, size, local_rank, local_size)
    if device.type == "cuda":
        torch.cuda.set_device(world.local_rank)
    if backend == "nccl" and device.type != "cuda":
        raise UserError(f"devices.distributed.backend: nccl: it needs CUDA, this run is on {device.type}; set auto")
    over = "cpu:gloo,cuda:nccl" if device.type == "cuda" and backend != "gloo" else "gloo"
    try:
        dist.init_process_group(over, timeout=timedelta(seconds=timeout))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the other {world.size - 1} processes of the run can't be reached: {error}") from error
    world._stores.append(_store())  # pyright: ignore[reportPrivateUsage]
    try:
        yield world
    except RuntimeError as error:
        if (lost := world.lost(error)) is None:
            raise
        raise lost from error
    finally:
        dist.destroy_process_group()


def _store() -> Store:
    """The launcher's store, by a connection of its own."""
    store = dist.distributed_c10d._get_default_store()  # pyright: ignore[reportPrivateUsage]
    return cast(Any, store).clone()


def local(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that this process holds; a whole one as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
