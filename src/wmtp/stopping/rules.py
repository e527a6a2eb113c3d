"""The plain rules: four criteria in one flat state, combined by mode, and a stop that lasts. A pure fold."""

from __future__ import annotations

from dataclasses import replace
from typing import TypedDict, cast

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
from wmtp.types import JSON, Observation, Verdict

REASONS = ("non_finite", "diverged", "gradient_unstable", "variance_invalid", "converged")
"""Reason codes, most serious first: of several that act at once, the first is the reason of the stop."""


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


class PlainState(ConvergenceState, NonFiniteState, GradientState, VarianceState):
    """The states of all criteria, and the stop."""

    stopped: StopRecord | None
    shadow_stop: ShadowStop | None


class PlainRules:
    """The four criteria, evaluated at every check (an observation with the monitored metric), and the mode.

    any: each of them stops. all: convergence with a stable gradient and a valid variance stops ("finished in
    good health", unless the reason is "diverged"); a criterion that is off or has seen nothing does not
    object. loss_only: convergence alone stops. In every mode "non_finite" stops too.

    A check of a step before `min_steps` is ignored. An observation that is no check or is ignored changes
    nothing and has an empty verdict. After a stop the state stays as it was at the stop and every verdict is
    that of the stop; a config that never stops (`enabled` false, or `shadow`) passes over it.

    `evidence` of a check: value, best_value, best_step, counter, patience, nonfinite_run, distance (0: stop;
    1 also when nothing can stop), grad_exceed_share with a threshold, variance_armed with bounds,
    shadow_stop (step and reason, or none) in shadow mode.

    Args:
        config: the settings; `config.monitor` is taken literally as the name of a metric.
    """

    def __init__(self, config: EarlyStoppingConfig):
        self.config = config
        self._convergence = Convergence(config.monitor, config.patience, config.min_delta)
        self._non_finite = NonFinite(config.monitor, config.max_nonfinite)
        self._gradient = GradientStability(
            config.grad_norm_threshold, config.grad_norm_window_size, config.grad_norm_threshold_ratio
        )
        self._variance = VarianceBounds(config.variance_min, config.variance_max, config.variance_grace_steps)

    def init(self) -> PlainState:
        """Nothing seen."""
        return PlainState(
            **self._convergence.init(),
            **self._non_finite.init(),
            **self._gradient.init(),
            **self._variance.init(),
            stopped=None,
            shadow_stop=None,
        )

    def update(self, state: PlainState, seen: Observation) -> tuple[PlainState, Verdict]:
        """One step of the fold; `state` itself is not changed."""
        if (latched := self.latched(state)) is not None:
            return state, latched
        if seen.metrics.get(self.config.monitor) is None or seen.step < self.config.min_steps:
            return state, Verdict()
        convergence_state, convergence = self._convergence.update(state, seen)
        non_finite_state, non_finite = self._non_finite.update(state, seen)
        gradient_state, gradient = self._gradient.update(state, seen)
        variance_state, variance = self._variance.update(state, seen)
        verdict = self._combine(convergence, non_finite, gradient, variance)
        stopped, shadow_stop = state["stopped"], state["shadow_stop"]
        if verdict.stop and self.config.shadow and shadow_stop is None:
            shadow_stop = ShadowStop(step=seen.step, reason=verdict.reason)
        elif verdict.stop and not self.config.shadow:
            stopped = _record(verdict, seen.step)
        new = PlainState(
            **convergence_state,
            **non_finite_state,
            **gradient_state,
            **variance_state,
            stopped=stopped,
            shadow_stop=shadow_stop,
        )
        return new, _shadowed(verdict, shadow_stop) if self.config.shadow else verdict

    def latched(self, state: PlainState) -> Verdict | None:
        """The verdict of a stop in the past, if there was one and this config stops at all."""
        record = state["stopped"]
        if record is None or not self.config.enabled or self.config.shadow:
            return None
        return Verdict(True, record["reason"], tuple(record["fired"]), record["message"], dict(record["evidence"]))

    def adapt(self, state: PlainState, saved: EarlyStoppingConfig) -> PlainState:
        """`state`, made under the settings `saved`, without what it can't tell under those of this rule.

        Another `monitor` starts the best value and the counts anew, another gradient threshold the window, other
        bounds the variance's grace; a shorter gradient window keeps its newest entries; all else goes on.
        """
        now = self.config
        new: PlainState = state
        if saved.monitor != now.monitor:
            new = {**new, **self._convergence.init(), **self._non_finite.init()}
        if saved.grad_norm_threshold != now.grad_norm_threshold:
            new = {**new, **self._gradient.init()}
        if (saved.variance_min, saved.variance_max) != (now.variance_min, now.variance_max):
            new = {**new, **self._variance.init()}
        return {**new, "grad_norm_history": new["grad_norm_history"][-now.grad_norm_window_size :]}

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


def _shadowed(verdict: Verdict, first: ShadowStop | None) -> Verdict:
    shadow: JSON = None if first is None else {"step": first["step"], "reason": first["reason"]}
    return replace(verdict, stop=False, reason="", evidence={**verdict.evidence, "shadow_stop": shadow})
