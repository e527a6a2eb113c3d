"""What decides: the plain rules, or the rule that stands in their place; and a stop that lasts. A pure fold."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypedDict, cast

from wmtp.stopping.check import fault
from wmtp.stopping.config import EarlyStoppingConfig
from wmtp.stopping.criteria import (
    Convergence,
    ConvergenceState,
    GradientStability,
    GradientState,
    NonFinite,
    NonFiniteState,
    VarianceBounds,
    VarianceState,
)
from wmtp.stopping.tree import REASONS, Rule, goes_on, state_fault, wakes
from wmtp.types import JSON, Observation, Verdict


class StopRecord(TypedDict):
    """The verdict that stopped the run, and its step."""

    step: int
    reason: str
    fired: list[str]
    message: str
    evidence: dict[str, JSON]


class ShadowStop(TypedDict):
    """The first stop that shadow mode held back."""

    step: int
    reason: str


class ShadowRuleState(TypedDict):
    """The state of a rule that never stops, and its first stop."""

    state: dict[str, Any]
    stop: ShadowStop | None


class RulesState(ConvergenceState, NonFiniteState, GradientState, VarianceState):
    """The states of the plain criteria, of the rule in their place, of those in the shadow; and the stop."""

    rule: dict[str, Any] | None
    shadow_rules: dict[str, Any]
    stopped: StopRecord | None
    shadow_stop: ShadowStop | None


class Rules:
    """The four plain criteria, evaluated at every check (an observation with the monitored metric), and the mode; or
    `config.rule`, evaluated at every observation that has one of its metrics. Then of the plain criteria "non_finite"
    alone stops; the best value is kept all the same.

    any: each of them stops. all: convergence with a stable gradient and a valid variance stops ("finished in
    good health", unless the reason is "diverged"); a criterion that is off or has seen nothing does not
    object. loss_only: convergence alone stops. In every mode "non_finite" stops too.

    A check of a step before `min_steps` is ignored. An observation that is no check or is ignored changes
    nothing and has an empty verdict. After a stop the state stays as it was at the stop and every verdict is
    that of the stop; a config that never stops (`enabled` false, or `shadow`) passes over it.

    `evidence` of a check: value, best_value, best_step, nonfinite_run, distance (0: stop; 1 also when nothing can
    stop); of the plain criteria counter, patience, grad_exceed_share with a threshold, variance_armed with bounds; of
    another rule its own, of nested ones under their names; shadow_stop (step and reason, or none) in shadow mode;
    shadow_rules likewise.

    Args:
        config: the settings; `config.monitor` is taken literally as the name of a metric.
        aliases: what names of metrics stand for in `config.rule`.
    """

    def __init__(self, config: EarlyStoppingConfig, aliases: Mapping[str, str] = MappingProxyType({})):
        self.config, self._aliases = config, aliases
        self._tree = config.tree(aliases)[0]
        self._shadows = config.shadow_trees(aliases)[0]
        self._convergence = Convergence(config.monitor, config.patience, config.min_delta)
        self._non_finite = NonFinite(config.monitor, config.max_nonfinite)
        self._gradient = GradientStability(
            config.grad_norm_threshold, config.grad_norm_window_size, config.grad_norm_threshold_ratio
        )
        self._variance = VarianceBounds(config.variance_min, config.variance_max, config.variance_grace_steps)

    @property
    def monitors(self) -> tuple[str, ...]:
        """All metrics that are watched, but `grad_norm` and `value_variance` of the plain criteria."""
        own = (self.config.monitor,) if self._tree is None else self._tree.monitors
        shadows = (name for rule in self._shadows.values() for name in rule.monitors)
        return tuple(dict.fromkeys((*own, *shadows)))

    def init(self) -> RulesState:
        """Nothing seen."""
        return RulesState(
            **self._convergence.init(),
            **self._non_finite.init(),
            **self._gradient.init(),
            **self._variance.init(),
            rule=None if self._tree is None else cast("dict[str, Any]", self._tree.init()),
            shadow_rules={
                name: ShadowRuleState(state=cast(Any, rule.init()), stop=None) for name, rule in self._shadows.items()
            },
            stopped=None,
            shadow_stop=None,
        )

    def update(self, state: RulesState, seen: Observation) -> tuple[RulesState, Verdict]:
        """One step of the fold; `state` itself is not changed."""
        if state["stopped"] is not None and (latched := self.latched(state)) is not None:
            return state, latched
        if seen.step < self.config.min_steps:
            return state, Verdict()
        state, shadows = self._ask_shadows(state, seen)
        check = seen.metrics.get(self.config.monitor) is not None
        if not check and (self._tree is None or not _concerns(self._tree, seen)):
            return state, Verdict(evidence=shadows)
        new, verdict = self._by_criteria(state, seen) if self._tree is None else self._by_rule(self._tree, state, seen)
        if shadows:
            verdict = verdict._replace(evidence={**verdict.evidence, **shadows})
        if not self.config.shadow:
            if verdict.stop:
                new["stopped"] = _record(verdict, seen.step)
            return new, verdict
        first = state["shadow_stop"]
        if verdict.stop and first is None:
            first = ShadowStop(step=seen.step, reason=verdict.reason)
        evidence: dict[str, JSON] = {**verdict.evidence, "shadow_stop": cast("JSON", first)}
        new["shadow_stop"] = first
        return new, verdict._replace(stop=False, reason="", evidence=evidence)

    def _by_criteria(self, state: RulesState, seen: Observation) -> tuple[RulesState, Verdict]:
        convergence_state, convergence = self._convergence.update(state, seen)
        non_finite_state, non_finite = self._non_finite.update(state, seen)
        gradient_state, gradient = self._gradient.update(state, seen)
        variance_state, variance = self._variance.update(state, seen)
        new: RulesState = {**state, **convergence_state, **non_finite_state, **gradient_state, **variance_state}
        return new, self._combine(convergence, non_finite, gradient, variance)

    def _by_rule(self, rule: Rule, state: RulesState, seen: Observation) -> tuple[RulesState, Verdict]:
        best = self._convergence.noted(state, seen)
        non_finite_state, non_finite = self._non_finite.update(state, seen)
        rule_state, verdict = rule.update(cast(Any, state["rule"]), seen)
        new: RulesState = {**state, **best, **non_finite_state, "rule": cast(Any, rule_state)}
        evidence: dict[str, JSON] = {
            "value": best["last_value"],
            "best_value": best["best_value"],
            "best_step": best["best_step"],
            **non_finite.evidence,
            **verdict.evidence,
        }
        if not self.config.enabled:
            evidence["distance"] = 1.0
        elif non_finite.evidence["distance"] != 1.0:
            distances = (non_finite.evidence["distance"], verdict.evidence["distance"])
            evidence["distance"] = min(cast("tuple[float, float]", distances))
        message = "; ".join(filter(None, (non_finite.message, verdict.message)))
        if not (non_finite.stop or verdict.stop):
            return new, Verdict(message=message, evidence=evidence)
        fired, stop = tuple(dict.fromkeys(non_finite.fired + verdict.fired)), self.config.enabled
        return new, Verdict(stop, "+".join(fired) if stop else "", fired, message, evidence)

    def _ask_shadows(self, state: RulesState, seen: Observation) -> tuple[RulesState, dict[str, JSON]]:
        """The state after all rules in the shadow have seen `seen`, and where each would have stopped so far."""
        if not self._shadows:
            return state, {}
        shadows = dict(state["shadow_rules"])
        for name, rule in self._shadows.items():
            own = cast(ShadowRuleState, shadows[name])
            if own["stop"] is None and _concerns(rule, seen):
                rule_state, verdict = cast(Any, rule).update(own["state"], seen)
                stop = ShadowStop(step=seen.step, reason=verdict.reason) if verdict.stop else None
                shadows[name] = ShadowRuleState(state=rule_state, stop=stop)
        stops: dict[str, JSON] = {name: shadows[name]["stop"] for name in self._shadows}
        return {**state, "shadow_rules": shadows}, {"shadow_rules": stops}

    def latched(self, state: RulesState) -> Verdict | None:
        """The verdict of a stop in the past, if there was one and this config stops at all."""
        record = state["stopped"]
        if record is None or not self.config.enabled or self.config.shadow:
            return None
        return Verdict(True, record["reason"], tuple(record["fired"]), record["message"], dict(record["evidence"]))

    def adapt(self, state: RulesState, saved: EarlyStoppingConfig) -> RulesState:
        """`state`, made under the settings `saved`, without what it can't tell under those of this rule.

        Another `monitor` starts the best value and the counts anew, another gradient threshold the window, other
        bounds the variance's grace, another `rule` that rule; a shorter gradient window keeps its newest entries; all
        else goes on.
        """
        now = self.config
        new: RulesState = state
        if saved.monitor != now.monitor:
            new = {**new, **self._convergence.init(), **self._non_finite.init()}
        if saved.grad_norm_threshold != now.grad_norm_threshold:
            new = {**new, **self._gradient.init()}
        if (saved.variance_min, saved.variance_max) != (now.variance_min, now.variance_max):
            new = {**new, **self._variance.init()}
        old = saved.tree(self._aliases)[0]
        if self._tree is None or old is None or not goes_on(self._tree, old):
            new = {**new, "rule": self.init()["rule"]}
        shadows, before = self.init()["shadow_rules"], saved.shadow_trees(self._aliases)[0]
        kept = {name for name, rule in self._shadows.items() if name in before and goes_on(rule, before[name])}
        shadows |= {name: new["shadow_rules"][name] for name in kept}
        history = new["grad_norm_history"][-now.grad_norm_window_size :]
        return {**new, "shadow_rules": shadows, "grad_norm_history": history}

    def fault(self, state: RulesState) -> str:
        """What is wrong with the states of the rules in `state`, which `adapt` gave; "" if nothing."""
        found = [state_fault(self._tree, state["rule"])] if self._tree is not None else []
        for name, rule in self._shadows.items():
            own = state["shadow_rules"][name]
            found.append(fault(ShadowRuleState, own) or state_fault(rule, own["state"]))
        return next(filter(None, found), "")

    def _combine(self, convergence: Verdict, non_finite: Verdict, gradient: Verdict, variance: Verdict) -> Verdict:
        mode = self.config.mode
        criteria = sorted((convergence, non_finite, gradient, variance), key=_seriousness)
        unhealthy = mode == "all" and (gradient.stop or variance.stop)
        deciding = [non_finite] if unhealthy else [non_finite, convergence]
        deciding += [gradient, variance] if mode == "any" else []
        acting = [v for v in criteria if v.stop and any(v is d for d in deciding)]
        stop = self.config.enabled and bool(acting)
        said = acting + [v for v in criteria if not any(v is a for a in acting)]
        distance = min(cast(float, v.evidence["distance"]) for v in deciding) if self.config.enabled else 1.0
        return Verdict(
            stop=stop,
            reason=acting[0].reason if stop else "",
            fired=tuple(v.reason for v in criteria if v.stop),
            message="; ".join(v.message for v in said if v.message),
            evidence={
                **convergence.evidence,
                **non_finite.evidence,
                **gradient.evidence,
                **variance.evidence,
                "distance": distance,
            },
        )


def _seriousness(verdict: Verdict) -> int:
    return REASONS.index(verdict.reason) if verdict.stop else len(REASONS)


def _record(verdict: Verdict, step: int) -> StopRecord:
    return StopRecord(
        step=step,
        reason=verdict.reason,
        fired=list(verdict.fired),
        message=verdict.message,
        evidence=dict(verdict.evidence),
    )


def _concerns(rule: Rule, seen: Observation) -> bool:
    wake = wakes(rule)
    return not wake or not seen.metrics.keys().isdisjoint(wake)
