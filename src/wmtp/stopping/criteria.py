"""The criteria of early stopping: pure folds with JSON state, O(1) in the length of the run.

Each is a `wmtp.protocols.StoppingRule`. Its state is a dict with keys of its own, so that one flat dict can
hold several: `update` reads its keys, returns a new dict of exactly these and never changes its argument.
The verdict's `stop` says whether the criterion holds; `evidence["distance"]` is 0 then, else up to 1.

Values that are not finite: a monitored one is counted by `NonFinite` and touches nothing else (it is no
evidence of convergence, so `counter` stays); a gradient norm exceeds any threshold; a variance of NaN is
undefined (as of one single prediction) and skipped, an infinite one is out of bounds. A metric that an
observation lacks leaves its criterion as it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, TypedDict

from annotated_types import Ge

from wmtp.types import JSON, Observation, Verdict

Count = Annotated[int, Ge(0)]


@dataclass(frozen=True, slots=True)
class OneMetric:
    """A rule that watches one metric, `monitor`; empty: the block's."""

    monitor: str = ""

    @property
    def monitors(self) -> tuple[str, ...]:
        """The metrics that are watched."""
        return (self.monitor,)


class ConvergenceState(TypedDict):
    """First, last and best finite value; values since the best; latest values in a row that got worse."""

    first_value: float | None
    last_value: float | None
    best_value: float | None
    best_step: int | None
    counter: Count
    worse_run: Count


@dataclass(frozen=True, slots=True)
class Convergence:
    """Holds when `patience` finite values in a row were not below the best by more than `min_delta`.

    The reason is "converged", or "diverged" if the metric did not level off but blew up: each of the last
    `patience` values (two at least: one shows no direction) was above its predecessor or above the very
    first value, by more than `min_delta`, and the latest is above the first, or above twice the best if that
    is positive. So noise around the best is "converged", and so is over-fitting that has not undone the
    training yet.
    """

    monitor: str
    patience: int
    min_delta: float

    def init(self) -> ConvergenceState:
        """Nothing seen."""
        return ConvergenceState(
            first_value=None, last_value=None, best_value=None, best_step=None, counter=0, worse_run=0
        )

    def update(self, state: ConvergenceState, seen: Observation) -> tuple[ConvergenceState, Verdict]:
        """Judges a finite value; at any other the state stays and nothing holds."""
        value = metric_of(seen, self.monitor)
        finite = value if value is not None and math.isfinite(value) else None
        new = self.noted(state, seen)
        counter = min(new["counter"], self.patience if finite is not None else self.patience - 1)
        evidence: dict[str, JSON] = {
            "value": None if value is None else plain_number(value),
            "best_value": new["best_value"],
            "best_step": new["best_step"],
            "counter": new["counter"],
            "patience": self.patience,
            "distance": 1 - counter / self.patience,
        }
        if counter < self.patience:
            return new, Verdict(evidence=evidence)
        reason = "diverged" if self._diverged(new) else "converged"
        return new, Verdict(True, reason, (reason,), self._message(new, reason), evidence)

    def noted(self, state: ConvergenceState, seen: Observation) -> ConvergenceState:
        """The state after `seen`, without a judgement."""
        value = metric_of(seen, self.monitor)
        first, last, best = state["first_value"], state["last_value"], state["best_value"]
        best_step, counter, worse_run = state["best_step"], state["counter"], state["worse_run"]
        if value is None or not math.isfinite(value):
            value = last
        elif first is None or last is None or best is None:
            first, best, best_step = value, value, seen.step
        elif value < best - self.min_delta:
            best, best_step, counter, worse_run = value, seen.step, 0, 0
        else:
            counter += 1
            worse_run = worse_run + 1 if value > min(first, last) + self.min_delta else 0
        return {
            "first_value": first,
            "last_value": value,
            "best_value": best,
            "best_step": best_step,
            "counter": counter,
            "worse_run": worse_run,
        }

    def _diverged(self, state: ConvergenceState) -> bool:
        first, last, best = state["first_value"], state["last_value"], state["best_value"]
        assert first is not None
        assert last is not None
        assert best is not None
        far = last > first + self.min_delta or last > 2 * best > 0
        return far and state["worse_run"] >= max(2, self.patience)

    def _message(self, state: ConvergenceState, reason: str) -> str:
        what = "got worse" if reason == "diverged" else f"did not improve by more than {self.min_delta:g}"
        checks = self.patience if reason == "diverged" else state["counter"]
        return (
            f"{self.monitor} {what} in {checks} checks in a row: "
            f"best {state['best_value']:.6g} at step {state['best_step']}, now {state['last_value']:.6g}"
        )


class NonFiniteState(TypedDict):
    """Latest monitored values in a row that are not finite."""

    nonfinite_run: Count


