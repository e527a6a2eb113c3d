"""Divergence against a slow re-implementation of what its module says, and on curves whose fate is known."""

from __future__ import annotations

import copy
import json
import math
import random

import numpy as np
import pytest

from wmtp.stopping import Divergence, Observation
from wmtp.stopping.divergence import CAP, FREE, LEAST, MOST, NEAR, PULL, RATE, SURE, SURE_AMONG

NAN, INF = math.nan, math.inf


def fold(rule, values, name="loss"):
    """Whether it holds at each value."""
    state, found = rule.init(), []
    for step, value in enumerate(values):
        state, verdict = rule.update(state, Observation(step, {} if value is None else {name: value}))
        assert (verdict.reason, verdict.fired) == (("diverged", ("diverged",)) if verdict.stop else ("", ()))
        found.append(verdict.stop)
    return found


def first(rule, values, name="loss"):
    found = fold(rule, values, name)
    return found.index(True) if True in found else None


def oracle(rule, values):
    """Whether it holds at each of the values, all finite and of one sign, with the whole history at hand."""
    x = np.log(values) if min(values) > 0 else np.array(values)
    level, deviation, s, excursion, found = x[0], 0.0, 0.0, [], []
    for i, one in enumerate(x):
        z = (one - level) / deviation if deviation > 0 else 0.0
        if i >= rule.warmup:
            s = np.clip(s + min(z, CAP) - rule.slack, 0, 2 * rule.threshold)
        out = s > rule.threshold / 3 or (len(excursion) > 0 and s > 0)
        excursion = [*excursion, one] if out else []
        if not out or len(excursion) > 2 * rule.persist:  # longer than that it is the level
            rate = max(RATE, 1 / (i + 1))
            off = np.clip(one - level, -PULL * deviation, PULL * deviation) if i >= FREE else one - level
            level += rate * off
            deviation = (1 - rate) * deviation + rate * 1.25 * abs(off)
        found.append(s > rule.threshold and len(excursion) >= LEAST and lost(rule, excursion, level, deviation))
    return found


def lost(rule, excursion, level, deviation):
    heights = [np.mean(excursion[max(0, i - NEAR) : i]) - level for i in range(1, len(excursion) + 1)]
    # The level moves only once it is an excursion for twice `persist`, and by then it has been decided.
    stays = len(excursion) >= rule.persist and heights[-1] > max(heights) / 2
    if heights[-1] < PULL * deviation:
        return False
    latest = np.array(excursion[-MOST:])
    latest = latest[np.argmax(latest - level >= heights[-1] / 4) :]
    if len(latest) < LEAST:
        return stays
    at = np.arange(len(latest))
    slope, start = np.polyfit(at, latest, 1)
    scatter = np.linalg.norm(latest - start - slope * at) / math.sqrt(len(at) - 2)
    error = max(SURE * deviation, SURE_AMONG * scatter) / math.sqrt(len(at) * at.var())
    coming_back = -1.5 / rule.persist * max(0.0, latest.mean() - level)
    return slope > coming_back + error or stays


def course(rng, length):
    """Declines, with noise, outliers, spikes that recover or grow, jumps; positive or of both signs."""
    values, positive = [], rng.random() < 0.6
    noise, at, kind = rng.choice([0.02, 0.1]), rng.randrange(length // 3, length), rng.choice("nsgj")
    for i in range(length):
        extra = 0.0
        if i >= at:
            extra = {"n": 0.0, "s": 2 * math.exp((at - i) / 10), "g": 0.05 * 1.2 ** min(i - at, 25), "j": 1.0}[kind]
        value = 2 * math.exp(-i / 40) + 0.5 + extra + rng.gauss(0, noise)
        value += rng.choice([5.0, -0.4]) if rng.random() < 0.02 else 0.0
        values.append(max(value, 0.01) if positive else -value - 1 if kind == "n" else value - 3)
    return values if positive or min(values) <= 0 else [value - 10 for value in values]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"threshold": 4.0, "slack": 0.5, "warmup": 5, "persist": 8},
        {"threshold": 30.0, "slack": 0.0, "warmup": 2, "persist": 20},
        {"persist": 1, "warmup": 10},
    ],
)
def test_decisions_are_those_of_the_slow_one(settings):
    rng, both = random.Random(1), set()
    for _ in range(40):
        values = course(rng, 160)
        if min(values) <= 0:
            values = [-1.0, *values]  # of the first value's sign all are judged as they are from the first on
        rule = Divergence("loss", **settings)
        decided, expected = fold(rule, values), oracle(rule, values)
        until = expected.index(True) + 1 if True in expected else len(values)  # at a stop a run is over
        assert decided[:until] == expected[:until]
        both |= set(expected)
    assert both == {True, False}


