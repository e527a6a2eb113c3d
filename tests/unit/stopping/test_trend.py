"""The trend rule: its numbers against numpy and scipy, and on what it stops, on what it doesn't, and how often."""

from __future__ import annotations

import copy
import json
import math
import random
from statistics import NormalDist

import numpy as np
import pytest
from scipy.stats import theilslopes

from wmtp.stopping import Observation, Trend, trend
from wmtp.stopping.trend import BLOCKS, LEAST

NAN, INF = math.nan, math.inf


def fold(rule, values, *, every=1, planned=None, steps=None):
    """Verdicts and states; `planned` steps by default as many as there are, 0 for unknown."""
    steps = [every * (i + 1) for i in range(len(values))] if steps is None else steps
    planned = steps[-1] if planned is None else planned
    state, verdicts, states = rule.init(), [], []
    for step, value in zip(steps, values, strict=True):
        state, verdict = rule.update(state, Observation(step, {"loss": value}, total_steps=planned))
        verdicts.append(verdict)
        states.append(state)
    return verdicts, states


def stop_of(rule, values, **more):
    """(index, reason) of the first stop, or none."""
    verdicts = fold(rule, values, **more)[0]
    return next(((i, verdict.reason) for i, verdict in enumerate(verdicts) if verdict.stop), None)


def noisy(course, noise, seed):
    rng = random.Random(seed)
    return [value + rng.gauss(0, noise) for value in course]


LENGTH = 640
COURSES = {
    "plateau": [1 + 2 * math.exp(-i / 40) for i in range(LENGTH)],
    "steady decline": [3 - 2 * i / LENGTH for i in range(LENGTH)],
    "power law": [8 * (i + 1) ** -0.1 for i in range(LENGTH)],  # an eighth of the fall in the last two fifths
    "u": [1 + 2 * math.exp(-i / 40) + 0.008 * max(0, i - 200) for i in range(LENGTH)],
}


# The numbers


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("every", "values"), [(1, BLOCKS), (10, BLOCKS), (1, 10 * BLOCKS)])
@pytest.mark.parametrize("wait", [0.0, 0.9, 1.5])
def test_gain_and_bound_against_scipy(monkeypatch, seed, every, values, wait):
    """With no value pulled in, blocks are plain means. The line is fitted to `wait` times what is left."""
    monkeypatch.setattr(trend, "PULL", 1e12)
    rng = np.random.default_rng(seed)
    curve = 3 + 0.2 * rng.uniform(-1, 1, values) - 0.02 * np.arange(values) * BLOCKS / values
    rule = Trend("loss", false_stop_rate=0.05, window=0.3, wait=wait)
    verdicts, _ = fold(rule, curve.tolist(), every=every, steps=[every * i for i in range(values)],
                       planned=every * values)  # fmt: skip
    block = values // BLOCKS
    for count in range(20, BLOCKS + 1, 4):
        width = max(round(0.3 * BLOCKS), round(wait * (BLOCKS - count)))
        evidence = verdicts[count * block - 1].evidence
        if width > count:
            assert evidence["upper"] is None
            continue
        means = curve[: count * block].reshape(count, block).mean(axis=1)
        recent, x = means[-width:], np.arange(width)
        gain = -theilslopes(recent, x).slope * width
        differences = np.diff(means[-2 * width :])
        noise = 1.4826 * np.median(np.abs(differences - np.median(differences))) / math.sqrt(2)
        error = noise * width / math.sqrt(((x - x.mean()) ** 2).sum())
        assert evidence["gain"] == pytest.approx(gain, rel=1e-9)
        assert evidence["upper"] == pytest.approx(gain + NormalDist().inv_cdf(0.95) * error, rel=1e-9)
        assert verdicts[count * block - 1].stop == ("converged" in verdicts[count * block - 1].fired)


def test_it_has_converged_when_the_bound_is_below_what_is_needed():
    held = 0
    for seed in range(5):
        for verdict in fold(Trend("loss"), noisy(COURSES["plateau"], 0.05, seed))[0]:
            upper, needed = verdict.evidence["upper"], verdict.evidence["needed"]
            if upper is not None and verdict.reason != "rising":
                held += verdict.stop
                assert not verdict.stop or upper <= needed
            assert verdict.stop == (verdict.evidence["distance"] == 0)
    assert held


def test_nothing_is_judged_before_a_line_can_be_fitted():
    verdicts = fold(Trend("loss"), [1.0 - i / 100 for i in range(LEAST - 1)], planned=0)[0]
    assert all(verdict.evidence["gain"] is None and verdict.evidence["distance"] == 1 for verdict in verdicts)


