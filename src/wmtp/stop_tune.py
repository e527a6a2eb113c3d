"""`wmtp stop tune`: the settings that would have saved most on runs of the past, without having lost anything there.

They are chosen on one half of the runs and reported on the other: what was chosen on some runs looks better on these
than it is.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import optuna

from wmtp.errors import UserError
from wmtp.past_runs import aligned, resolve, stopper_of, write_page
from wmtp.report.tuning import Tried, tuning_page
from wmtp.settings.yaml12 import dump
from wmtp.stopping.history import History
from wmtp.stopping.replay import check_logged, replay
from wmtp.stopping.score import FALSE_STOP, SURE, Score, pareto, score_of
from wmtp.stopping.tree import LEAVES
from wmtp.types import JSON


@dataclass(frozen=True, slots=True)
class Knob:
    """What may be set: numbers from `low` to `high`, on a logarithmic scale, or one of `choices`."""

    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    choices: tuple[str, ...] = ()


SPACES: Mapping[str, Mapping[str, Knob]] = {
    "patience": {
        "patience": Knob(2, 1000, whole=True),
        "min_relative": Knob(1e-5, 0.03),
        "smoothing": Knob(choices=("none", "exponential", "median")),
        "smoothing_window": Knob(2, 200, whole=True),
    },
    "trend": {
        "false_stop_rate": Knob(1e-4, 0.3),
        "window": Knob(0.05, 0.5),
        "tolerance": Knob(0.002, 0.2),
        "rise": Knob(0.01, 0.5),
    },
    "divergence": {"threshold": Knob(6, 60), "persist": Knob(8, 512, whole=True)},
}
"""The rules that are tried. Divergence beside each of the others; a whole rule of its own it is not."""
_MAIN = ("patience", "trend")
_SHOWN = 0.25
"""Rules with a larger share of false stops are not printed: nobody wants them."""


@dataclass(frozen=True, slots=True)
class Point:
    """A rule on the front: its value for a recipe's `rule`, its scores where it was chosen and on the other half."""

    rule: JSON
    chosen_on: Score
    reported_on: Score

    def to_json(self) -> dict[str, JSON]:
        """With the bound that the other half gives."""
        there: dict[str, JSON] = {**asdict(self.reported_on), "false_at_most": self.reported_on.false_at_most}
        return {"rule": self.rule, "chosen_on": asdict(self.chosen_on), "reported_on": there}


@dataclass(frozen=True, slots=True)
class Tuned:
    """What came out.

    Attributes:
        monitor, judge: the metrics that were watched and that counted.
        chosen_on, reported_on: names of the runs of the two halves.
        front: less and less false stops the further down, each with the most compute saved.
        best: the one with the most saved of those with at most a share of `max_false` false stops, none if none has.
        tried: all rules of the search, as scored on the half that chooses.
        left_out: runs that lack the metrics.
    """

    monitor: str
    judge: str
    chosen_on: list[str]
    reported_on: list[str]
    front: list[Point]
    best: Point | None
    tried: list[Tried]
    left_out: list[str]

    @property
    def block(self) -> dict[str, JSON] | None:
        """The `early_stopping` block of `best`."""
        return None if self.best is None else {"enabled": True, "monitor": self.monitor, "rule": self.best.rule}

    def to_json(self) -> dict[str, JSON]:
        """For `--json`."""
        front: list[JSON] = [point.to_json() for point in self.front]
        return {
            "monitor": self.monitor,
            "judge": self.judge,
            "chosen_on": [*self.chosen_on],
            "reported_on": [*self.reported_on],
            "tried": len(self.tried),
            "front": front,
            "best": None if self.best is None else self.best.to_json(),
            "early_stopping": self.block,
        }


