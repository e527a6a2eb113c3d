"""SIGTERM and Ctrl-C as a flag that the training loop looks at between two steps."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType


class Preemption:
    """While entered, the first SIGTERM or SIGINT sets a flag; a second one acts as if we weren't here."""

    def __init__(self) -> None:
        self.name = ""
        self._before: dict[signal.Signals, signal._HANDLER] = {}  # pyright: ignore[reportPrivateUsage]

    def __call__(self) -> bool:
        """Whether a signal has come."""
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
        del frame
        self.name = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
