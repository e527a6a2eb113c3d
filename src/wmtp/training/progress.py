"""What a person sees of long work: a bar on a terminal, plain lines elsewhere. All of it goes to stderr."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from wmtp.types import Verdict

_SHOWN = ("loss", "value_loss", "eval_loss")


class ProgressBar:
    """Shows a run, one stage after the other; a context manager."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        """Show on `console`, stderr if None; `quiet` shows nothing: one of several processes speaks for all."""
        self._console = Console(stderr=True, quiet=quiet) if console is None else console
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
            transient=True,
        )
        self._task: TaskID | None = None
        self._stage, self._total, self._start, self._begun = "", 0, 0, time.monotonic()
        self._shown: dict[str, float] = {}
        self._told = time.monotonic()

    def begin(self, stage: str, total: int, start: int = 0) -> None:
        """A stage of `total` steps at most begins; `start` of them were made before this process."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(stage, total=total, completed=start, text="")
        self._stage, self._total, self._start, self._begun = stage, total, start, time.monotonic()
        self._shown = {}
        self._told = self._begun

    def update(
        self, step: int, metrics: Mapping[str, float], tokens_per_s: float, verdict: Verdict | None = None
    ) -> None:
        """Show the state after `step`. Values that are not in `metrics` this time stay as they were.

        Args:
            step: steps made in this stage.
            metrics: of which `loss`, `value_loss` and `eval_loss` are shown.
            tokens_per_s: of late.
            verdict: the stopping rule's latest, whose distance to stopping is shown.
        """
        self._shown |= {name: metrics[name] for name in _SHOWN if name in metrics}
        self._show(step, self._text(step, tokens_per_s, verdict))

    def count(self, what: str, done: int, total: int, text: str) -> None:
        """Show that `done` of `total` are done: any work but training. Off a terminal a line every ten seconds."""
        if what != self._stage or total != self._total:
            self.begin(what, total, done)
        now = time.monotonic()
        if self._console.is_terminal or done == total or now - self._told >= 10:
            self._told = now
            self._show(done, text)

    def _show(self, done: int, text: str) -> None:
        if self._console.is_terminal and self._task is not None:
            self._bar.update(self._task, completed=done, text=text)
        else:
            self.say(f"{self._stage} {done}/{self._total} {text}".rstrip())

    def say(self, message: str) -> None:
        """Print a line, above the bar if there is one. From any thread."""
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    def _text(self, step: int, tokens_per_s: float, verdict: Verdict | None) -> str:
        parts = [f"{name} {value:.4g}" for name, value in self._shown.items()]
        done = step - self._start
        if done > 0:
            seconds = (time.monotonic() - self._begun) / done * max(0, self._total - step)
            parts += [f"{tokens_per_s:,.0f} tokens/s", f"{_duration(seconds)} left"]
        distance = None if verdict is None else verdict.evidence.get("distance")
        if isinstance(distance, int | float):
            parts.append("stop" if distance <= 0 else f"stop {distance:.0%} away")
        return "  ".join(parts)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


def _duration(seconds: float) -> str:
    """Like 1:02:03."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"