def tune(
    sources: Sequence[str],
    *,
    trials: int = 200,
    seed: int = 0,
    max_false: float = 0.0,
    monitor: str | None = None,
    judge: str | None = None,
    stage: str | None = None,
    tracking_uri: str | None = None,
    page: Path | None = None,
    say: Callable[[str], None] | None = None,
) -> Tuned:
    """Searches.

    Args:
        sources: of runs, see `resolve`.
        trials: rules to try, those with their default settings first.
        seed: of the split and the search; the same one gives the same result.
        max_false: share of the choosing half's runs that the recommended rule may end too early.
        monitor: the metric to watch; else `judge`; else eval_loss where two runs have it, else loss.
        judge: the metric whose improvement counts; else the monitored one. A training loss is taken with its noise:
            where it goes on making new lows, a run that is through looks as if it had been stopped too early.
        stage, tracking_uri: see `resolve`.
        page: an HTML file to write.
        say: told now and then how far it is.

    Raises:
        UserError: a source can't be read, fewer than two runs have the metrics, or the page can't be written.
    """
    histories = resolve(sources, stage=stage, tracking_uri=tracking_uri)
    held_out = sum("eval_loss" in history.metrics for history in histories) > 1
    monitor = monitor or judge or ("eval_loss" if held_out else "loss")
    judge = judge or monitor
    usable, left_out = _usable(histories, monitor, judge)
    random.Random(seed).shuffle(usable)
    half = (len(usable) + 1) // 2
    choosing, reporting = usable[:half], usable[half:]
    divergence = all("loss" in history.metrics for history in usable)
    found = _search(choosing, monitor, judge, trials, seed, divergence, say)
    rules: dict[str, JSON] = {text: json.loads(text) for text in found}
    front = [Point(rules[text], found[text], score(reporting, rules[text], monitor, judge)) for text in pareto(found)]
    tuned = Tuned(
        monitor=monitor,
        judge=judge,
        chosen_on=sorted(history.name for history in choosing),
        reported_on=sorted(history.name for history in reporting),
        front=front,
        best=next((point for point in front if point.chosen_on.false_share <= max_false), None),
        tried=[Tried(_name(rules[text]), one.saved, one.false_share) for text, one in found.items()],
        left_out=left_out,
    )
    if page is not None:
        write_page(page, tuning_page(lines(tuned), tuned.tried, _reported(tuned)))
    return tuned


def score(runs: Sequence[History], rule: JSON, monitor: str, judge: str) -> Score:
    """The rule on each of the runs."""
    block: dict[str, JSON] = {"enabled": True, "monitor": monitor, "rule": rule}
    return score_of([replay(run, stopper_of(run.stage, block), name="", judge=judge) for run in runs])


def _usable(histories: Sequence[History], monitor: str, judge: str) -> tuple[list[History], list[str]]:
    """Runs with both metrics, in the order of their names; why the others are left out."""
    usable: list[History] = []
    left_out: list[str] = []
    for history in sorted(histories, key=lambda history: (history.name, history.stage)):
        aliases = stopper_of(history.stage, {}).aliases
        try:
            check_logged(history, [aliases.get(name, name) for name in (monitor, judge)])
        except UserError as error:
            left_out.append(str(error))
        else:
            usable.append(history)
    if len(usable) < 2:
        raise UserError("\n".join([*left_out, f"{len(usable)} runs to tune on; two is the least, twenty are not many"]))
    return usable, left_out