def declining(seed, length=600, noise=0.05, scale=1.0, shift=0.0):
    rng = random.Random(seed)
    return [scale * (1 + 2 * math.exp(-i / 100) + rng.gauss(0, noise)) + shift for i in range(length)]


WAYS = {
    "exponential growth": lambda i: 0.02 * math.exp(i / 6),
    "slow growth": lambda i: 0.02 * i,
    "a jump that stays": lambda _: 2.0,
    "a jump by a factor": lambda _: 20.0,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1000.0, 0.0), (1e-3, 0.0), (1.0, -50.0)])
def test_what_does_not_come_back_is_found_soon(way, scale, shift):
    for seed in range(6):
        values, at = declining(seed, scale=scale, shift=shift), 300
        sick = values[:at] + [value + scale * way(i) for i, value in enumerate(values[at:])]
        found = first(Divergence("loss"), sick)
        assert found is not None
        assert at <= found <= at + Divergence().persist + 8
        if way(1) >= 2:  # above a level of 1 by much: no slope, but it stays
            assert found >= at + 3


@pytest.mark.parametrize("height", [0.5, 3.0, 50.0])
@pytest.mark.parametrize("recovers_in", [2, 5, 15])
@pytest.mark.parametrize("shift", [0.0, -50.0])
def test_a_spike_that_recovers_never_stops(height, recovers_in, shift):
    for seed in range(4):
        values = declining(seed, shift=shift)
        for at in (100, 250, 400):
            for i in range(at, 600):
                values[i] += height * math.exp((at - i) / recovers_in)
        assert first(Divergence("loss"), values) is None


def test_spikes_among_good_values_are_no_growth():
    """The rise of a recorded run, in deviations: it came back after ten values."""
    rise = [6.6, 4.3, 17.6, 6.3, 17.0, -0.2, 0.5, 31.8, 24.1, 6.5, 8.1, 21.5, 2.3]
    for seed in range(10):
        values = declining(seed, noise=0.03)
        for i, height in enumerate(rise):
            values[400 + i] += 0.03 * height
        assert first(Divergence("loss"), values) is None


@pytest.mark.parametrize("noise", [0.005, 0.05, 0.3])
def test_a_steady_decline_never_stops(noise):
    for seed in range(10):
        assert first(Divergence("loss"), declining(seed, 1500, noise)) is None
        rng = random.Random(seed)
        heavy = [3 - i / 1000 + noise * rng.gauss(0, 1) / max(0.2, abs(rng.gauss(0, 1))) for i in range(1500)]
        assert first(Divergence("loss"), heavy) is None


@pytest.mark.parametrize("wild", [1e6, 1e30])
def test_outliers_do_not_poison_the_reference(wild):
    """A mean and a standard deviation would be beyond 1e4 for ever; here the rise is found as without them."""
    for seed in range(5):
        rng, values = random.Random(seed), declining(seed)
        sick = values[:400] + [value + 0.02 * math.exp(i / 6) for i, value in enumerate(values[400:])]
        outliers = [wild if 20 < i < 380 and rng.random() < 0.03 else value for i, value in enumerate(sick)]
        assert first(Divergence("loss"), outliers[:400]) is None
        clean, dirty = first(Divergence("loss"), sick), first(Divergence("loss"), outliers)
        assert 400 <= dirty <= clean + 10


def test_values_that_are_not_finite_are_as_if_they_were_not_there():
    rng, values = random.Random(3), declining(3)
    values = values[:300] + [value + 0.02 * math.exp(i / 6) for i, value in enumerate(values[300:])]
    holes = []
    for value in values:
        holes += [rng.choice([NAN, INF, -INF, None]) for _ in range(rng.randrange(3))] + [value]
    last = [stop for stop, value in zip(fold(Divergence("loss"), holes), holes, strict=True)
            if value is not None and math.isfinite(value)]  # fmt: skip
    assert last == fold(Divergence("loss"), values)
    assert True in last


