"""`wmtp stop replay`: runs of the past, each under several stopping rules; and whether that is what happened live."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from wmtp.errors import UserError
from wmtp.past_runs import aligned, resolve, stopper_of, write_page
from wmtp.report.stopping import stopping_page
from wmtp.settings.load import load_recipe
from wmtp.settings.values import read_value, read_values
from wmtp.stopping import EarlyStoppingConfig
from wmtp.stopping.history import METRICS_FILE, History
from wmtp.stopping.replay import Replay, replay, verdicts
from wmtp.training.run_folder import json_safe
from wmtp.types import JSON

RECIPE, SUMMARY = "recipe.resolved.yaml", "summary.json"
OWN = "the run's own"
_HELD_OUT = ("eval_loss", "eval_value_loss")


@dataclass(frozen=True, slots=True)
class Rule:
    """A block of early-stopping settings to try, and what to call it."""

    name: str
    settings: Mapping[str, JSON] | EarlyStoppingConfig


@dataclass(frozen=True, slots=True)
class Replayed:
    """A run under all rules. `live` says whether the replay of its own rule is what the run did; "" without one."""

    history: History
    replays: list[Replay]
    live: str = ""
    equals_live: bool | None = None

    def to_json(self) -> list[dict[str, JSON]]:
        """One object per rule: SPEC 5's keys, and more."""
        return [
            cast("dict[str, JSON]", json_safe(cast("JSON", asdict(one))))
            | ({"live": self.live, "equals_live": self.equals_live} if one.rule == OWN else {})
            for one in self.replays
        ]


def view_stops(
    sources: Sequence[str],
    overrides: Sequence[str] = (),
    rules: Sequence[str] = (),
    *,
    stage: str | None = None,
    judge: str | None = None,
    tracking_uri: str | None = None,
    page: Path | None = None,
) -> tuple[list[Replayed], list[str]]:
    """Replays runs.

    Args:
        sources: see `resolve`.
        overrides: settings of an early-stopping block ("patience=20"), the others at their defaults.
        rules: values of its `rule`, each to be compared; with neither, the run's own block and some others.
        stage: only this one.
        judge: the metric that regret is of; else what each rule monitors.
        tracking_uri: where MLflow's runs are.
        page: an HTML file to write.

    Returns:
        The runs, and what could not be replayed and why.

    Raises:
        UserError: a source can't be read, a setting is wrong, nothing could be replayed, or the page can't be
            written.
    """
    given = given_rules(overrides, rules)
    histories = resolve(sources, stage=stage, tracking_uri=tracking_uri)
    found: list[Replayed] = []
    troubles: list[str] = []
    for history in histories:
        own = None if given else own_settings(history)
        replays: list[Replay] = []
        for rule in given or _usual_rules(history, own):
            stopper = stopper_of(history.stage, rule.settings)
            try:
                replays.append(replay(history, stopper, name=rule.name, judge=judge))
            except UserError as error:
                troubles.append(f"{rule.name}: {error}")
        if replays:
            equal, live = compare_live(history, own) if own and own.enabled else (None, "")
            found.append(Replayed(history, replays, live, equal))
    if not found:
        raise UserError("\n".join(dict.fromkeys(troubles)))
    if page is not None:
        write_page(page, stopping_page([(run.history, run.replays, run.live) for run in found]))
    return found, troubles


def given_rules(overrides: Sequence[str], rules: Sequence[str]) -> list[Rule]:
    """The blocks that `--set` and `--rule` make; none of neither."""
    settings, label = read_values(overrides), ", ".join(overrides)
    if not rules:
        return [Rule(label, {"enabled": True, **settings})] if overrides else []
    more = f" ({label})" if label else ""
    return [Rule(text + more, {"enabled": True, **settings, "rule": read_value("--rule", text)}) for text in rules]


def own_settings(history: History) -> EarlyStoppingConfig | None:
    """The block that the run was made with, none if its folder does not tell."""
    recipe_file = Path(history.source).parent / RECIPE
    if Path(history.source).name != METRICS_FILE or not recipe_file.is_file():
        return None
    recipe = load_recipe(recipe_file)
    if history.stage == "pretrain":
        return recipe.pretrain.early_stopping if recipe.pretrain else None
    return recipe.train.early_stopping


def _usual_rules(history: History, own: EarlyStoppingConfig | None) -> list[Rule]:
    """The run's own, if it has one, and some to compare it with."""
    watched = next((name for name in _HELD_OUT if name in history.metrics), "loss") if own is None else own.monitor
    patience = 20 if watched.startswith("eval_") else 200
    diverges: JSON = {"divergence": {"monitor": "loss"}} if "loss" in history.metrics else "divergence"
    block: dict[str, JSON] = {"enabled": True, "monitor": watched}
    others = [
        Rule(f"patience {patience}", {**block, "patience": patience}),
        Rule("trend", {**block, "rule": "trend"}),
        Rule("trend or divergence", {**block, "rule": {"any": ["trend", diverges]}}),
    ]
    if own is None:
        return others
    shadows = [Rule(f"shadow rule {name}", {**block, "rule": value}) for name, value in own.shadow_rules.items()]
    return [*([Rule(OWN, replace(own, shadow=False))] if own.enabled else []), *shadows, *others]


def compare_live(history: History, own: EarlyStoppingConfig) -> tuple[bool, str]:
    """Whether the replay of the run's own rule is what it did: each check's evidence in the log, and its end."""
    stopper, checks = stopper_of(history.stage, own), 0
    for seen, verdict in verdicts(history, stopper):
        expected = {"fired": list(verdict.fired), **verdict.evidence} if verdict.evidence else None
        checks += expected is not None
        if json_safe(cast("JSON", expected)) != history.decisions.get(seen.step):
            return False, f"differs from the live run: its log has other evidence at step {seen.step}"
        if verdict.stop:
            ours = f"stopped at step {seen.step} ({verdict.reason})"
            if seen.step < (last := history.observations[-1].step):
                return False, f"differs from the live run: {ours}, the run went on to step {last}"
            break
    else:
        ours = "not stopped"
    summary = Path(history.source).parent / SUMMARY
    ends: dict[str, Any] = json.loads(summary.read_text(encoding="utf-8")) if summary.is_file() else {}
    if end := ends.get(history.stage):
        theirs = "not stopped"
        if end["early_stopped"]:
            theirs = f"stopped at step {end['total_steps']} ({end['stop_reason']})"
        if ours != theirs:
            return False, f"differs from the live run: {ours}, the run was {theirs}"
    return True, f"equals the live run: {ours}, with the same evidence at all {checks} checks"


def table(found: Sequence[Replayed]) -> list[str]:
    """The results as lines of aligned text."""
    rows = [("run", "stage", "rule", "stops at", "of", "reason", "saved", "regret")]
    for one in (one for run in found for one in run.replays):
        stop = str(one.step) if one.stopped else "-"
        lost = "-" if one.regret is None else f"{one.regret:.2%}"
        rows.append((one.run, one.stage, one.rule, stop, str(one.last_step), one.reason, f"{one.saved:.1%}", lost))
    return aligned(rows) + [f"{run.history.name}: {run.live}" for run in found if run.live]