def _search(
    runs: Sequence[History],
    monitor: str,
    judge: str,
    trials: int,
    seed: int,
    divergence: bool,
    say: Callable[[str], None] | None,
) -> dict[str, Score]:
    """The rules that were tried, as JSON text, and their scores."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found: dict[str, Score] = {}

    def objective(trial: optuna.Trial) -> tuple[float, float, float]:
        rule = json.dumps(_suggest(trial, divergence))
        if rule not in found:
            found[rule] = score(runs, json.loads(rule), monitor, judge)
        if say is not None and trial.number % max(1, trials // 10) == 0:
            say(f"rule {trial.number + 1} of {trials}")
        return found[rule].saved, found[rule].false_share, found[rule].regret

    study = optuna.create_study(
        directions=["maximize", "minimize", "minimize"], sampler=optuna.samplers.TPESampler(seed=seed)
    )
    for main in _MAIN:
        for beside in (False, True) if divergence else (False,):
            study.enqueue_trial(_defaults(main, beside, divergence))
    study.optimize(objective, n_trials=trials)
    return found


def _suggest(trial: optuna.Trial, divergence: bool) -> JSON:
    """A rule as a recipe has it."""
    main = trial.suggest_categorical("rule", _MAIN)
    rule: JSON = {main: _leaf(trial, main)}
    if divergence and trial.suggest_categorical("divergence", (False, True)):
        return {"any": [rule, {"divergence": {"monitor": "loss", **_leaf(trial, "divergence")}}]}
    return rule


def _leaf(trial: optuna.Trial, kind: str) -> dict[str, JSON]:
    settings: dict[str, JSON] = {}
    for name, knob in SPACES[kind].items():
        key = f"{kind}.{name}"
        if name == "smoothing_window" and settings["smoothing"] == "none":
            continue
        if knob.choices:
            settings[name] = trial.suggest_categorical(key, knob.choices)
        elif knob.whole:
            settings[name] = trial.suggest_int(key, int(knob.low), int(knob.high), log=True)
        else:
            settings[name] = float(f"{trial.suggest_float(key, knob.low, knob.high, log=True):.2g}")
    return settings


def _defaults(main: str, beside: bool, divergence: bool) -> dict[str, JSON]:
    """Parameters of the trial that has the rules' own defaults."""
    chosen: dict[str, JSON] = {"rule": main, **({"divergence": beside} if divergence else {})}
    for kind in (main, *(["divergence"] if beside else [])):
        default = LEAVES[kind]()
        for name, knob in SPACES[kind].items():
            value = getattr(default, name)
            chosen[f"{kind}.{name}"] = value if knob.choices else min(max(value, knob.low), knob.high)
    return chosen


def _name(rule: JSON) -> str:
    """The kinds of rule in it."""
    assert isinstance(rule, dict)
    parts = rule.get("any", [rule])
    return " or ".join(next(iter(part)) for part in cast("list[dict[str, JSON]]", parts))


def _reported(tuned: Tuned) -> list[Tried]:
    return [Tried(_name(point.rule), point.reported_on.saved, point.reported_on.false_share) for point in tuned.front]


def lines(tuned: Tuned) -> list[str]:
    """The front as a table, what it is worth, and the block to paste."""
    rows = [("", "saved", "false", "regret", "saved there", "false there", "at most", "regret there", "rule")]
    shown = max(_SHOWN, tuned.best.chosen_on.false_share if tuned.best else 0.0)
    for point in (point for point in tuned.front if point.chosen_on.false_share <= shown):
        a, b = point.chosen_on, point.reported_on
        mark = "*" if point is tuned.best else ""
        found = (f"{a.saved:.1%}", f"{a.false_stops} of {a.runs}", f"{a.regret:.2%}")
        there = (f"{b.saved:.1%}", f"{b.false_stops} of {b.runs}", f"{b.false_at_most:.0%}", f"{b.regret:.2%}")
        rows.append((mark, *found, *there, json.dumps(point.rule)))
    few = Score(len(tuned.reported_on), 0.0, 0, 0.0)
    tried = f"{len(tuned.tried)} rules tried on {len(tuned.chosen_on)} runs, those of the front on {few.runs} others"
    text = [
        f"Watching {tuned.monitor}, judged by {tuned.judge}: {tried} (there).",
        f"False: a stop after which more than {FALSE_STOP:.0%} of the improvement came. At most: the share that is not",
        f"refuted with {SURE:.0%} confidence; no false stop in {few.runs} only says: under {few.false_at_most:.0%}.",
        *aligned(rows),
    ]
    if tuned.block is None:
        return [*text, "No rule had so few false stops; allow more with --max-false, or try more with --trials."]
    return [*text, "The one with a star, for the recipe:", *dump({"early_stopping": tuned.block}).splitlines()]
