"""Rules that need no history to speak of: a target, a budget, and the health of a critic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar, TypedDict

from annotated_types import Ge, Gt

from wmtp.stopping.criteria import Count, OneMetric, metric_of
from wmtp.stopping.patience import FIELDS
from wmtp.types import JSON, Observation, Verdict


class TargetState(TypedDict):
    """Checks in a row at the target."""

    reached: Count


@dataclass(frozen=True, slots=True)
class Target(OneMetric):
    """Holds ("target_reached") when the metric is at its target, `checks` times in a row.

    Attributes:
        monitor: the metric; empty: the block's.
        below: reached at this value or less; none: no such bound.
        above: reached at this value or more; none: no such bound.
        checks: how often in a row, so that one lucky value is not enough.
    """

    kind: ClassVar[str] = "target"

    below: float | None = None
    above: float | None = None
    checks: Annotated[int, Ge(1)] = 1

    def faults(self) -> list[str]:
        """What is wrong with the settings together."""
        return ["needs `below` or `above`"] if self.below is None and self.above is None else []

    def init(self) -> TargetState:
        """Nothing seen."""
        return TargetState(reached=0)

    def update(self, state: TargetState, seen: Observation) -> tuple[TargetState, Verdict]:
        """Judges a value; one that is not finite is not at the target."""
        value = metric_of(seen, self.monitor)
        if value is not None:
            there = (self.below is not None and value <= self.below) or (self.above is not None and value >= self.above)
            state = {"reached": state["reached"] + 1 if there and math.isfinite(value) else 0}
        evidence: dict[str, JSON] = {"distance": max(0.0, 1 - state["reached"] / self.checks)}
        if state["reached"] < self.checks:
            return state, Verdict(evidence=evidence)
        bounds = [
            f"{name} {bound:g}" for name, bound in (("below", self.below), ("above", self.above)) if bound is not None
        ]
        message = f"{self.monitor} has been {' or '.join(bounds)} in {state['reached']} checks in a row"
        return state, Verdict(True, "target_reached", ("target_reached",), message, evidence)


class BudgetState(TypedDict):
    """The largest share of a budget that is used."""

    used: float


@dataclass(frozen=True)
class Budget:
    """Holds ("budget_spent") when the stage has taken so many steps, epochs, tokens or seconds; the first one counts.

    Attributes:
        steps: updates; none: no such budget.
        epochs: passes over the data.
        tokens: tokens seen, padding not counted.
        seconds: time in the stage, over all processes that worked on it.
    """

    kind: ClassVar[str] = "budget"

    steps: Annotated[int, Gt(0)] | None = None
    epochs: Annotated[float, Gt(0)] | None = None
    tokens: Annotated[int, Gt(0)] | None = None
    seconds: Annotated[float, Gt(0)] | None = None

    @property
    def monitors(self) -> tuple[str, ...]:
        """None."""
        return ()

    def faults(self) -> list[str]:
        """What is wrong with the settings together."""
        return [] if self._budgets else ["needs `steps`, `epochs`, `tokens` or `seconds`"]

    @cached_property
    def _budgets(self) -> list[tuple[str, float]]:
        return [(name, budget) for name in FIELDS if (budget := getattr(self, name)) is not None]

    def init(self) -> BudgetState:
        """Nothing used."""
        return BudgetState(used=0.0)

    def update(self, state: BudgetState, seen: Observation) -> tuple[BudgetState, Verdict]:
        """Looks at how far the stage is."""
        used, name = max([(getattr(seen, FIELDS[name]) / budget, name) for name, budget in self._budgets])
        state = {"used": max(used, state["used"])}
        evidence: dict[str, JSON] = {"distance": max(0.0, 1 - used)}
        if used < 1:
            return state, Verdict(evidence=evidence)
        message = f"{getattr(seen, FIELDS[name]):g} {name} of {dict(self._budgets)[name]:g} are spent"
        return state, Verdict(True, "budget_spent", ("budget_spent",), message, evidence)


class HealthState(TypedDict):
    """Checks seen; the latest explained variances and variance ratios."""

    health_seen: Count
    explained: list[float]
    ratio: list[float]


@dataclass(frozen=True, slots=True)
class CriticHealth:
    """Holds ("critic_unhealthy") when a critic explains nothing, or its values have collapsed or exploded.

    Both measures are free of the reward's scale: explained variance 1 - Var(target - V) / Var(target), 0 for a constant
    (the zero threshold: EVPO, arXiv 2604.19485), and the ratio Var(V) / Var(target).

    Attributes:
        min_explained_variance: the mean over the window must not be below; none: not looked at.
        min_variance_ratio: the same for the ratio's lower bound; none: no such bound.
        max_variance_ratio: and its upper bound; none: no such bound.
        warmup: checks before the first that counts: a fresh head predicts nearly a constant.
        window: checks that the means are over.
    """

    kind: ClassVar[str] = "critic_health"

    min_explained_variance: float | None = 0.0
    min_variance_ratio: Annotated[float, Ge(0)] | None = None
    max_variance_ratio: Annotated[float, Gt(0)] | None = 10.0
    warmup: Annotated[int, Ge(0)] = 100
    window: Annotated[int, Ge(1)] = 20

    @property
    def monitors(self) -> tuple[str, ...]:
        """The metrics that are watched."""
        ratio = self.min_variance_ratio is not None or self.max_variance_ratio is not None
        return ("explained_variance",) * (self.min_explained_variance is not None) + ("variance_ratio",) * ratio

    def faults(self) -> list[str]:
        """What is wrong with the settings together."""
        return [] if self.monitors else ["needs a bound"]

    def init(self) -> HealthState:
        """Nothing seen."""
        return HealthState(health_seen=0, explained=[], ratio=[])

    def update(self, state: HealthState, seen: Observation) -> tuple[HealthState, Verdict]:
        """Takes in what is there; an infinite value is a bad one, NaN (as of one value alone) none."""
        count, explained, ratio = state["health_seen"], state["explained"], state["ratio"]
        found = _clipped(seen, "explained_variance"), _clipped(seen, "variance_ratio")
        if found[0] or found[1]:
            count += 1
            if count > self.warmup:
                explained, ratio = (explained + found[0])[-self.window :], (ratio + found[1])[-self.window :]
            state = {"health_seen": count, "explained": explained, "ratio": ratio}
        means = _mean(explained, self.window), _mean(ratio, self.window)
        evidence: dict[str, JSON] = {"explained_variance": means[0], "variance_ratio": means[1], "distance": 1.0}
        faults = self._faults(*means)
        if not faults:
            return state, Verdict(evidence=evidence)
        evidence["distance"] = 0.0
        return state, Verdict(True, "critic_unhealthy", ("critic_unhealthy",), "; ".join(faults), evidence)

    def _faults(self, explained: float | None, ratio: float | None) -> list[str]:
        low, bottom, top = self.min_explained_variance, self.min_variance_ratio, self.max_variance_ratio
        faults: list[str] = []
        if explained is not None and low is not None and explained < low:
            faults.append(f"explained_variance is {explained:.3g}, below {low:g}")
        if ratio is not None and bottom is not None and ratio < bottom:
            faults.append(f"variance_ratio is {ratio:.3g}, below {bottom:g}")
        if ratio is not None and top is not None and ratio > top:
            faults.append(f"variance_ratio is {ratio:.3g}, above {top:g}")
        return [f"{fault} on average over {self.window} checks" for fault in faults]


BAD = 1e6


def _clipped(seen: Observation, name: str) -> list[float]:
    """At most one number, within bounds: an infinite one is as bad as a million."""
    value = metric_of(seen, name)
    if value is None or math.isnan(value):
        return []
    return [value if -BAD < value < BAD else math.copysign(BAD, value)]


def _mean(values: list[float], window: int) -> float | None:
    """None until the window is full."""
    return sum(values) / window if len(values) == window else None
