"""Rules made of rules: `any` of them, or `all` of them, nested at will, and how a recipe names them.

rule: trend
rule: {any: [trend, {divergence: {monitor: loss}}, {budget: {seconds: 3600}}]}
rule: {all: [{target: {below: 0.5}}, {patience: {patience: 3}}]}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal, TypedDict, cast, get_type_hints

from wmtp.stopping.check import fault, nearest, type_hints
from wmtp.stopping.criteria import NonFinite
from wmtp.stopping.divergence import Divergence
from wmtp.stopping.limits import Budget, CriticHealth, Target
from wmtp.stopping.patience import Patience
from wmtp.stopping.trend import Trend
from wmtp.types import JSON, Observation, Verdict

REASONS = (
    "non_finite",
    "diverged",
    "gradient_unstable",
    "variance_invalid",
    "critic_unhealthy",
    "rising",
    "converged",
    "target_reached",
    "budget_spent",
)
"""Reason codes, most serious first."""

LEAVES = {leaf.kind: leaf for leaf in (Patience, Trend, Divergence, CriticHealth, Target, Budget, NonFinite)}
Leaf = Patience | Trend | Divergence | CriticHealth | Target | Budget | NonFinite
State = dict[str, Any]


class Said(TypedDict):
    """A rule's latest verdict, for observations that lack its metric."""

    fired: list[str]
    message: str
    distance: float


class NestState(TypedDict):
    """The states of the rules, and their latest verdicts (None before the first)."""

    rules: list[dict[str, Any]]
    said: list[Said | None]


@dataclass(frozen=True)
class Nest:
    """Holds when one of its rules holds (`any`), or all of them at once (`all`).

    A rule that an observation has no metric for stands by what it said last, so rules of different cadence combine. Of
    the rules that make it hold, the reason names each code once, most serious first, joined by "+".
    """

    how: Literal["any", "all"]
    rules: tuple[Rule, ...]

    @cached_property
    def monitors(self) -> tuple[str, ...]:
        """The metrics that are watched."""
        return tuple(dict.fromkeys(name for rule in self.rules for name in rule.monitors))

    @cached_property
    def wakes(self) -> tuple[str, ...]:
        """The metrics of which one has to be there for a rule to have something to say; none: it always has."""
        return () if any(not wakes(rule) for rule in self.rules) else self.monitors

    @cached_property
    def named(self) -> list[tuple[str, Any, tuple[str, ...]]]:
        """Of each rule a name, its kind, numbered where it comes again; the rule; and what wakes it."""
        kinds = [rule.how if isinstance(rule, Nest) else rule.kind for rule in self.rules]
        names = [
            f"{kind}_{kinds[:i].count(kind) + 1}" if kinds.count(kind) > 1 else kind for i, kind in enumerate(kinds)
        ]
        return [(name, rule, wakes(rule)) for name, rule in zip(names, self.rules, strict=True)]

    def init(self) -> NestState:
        """Nothing seen."""
        return NestState(rules=[cast(State, rule.init()) for rule in self.rules], said=[None] * len(self.rules))

    def update(self, state: NestState, seen: Observation) -> tuple[NestState, Verdict]:
        """Asks each rule that `seen` says something to."""
        states, said, metrics = [*state["rules"]], [*state["said"]], seen.metrics
        evidence: dict[str, JSON] = {}
        for i, (name, rule, wake) in enumerate(self.named):
            if wake and wake[0] not in metrics and metrics.keys().isdisjoint(wake):
                continue
            states[i], verdict = rule.update(states[i], seen)
            stop, _, fired, message, said_of = verdict
            said[i] = {"fired": [*fired] if stop else [], "message": message, "distance": said_of["distance"]}
            evidence[name] = said_of
        return {"rules": states, "said": said}, self._verdict(said, evidence)

    def _verdict(self, said: list[Said | None], evidence: dict[str, JSON]) -> Verdict:
        distances: list[float] = []
        holding: list[Said] = []
        messages: list[str] = []
        for one in said:
            distances.append(one["distance"] if one else 1.0)
            if one and one["fired"]:
                holding.append(one)
            if one and one["message"]:
                messages.append(one["message"])
        evidence["distance"] = min(distances) if self.how == "any" else max(distances)
        message = "; ".join(messages)
        if not holding or (self.how == "all" and len(holding) < len(said)):
            return Verdict(message=message, evidence=evidence)
        fired = tuple(sorted({code for one in holding for code in one["fired"]}, key=REASONS.index))
        return Verdict(True, "+".join(fired), fired, message, evidence)


