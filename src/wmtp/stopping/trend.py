"""Convergence judged against the measured noise: is the improvement that is still to be expected worth waiting for?

The run is cut into at most 64 blocks of steps, of which the mean value is kept; values far from those before them are
pulled in first, so that a heavy tail moves a mean little. Whenever a block is complete, a line is fitted to the latest
ones: to as many as are left of the plan, times `wait`, for a plateau is likely to end in what is left of the run while
it has lasted less than that; and to `window` of the run at least. With the steps x in units of blocks:

    gain  = -slope * width                                improvement in as long again, if it goes on like this
    error = noise * width / sqrt(sum (x - x mean)^2)      its standard error

It has converged when gain + z * error <= tolerance * fall: even at the upper confidence bound as long again brings next
to nothing; and when the last blocks are not below the others by more than the noise, the beginning of another fall.
z is the normal quantile of 1 - false_stop_rate, noise the robust deviation of the blocks about their trend, fall what
the metric has come down so far. The slope is the median over all pairs of blocks (Theil 1950, Sen 1968), which a spike
doesn't turn. It is rising when the median of the last blocks is above the lowest such median by more than the noise and
`rise` of that fall: worse for good, as in over-fitting.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist, median
from typing import Annotated, ClassVar, TypedDict

from annotated_types import Ge, Gt, Le, Lt

from wmtp.stopping.criteria import Count, OneMetric, metric_of
from wmtp.types import JSON, Observation, Verdict

BLOCKS = 64
LEAST = 6
"""Blocks without which no line is fitted."""
LEVEL = 4
"""Blocks of which the median is a level: a spike must fill half of them to look like a rise."""
PULL = 4.0
"""Deviations beyond which a value is pulled in."""
FREE = 8
"""First values, which are taken as they are: the deviation of two may be next to nothing."""
CLEAR = 10
"""Without planned steps, deviations that the metric must have come down before it is judged, in half of all blocks."""
NORMAL = NormalDist()


class TrendState(TypedDict):
    """Complete blocks and the open one, each [index, values, their sum]; what values are pulled to; the judgement.

    `size` is a block's steps, `start` where block 0 begins, `step` the newest value's; `deviation` and `level` are
    running ones. `holds` is the reason, "" for none; `upper` the bound of the gain, `needed` what it is held against.
    """

    size: float
    start: Count
    step: Count
    values: Count
    level: float
    deviation: float
    blocks: list[list[float]]
    open: list[float]
    holds: str
    gain: float | None
    upper: float | None
    needed: float | None


@dataclass(frozen=True, slots=True)
class Trend(OneMetric):
    """Holds ("converged") when the improvement to be expected is lost in the noise, or ("rising") when the metric rose.

    Attributes:
        monitor: the metric that is to fall; empty: the block's.
        false_stop_rate: how likely one judgement may be to stop a run that would still improve by `tolerance`.
        wait: for how long the metric must have been flat, in units of what is left of the planned steps.
        window: and at least for this share of the planned steps. Where no number of steps is planned, twice this share
            of the steps so far, and no `wait`.
        tolerance: less than this share of the improvement so far is not worth waiting for as long again.
        rise: it is rising when more than this share of the improvement is lost again.
    """

    kind: ClassVar[str] = "trend"

    false_stop_rate: Annotated[float, Gt(0), Lt(0.5)] = 0.02
    wait: Annotated[float, Ge(0)] = 1.1
    window: Annotated[float, Gt(0), Le(0.5)] = 0.38
    tolerance: Annotated[float, Gt(0), Lt(1)] = 0.07
    rise: Annotated[float, Gt(0), Lt(1)] = 0.05

    def init(self) -> TrendState:
        """Nothing seen."""
        return TrendState(size=0.0, start=0, step=0, values=0, level=0.0, deviation=0.0, blocks=[], open=[], holds="",
                          gain=None, upper=None, needed=None)  # fmt: skip

    def update(self, state: TrendState, seen: Observation) -> tuple[TrendState, Verdict]:
        """Takes in a finite value; judges when it completes a block. Between two judgements the first one stands."""
        value = metric_of(seen, self.monitor)
        if value is None or not math.isfinite(value):
            return state, self._verdict(state)
        stride = max(1, seen.step - state["step"]) if state["values"] else 1
        new = _taken_in(state, seen, value, stride)
        if _index(new, seen.step + stride) > new["open"][0]:  # the next value will begin another block
            new = self._judged({**new, "blocks": [*new["blocks"], new["open"]], "open": []}, seen)
        return new, self._verdict(new)

    def _judged(self, state: TrendState, seen: Observation) -> TrendState:
        blocks = state["blocks"]
        means = [total / values for _, values, total in blocks]
        done, width = blocks[-1][0] + 1, self._width(state, seen)
        noise = _noise(means[-2 * width :])
        fall = median(means[:3]) - min(means)  # a model's very first loss may be out of all proportion
        needed = self.tolerance * fall
        judged: TrendState = {**state, "holds": "", "gain": None, "upper": None, "needed": needed}
        if not seen.total_steps and (done <= BLOCKS / 2 or fall < CLEAR * noise):
            return judged
        # As many judgements as blocks look for a move, and LEVEL of them share a value: z for all together. A median's
        # error is 1.25 times a mean's.
        doubt = NORMAL.inv_cdf(1 - self.false_stop_rate * LEVEL / BLOCKS) * 1.25 * noise * math.sqrt(2 / LEVEL)
        recent = [i for i, block in enumerate(blocks) if block[0] >= done - width]
        if len(recent) >= LEAST and done - blocks[0][0] >= width:
            x, y = [blocks[i][0] for i in recent], [means[i] for i in recent]
            gain = -_slope(x, y) * width
            middle = sum(x) / len(x)
            error = noise * width / math.sqrt(sum((a - middle) ** 2 for a in x))
            upper = gain + NORMAL.inv_cdf(1 - self.false_stop_rate) * error
            judged["gain"], judged["upper"] = gain, upper
            if upper <= needed and median(y) - (y[-1] + y[-2]) / 2 <= doubt:
                judged["holds"] = "converged"
        if len(means) >= 2 * LEVEL:
            levels = [median(means[i : i + LEVEL]) for i in range(len(means) - LEVEL + 1)]
            lowest = min(levels)
            if levels[-1] - lowest > doubt + self.rise * fall and min(means[-LEVEL:]) > lowest:
                judged["holds"] = "rising"
        return judged

    def _width(self, state: TrendState, seen: Observation) -> int:
        """Blocks to which the line is fitted."""
        done = state["blocks"][-1][0] + 1
        if not seen.total_steps:
            return max(LEAST, round(2 * self.window * done))
        planned = seen.total_steps / state["size"]
        return max(LEAST, round(max(self.window * planned, self.wait * (planned - done))))

    def _verdict(self, state: TrendState) -> Verdict:
        upper, needed, holds = state["upper"], state["needed"], state["holds"]
        distance = 0.0 if holds else 1.0
        if upper is not None and needed is not None and not holds:
            distance = max(0.05, 1 - needed / upper) if upper > 0 else 0.05
        evidence: dict[str, JSON] = {"gain": state["gain"], "upper": upper, "needed": needed, "distance": distance}
        if not holds:
            return Verdict(evidence=evidence)
        message = (
            f"{self.monitor} has risen beyond its noise since its lowest"
            if holds == "rising"
            else f"{self.monitor} would gain {upper:.3g} at most in as long as it has been flat, "
            f"{needed:.3g} is worth it"
        )
        return Verdict(True, holds, (holds,), message, evidence)


def _index(state: TrendState, step: int) -> int:
    return int((step - state["start"]) / state["size"])


def _taken_in(state: TrendState, seen: Observation, value: float, stride: int) -> TrendState:
    """`value`, pulled in, in the open block."""
    if not state["values"]:
        size = max(1.0, seen.total_steps / BLOCKS)
        return {**state, "size": size, "start": seen.step, "step": seen.step, "values": 1, "level": value,
                "open": [0, 1, value]}  # fmt: skip
    count, level, deviation = state["values"], state["level"], state["deviation"]
    rate = 1 / (1 + min(count, max(1.0, state["size"] / stride)))
    pulled, limit = value - level, PULL * deviation
    if count >= FREE and abs(pulled) > limit:
        pulled = math.copysign(limit, pulled)
    new: TrendState = {
        **state,
        "step": seen.step,
        "values": count + 1,
        "level": level + rate * pulled,
        "deviation": deviation + max(rate / 2, 1 / (count + 1)) * (1.25 * abs(pulled) - deviation),
    }
    index, open_block = _index(state, seen.step), state["open"]
    if open_block and open_block[0] == index < BLOCKS:
        new["open"] = [index, open_block[1] + 1, open_block[2] + level + pulled]
        return new
    return _in_another_block(new, index, level + pulled)


def _in_another_block(new: TrendState, index: int, value: float) -> TrendState:
    """`value` in block `index`; blocks are merged in pairs when there are too many."""
    blocks = [*new["blocks"], new["open"]] if new["open"] else new["blocks"]
    while index >= BLOCKS:
        index, blocks, new["size"] = index // 2, _merged(blocks), 2 * new["size"]
    # The value may belong to a block that was thought complete, or to the other half of one that was merged.
    known = bool(blocks) and blocks[-1][0] == index
    last = blocks[-1] if known else [index, 0, 0.0]
    new["blocks"] = blocks[:-1] if known else blocks
    new["open"] = [index, last[1] + 1, last[2] + value]
    return new


def _merged(blocks: list[list[float]]) -> list[list[float]]:
    merged: list[list[float]] = []
    for index, values, total in blocks:
        if merged and merged[-1][0] == index // 2:
            merged[-1] = [index // 2, merged[-1][1] + values, merged[-1][2] + total]
        else:
            merged.append([index // 2, values, total])
    return merged


def _noise(means: list[float]) -> float:
    """Standard deviation of block means about their trend: the median absolute deviation of differences."""
    if len(means) < 3:
        return math.inf
    differences = [b - a for a, b in pairwise(means)]
    middle = median(differences)
    return 1.4826 / math.sqrt(2) * median(abs(difference - middle) for difference in differences)


def _slope(x: list[float], y: list[float]) -> float:
    """Median slope over all pairs."""
    return median((y[j] - y[i]) / (x[j] - x[i]) for i in range(len(x)) for j in range(i + 1, len(x)))