@dataclass(frozen=True, slots=True)
class NonFinite(OneMetric):
    """Holds ("non_finite") when `checks` monitored values in a row were NaN or infinite.

    Attributes:
        monitor: the metric; empty: the block's.
        checks: how many in a row.
    """

    kind: ClassVar[str] = "non_finite"

    checks: Annotated[int, Ge(1)] = 3

    def init(self) -> NonFiniteState:
        """Nothing seen."""
        return NonFiniteState(nonfinite_run=0)

    def update(self, state: NonFiniteState, seen: Observation) -> tuple[NonFiniteState, Verdict]:
        """Counts a value that is not finite; while the budget lasts, the message says that it is ignored."""
        value, run = metric_of(seen, self.monitor), state["nonfinite_run"]
        if value is not None:
            run = 0 if math.isfinite(value) else run + 1
        new: NonFiniteState = {"nonfinite_run": run}
        if run == 0:
            return new, Verdict(evidence={"nonfinite_run": 0, "distance": 1.0})
        evidence: dict[str, JSON] = {"nonfinite_run": run, "distance": max(0.0, 1 - run / self.checks)}
        if run >= self.checks:
            message = f"{self.monitor} was not finite in {run} checks in a row, now {value}"
            return new, Verdict(True, "non_finite", ("non_finite",), message, evidence)
        message = f"{self.monitor} is {value}: ignored ({run} in a row, {self.checks} stop)"
        return new, Verdict(message=message, evidence=evidence)


class GradientState(TypedDict):
    """Which of the latest gradient norms exceeded the threshold, oldest first, at most a window of them."""

    grad_norm_history: list[bool]


@dataclass(frozen=True, slots=True)
class GradientStability:
    """Holds ("gradient_unstable") when the window is full and the share of exceedances is `ratio` or more."""

    threshold: float | None
    window: int
    ratio: float

    def init(self) -> GradientState:
        """An empty window."""
        return GradientState(grad_norm_history=[])

    def update(self, state: GradientState, seen: Observation) -> tuple[GradientState, Verdict]:
        """Remembers whether `grad_norm` exceeds the threshold; without a threshold nothing ever holds."""
        history = state["grad_norm_history"]
        if self.threshold is None:
            return GradientState(grad_norm_history=history), Verdict(evidence={"distance": 1.0})
        norm = metric_of(seen, "grad_norm")
        if norm is not None:
            exceeds = not (math.isfinite(norm) and norm <= self.threshold)
            history = [*history, exceeds][-self.window :]
        new, exceeded = GradientState(grad_norm_history=history), sum(history)
        share = exceeded / self.window
        distance = 1 - min(1.0, share / self.ratio, len(history) / self.window)
        evidence: dict[str, JSON] = {"grad_exceed_share": share, "distance": distance}
        if distance > 0:
            return new, Verdict(evidence=evidence)
        message = f"grad_norm was above {self.threshold:g} in {exceeded} of the last {self.window} checks"
        return new, Verdict(True, "gradient_unstable", ("gradient_unstable",), message, evidence)


class VarianceState(TypedDict):
    """Variances seen, whether one out of bounds counts already, and whether the latest did."""

    variance_seen: Count
    variance_armed: bool
    variance_invalid: bool


@dataclass(frozen=True, slots=True)
class VarianceBounds:
    """Holds ("variance_invalid") when `value_variance` is out of bounds, once armed.

    A fresh value head predicts nearly a constant: its variance counts from the first one within bounds on,
    or after `grace` of them; without a `grace`, from the first one on that is not too low. Each bound alone
    works; without both nothing ever holds.
    """

    low: float | None
    high: float | None
    grace: int | None

    def init(self) -> VarianceState:
        """Not armed."""
        return VarianceState(variance_seen=0, variance_armed=False, variance_invalid=False)

    def update(self, state: VarianceState, seen: Observation) -> tuple[VarianceState, Verdict]:
        """Judges a variance that is there and not NaN; otherwise the judgement before stands."""
        count, armed, invalid = state["variance_seen"], state["variance_armed"], state["variance_invalid"]
        variance = metric_of(seen, "value_variance")
        bounded = self.low is not None or self.high is not None
        if bounded and variance is not None and not math.isnan(variance):
            low, high = (-math.inf if self.low is None else self.low), self.high
            inside = math.isfinite(variance) and low <= variance and (high is None or variance <= high)
            armed = armed or inside or (variance >= low if self.grace is None else count >= self.grace)
            count, invalid = count + 1, armed and not inside
        new = VarianceState(variance_seen=count, variance_armed=armed, variance_invalid=invalid)
        evidence: dict[str, JSON] = {"variance_armed": armed} if bounded else {}
        evidence["distance"] = 0.0 if invalid else 1.0
        if not invalid:
            return new, Verdict(evidence=evidence)
        message = f"value_variance is outside [{self.low}, {self.high}], now {variance}"
        return new, Verdict(True, "variance_invalid", ("variance_invalid",), message, evidence)


def metric_of(seen: Observation, name: str) -> float | None:
    """The metric as a plain number, None if it is not there."""
    value = seen.metrics.get(name)
    return None if value is None else float(value)  # numpy's and torch's scalars are not JSON


def plain_number(value: float) -> JSON:
    """As JSON has it, which knows no NaN."""
    return value if math.isfinite(value) else str(value)
