"""Divergence detectors of others on many curves at once, re-implemented from their sources' rules.

bound        lightning's divergence_threshold and optuna's ThresholdPruner (checked against both): one value above
three above  axolotl's LossWatchDogCallback: three values in a row above a bound
six sigma    OLMo-core's StabilityMonitor as a stop: one value (or 3 of 10) more than six standard deviations above the
             mean of the last 128
ten times    Megatron-LM's is_unexpectedly_large as a stop: above ten times the maximum of the first 100
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from peers import Stops, Values, first_true
from simple import filled

BOUNDS = (3.5, 5.0, 8.0)
WINDOW, WARMUP = 128, 20


def in_window(held: NDArray[np.bool_], window: int) -> NDArray[np.int64]:
    """[N,T] how many of the latest `window`."""
    total = np.cumsum(held, axis=1)
    total[:, window:] = total[:, window:] - total[:, :-window].copy()
    return total


def six_sigma(values: Values) -> NDArray[np.bool_]:
    """[N,T] whether a value is more than six standard deviations above the mean of the 128 before it."""
    x = filled(values)
    x = x - np.median(x, axis=1, keepdims=True)
    sums = [np.concatenate([np.zeros((len(x), 1)), np.cumsum(y, axis=1)], axis=1) for y in (x, x * x)]
    t = np.arange(x.shape[1])
    low = np.maximum(0, t - WINDOW)
    n = np.maximum(1, t - low)
    mean, square = ((total[:, t] - total[:, low]) / n for total in sums)
    deviation = np.sqrt(np.maximum(1e-18, square - mean * mean))
    return (t >= WARMUP) & (x > mean + 6 * deviation)


def detect(values: Values) -> dict[str, Stops]:
    """[N] indices of stop of every detector."""
    with np.errstate(invalid="ignore"):
        found = {f"bound {bound:g} (lightning, optuna)": first_true(~(values <= bound)) for bound in BOUNDS}
        found["three in a row above 5 (axolotl)"] = first_true(in_window(values > 5, 3) == 3)
    odd = six_sigma(values)
    found["six sigma, once (OLMo-core's monitor)"] = first_true(odd)
    found["six sigma, 3 of 10"] = first_true(in_window(odd, 10) >= 3)
    start = filled(values)[:, :100].max(axis=1, keepdims=True)
    late = np.arange(values.shape[1]) >= min(100, values.shape[1] // 5)
    found["ten times the first 100 (Megatron-LM)"] = first_true(late & (values > 10 * start))
    return found