def test_a_metric_that_becomes_negative_goes_on_as_it_is():
    rng = random.Random(0)
    values = [1 - i / 100 + rng.gauss(0, 0.02) for i in range(400)]  # an entropy bonus, say: 1 down to -3
    assert first(Divergence("loss"), values) is None
    found = first(Divergence("loss"), values[:300] + [value + 0.02 * 1.3**i for i, value in enumerate(values[300:340])])
    assert 300 <= found < 330


@pytest.mark.parametrize(
    ("checks", "values", "index"),
    [
        (3, [1.0, 9.0, 9.0, 1.0, 9.0, 9.0, 9.0], 6),
        (1, [1.0, 5.0, 5.1], 2),  # at the limit is not above it
        (2, [9.0, NAN, None, 9.0], 3),  # these neither count nor interrupt
        (2, [9.0, -1.0, 9.0, 9.0], 3),
        (2, [9.0, 1.0] * 20, None),
    ],
)
def test_a_fixed_limit(checks, values, index):
    assert first(Divergence("loss", limit=5.0, limit_checks=checks, warmup=1000), values) == index
    assert first(Divergence("loss", limit_checks=checks, warmup=1000), values) is None


def test_gradient_norms():
    """Of heavy tail and strictly positive: log-normal. They may grow a hundredfold for a moment, not for good."""
    rule = Divergence("grad_norm")
    for seed in range(8):
        rng = random.Random(seed)
        norms = [math.exp(rng.gauss(0, 0.5)) * (1 + 4 * math.exp(-i / 50)) for i in range(1000)]
        clipped = [100 * norm if i in (200, 500, 501, 800) else norm for i, norm in enumerate(norms)]
        assert first(rule, clipped, "grad_norm") is None
        explodes = norms[:700] + [norm * math.exp(i / 10) for i, norm in enumerate(norms[700:800])]
        assert 700 <= first(rule, explodes, "grad_norm") <= 740
        jumps = norms[:700] + [norm * 50 for norm in norms[700:]]
        assert 700 <= first(rule, jumps, "grad_norm") <= 700 + rule.persist + 8


def test_two_first_values_that_happen_to_be_equal_are_no_reference():
    for seed in range(20):
        rng = random.Random(seed)
        values = [2 + rng.gauss(0, 0.05) for _ in range(300)]
        values[1] = values[0] * (1 + 1e-6)
        assert first(Divergence("loss"), values) is None


def test_a_rise_must_not_outlast_its_share_of_the_planned_steps():
    """Of 100 planned values 3 % are less than the least, 8: a jump that stays is found then, not after 64."""
    values = [1 + 0.01 * (-1) ** i for i in range(40)] + [2 + 0.1 * (-1) ** i - 0.03 * i for i in range(40)]
    for total, latest in ((100, 50), (0, 40 + 64 + 2)):
        state, rule, stops = Divergence("loss").init(), Divergence("loss"), []
        for step, value in enumerate(values, 1):
            state, verdict = rule.update(state, Observation(step, {"loss": value}, total_steps=total))
            stops += [step] if verdict.stop else []
        assert not stops if total == 0 else 40 < stops[0] <= latest


def test_nothing_is_evidence_during_the_warm_up():
    values = [1.0, 1.1, 0.9, 1.0] + [2.0**i for i in range(40)]
    assert first(Divergence("loss", warmup=len(values)), values) is None
    assert first(Divergence("loss", warmup=4), values) is not None


def test_units_of_the_metric_do_not_matter():
    values = declining(5)
    sick = values[:300] + [value + 0.02 * math.exp(i / 6) for i, value in enumerate(values[300:])]
    below = [value - 100 for value in sick]
    for factor in (2.0**-30, 0.5, 1000.0):
        assert fold(Divergence("loss"), [factor * value for value in sick]) == fold(Divergence("loss"), sick)
        assert fold(Divergence("loss"), [factor * value for value in below]) == fold(Divergence("loss"), below)


def test_it_is_a_pure_fold_whose_small_state_is_json():
    state, sizes = Divergence("loss").init(), []
    for step, value in enumerate(course(random.Random(4), 160) + [3.0] * 400):
        seen, before = Observation(step, {"loss": value}), copy.deepcopy(state)
        new, verdict = Divergence("loss").update(state, seen)
        assert state == before
        assert Divergence("loss").update(json.loads(json.dumps(state, allow_nan=False)), seen) == (new, verdict)
        state = new
        sizes.append(len(json.dumps(state)))
    assert max(sizes) < 25 * MOST + 400
