"""Ends a process that waits for others in vain, and says for which.

A collective that one process doesn't join keeps all others waiting inside of the library, where no Python code can
interrupt them; gloo's groups wait for as long as they were told when they were made, which is long, for the start of a
run is slow. So a thread looks at the clock. It also writes once a second into the launcher's store that its process
lives, and how far it is: who writes nothing any more has stopped, who is behind hangs.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import TypeVar

from torch._C._distributed_c10d import Store

from wmtp.errors import LostProcessError

PULSE = 1.0
"""Seconds between two signs of life."""

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
            seconds: how long one piece of watched work may take.
            last_words: called before this process ends itself.
        """
        self._rank, self._size, self._store, self._seconds, self._last_words = rank, size, store, seconds, last_words
        self._since: float | None = None
        self._pieces = 0
        self._ended = threading.Event()
        for work in (self._live, self._watch):
            threading.Thread(target=work, name="watchdog", daemon=True).start()

    @contextmanager
    def watching(self) -> Generator[None]:
        """What is done inside, or each piece of it, has to be done in time."""
        self.next_piece()
        try:
            yield
        finally:
            self._since = None

    def next_piece(self) -> None:
        """One piece is done, the next one begins."""
        self._pieces += 1
        self._since = time.monotonic()

    def stop(self) -> None:
        """Nothing is watched any more."""
        self._ended.set()

    def _live(self) -> None:
        # If the store is gone with its process, the library says so to whoever waits, or the clock does.
        with suppress(RuntimeError):
            while not self._ended.wait(PULSE):
                self._store.set(self._key(self._rank), f"{self._pieces} {time.time()}")

    def _watch(self) -> None:
        while not self._ended.wait(PULSE):
            since = self._since
            if since is not None and time.monotonic() - since > self._seconds and self._since == since:
                self._end()

    def _end(self) -> None:
        before = self._signs()
        self._ended.wait(3 * PULSE)
        now = self._signs()
        if self._since is None:
            return  # it has gone on after all
        silent = [rank for rank in range(self._size) if rank != self._rank and before[rank] == now[rank]]
        if len(silent) == self._size - 1 > 1:
            silent = [0]  # nobody can be heard, for the store was with the first one
        done = [int(sign.split()[0]) if sign else 0 for sign in now]
        behind = [rank for rank in range(self._size) if done[rank] < self._pieces]
        lost = silent or behind
        who = f"process {', '.join(map(str, lost))}" if lost else "a process"
        error = LostProcessError(
            f"{who} of the run's {self._size} is gone or does not answer: waited for more than {self._seconds:g} s "
            "(devices.distributed.timeout)",
            tuple(lost),
        )
        self._last_words(error)
        os._exit(error.exit_code)  # the thread that waits can't be told

    def _signs(self) -> list[str]:
        """What each process wrote last, "" if it can't be had."""

        def read() -> list[str]:
            keys = [self._key(rank) for rank in range(self._size)]
            return [self._store.get(key).decode() if self._store.check([key]) else "" for key in keys]

        return within(3 * PULSE, read, [""] * self._size)

    @staticmethod
    def _key(rank: int) -> str:
        return f"wmtp/alive/{rank}"
