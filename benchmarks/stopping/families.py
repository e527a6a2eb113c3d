"""Synthetic training curves of which the truth is known: eight kinds, three noises, two cadences.

A curve is its noise-free mean m(t) plus noise. m starts at 3; what a seed draws is how deep and how fast it falls, and
where things happen, so no rule can learn a curve by heart.

    power        m keeps falling to the end like (1 + t/t0)^-c: a stop before the last tenth costs something
    exponential  falls to a plateau
    overfit      falls, then rises for good (a U)
    staircase    a plateau, then a second fall, as when the learning rate drops: the first plateau is a trap
    spike        exponential, with a bump that comes back within 1-3 % of the run
    diverge      exponential, then the loss grows without end (event: its first step)
    nan_burst    exponential, with one or two values that are not finite
    nan_forever  exponential, then nothing but NaN (event)

Noise: gaussian, student (t with 3 degrees of freedom) and autocorrelated (AR(1), .5), all scaled to the same standard
deviation. Per-step curves have 2,000 values with a standard deviation of .03, .1 or .3; per-evaluation
curves 100 with .005 or .02.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
NOISES = ("gaussian", "student", "autocorrelated")
LENGTHS = {"step": 2000, "evaluation": 100}
SIGMAS = {"step": (0.03, 0.1, 0.3), "evaluation": (0.005, 0.02)}
START = 3.0


@dataclass(frozen=True)
class Curve:
    """One run's metric.

    Attributes:
        family, noise, sigma, seed: what it is made of.
        values: [T] as logged, NaN and infinities included.
        truth: [T] noise-free mean.
        event: index from which the run is lost, None for a run that is not.
    """

    family: str
    noise: str
    sigma: float
    seed: int
    values: Array
    truth: Array
    event: int | None = None

    @property
    def name(self) -> str:
        return f"{self.family}/{self.noise}/{self.sigma:g}/{self.seed}"


def _fall(x: Array, rng: np.random.Generator) -> Array:
    """Exponential to a plateau; x in [0,1] is the share of the run. Within 1 % of it after 20-75 % of the run."""
    depth, tau = rng.uniform(1.2, 2.2), math.exp(rng.uniform(math.log(0.045), math.log(0.16)))
    return START - depth * (1 - np.exp(-x / tau))


def _power(x: Array, rng: np.random.Generator) -> tuple[Array, int | None]:
    depth, t0, c = rng.uniform(1.5, 2.5), rng.uniform(0.005, 0.05), rng.uniform(0.25, 0.7)
    return START - depth * (1 - (1 + x / t0) ** -c), None


def _exponential(x: Array, rng: np.random.Generator) -> tuple[Array, int | None]:
    return _fall(x, rng), None


def _overfit(x: Array, rng: np.random.Generator) -> tuple[Array, int | None]:
    turn, slope = rng.uniform(0.2, 0.6), rng.uniform(0.3, 2.0)
    late = np.maximum(0.0, x - turn)
    return _fall(x, rng) + slope * late**2 / (late + 0.05), None


def _staircase(x: Array, rng: np.random.Generator) -> tuple[Array, int | None]:
    drop, tau, depth = rng.uniform(0.3, 0.6), rng.uniform(0.02, 0.06), rng.uniform(1.0, 1.6)
    first = START - depth * (1 - np.exp(-x / rng.uniform(0.04, 0.1)))
    return first - rng.uniform(0.15, 0.4) * (1 - np.exp(-np.maximum(0.0, x - drop) / tau)), None


def _spike(x: Array, rng: np.random.Generator) -> tuple[Array, int | None]:
    m, at, width = _fall(x, rng), rng.uniform(0.2, 0.8), rng.uniform(0.01, 0.03)
    decay = np.exp(-np.maximum(0.0, x - at) / (width / 3))
    return m + np.where(x >= at, rng.uniform(0.5, 3.0) * decay, 0.0), None


def _diverge(x: Array, rng: np.random.Generator) -> tuple[Array, int | None]:
    m, at = _fall(x, rng), rng.uniform(0.3, 0.8)
    event = int(np.searchsorted(x, at))
    grown = np.exp(np.minimum((x - x[event]) / rng.uniform(0.002, 0.01), math.log(1e3))) - 1
    return m + np.where(np.arange(len(x)) >= event, np.minimum(0.3 * grown, 8.0) + 0.3, 0.0), event


def _nan_burst(x: Array, rng: np.random.Generator) -> tuple[Array, int | None]:
    return _fall(x, rng), None


def _nan_forever(x: Array, rng: np.random.Generator) -> tuple[Array, int | None]:
    return _fall(x, rng), int(rng.uniform(0.1, 0.8) * len(x))


FAMILIES: dict[str, Callable[[Array, np.random.Generator], tuple[Array, int | None]]] = {
    "power": _power,
    "exponential": _exponential,
    "overfit": _overfit,
    "staircase": _staircase,
    "spike": _spike,
    "diverge": _diverge,
    "nan_burst": _nan_burst,
    "nan_forever": _nan_forever,
}
HEALTHY = ("power", "exponential", "overfit", "staircase", "spike", "nan_burst")


def _noise(kind: str, T: int, rng: np.random.Generator) -> Array:
    if kind == "student":
        return rng.standard_t(3, T) / math.sqrt(3)
    white = rng.standard_normal(T)
    if kind == "autocorrelated":
        for t in range(1, T):
            white[t] = 0.5 * white[t - 1] + math.sqrt(0.75) * white[t]
    return white


def make(family: str, noise: str, sigma: float, seed: int, cadence: str) -> Curve:
    """One curve; the same arguments give the same curve."""
    T = LENGTHS[cadence]
    key = [list(FAMILIES).index(family), NOISES.index(noise), round(1000 * sigma), seed, T]
    rng = np.random.default_rng(key)
    x = np.arange(T) / T
    truth, event = FAMILIES[family](x, rng)
    values = truth + sigma * _noise(noise, T, rng)
    if family == "nan_burst":
        values[rng.integers(0, T, size=rng.integers(1, 3))] = rng.choice([math.nan, math.inf, -math.inf])
    if family == "nan_forever":
        values[event:] = math.nan
    return Curve(family, noise, sigma, seed, values, truth, event)


def curves(cadence: str, seeds: range, families: tuple[str, ...] = tuple(FAMILIES)) -> Iterator[Curve]:
    """All families, noises and standard deviations of a cadence, for these seeds."""
    for family in families:
        for noise in NOISES:
            for sigma in SIGMAS[cadence]:
                for seed in seeds:
                    yield make(family, noise, sigma, seed, cadence)
