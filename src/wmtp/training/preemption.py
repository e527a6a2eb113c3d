"""SIGTERM, Ctrl-C and the end of a launcher as a flag that the training loop looks at between two steps."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType, TracebackType

ECHO = 5.0
"""Seconds in which further signals are the same request: Ctrl-C and a scheduler reach a launcher and, by it or by
themselves, its processes."""


class Preemption:
    """While entered, the first SIGTERM or SIGINT sets a flag; one that comes later acts as if we weren't here."""

    def __init__(self, *, launched: bool = False) -> None:
        """`launched`: by a launcher, so that without it this process would go on unseen, and hold the run's lock."""
        self._launcher = os.getppid() if launched else None
        self.name = ""
        self._noted = 0.0
        self._before: dict[signal.Signals, signal._HANDLER] = {}  # pyright: ignore[reportPrivateUsage]

    def __call__(self) -> bool:
        """Whether a signal has come."""
        if not self.name and self._launcher not in (None, os.getppid()):
            self.name = "end of the launcher"
        return bool(self.name)

    def __enter__(self) -> Preemption:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.name:
            self.name, self._noted = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() > self._noted + ECHO:
            before = self._before[signal.Signals(number)]
            self._restore()
            if callable(before):
                before(number, frame)
            else:
                signal.raise_signal(number)

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
