"""Simple rules of the literature on many curves at once, and the grids on which all rules are swept.

Every setting that is a number of values is given as a share of the planned ones, so that one grid serves runs of any
length ("patience 15%"; `plan` is 100 %). Values that are not finite are left out, which is kinder than most codes are.

    EMA + patience      exponential mean of so many values, then patience
    EMA + patience, rest     the same, and no shorter patience than what is left of the planned values: `trend`'s wait
    window mean + patience   means of blocks, patience in blocks
    Prechelt GL, PQ, UP generalisation loss, its quotient with the progress in the last strip, and successive rises
                        (Prechelt 1998); on hundredths of the run, strips of 5
    window std          standard deviation of the latest values below a bound (Ray Tune's TrialPlateauStopper)
    slope               least squares over a window: the improvement in one more is below a share of that so far
    published recipe    patience 50 to 200 steps whatever the noise, a first NaN stays; its gradient norm > 50 is in
                        injected.py, these curves have none
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from peers import STEPS, Stops, Values, first_true, sweep, waits
from scipy.signal import lfilter

PATIENCES = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7)
DELTAS = (0.0, 0.003, 0.01, 0.03)
SPANS = (0.01, 0.02, 0.05, 0.1)
BLOCKS = (0.01, 0.025, 0.05)
BLOCK_PATIENCES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15)
GL = (0.5, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0)
PQ = (0.25, 0.5, 0.75, 1.0, 2.0, 3.0)
UP = (2, 3, 4, 5, 6)
STD_WINDOWS = (0.002, 0.01, 0.04, 0.1)
STDS = (0.003, 0.01, 0.02, 0.03, 0.05, 0.1)
SLOPE_WINDOWS = (0.1, 0.15, 0.2, 0.3, 0.4)
SLOPES = (0.0025, 0.005, 0.01, 0.02, 0.04)
Found = Iterator[tuple[str, Stops]]


@dataclass(frozen=True)
class Method:
    """A rule with its sweep: `run(values, plan)` gives (setting, [N] indices of stop) for all of them.

    `default` is what the package does if told nothing, or its documentation's example where it must be told.
    """

    name: str
    group: str
    run: Callable[[Values, int], Found]
    default: str = ""


def finite(values: Values) -> Values:
    return np.where(np.isfinite(values), values, np.nan)


def filled(values: Values) -> Values:
    """Values that are not finite replaced by the one before (at the start: by the first finite one)."""
    known = np.isfinite(values)
    last = np.maximum.accumulate(np.where(known, np.arange(values.shape[1]), -1), axis=1)
    last = np.where(last < 0, known.argmax(axis=1)[:, None], last)
    return np.nan_to_num(np.take_along_axis(values, last, axis=1))


def counts_of(plan: int, shares: tuple[float, ...], least: int = 1) -> list[tuple[str, int]]:
    """(label, number of values) for shares of the planned ones."""
    return [(f"{100 * share:g}%", max(least, round(share * plan))) for share in shares]


def block_means(values: Values, size: int) -> Values:
    n = values.shape[1] // size
    if not n:
        return np.full((len(values), 1), np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a block without a finite value has the mean NaN
        return np.nanmean(finite(values)[:, : n * size].reshape(len(values), n, size), axis=2)


def ends(stops: Stops, size: int, blocks: int, T: int) -> Stops:
    """Indices of blocks as those of the blocks' last values."""
    return np.where(stops < blocks, (stops + 1) * size - 1, T)


def _smooth(values: Values, span: int) -> Values:
    alpha, x = 2 / (span + 1), filled(values)
    return lfilter([alpha], [1, alpha - 1], x, axis=1, zi=(1 - alpha) * x[:, :1])[0]


def _ema(values: Values, plan: int) -> Found:
    yield from _ema_waiting(values, plan, np.zeros(values.shape[1]))


def _ema_rest(values: Values, plan: int) -> Found:
    yield from _ema_waiting(values, plan, plan - 1.0 - np.arange(values.shape[1]))


def _ema_waiting(values: Values, plan: int, least: Values) -> Found:
    """`least`: [T] patience at least at each value."""
    for label, span in counts_of(plan, SPANS):
        smooth = _smooth(values, span)
        for delta in DELTAS[:2]:
            counts = waits(smooth, STEPS["lightning"], delta)
            for share, patience in counts_of(plan, PATIENCES):
                stops = first_true(counts >= np.maximum(patience, least))
                yield f"span {label}, patience {share}, min_delta {delta:g}", stops


def _window_mean(values: Values, plan: int) -> Found:
    for share, size in counts_of(plan, BLOCKS):
        means = block_means(values, size)
        counts = waits(np.where(np.isnan(means), np.inf, means), STEPS["lightning"], 0.0)
        for patience in BLOCK_PATIENCES:
            stops = ends(first_true(counts >= patience), size, means.shape[1], values.shape[1])
            yield f"block {share}, patience {patience} blocks", stops


