"""What a rule is worth over many runs of the past."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from wmtp.stopping.replay import Replay

FALSE_STOP = 0.01
"""A stop is false if a larger share than this of the run's improvement came after it."""
SURE = 0.95
"""Confidence of what is said of runs not seen."""


@dataclass(frozen=True, slots=True)
class Score:
    """What a rule does to some runs: means over `runs`; `false_stops` of them it ends too early."""

    runs: int
    saved: float
    false_stops: int
    regret: float

    @property
    def false_share(self) -> float:
        """Of the runs."""
        return self.false_stops / self.runs

    @property
    def false_at_most(self) -> float:
        """The largest share of false stops that these runs don't refute at 95 % (Clopper and Pearson 1934)."""
        if self.false_stops == self.runs:
            return 1.0
        low, high = 0.0, 1.0
        for _ in range(40):
            p = (low + high) / 2
            fewer = sum(
                math.comb(self.runs, k) * p**k * (1 - p) ** (self.runs - k) for k in range(self.false_stops + 1)
            )
            low, high = (p, high) if fewer > 1 - SURE else (low, p)
        return high


def score_of(replays: Sequence[Replay]) -> Score:
    """One rule's replays of one run or more."""
    lost = [one.lost for one in replays]
    saved = mean(one.saved for one in replays)
    return Score(len(lost), saved, sum(loss > FALSE_STOP for loss in lost), mean(lost))


def pareto(found: Mapping[str, Score]) -> list[str]:
    """The rules that save more than all with as few or fewer false stops; from most false stops to fewest."""
    front: list[str] = []
    for rule in sorted(found, key=lambda rule: (found[rule].false_stops, -found[rule].saved, found[rule].regret, rule)):
        if not front or found[rule].saved > found[front[-1]].saved:
            front.append(rule)
    return front[::-1]
