"""Ends a process that waits for others in vain, and says for which.

A collective that one process doesn't join keeps all others waiting inside of the library, where no Python code can
interrupt them; gloo's groups wait for as long as they were told when they were made, which is long, for the start of a
run is slow, and so is sending a checkpoint. So a thread looks at the clock. It also writes once a second into the
launcher's store that its process lives, and how far it is: who writes nothing any more has stopped, who is behind
hangs. Time that a process was stopped itself, with the whole job or its machine, does not count.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar, cast

from torch._C._distributed_c10d import Store

from wmtp.errors import LostProcessError

PULSE = 1.0
"""Seconds between two signs of life."""
MOST_AWAKE = 5 * PULSE
"""Seconds between two looks at the clock, but for times at which this process was stopped itself."""
LEFT = "left"
"""What a process that is no longer watched writes last: it may be silent."""

T = TypeVar("T")


def within(seconds: float, read: Callable[[], T], otherwise: T) -> T:
    """What `read` gets from a store, `otherwise` if that fails or takes longer: its process may have stopped."""
    found: list[T] = []

    def work() -> None:
        with suppress(RuntimeError):
            found.append(read())

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else otherwise


class Watchdog:
    """Watches one of several processes."""

    def __init__(
        self, rank: int, size: int, store: Store, seconds: float, last_words: Callable[[LostProcessError], None]
    ) -> None:
        """Begin to write signs of life.

        Args:
            rank: this process.
            size: how many there are.
            store: the launcher's; a connection of its own, for this thread alone.
            seconds: how long one piece of watched work may take, and how long others may be silent.
            last_words: called before this process ends itself.
        """
        self._rank, self._size, self._store, self._seconds, self._last_words = rank, size, store, seconds, last_words
        self._busy, self._pieces = False, 0
        self._ended = threading.Event()
        for work in (self._live, self._watch):
            threading.Thread(target=work, name="watchdog", daemon=True).start()

    @contextmanager
    def watching(self) -> Generator[None]:
        """What is done inside, or each piece of it, has to be done in time. Outside, the others have to live."""
        self._busy = True
        self.next_piece()
        try:
            yield
        finally:
            self._busy = False

    def next_piece(self) -> None:
        """One piece is done, the next one begins."""
        self._pieces += 1

    def stop(self) -> None:
        """Nothing is watched any more."""
        self._ended.set()

    def _live(self) -> None:
        while not self._ended.is_set():
            self._write(str(time.time()))
            self._ended.wait(PULSE)
        self._write(LEFT)

    def _write(self, sign: str) -> None:
        try:
            self._store.set(self._key(self._rank), f"{self._pieces} {sign}")
        except RuntimeError:
            # The line is broken, which a store does not mend; or the store is gone with its process, of which the
            # library tells whoever waits, or the clock does.
            with suppress(RuntimeError):
                self._store = cast(Any, self._store).clone()

    def _watch(self) -> None:
        awake, looked = 0.0, time.monotonic()
        piece, begun = 0, 0.0
        signs, heard, listen = [""] * self._size, [0.0] * self._size, 0.0
        while not self._ended.wait(PULSE):
            now = time.monotonic()
            awake, looked = awake + min(now - looked, MOST_AWAKE), now
            if not self._busy or piece != self._pieces:
                piece, begun = self._pieces, awake
            if awake >= listen:
                listen = awake + self._seconds / 10  # of many processes, each reads what all write
                fresh = self._signs() or signs
                heard = [then if fresh[r] == signs[r] and _due(fresh[r]) else awake for r, then in enumerate(heard)]
                signs = fresh
            others = [then for rank, then in enumerate(heard) if rank != self._rank]
            if awake - min(begun, *others) > self._seconds:
                self._end(piece, late=awake - begun > self._seconds)
                heard, listen = [awake] * self._size, awake

    def _end(self, piece: int, *, late: bool) -> None:
        """End this process, unless it goes on after all, or those whom nobody has heard do."""
        before = self._signs() or [""] * self._size
        self._ended.wait(3 * PULSE)
        now = self._signs() or [""] * self._size
        if self._ended.is_set() or self._pieces != piece:
            return
        others = [rank for rank in range(self._size) if rank != self._rank]
        silent = [rank for rank in others if before[rank] == now[rank] and not now[rank].endswith(LEFT)]
        if len(silent) == self._size - 1 > 1:
            silent = [0]  # nobody can be heard, for the store was with the first one
        done = [int(sign.split()[0]) if sign else 0 for sign in now]
        lost = silent or [rank for rank in others if late and done[rank] < self._pieces]
        if not (late or lost):
            return
        who = f"process {', '.join(map(str, lost))}" if lost else "a process"
        error = LostProcessError(
            f"{who} of the run's {self._size} is gone or does not answer: waited for more than {self._seconds:g} s "
            "(devices.distributed.timeout; before training start_timeout)",
            tuple(lost),
        )
        self._last_words(error)
        os._exit(error.exit_code)  # the thread that waits can't be told

    def _signs(self) -> list[str] | None:
        """What each process wrote last; None if that can't be had, or one has not written anything yet."""

        def read() -> list[str] | None:
            keys = [self._key(rank) for rank in range(self._size)]
            return [sign.decode() for sign in self._store.multi_get(keys)] if self._store.check(keys) else None

        return within(3 * PULSE, read, None)

    @staticmethod
    def _key(rank: int) -> str:
        return f"wmtp/alive/{rank}"


def _due(sign: str) -> bool:
    """Whether another one has to follow."""
    return bool(sign) and not sign.endswith(LEFT)