@pytest.mark.parametrize("noise", [0.0, 0.01])
@pytest.mark.parametrize("wait", [0.5, 1.0, 2.0])
def test_a_plateau_must_last_wait_times_what_is_left(wait, noise):
    """Flat from the 40th of 640 values on: the window is all of that when 640 - n = (n - 40) / wait."""
    values = noisy([2.0 - i / 40 if i < 40 else 1.0 for i in range(LENGTH)], noise, 1)
    index, reason = stop_of(Trend("loss", wait=wait, window=0.05), values)
    flat, left = index + 1 - 40, LENGTH - index - 1
    assert reason == "converged"
    # The median slope bears a tenth or so of the window that is not flat, and judgements are 10 values apart.
    assert 0.9 * wait <= (flat + 40) / left <= 1.3 * wait


@pytest.mark.parametrize("noise", [0.0, 0.002])
def test_the_beginning_of_another_fall_is_no_plateau(noise):
    """The line is not turned by its last tenth; still it does not stop there, where without that fall it would."""
    flat = [1 + 2 * math.exp(-i / 20) for i in range(LENGTH)]
    stop, reason = stop_of(Trend("loss"), noisy(flat, noise, 2))
    assert reason == "converged"
    falls = [value - 0.006 * max(0, i - stop + 30) for i, value in enumerate(flat)]
    assert all(verdict.evidence["distance"] > 0 for verdict in fold(Trend("loss"), noisy(falls, noise, 2))[0])


# On what it stops


@pytest.mark.parametrize("planned", [None, 0], ids=["length known", "length unknown"])
@pytest.mark.parametrize("noise", [0.0, 0.01, 0.08])
@pytest.mark.parametrize("every", [1, 10])
def test_a_plateau_stops_and_what_still_falls_does_not(planned, noise, every):
    plateau = COURSES["plateau"] + [COURSES["plateau"][-1]] * (0 if planned is None else 2 * LENGTH)
    for seed in range(3):
        index, reason = stop_of(Trend("loss"), noisy(plateau[::every], noise, seed), every=every, planned=planned)
        assert reason == "converged"
        assert every * index > 100  # a twelfth of the fall is left at 100
        for kind in ("steady decline", "power law"):
            values = noisy(COURSES[kind][::every], noise, seed)
            assert stop_of(Trend("loss"), values, every=every, planned=planned) is None, kind


