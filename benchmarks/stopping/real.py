"""Real training curves: records of `trainer_state.json` files (a folder of NNN.json), in which other people's runs left
their losses.

Two kinds. `evaluation`: the held-out loss, judged by its own centred 5-point median. `step`: the logged training loss,
judged by its centred median over a twentieth of the record (no truth is known, and a training loss doesn't show
over-fitting). Records with fewer than LEAST values are dropped. Many records end before the planned steps (a checkpoint
of a run that went on, or a run that was stopped): what came after is not known, so a stop may be more wrong than it
looks.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from judging import Row, choose, oracle_of, regret_of, saved_of, summary
from numpy.typing import NDArray
from ours import Key
from peers import Values
from simple import METHODS

LEAST = {"evaluation": 8, "step": 100}
FIELD = {"evaluation": "eval_loss", "step": "loss"}


@dataclass(frozen=True)
class RealCurve:
    """A metric of a recorded run; `plan` is how many values the whole run would have logged."""

    name: str
    cadence: str
    steps: NDArray[np.int64]
    values: Values
    truth: Values
    total: int
    plan: int


def centred_median(values: Values, width: int) -> Values:
    """[T] median of the finite values within width // 2 on either side (fewer at the ends)."""
    half = width // 2
    windows = (values[max(0, t - half) : t + half + 1] for t in range(len(values)))
    finite = (window[np.isfinite(window)] for window in windows)
    return np.array([np.median(window) if len(window) else math.nan for window in finite])


def load(folder: Path) -> tuple[list[RealCurve], dict[str, int]]:
    """The curves, and how many of each kind were too short to judge."""
    curves: list[RealCurve] = []
    short = dict.fromkeys(LEAST, 0)
    for file in sorted(folder.glob("*.json")):
        record: dict[str, Any] = json.loads(file.read_text())
        for cadence, field in FIELD.items():
            found = {int(row["step"]): float(row[field]) for row in record["log_history"] if field in row}
            if not found:
                continue
            steps, values = np.array(sorted(found)), np.array([found[step] for step in sorted(found)])
            if np.isfinite(values).sum() < LEAST[cadence]:
                short[cadence] += 1
                continue
            width = 5 if cadence == "evaluation" else max(5, len(values) // 20)
            plan = max(len(values), round(record["max_steps"] / float(np.median(np.diff(steps)))))
            truth = centred_median(values, width)
            curves.append(RealCurve(file.stem, cadence, steps, values, truth, record["max_steps"], plan))
    return curves, short


def stops_of(curve: RealCurve, own: dict[Key, tuple[int, str]]) -> dict[Key, int]:
    """Where every rule at every setting stops."""
    found = {key: stop for key, (stop, _) in own.items()}
    for method in METHODS:
        found |= {(method.name, label): int(stops[0]) for label, stops in method.run(curve.values[None], curve.plan)}
    return found


def evaluate(curves: list[RealCurve], stops: list[dict[Key, int]], limits: tuple[float, ...]) -> list[Row]:
    """A row for each rule and setting over all curves, and for each rule as chosen on one half and judged on the other
    (both ways round, put together)."""
    regrets = [regret_of(curve.truth) for curve in curves]
    lengths = np.array([len(curve.values) for curve in curves])
    halves = (np.arange(len(curves)) % 2 == 0, np.arange(len(curves)) % 2 == 1)
    at = {key: np.array([found[key] for found in stops]) for key in stops[0]}
    saved = {key: saved_of(found, lengths) for key, found in at.items()}
    regret = {
        key: np.array([r[min(stop, len(r) - 1)] for r, stop in zip(regrets, found, strict=True)])
        for key, found in at.items()
    }
    rows: list[Row] = [
        {"rule": key[0], "setting": key[1], "half": "all", **summary(saved[key], regret[key])} for key in at
    ]
    oracle = np.array([oracle_of(r) for r in regrets])
    rows.append({"rule": "oracle", "setting": "", "half": "all",
                 **summary(saved_of(oracle, lengths), np.zeros(len(curves)))})  # fmt: skip
    for rule in dict.fromkeys(key[0] for key in at):
        own = [key for key in at if key[0] == rule]
        for limit in limits:
            chosen = [
                choose({key[1]: summary(saved[key][half], regret[key][half]) for key in own}, limit) for half in halves
            ]
            if None in chosen:
                continue
            parts = [(rule, name, halves[1 - i]) for i, name in enumerate(chosen)]
            s, r = (
                np.concatenate([table[name, setting][half] for name, setting, half in parts])
                for table in (saved, regret)
            )
            rows.append({"rule": rule, "setting": " / ".join(map(str, chosen)), "half": "swapped", "limit": limit,
                         **summary(s, r)})  # fmt: skip
    return rows
