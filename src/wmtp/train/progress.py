"""What a person sees while a stage trains: a bar on a terminal, plain lines elsewhere. All of it goes to stderr."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from wmtp.types import Verdict

_SHOWN = ("loss", "value_loss", "eval_loss")


class Progress:
    """Shows one stage; a context manager.

    Args:
        stage: its name, as shown.
        total: steps of the stage, as far as known; an early stop comes before.
        start: steps done before this process (a resumed run).
        log_interval: off a terminal, one line every so many steps.
        console: where to; stderr if None.
    """

    def __init__(
        self, stage: str, total: int, *, start: int = 0, log_interval: int = 1, console: Console | None = None
    ) -> None:
        self._stage, self._total, self._start, self._log_interval = stage, total, start, log_interval
        self._console = Console(stderr=True) if console is None else console
        self._begun = time.monotonic()
        self._next_line = start + 1
        self._shown: dict[str, float] = {}
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(stage, total=total, completed=start, text="")

    def update(
        self, step: int, metrics: Mapping[str, float], tokens_per_s: float, verdict: Verdict | None = None
    ) -> None:
        """Shows the state after `step`. Values that are not in `metrics` this time stay as they were.

        Args:
            step: steps done in this stage.
            metrics: of which `loss`, `value_loss` and `eval_loss` are shown.
            tokens_per_s: of late.
            verdict: the stopping rule's latest, whose distance to stopping is shown.
        """
        self._shown |= {name: metrics[name] for name in _SHOWN if name in metrics}
        text = self._text(step, tokens_per_s, verdict)
        if self._console.is_terminal:
            self._bar.update(self._task, completed=step, text=text)
        elif step >= self._next_line or step >= self._total:
            self._next_line = (step // self._log_interval + 1) * self._log_interval
            self.say(f"{self._stage} {step}/{self._total} {text}")

    def say(self, message: str) -> None:
        """Prints a line, above the bar if there is one. Also from other threads, before and after the stage."""
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    def _text(self, step: int, tokens_per_s: float, verdict: Verdict | None) -> str:
        parts = [f"{name} {value:.4g}" for name, value in self._shown.items()]
        parts.append(f"{tokens_per_s:,.0f} tokens/s")
        done = step - self._start
        if done > 0:
            seconds = (time.monotonic() - self._begun) / done * max(0, self._total - step)
            parts.append(f"{_duration(seconds)} left")
        distance = None if verdict is None else verdict.evidence.get("distance")
        if isinstance(distance, int | float):
            parts.append("stop" if distance <= 0 else f"stop {distance:.0%} away")
        return "  ".join(parts)

    def __enter__(self) -> Self:
        self._begun = time.monotonic()
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
