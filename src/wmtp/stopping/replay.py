"""Where a rule would have stopped a run of the past: its observations through the same object that a live run asks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from wmtp.errors import UserError
from wmtp.stopping.check import nearest
from wmtp.stopping.early_stopping import EarlyStopping
from wmtp.stopping.history import History
from wmtp.types import Observation, Verdict


@dataclass(frozen=True, slots=True)
class Replay:
    """What a rule would have done to a run.

    Attributes:
        run, stage: of the history.
        rule: the rule's name, as its user calls it.
        monitor: the metric that the block watches.
        stopped: whether it would have stopped the run; if not, `step` is none, `reason` and `message` are empty.
        step: of the stop, as the log has it.
        reason, fired, message: of the verdict.
        saved: share of the logged run that would not have been run: 1 - stop / last step. 0 without a stop.
        saved_tokens, saved_seconds: how many of them, none where the log has no such counts.
        regret: (best up to the stop - best of all) / (first - best of all), of the finite values of `judge`: the share
            of the whole improvement that came after the stop. None where there is no such share: the run never came
            below its first value, or has none up to the stop.
        judge: the metric that `regret` is of, by default the monitor; `judged`: it has a finite value up to the stop.
        watched: all metrics that the rule looks at.
        last_step: the last one in the log.
    """

    run: str
    stage: str
    rule: str
    monitor: str
    stopped: bool
    step: int | None
    reason: str
    fired: tuple[str, ...]
    message: str
    saved: float
    saved_tokens: int | None
    saved_seconds: float | None
    regret: float | None
    judge: str
    judged: bool
    watched: tuple[str, ...]
    last_step: int

    @property
    def lost(self) -> float:
        """`regret`; where there is none, 1 for a stop before anything was reached, 0 for a run that never improved."""
        return self.regret if self.regret is not None else 0.0 if self.judged else 1.0


def replay(history: History, stopper: EarlyStopping, *, name: str, judge: str | None = None) -> Replay:
    """Lets `stopper` (which is reset first) decide on every observation until it stops.

    Args:
        history: one stage of a run.
        stopper: of the class and with the settings that a live run would have.
        name: what to call the rule.
        judge: the metric whose loss counts, where it is not the monitored one: a rule that watches the training loss
            is to be judged by the held-out loss.

    Raises:
        UserError: the log lacks a metric that the rule watches, or the judging one; gives the nearest name.
    """
    monitor = stopper.config.monitor
    judge = monitor if judge is None else stopper.aliases.get(judge, judge)
    check_logged(history, dict.fromkeys((monitor, *stopper.monitors, judge)))
    last, points = history.observations[-1], history.points(judge)
    end, verdict = last, Verdict()
    for seen, given in verdicts(history, stopper):
        if given.stop:
            end, verdict = seen, given
    return Replay(
        run=history.name,
        stage=history.stage,
        rule=name,
        monitor=monitor,
        stopped=verdict.stop,
        step=end.step if verdict.stop else None,
        reason=verdict.reason,
        fired=verdict.fired if verdict.stop else (),
        message=verdict.message if verdict.stop else "",
        saved=(last.step - end.step) / last.step if last.step else 0.0,
        saved_tokens=last.tokens - end.tokens if last.tokens else None,
        saved_seconds=last.seconds - end.seconds if last.seconds else None,
        regret=regret(points, end.step),
        judge=judge,
        judged=any(step <= end.step and math.isfinite(value) for step, value in points),
        watched=stopper.monitors,
        last_step=last.step,
    )


def verdicts(history: History, stopper: EarlyStopping) -> Iterator[tuple[Observation, Verdict]]:
    """Each observation and the decision on it, from a fresh state up to the stop."""
    stopper.reset()
    for seen in history.observations:
        verdict = stopper.observe(seen)
        yield seen, verdict
        if verdict.stop:
            return


def regret(points: list[tuple[int, float]], stop: int) -> float | None:
    """Share of the improvement that came after step `stop`; see `Replay.regret`."""
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    before = [value for step, value in finite if step <= stop]
    if not before:
        return None
    best, first = min(value for _, value in finite), finite[0][1]
    return (min(before) - best) / (first - best) if first > best else None


def check_logged(history: History, metrics: Iterable[str]) -> None:
    """Refuses metrics that are not in the log.

    Raises:
        UserError: with the nearest name.
    """
    names = history.metrics
    for metric in metrics:
        if metric not in names:
            stage = f", stage {history.stage}" if history.stage else ""
            hint = nearest(metric, names)
            raise UserError(f"{history.source or history.name}{stage}: no metric {metric!r} is logged; {hint}")
