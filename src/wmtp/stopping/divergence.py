"""Divergence: the metric has left the level it had, upwards, and is not coming back.

Values (their logarithms, as long as all are positive) are compared with a running level and deviation, which outliers
can't poison: a value moves them as if it were at most `PULL` deviations off. With z = (value - level) / deviation a
CUSUM (Page 1954) gathers evidence, S = max(0, S + min(z, CAP) - slack), at most twice `threshold`. Above a third
of `threshold` it is an excursion, which ends when S is back at 0; meanwhile level and deviation stand still. Losses
spike and recover, so S above `threshold` alone stops nothing. It has diverged when then

- it is not coming back: an exponential that is over after `persist` values falls by 3 / persist of its height per
  value; the slope of the latest values is above half of that by `SURE` standard errors, and by `SURE_AMONG` of those
  that the scatter of these values makes, for spikes among good values are no growth; or
- it stays: `persist` values after it began it has not come down by half of the highest rise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, TypedDict

from annotated_types import Ge, Gt

from wmtp.stopping.criteria import Count, OneMetric, metric_of
from wmtp.types import JSON, Observation, Verdict

RATE = 1 / 40
"""Share of a value in level and deviation."""
PULL = 2.0
CAP = 6.0
"""Deviations that one value counts at most: no single value makes an excursion."""
SURE = 3.5
SURE_AMONG = 2.0
FREE = 8
"""First values, which are taken as they are: the deviation of two may be next to nothing."""
LEAST, MOST = 4, 24
"""Values that a slope is fitted to."""
NEAR = 3
"""Values whose mean tells where the metric is now."""
SHARE = 0.03
"""Of the values that the planned steps come to: no spike lasts longer."""


class DivergenceState(TypedDict):
    """Finite values seen, whether all were positive, level and deviation, S, the excursion's values and its highest
    level, values in a row above the limit, and the judgement."""

    values: Count
    positive: bool
    level: float
    deviation: float
    cusum: float
    length: Count
    recent: list[float]
    peak: float
    above: Count
    holds: bool


@dataclass(frozen=True, slots=True)
class Divergence(OneMetric):
    """Holds ("diverged") when the metric has risen far above its level and grows on, or does not come back.

    Attributes:
        monitor: the metric that is to fall, also a gradient norm; empty: the block's.
        threshold: evidence that makes an excursion, in deviations.
        slack: deviations above its level at which a value is no evidence.
        warmup: finite values before the first that can be evidence.
        persist: values within which a spike is over; at most 3 % of those that the planned steps come to, 8 at least.
        limit: besides, a fixed bound: `limit_checks` values in a row above it are divergence; none: no bound.
        limit_checks: see there.
    """

    kind: ClassVar[str] = "divergence"

    threshold: Annotated[float, Gt(0)] = 12.0
    slack: Annotated[float, Ge(0)] = 1.4
    warmup: Annotated[int, Ge(2)] = 20
    persist: Annotated[int, Ge(1)] = 64
    limit: float | None = None
    limit_checks: Annotated[int, Ge(1)] = 3

    def init(self) -> DivergenceState:
        """Nothing seen."""
        return DivergenceState(values=0, positive=True, level=0.0, deviation=0.0, cusum=0.0, length=0, recent=[],
                               peak=0.0, above=0, holds=False)  # fmt: skip

    def update(self, state: DivergenceState, seen: Observation) -> tuple[DivergenceState, Verdict]:
        """Takes in a finite value and judges it."""
        value = metric_of(seen, self.monitor)
        if value is None or not math.isfinite(value):
            return state, self._verdict(state, value)
        if value <= 0 and state["positive"]:  # from now on values are compared as they are
            level = math.exp(state["level"]) if state["values"] else 0.0
            state = {**self.init(), "values": state["values"], "positive": False, "level": level,
                     "deviation": level * state["deviation"], "above": state["above"]}  # fmt: skip
        new = self._after(state, math.log(value) if state["positive"] else value, seen)
        new["above"] = state["above"] + 1 if self.limit is not None and value > self.limit else 0
        excursion = new["cusum"] > self.threshold and new["length"] >= LEAST
        new["holds"] = (excursion and self._lost(new, seen)) or new["above"] >= self.limit_checks
        return new, self._verdict(new, value)

    def _after(self, state: DivergenceState, x: float, seen: Observation) -> DivergenceState:
        count, level, deviation = state["values"], state["level"], state["deviation"]
        off = x - level if count else 0.0
        z = off / deviation if deviation > 0 else 0.0
        new: DivergenceState = {**state, "values": count + 1}
        if count >= self.warmup:
            new["cusum"] = min(2 * self.threshold, max(0.0, state["cusum"] + min(z, CAP) - self.slack))
        if new["cusum"] > self.threshold / 3 or (state["length"] and new["cusum"] > 0):
            recent = [*state["recent"], x][-MOST:]
            now = sum(recent[-NEAR:]) / len(recent[-NEAR:])
            new["length"], new["recent"], new["peak"] = state["length"] + 1, recent, max(state["peak"], now - level)
            if new["length"] <= 2 * self._persist(count + 1, seen):  # longer than that it is the level
                return new
        elif state["length"]:
            new["length"], new["recent"], new["peak"] = 0, [], 0.0
        rate = max(RATE, 1 / (count + 1))
        pulled = max(-PULL, min(PULL, z)) * deviation if count >= FREE else off
        new["level"] = level + rate * pulled if count else x
        # 1.25 |z| of a normal z has mean 1; of one that is cut at two deviations still .96.
        new["deviation"] = deviation + rate * (1.25 * abs(pulled) - deviation)
        return new

    def _lost(self, state: DivergenceState, seen: Observation) -> bool:
        """Whether an excursion grows on, or stays."""
        recent, length, level = state["recent"], state["length"], state["level"]
        now, persist = sum(recent[-NEAR:]) / NEAR - level, self._persist(state["values"], seen)
        if now < PULL * state["deviation"]:
            return False
        if length >= persist and now > state["peak"] / 2:
            return True
        while recent[0] - level < now / 4:  # noise that was there before the rise would make a fall look like growth
            recent = recent[1:]
        n = len(recent)
        if n < LEAST:
            return False
        middle, mean = (n - 1) / 2, sum(recent) / n
        spread = n * (n * n - 1) / 12
        slope = sum((i - middle) * (x - mean) for i, x in enumerate(recent)) / spread
        recovering = -1.5 / persist * max(0.0, mean - level)
        scatter = math.sqrt(sum((x - mean - slope * (i - middle)) ** 2 for i, x in enumerate(recent)) / (n - 2))
        return (slope - recovering) * math.sqrt(spread) > max(SURE * state["deviation"], SURE_AMONG * scatter)

    def _persist(self, count: int, seen: Observation) -> float:
        planned = seen.total_steps * count / seen.step if seen.total_steps and seen.step > 0 else math.inf
        return min(self.persist, max(2 * LEAST, SHARE * planned))

    def _verdict(self, state: DivergenceState, value: float | None) -> Verdict:
        evidence: dict[str, JSON] = {
            "cusum": state["cusum"],
            "excursion": state["length"],
            "distance": 0.0 if state["holds"] else 1 - min(0.95, state["cusum"] / self.threshold),
        }
        if not state["holds"]:
            return Verdict(evidence=evidence)
        level = math.exp(state["level"]) if state["positive"] else state["level"]
        what = (
            f"was above {self.limit} in {state['above']} checks in a row"
            if state["above"] >= self.limit_checks
            else f"left its level of {level:.4g} {state['length']} checks ago and is not coming back"
        )
        message = f"{self.monitor} {what}" + ("" if value is None else f", now {value:.4g}")
        return Verdict(True, "diverged", ("diverged",), message, evidence)