def _prechelt(kind: str) -> Callable[[Values, int], Found]:
    def run(values: Values, plan: int) -> Found:
        size, T = max(1, plan // 100), values.shape[1]
        means = block_means(values, size)
        n, strip = means.shape[1], 5
        low = np.fmin.accumulate(means, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            loss = 100 * (means / low - 1)
            if kind == "GL":
                for alpha in GL:
                    yield f"GL {alpha:g}", ends(first_true(loss > alpha), size, n, T)
                return
            progress = np.full(means.shape, np.nan)
            if n >= strip:
                windows = sliding_window_view(means, strip, axis=1)
                progress[:, strip - 1 :] = 1000 * (windows.mean(axis=2) / windows.min(axis=2) - 1)
            if kind == "PQ":
                for alpha in PQ:
                    yield f"PQ {alpha:g}", ends(first_true(loss / progress > alpha), size, n, T)
                return
            at = np.arange(strip - 1, n, strip)
            rises = means[:, at[1:]] > means[:, at[:-1]]
        for s in UP:
            if rises.shape[1] < s:
                yield f"UP {s}", np.full(len(values), T)
                continue
            index = first_true(sliding_window_view(rises, s, axis=1).all(axis=2))
            found = index < rises.shape[1] - s + 1
            block = at[np.minimum(index + s, len(at) - 1)]
            yield f"UP {s}", np.where(found, (block + 1) * size - 1, T)

    return run


def _sums(x: Values, window: int) -> Values:
    """[N,T-window+1] sums of `window` values in a row."""
    total = np.concatenate([np.zeros((len(x), 1)), np.cumsum(x, axis=1)], axis=1)
    return total[:, window:] - total[:, :-window]


def _window_std(values: Values, plan: int) -> Found:
    T = values.shape[1]
    for share, window in [("4", 4), *counts_of(plan, STD_WINDOWS, 4)]:
        std = np.full(values.shape, np.nan)
        if window <= T:  # a window with a value that is not finite has no deviation
            x = filled(values) - np.nanmedian(finite(values), axis=1, keepdims=True)
            mean, square = (_sums(y, window) / window for y in (x, x * x))
            bad = _sums((~np.isfinite(values)).astype(float), window) > 0.5
            std[:, window - 1 :] = np.where(bad, np.nan, np.sqrt(np.maximum(0.0, square - mean * mean)))
        for bound in STDS:
            with np.errstate(invalid="ignore"):
                yield f"last {share}, std {bound:g}", first_true(std < bound)


def _slope(values: Values, plan: int) -> Found:
    x, T = filled(values), values.shape[1]
    for label, window in counts_of(plan, SLOPE_WINDOWS, 4):
        if window > T:
            yield from ((f"window {label}, {100 * share:g}%", np.full(len(x), T)) for share in SLOPES)
            continue
        i = np.arange(window) - (window - 1) / 2
        total, middle = _sums(x, window), np.arange(T - window + 1) + (window - 1) / 2
        slope = (_sums(x * np.arange(T), window) - middle * total) / (i * i).sum()
        fall = x[:, : max(1, window // 20)].mean(axis=1)[:, None] - total / window
        for share in SLOPES:
            held = np.zeros(values.shape, dtype=bool)
            held[:, window - 1 :] = -slope * window < share * fall
            yield f"window {label}, {100 * share:g}%", first_true(held)


def _recipe(values: Values, plan: int) -> Found:
    del plan
    for patience, delta in ((50, 1e-4), (100, 1e-5), (200, 1e-5)):
        yield f"patience {patience}, min_delta {delta:g}", sweep("xgboost", values, [patience], delta)[patience]


def _peer(name: str, usual: int) -> Callable[[Values, int], Found]:
    def run(values: Values, plan: int) -> Found:
        patiences = [(str(usual), usual), *counts_of(plan, PATIENCES)]
        for delta in DELTAS:
            found = sweep(name, values, sorted({n for _, n in patiences}), delta)
            yield from ((f"patience {label}, min_delta {delta:g}", found[n]) for label, n in patiences)

    return run


USUAL: Mapping[str, int] = {"transformers": 1, "lightning": 3, "ignite": 10, "xgboost": 10, "optuna": 1}
"""Patience: the package's default, or (ignite, xgboost, optuna: there is none) that of the documentation's example."""

METHODS = (
    *(Method(name, "peer", _peer(name, n), f"patience {n}, min_delta 0") for name, n in USUAL.items()),
    Method("ray: window std", "peer", _window_std, "last 4, std 0.01"),
    Method("published recipe", "simple", _recipe, "patience 200, min_delta 1e-05"),
    Method("EMA + patience", "simple", _ema),
    Method("EMA + patience, rest", "simple", _ema_rest),
    Method("window mean + patience", "simple", _window_mean),
    Method("Prechelt GL", "simple", _prechelt("GL")),
    Method("Prechelt PQ", "simple", _prechelt("PQ")),
    Method("Prechelt UP", "simple", _prechelt("UP")),
    Method("slope (least squares)", "simple", _slope),
)
