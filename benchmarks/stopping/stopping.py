"""When do stopping rules stop, ours and others', where the truth is known? Set-up and reading: README.md beside this.

    python benchmarks/stopping/stopping.py --output FOLDER [--curves FOLDER] [--seeds 20] [--first-seed 200] [--jobs 2]

Writes FOLDER/stopping.md (tables), stopping.jsonl (a line for each rule, setting and half), stopping.html (figures) and
results.json, from which `page.py FOLDER` writes tables and figures again.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from detectors import detect
from families import FAMILIES, HEALTHY, NOISES, SIGMAS, Curve, curves
from judging import FALSE, Row, choose, lost, oracle_of, regret_of, saved_of, summary
from ours import BOTH, DEFAULT, DIVERGENCE, TREND, Key, on_curve, on_synthetic
from peers import Stops, mismatches
from real import evaluate, load, stops_of
from simple import METHODS

LIMITS = (1.0, 2.0)
GROUPS = {method.name: method.group for method in METHODS}
EXAMPLES = ("trend + divergence", "xgboost", "EMA + patience", "slope (least squares)")
LOST = ("diverge", "nan_forever")


class Bench:
    """The synthetic curves of one cadence, and the stops of all rules on them by (rule, setting)."""

    def __init__(self, cadence: str, seeds: range, own: list[dict[Key, tuple[int, str]]]):
        self.cadence = cadence
        self.curves: list[Curve] = list(curves(cadence, seeds))
        self.values = np.stack([curve.values for curve in self.curves])
        self.T = self.values.shape[1]
        self.families = np.array([curve.family for curve in self.curves])
        self.odd = np.array([curve.seed % 2 == 1 for curve in self.curves])
        self.events = np.array([-1 if curve.event is None else curve.event for curve in self.curves])
        self.regrets = np.stack([regret_of(curve.truth, curve.event) for curve in self.curves])
        self.stops: dict[Key, Stops] = self._of_ours(own)
        for method in METHODS:
            self.stops |= {(method.name, label): stops for label, stops in method.run(self.values, self.T)}
        self.detectors: dict[str, Stops] = {
            f"wmtp divergence, {name}": self.stops.pop(("divergence", name)) for name in DIVERGENCE
        } | detect(self.values)

    def _of_ours(self, own: list[dict[Key, tuple[int, str]]]) -> dict[Key, Stops]:
        at = {key: np.array([found[key][0] for found in own]) for key in own[-1] if key[0] != "nest"}
        for name in TREND:
            at["trend + divergence", name] = np.minimum(at["trend", name], at["divergence", DEFAULT])
        wrong = [
            (curve.name, found["nest", DEFAULT][0])
            for curve, found, stop in zip(self.curves, own, at["trend + divergence", DEFAULT], strict=True)
            if ("nest", DEFAULT) in found and found["nest", DEFAULT][0] != stop
        ]
        assert not wrong, f"{BOTH} does not stop where its first rule does: {wrong}"
        return at

    def summed(self, stops: Stops, mask: Any) -> Row:
        regret = self.regrets[np.arange(len(stops)), np.minimum(stops, self.T - 1)]
        saved = saved_of(stops, np.full(len(stops), self.T))
        return summary(saved[mask], regret[mask])

    def row(self, key: Key, half: str) -> Row:
        """Everything about a rule at a setting on the even or odd seeds."""
        stops, mask = self.stops[key], self.odd == (half == "odd")
        healthy = np.isin(self.families, HEALTHY)
        row: Row = {"cadence": self.cadence, "rule": key[0], "setting": key[1], "half": half,
                    "group": GROUPS.get(key[0], "wmtp")}  # fmt: skip
        row |= self.summed(stops, mask & healthy)
        row["families"] = {name: self.summed(stops, mask & (self.families == name)) for name in FAMILIES}
        for name in LOST:
            part = mask & (self.families == name)
            row[name] = lost(stops[part], self.events[part], self.T)
        return row

    def oracle(self) -> Row:
        stops = np.array([oracle_of(regret) for regret in self.regrets])
        mask = self.odd & np.isin(self.families, HEALTHY)
        return {"cadence": self.cadence, "rule": "oracle", "setting": "", "half": "odd", "group": "",
                **self.summed(stops, mask)}  # fmt: skip

    def rows(self) -> list[Row]:
        """All settings on both halves; `chosen` lists the limits (% of false stops) for which even seeds chose one."""
        rows = [self.row(key, half) for key in self.stops for half in ("even", "odd")]
        for rule in dict.fromkeys(key[0] for key in self.stops):
            even = {row["setting"]: row for row in rows if row["rule"] == rule and row["half"] == "even"}
            chosen = {limit: choose(even, limit) for limit in LIMITS}
            for row in rows:
                if row["rule"] == rule:
                    row["chosen"] = [limit for limit in LIMITS if chosen[limit] == row["setting"]]
                    row["default"] = row["setting"] == default_of(rule)
        return [*rows, self.oracle()]

    def detections(self) -> list[Row]:
        """Each detector on the odd seeds. On over-fitting runs an alarm is false before the turn only."""
        rows: list[Row] = []
        turned = np.array([int(curve.truth.argmin()) for curve in self.curves])
        for name, stops in self.detectors.items():
            alarm = (stops < self.T) & ~((self.families == "overfit") & (stops > turned))
            share = {kind: 100 * float(alarm[self.odd & (self.families == kind)].mean()) for kind in HEALTHY}
            row: Row = {"cadence": self.cadence, "detector": name, "alarms": share}
            for kind in LOST:
                part = self.odd & (self.families == kind)
                row[kind] = lost(stops[part], self.events[part], self.T)
            rows.append(row)
        return rows

    def examples(self, rows: list[Row]) -> list[Row]:
        """A curve of each family and where rules stop at the settings that were chosen for 1 %."""
        settings = {row["rule"]: row["setting"] for row in rows if LIMITS[0] in row.get("chosen", ())}
        keys = {f"{rule} ({settings[rule]})": (rule, settings[rule]) for rule in EXAMPLES if rule in settings}
        keys = {"trend + divergence (default)": ("trend + divergence", DEFAULT)} | keys
        sigma, seed = SIGMAS[self.cadence][-2], max(curve.seed for curve in self.curves)
        shown = [i for i, c in enumerate(self.curves) if (c.noise, c.sigma, c.seed) == ("gaussian", sigma, seed)]
        return [
            {"cadence": self.cadence, "family": self.curves[i].family, "values": self.curves[i].values.tolist(),
             "truth": self.curves[i].truth.tolist(), "event": self.curves[i].event,
             "stops": {label: int(self.stops[key][i]) for label, key in keys.items()}}
            for i in shown
        ]  # fmt: skip


def default_of(rule: str) -> str:
    return next((method.default for method in METHODS if method.name == rule), DEFAULT)


def synthetic(pool: ProcessPoolExecutor, seeds: range) -> list[Bench]:
    tasks: dict[str, list[Future[Any]]] = {
        cadence: [
            pool.submit(partial(on_synthetic, nest=sigma == SIGMAS[cadence][0]), cadence, family, noise, sigma, seeds)
            for family in FAMILIES
            for noise in NOISES
            for sigma in SIGMAS[cadence]
        ]
        for cadence in SIGMAS
    }
    return [Bench(cadence, seeds, [x for one in found for x in one.result()]) for cadence, found in tasks.items()]


def measured(pool: ProcessPoolExecutor, folder: Path) -> tuple[list[Row], dict[str, int], list[list[Any]]]:
    """Rows of the real curves, how many of what kind there were, and each false stop of our defaults."""
    found, short = load(folder)
    tasks = [pool.submit(on_curve, curve.values.tolist(), curve.steps.tolist(), curve.total) for curve in found]
    own = [own_stops(task.result()) for task in tasks]
    rows: list[Row] = []
    counts: dict[str, int] = {}
    for cadence in ("evaluation", "step"):
        index = [i for i, curve in enumerate(found) if curve.cadence == cadence]
        counts[f"{cadence}: curves"] = len(index)
        counts[f"{cadence}: too short"] = short[cadence]
        counts[f"{cadence}: end before the plan"] = sum(bool(found[i].steps[-1] < 0.9 * found[i].total) for i in index)
        stops = [stops_of(found[i], own[i]) for i in index]
        rows += [{"cadence": f"real {cadence}", "group": GROUPS.get(row["rule"], "wmtp"),
                  "default": row["setting"] == default_of(row["rule"]), **row}
                 for row in evaluate([found[i] for i in index], stops, LIMITS)]  # fmt: skip
    wrong: list[list[Any]] = []
    for curve, stops_ in zip(found, own, strict=True):
        for rule in ("trend", "divergence"):
            stop, reason = stops_[rule, DEFAULT]
            regret = regret_of(curve.truth)[min(stop, len(curve.values) - 1)]
            if regret > FALSE:
                wrong.append([curve.cadence, curve.name, rule, reason, stop, len(curve.values), f"{100 * regret:.1f}"])
    return rows, counts, wrong


def own_stops(found: dict[Key, tuple[int, str]]) -> dict[Key, tuple[int, str]]:
    """With `trend` and `divergence` together, too."""
    both = {("trend + divergence", name): min(found["trend", name], found["divergence", DEFAULT]) for name in TREND}
    return found | both


def main() -> None:
    from page import write_results

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder")
    parser.add_argument("--curves", type=Path, help="folder of real curves")
    parser.add_argument("--seeds", type=int, default=20, help="how many: even ones choose, odd ones report")
    parser.add_argument("--first-seed", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    started, seeds = time.monotonic(), range(args.first_seed, args.first_seed + args.seeds)
    with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:
        benches = synthetic(pool, seeds)
        real, counts, false = measured(pool, args.curves) if args.curves else ([], {}, [])
    rows = [row for bench in benches for row in bench.rows()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optuna calls its pruner experimental
        wrong = mismatches()
    assert not any(n for n, _ in wrong.values()), f"an adapter differs from its package: {wrong}"
    results: dict[str, Any] = {
        "rows": [*rows, *real],
        "detections": [row for bench in benches for row in bench.detections()],
        "examples": [row for bench in benches for row in bench.examples(rows)],
        "mismatches": wrong,
        "counts": counts,
        "wrong": false,
        "seeds": [*seeds],
        "curves": {bench.cadence: len(bench.curves) for bench in benches},
    }
    with (args.output / "stopping.jsonl").open("w") as out:
        out.writelines(json.dumps(row) + "\n" for row in [*results["rows"], *results["detections"]])
    (args.output / "results.json").write_text(json.dumps(results))
    print(write_results(results, args.output))
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