Rule = Leaf | Nest


def wakes(rule: Rule) -> tuple[str, ...]:
    """The metrics of which one has to be in an observation that `rule` is asked about; none: it always is."""
    return rule.wakes if isinstance(rule, Nest) else rule.monitors


def parse(
    value: object, monitor: str, aliases: Mapping[str, str], where: str = "rule"
) -> tuple[Rule | None, list[str]]:
    """The rule that `value` names, and what is wrong with it (then there is no rule).

    Args:
        value: a name, {name: {settings}}, {any: [..]} or {all: [..]}.
        monitor: the metric of rules that name none.
        aliases: what names of metrics stand for.
        where: key path of `value`, for messages.
    """
    names = ["any", "all", *LEAVES]
    if isinstance(value, str):
        value = {value: {}}
    if not isinstance(value, Mapping) or len(cast("Mapping[object, object]", value)) != 1:
        return None, [
            f"{where}: {value!r} is not a rule; write a name or one of them with its settings: {', '.join(names)}"
        ]
    (name, inner), *_ = cast("Mapping[str, object]", value).items()
    if name in ("any", "all"):
        return _parse_nest(name, inner, monitor, aliases, f"{where}.{name}")
    if name not in LEAVES:
        return None, [f"{where}: there is no rule {name!r}; {nearest(str(name), names)}"]
    return _parse_leaf(LEAVES[name], {} if inner is None else inner, monitor, aliases, f"{where}.{name}")


def _parse_nest(
    how: Literal["any", "all"], inner: object, monitor: str, aliases: Mapping[str, str], where: str
) -> tuple[Rule | None, list[str]]:
    if not isinstance(inner, list | tuple) or not inner:
        return None, [f"{where}: {inner!r} is not a list of rules"]
    found = [parse(item, monitor, aliases, f"{where}[{i}]") for i, item in enumerate(cast("list[object]", inner))]
    faults = [fault for _, faults in found for fault in faults]
    return (None, faults) if faults else (Nest(how, tuple(rule for rule, _ in found if rule is not None)), [])


def _parse_leaf(
    kind: type[Leaf], inner: object, monitor: str, aliases: Mapping[str, str], where: str
) -> tuple[Rule | None, list[str]]:
    if not isinstance(inner, Mapping):
        return None, [f"{where}: {inner!r} is not a mapping of settings"]
    hints = type_hints(kind)
    given = {str(key): item for key, item in cast("Mapping[object, object]", inner).items()}
    names = [f.name for f in fields(kind)]
    faults = [f"{where}.{key}: no such setting; {nearest(key, names)}" for key in given if key not in names]
    faults += [f"{where}.{key}: {text}" for key in names if key in given and (text := fault(hints[key], given[key]))]
    if faults:
        return None, faults
    rule = kind(**cast(Any, given))
    if "monitor" in names:
        own = cast(Any, rule).monitor or monitor
        rule = replace(cast(Any, rule), monitor=aliases.get(own, own))
    more = rule.faults() if isinstance(rule, Target | Budget | CriticHealth) else []
    return (None, [f"{where}: {text}" for text in more]) if more else (rule, [])


def goes_on(new: Rule, old: Rule) -> bool:
    """Whether a state of `old` says to `new` what it said to `old`: the same rules on the same metrics."""
    if isinstance(new, Nest) and isinstance(old, Nest):
        pairs = zip(new.rules, old.rules, strict=False)
        return (new.how, len(new.rules)) == (old.how, len(old.rules)) and all(goes_on(a, b) for a, b in pairs)
    if isinstance(new, Patience) and isinstance(old, Patience):  # the state counts in its unit, of smoothed values
        kept = (new.unit, new.smoothing, new.smoothing_window, new.reference)
        if kept != (old.unit, old.smoothing, old.smoothing_window, old.reference):
            return False
    return type(new) is type(old) and new.monitors == old.monitors


def state_fault(rule: Rule, state: object) -> str:
    """What is wrong with `state` as a state of `rule`, "" if nothing."""
    if text := fault(get_type_hints(type(rule).init, include_extras=True)["return"], state):
        return text
    if isinstance(rule, Nest):
        inner = cast(NestState, state)
        if len(inner["rules"]) != len(rule.rules) or len(inner["said"]) != len(rule.rules):
            return f"{len(inner['rules'])} states for {len(rule.rules)} rules"
        faults = [state_fault(one, own) for one, own in zip(rule.rules, inner["rules"], strict=True)]
        return next(filter(None, faults), "")
    return ""
