"""The early stopping of others: their real packages on a list of values, and the same rules on many curves at once.

The real packages take 5-100 us a value (Optuna's pruner reads the whole curve each time), too slow for thousands of
curves times dozens of settings. So each has an exact adapter over a matrix of curves, and `mismatches` counts on random
curves, with NaN and infinities and without, where adapter and package differ. An index of stop is that of the value at
which the rule says stop; len(values) (the package's None) is never.

    transformers  EarlyStoppingCallback and Trainer._determine_best_metric: the reference follows every improvement
    lightning     EarlyStopping: the reference follows improvements beyond min_delta; one value not finite stops
    ignite        EarlyStopping, cumulative off: as transformers; NaN is an improvement
    xgboost       callback.EarlyStopping: as lightning, but a first NaN stays for ever
    optuna        PatientPruner without another pruner: best before the window against best in it; ThresholdPruner
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import minimum_filter1d

from wmtp.stopping import LossEarlyStopping
from wmtp.types import Observation

Values = NDArray[np.float64]
Stops = NDArray[np.int64]
Step = Callable[[Values, Values, float], tuple[NDArray[np.bool_], Values]]


def transformers_stop(values: Sequence[float], patience: int, min_delta: float) -> int | None:
    from transformers import EarlyStoppingCallback, Trainer, TrainerControl, TrainerState

    callback, state, control = EarlyStoppingCallback(patience, min_delta), TrainerState(), TrainerControl()
    args = SimpleNamespace(
        metric_for_best_model="eval_loss", greater_is_better=False, save_strategy="no", eval_strategy="steps"
    )
    trainer: Any = SimpleNamespace(args=args, state=state)
    for t, value in enumerate(values):
        metrics = {"eval_loss": value}
        callback.on_evaluate(args, state, control, metrics)  # the Trainer's order: callbacks, then its own best
        if control.should_training_stop:
            return t
        Trainer._determine_best_metric(trainer, metrics, None)
    return None


def lightning_stop(values: Sequence[float], patience: int, min_delta: float, bound: float | None = None) -> int | None:
    import torch
    from lightning.pytorch.callbacks import EarlyStopping

    callback = EarlyStopping("loss", patience=patience, min_delta=min_delta, divergence_threshold=bound)
    strategy = SimpleNamespace(reduce_boolean_decision=lambda decision, **_: decision)
    trainer: Any = SimpleNamespace(fast_dev_run=False, should_stop=False, current_epoch=0, strategy=strategy)
    for t, value in enumerate(values):
        trainer.callback_metrics = {"loss": torch.tensor(value, dtype=torch.float64)}
        callback._run_early_stopping_check(trainer)
        if trainer.should_stop:
            return t
    return None


def ignite_stop(values: Sequence[float], patience: int, min_delta: float) -> int | None:
    from ignite.engine import Engine
    from ignite.handlers import EarlyStopping

    trainer, now = Engine(lambda *_: None), [0.0]
    handler = EarlyStopping(patience, lambda _: now[0], trainer, threshold=min_delta, mode="min")
    handler.logger.disabled = True
    for t, value in enumerate(values):
        now[0] = float(value)
        handler(trainer)
        if trainer.should_terminate:
            return t
    return None


def xgboost_stop(values: Sequence[float], patience: int, min_delta: float) -> int | None:
    from xgboost.callback import EarlyStopping

    callback = EarlyStopping(rounds=patience, min_delta=min_delta, maximize=False)
    model: Any = SimpleNamespace(set_attr=lambda **_: None)
    for t, value in enumerate(values):
        if callback.after_iteration(model, t, {"valid": {"loss": [float(value)]}}):
            return t
    return None


def _optuna(values: Sequence[float], pruner: Any) -> int | None:
    from optuna.study import StudyDirection
    from optuna.trial import TrialState, create_trial

    study: Any = SimpleNamespace(direction=StudyDirection.MINIMIZE)
    trial = create_trial(state=TrialState.RUNNING)
    seen: dict[int, float] = {}
    for t, value in enumerate(values):
        seen[t] = float(value)
        trial.intermediate_values = seen
        if pruner.prune(study, trial):
            return t
    return None


def optuna_stop(values: Sequence[float], patience: int, min_delta: float) -> int | None:
    from optuna.pruners import PatientPruner

    return _optuna(values, PatientPruner(None, patience, min_delta))


def threshold_stop(values: Sequence[float], upper: float) -> int | None:
    from optuna.pruners import ThresholdPruner

    return _optuna(values, ThresholdPruner(upper=upper))


REAL = {
    "transformers": transformers_stop,
    "lightning": lightning_stop,
    "ignite": ignite_stop,
    "xgboost": xgboost_stop,
    "optuna": optuna_stop,
}


# Adapters: [N] values of one time -> which are improvements, and the new reference.
def _creeping(best: Values, x: Values, delta: float) -> tuple[NDArray[np.bool_], Values]:
    lower = x < best
    return lower & (np.abs(x - best) > delta), np.where(lower, x, best)


def _qualifying(best: Values, x: Values, delta: float) -> tuple[NDArray[np.bool_], Values]:
    better = x + delta < best
    return better, np.where(better, x, best)


def _xgboost(best: Values, x: Values, delta: float) -> tuple[NDArray[np.bool_], Values]:
    better = best - delta > x
    return better, np.where(better, x, best)


def _ignite(best: Values, x: Values, delta: float) -> tuple[NDArray[np.bool_], Values]:
    worse = x >= best - delta
    return ~worse, np.where(worse, np.minimum(x, best), x)


def waits(values: Values, step: Step, delta: float, first: Values | None = None) -> NDArray[np.int32]:
    """[N,T] values in a row without an improvement. `first`: the reference before the second value; none: the first."""
    counts = np.zeros(values.shape, dtype=np.int32)
    best = values[:, 0] if first is None else first
    with np.errstate(invalid="ignore"):
        for t in range(1, values.shape[1]):
            better, best = step(best, values[:, t], delta)
            counts[:, t] = np.where(better, 0, counts[:, t - 1] + 1)
    return counts


def first_true(held: NDArray[np.bool_]) -> Stops:
    """[N] index of the first true of each row, T if there is none."""
    return np.where(held.any(axis=1), held.argmax(axis=1), held.shape[1])


def optuna_held(values: Values, patience: int, delta: float) -> NDArray[np.bool_]:
    """[N,T] whether PatientPruner prunes then."""
    held = np.zeros(values.shape, dtype=bool)
    window, T = patience + 1, values.shape[1]
    if window + 1 > T:
        return held
    known = ~np.isnan(values)
    filled = np.where(known, values, np.inf)
    before = np.minimum.accumulate(filled, axis=1)[:, : T - window]
    inside = minimum_filter1d(filled, window, axis=1, mode="nearest", origin=(window - 1) - window // 2)[:, window:]
    counted = np.cumsum(known, axis=1)
    some = (counted[:, : T - window] > 0) & (counted[:, window:] > counted[:, : T - window])
    held[:, window:] = some & (before + delta < inside)
    return held


STEPS: dict[str, Step] = {"transformers": _creeping, "lightning": _qualifying, "ignite": _ignite, "xgboost": _xgboost}


def sweep(name: str, values: Values, patiences: Sequence[int], delta: float) -> dict[int, Stops]:
    """Patience -> [N] indices of stop, of peer `name` by its adapter."""
    if name == "optuna":
        return {patience: first_true(optuna_held(values, patience, delta)) for patience in patiences}
    start = values[:, 0]
    if name == "transformers":  # a value that is not below infinity is no reference
        start = np.where(start < np.inf, start, np.inf)
    counts = waits(values, STEPS[name], delta, start)
    stops = {patience: first_true(counts >= patience) for patience in patiences}
    if name == "lightning":
        poisoned = first_true(~np.isfinite(values))
        stops = {patience: np.minimum(found, poisoned) for patience, found in stops.items()}
    return stops


def _ours(values: Values, patience: int, delta: float, reference: str) -> int | None:
    rule = {"patience": {"patience": patience, "min_delta": delta, "reference": reference}}
    stopper = LossEarlyStopping({"enabled": True, "monitor": "loss", "rule": rule})
    for t, value in enumerate(values.tolist()):
        if stopper.observe(Observation(t + 1, {"wmtp_loss": value, "loss": value}, total_steps=len(values))).stop:
            return t
    return None


def random_curve(rng: np.random.Generator, *, hostile: bool) -> Values:
    """A noisy fall that may turn; hostile: with NaN and infinities, at times from the first value on."""
    T = int(rng.integers(20, 120))
    x = np.arange(T) / T
    values = 2 * np.exp(-x / rng.uniform(0.05, 1)) + rng.uniform(0, 1.5) * np.maximum(0, x - rng.uniform(0.2, 1))
    values = values + rng.choice([0.005, 0.05, 0.3]) * rng.standard_normal(T)
    if hostile:
        at = rng.integers(0, T, size=rng.integers(1, 6))
        values[at] = rng.choice([np.nan, np.nan, np.inf, -np.inf], size=len(at))
        if rng.random() < 0.3:
            values[0] = np.nan
        if rng.random() < 0.2:
            values[rng.integers(1, T) :] = np.nan
    return values


def mismatches(count: int = 100, seed: int = 0) -> dict[str, tuple[int, int]]:
    """(mismatches, comparisons) per peer of its adapter with its real package; and of wmtp's own `patience` rule with
    the peers it can stand in for, on curves without NaN alone (it leaves values that aren't finite out, they don't)."""
    rng = np.random.default_rng(seed)
    bounds = ("optuna ThresholdPruner", "lightning bound")
    found = {name: [0, 0] for name in (*REAL, *bounds, "wmtp patience, qualifying", "wmtp patience, best")}

    def compare(name: str, one: int | None, other: int | None) -> None:
        found[name][0] += one != other
        found[name][1] += 1

    for n in range(count):
        hostile = n % 2 == 1
        values = random_curve(rng, hostile=hostile)
        patience, delta = int(rng.integers(1, 25)), float(rng.choice([0.0, 0.0, 0.003, 0.01, 0.1]))
        stops: dict[str, int | None] = {}
        for name, real in REAL.items():
            stops[name] = real(values.tolist(), patience, delta)
            index = int(sweep(name, values[None], [patience], delta)[patience][0])
            compare(name, stops[name], index if index < len(values) else None)
        bound, T = float(rng.uniform(1, 4)), len(values)
        above = int(first_true(~(values[None] <= bound))[0])
        compare("optuna ThresholdPruner", threshold_stop(values.tolist(), bound), above if above < T else None)
        above = min(above, int(first_true(~np.isfinite(values[None]))[0]))
        compare("lightning bound", lightning_stop(values.tolist(), T, 0.0, bound), above if above < T else None)
        if not hostile:
            compare("wmtp patience, qualifying", stops["lightning"], _ours(values, patience, delta, "best_qualifying"))
            compare("wmtp patience, best", stops["transformers"], _ours(values, patience, delta, "best"))
    return {name: (wrong, of) for name, (wrong, of) in found.items()}