@pytest.mark.parametrize("every", [1, 10])
@pytest.mark.parametrize("noise", [0.01, 0.05])
def test_over_fitting_is_rising_and_a_spike_that_recovers_is_not(every, noise):
    for seed in range(5):
        values = noisy(COURSES["u"][::every], noise, seed)
        index, reason = stop_of(Trend("loss", window=0.5), values, every=every)
        assert reason == "rising"
        assert 200 < every * index < 600
        spiked = noisy(COURSES["steady decline"][::every], noise, seed)
        for i in range(0, 30, every):
            spiked[(300 + i) // every] += 3 * math.exp(-i / 8)
        assert stop_of(Trend("loss"), spiked, every=every) is None


def test_one_wild_value_changes_no_decision_much():
    for seed in range(10):
        rng = random.Random(seed)
        values = noisy(COURSES["plateau"], 0.05, seed)
        wild = list(values)
        for _ in range(5):
            wild[rng.randrange(20, LENGTH)] = rng.choice([1e4, 1e30, -1e4])
        clean, dirty = stop_of(Trend("loss"), values), stop_of(Trend("loss"), wild)
        assert dirty is not None
        assert dirty[1] == "converged"
        assert abs(clean[0] - dirty[0]) < LENGTH / 6
        falling = noisy(COURSES["steady decline"], 0.05, seed)
        falling[rng.randrange(20, LENGTH)] = 1e6
        assert stop_of(Trend("loss"), falling) is None


def test_values_that_are_not_finite_are_as_if_they_were_not_there():
    rng, values, steps = random.Random(1), noisy(COURSES["plateau"], 0.05, 1), list(range(LENGTH))
    bad = {i: rng.choice([NAN, INF, -INF]) for i in rng.sample(steps, 100)}
    holes = [bad.get(i, value) for i, value in enumerate(values)]
    kept = [i for i in steps if i not in bad]
    with_them, states = fold(Trend("loss"), holes, steps=steps)
    without, expected = fold(Trend("loss"), [values[i] for i in kept], steps=kept, planned=steps[-1])
    assert [with_them[i] for i in kept] == without
    assert [states[i] for i in kept] == expected
    assert any(verdict.stop for verdict in without)


# How often it is wrong


@pytest.mark.parametrize("rate", [0.02, 0.1])
def test_false_stops_of_one_judgement_come_at_the_stated_rate(rate):
    """Half a run falls by `tolerance` of the fall per window, no more: every "converged" there is a false stop.

    The normal quantile, the median line and the estimated noise make the rate only nearly exact: half to twice it.
    """
    tolerance, window, fall, runs = 0.2, 0.4, 1000.0, 500
    width, last = round(window * BLOCKS), BLOCKS - 1
    per_block = tolerance * fall / width
    course = [fall - per_block * i for i in range(BLOCKS)]
    stops = 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        means = (np.array(course) + rng.normal(0, 0.05 * fall, BLOCKS)).tolist()
        rule = Trend("loss", false_stop_rate=rate, window=window, tolerance=tolerance, rise=0.9)
        stops += judged_once(rule, means, last, needed=tolerance * fall)
    assert rate / 2 <= stops / runs <= 2 * rate


def judged_once(rule, means, last, needed):
    """Whether the bound of the judgement after the last block, made from its mean, is below `needed`."""
    state = rule.init()
    blocks = [[i, 1, value] for i, value in enumerate(means[:last])]
    seen = Observation(last, {"loss": means[last]}, total_steps=BLOCKS)
    state |= {"size": 1.0, "step": last - 1, "values": last, "level": means[last], "deviation": 1e9, "blocks": blocks}
    return rule.update(state, seen)[1].evidence["upper"] < needed


@pytest.mark.parametrize("every", [1, 8])
def test_runs_that_still_improve_are_hardly_ever_stopped(every):
    wrong = 0
    for seed in range(40):
        kind = ("steady decline", "power law")[seed % 2]
        wrong += stop_of(Trend("loss"), noisy(COURSES[kind][::every], 0.25, seed), every=every) is not None
    assert wrong <= 2


# What must not matter


@pytest.mark.parametrize("planned", [None, 0])
@pytest.mark.parametrize("kind", COURSES)
def test_units_of_the_metric_do_not_matter(kind, planned):
    values = noisy(COURSES[kind], 0.05, 3)
    expected = stop_of(Trend("loss"), values, planned=planned)
    for factor, shift in ((1024.0, 0.0), (2.0**-20, 0.0), (1.0, 64.0), (0.25, -8.0), (1000.0, 1e5)):
        assert stop_of(Trend("loss"), [factor * value + shift for value in values], planned=planned) == expected


@pytest.mark.parametrize("planned", [None, 0])
def test_evaluations_at_irregular_steps(planned):
    for seed in range(5):
        rng, steps = random.Random(seed), [1]
        while steps[-1] < 3000:
            steps.append(steps[-1] + rng.choice([5, 10, 20, 60]))
        plateau = noisy([1 + 2 * math.exp(-step / 80) for step in steps], 0.03, seed)
        falls = noisy([3 - 2 * step / 3000 for step in steps], 0.03, seed)
        index, reason = stop_of(Trend("loss"), plateau, steps=steps, planned=planned)
        assert reason == "converged"
        assert steps[index] > 200
        assert stop_of(Trend("loss"), falls, steps=steps, planned=planned) is None


# Its state


@pytest.mark.parametrize(("every", "planned"), [(1, 0), (7, 0), (1000, 0), (1, 10_000), (1, 500)])
def test_the_state_stays_small_and_blocks_account_for_every_value(every, planned):
    count = 10_000 if every == 1 else 600
    values = noisy([3 - i / count for i in range(count)], 0.1, 5)
    state, sizes = Trend("loss").init(), []
    for i, value in enumerate(values):
        state, _ = Trend("loss").update(state, Observation(i * every, {"loss": value}, total_steps=planned))
        if i % 50 == 49 or i < 50:
            open_block = [state["open"]] if state["open"] else []
            blocks = state["blocks"] + open_block
            assert sum(values for _, values, _ in blocks) == i + 1
            indices = [index for index, _, _ in blocks]
            assert indices == sorted(set(indices))
            assert len(blocks) <= BLOCKS + 1
            sizes.append(len(json.dumps(state)))
    assert max(sizes) < 40 * BLOCKS + 400
    whole = sum(total for _, _, total in state["blocks"] + ([state["open"]] if state["open"] else []))
    assert whole / count == pytest.approx(np.mean(values), rel=0.01)  # values are pulled in, but few and a little


def test_it_is_a_pure_fold_whose_state_is_json():
    for planned in (0, 300):
        state = Trend("loss").init()
        for step, value in enumerate(noisy(COURSES["plateau"][:300], 0.05, 7)):
            seen, before = Observation(step, {"loss": value}, total_steps=planned), copy.deepcopy(state)
            new, verdict = Trend("loss").update(state, seen)
            assert state == before
            assert Trend("loss").update(json.loads(json.dumps(state, allow_nan=False)), seen) == (new, verdict)
            state = new


def test_a_steady_decline_of_unknown_length_does_not_stop():
    for seed in range(10):
        rng, state = random.Random(seed), Trend("loss").init()
        for step in range(2000):
            seen = Observation(step, {"loss": 3 - step / 1000 + rng.gauss(0, 0.05)})
            state, verdict = Trend("loss").update(state, seen)
            assert not verdict.stop, (seed, step)


def test_a_constant_has_converged():
    state, stops = Trend("loss").init(), []
    for step in range(100):
        state, verdict = Trend("loss").update(state, Observation(step, {"loss": 1.0}, total_steps=100))
        assert (verdict.evidence["distance"] == 0) == verdict.stop
        stops += [step] if verdict.stop else []
    assert stops[0] < 60
