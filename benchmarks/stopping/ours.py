"""wmtp's own rules on curves, through the object that a training loop uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from families import LENGTHS, make

from wmtp.stopping import LossEarlyStopping
from wmtp.types import Observation

# The defaults are 1.1, .38, .07, .02 and 12.
WAITS = (1.1, 1.3, 1.5)
WINDOWS = (0.38, 0.42, 0.46)
TOLERANCES = (0.05, 0.07)
RATES = (0.01, 0.02)
THRESHOLDS = (6.0, 24.0)
DEFAULT = "default"

TREND: dict[str, Mapping[str, Any]] = {
    DEFAULT: {},
    **{
        f"wait {wait:g}, window {window:g}, tolerance {tolerance:g}, rate {rate:g}": {
            "wait": wait,
            "window": window,
            "tolerance": tolerance,
            "false_stop_rate": rate,
        }
        for wait in WAITS
        for window in WINDOWS
        for tolerance in TOLERANCES
        for rate in RATES
    },
}
DIVERGENCE: dict[str, Mapping[str, Any]] = {
    DEFAULT: {},
    **{f"threshold {threshold:g}": {"threshold": threshold} for threshold in THRESHOLDS},
}
RULES = {
    **{("trend", name): {"trend": given} for name, given in TREND.items()},
    **{("divergence", name): {"divergence": given} for name, given in DIVERGENCE.items()},
}
BOTH = {"any": ["trend", "divergence"]}
Key = tuple[str, str]


def first_stop(rule: object, values: Sequence[float], steps: Sequence[int], total: int) -> tuple[int, str]:
    """Index and reason of the first stop, (len(values), "") for none."""
    stopper = LossEarlyStopping({"enabled": True, "monitor": "eval_loss", "rule": rule})
    for t, (step, value) in enumerate(zip(steps, values, strict=True)):
        if stopper.observe(Observation(step, {"eval_loss": value}, total_steps=total)).stop:
            return t, stopper.stop_reason or ""
    return len(values), ""


def on_curve(values: Sequence[float], steps: Sequence[int], total: int) -> dict[Key, tuple[int, str]]:
    """Every rule and setting on one curve. Rules of an `any` on one metric don't see each other, so where both would
    stop is where the first of them does (`checked` in stopping.py has the nest itself beside it)."""
    return {key: first_stop(rule, values, steps, total) for key, rule in RULES.items()}


def on_synthetic(
    cadence: str, family: str, noise: str, sigma: float, seeds: range, *, nest: bool
) -> list[dict[Key, tuple[int, str]]]:
    """`on_curve` for each seed; with `nest` the first seed's also has the nested rule."""
    found: list[dict[Key, tuple[int, str]]] = []
    for seed in seeds:
        values = make(family, noise, sigma, seed, cadence).values.tolist()
        total, steps = LENGTHS[cadence], range(1, LENGTHS[cadence] + 1)
        found.append(on_curve(values, steps, total))
        if nest and seed == seeds[0]:
            found[-1]["nest", DEFAULT] = first_stop(BOTH, values, steps, total)
    return found
