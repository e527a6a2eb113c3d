"""Patience on one metric, in whatever unit: the rule of every other trainer, with its choices made explicit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import Annotated, ClassVar, Literal, TypedDict

from annotated_types import Ge, Gt

from wmtp.stopping.criteria import OneMetric, metric_of
from wmtp.types import JSON, Observation, Verdict

Unit = Literal["checks", "steps", "epochs", "tokens", "seconds"]
FIELDS = {"steps": "step", "epochs": "epoch", "tokens": "tokens", "seconds": "seconds"}
"""Where an observation has them."""


class PatienceState(TypedDict):
    """What values are compared with, the latest ones for smoothing, and how long it has been (in the unit)."""

    reference: float | None
    recent: list[float]
    since: float
    waited: float


@dataclass(frozen=True, slots=True)
class Patience(OneMetric):
    """Holds ("converged") when the metric has not improved for `patience` `unit`s.

    Attributes:
        monitor: the metric that is to fall; empty: the block's.
        patience: how long without an improvement.
        unit: what of; a check is an observation with a finite value of the metric.
        min_delta: an improvement is a fall below the reference by more than this, in the metric's unit.
        min_relative: and by more than this share of the reference's size.
        reference: best_qualifying: the value at the last improvement, so that many small ones add up; best: the lowest
            value, as transformers and Ignite have it: small improvements never count.
        smoothing: what is compared: the value, or the exponential mean, mean or median of the latest ones.
        smoothing_window: of how many; the exponential mean weighs the newest 2 / (window + 1).
    """

    kind: ClassVar[str] = "patience"

    patience: Annotated[float, Gt(0)] = 10
    unit: Unit = "checks"
    min_delta: Annotated[float, Ge(0)] = 0.0
    min_relative: Annotated[float, Ge(0)] = 0.0
    reference: Literal["best_qualifying", "best"] = "best_qualifying"
    smoothing: Literal["none", "exponential", "mean", "median"] = "none"
    smoothing_window: Annotated[int, Ge(1)] = 10

    def init(self) -> PatienceState:
        """Nothing seen."""
        return PatienceState(reference=None, recent=[], since=0.0, waited=0.0)

    def update(self, state: PatienceState, seen: Observation) -> tuple[PatienceState, Verdict]:
        """Judges a finite value."""
        value = metric_of(seen, self.monitor)
        if value is None or not math.isfinite(value):
            return state, self._verdict(state)
        recent, x = self._smoothed(state["recent"], value)
        reference, since = state["reference"], state["since"]
        improved = reference is None or x < reference - max(self.min_delta, self.min_relative * abs(reference))
        now = since + state["waited"] + 1 if self.unit == "checks" else float(getattr(seen, FIELDS[self.unit]))
        if improved:
            since = now
        if reference is None or improved or (self.reference == "best" and x < reference):
            reference = x
        new: PatienceState = {"reference": reference, "recent": recent, "since": since, "waited": now - since}
        return new, self._verdict(new)

    def _smoothed(self, recent: list[float], value: float) -> tuple[list[float], float]:
        if self.smoothing == "none":
            return [], value
        if self.smoothing == "exponential":
            x = recent[0] + 2 / (self.smoothing_window + 1) * (value - recent[0]) if recent else value
            return [x], x
        recent = [*recent, value][-self.smoothing_window :]
        return recent, median(recent) if self.smoothing == "median" else sum(recent) / len(recent)

    def _verdict(self, state: PatienceState) -> Verdict:
        waited = state["waited"]
        evidence: dict[str, JSON] = {
            "reference": state["reference"],
            "waited": waited,
            "distance": max(0.0, 1 - waited / self.patience),
        }
        if waited < self.patience:
            return Verdict(evidence=evidence)
        message = f"{self.monitor} has not improved for {waited:g} {self.unit} on {state['reference']:.6g}"
        return Verdict(True, "converged", ("converged",), message, evidence)
