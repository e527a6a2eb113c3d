"""Patience: every unit, both kinds of threshold, both references, every smoothing against numpy."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from wmtp.stopping import Observation, Patience

NAN, INF = math.nan, math.inf


def stop_of(rule, values, every=1, total=0):
    """Index of the value at which it holds first, None for never; and all states."""
    state, states, stop = rule.init(), [], None
    for i, value in enumerate(values):
        step = (i + 1) * every
        metrics = {} if value is None else {"loss": value}
        state, verdict = rule.update(state, Observation(step, metrics, step / 8, step * 100, step * 2.5, total))
        states.append(state)
        if verdict.stop and stop is None:
            stop = i
            assert (verdict.reason, verdict.fired) == ("converged", ("converged",))
            assert "loss has not improved for" in verdict.message
    return stop, states


FLAT = [2.0, 1.0] + [1.0] * 60  # the last improvement is at index 1


@pytest.mark.parametrize(
    ("unit", "patience", "every", "index"),
    [
        ("checks", 4, 1, 5),
        ("checks", 4, 10, 5),  # a check is a check, however far apart
        ("steps", 4, 1, 5),
        ("steps", 40, 10, 5),
        ("steps", 41, 10, 6),  # the first check that is 41 steps or more later is 50 later
        ("epochs", 0.5, 1, 5),  # 8 steps an epoch
        ("epochs", 1.25, 2, 6),
        ("tokens", 400, 1, 5),  # 100 a step
        ("tokens", 401, 1, 6),
        ("seconds", 10, 1, 5),  # 2.5 a step
        ("seconds", 0.1, 1, 2),
    ],
)
def test_units(unit, patience, every, index):
    assert stop_of(Patience("loss", patience, unit), FLAT, every)[0] == index


@pytest.mark.parametrize("unit", ["steps", "epochs", "tokens", "seconds"])
def test_time_without_values_counts_but_needs_a_value_to_be_judged(unit):
    gap = [1.0, None, None, NAN, INF, None, 1.0]
    amount = {"steps": 6, "epochs": 6 / 8, "tokens": 600, "seconds": 15}[unit]
    assert stop_of(Patience("loss", amount, unit), gap)[0] == 6
    assert stop_of(Patience("loss", amount + 0.01, unit), gap)[0] is None


def test_values_that_are_not_finite_are_no_checks():
    assert stop_of(Patience("loss", 3), [NAN, 1.0, NAN, INF, -INF, None, 1.0, 1.0, NAN, 1.0])[0] == 9


@pytest.mark.parametrize(
    ("settings", "improves"),
    [
        ({}, 0.999),
        ({"min_delta": 0.25}, 0.74),
        ({"min_relative": 0.25}, 0.74),
        ({"min_delta": 0.25, "min_relative": 0.01}, 0.74),  # the larger of the two
        ({"min_delta": 0.01, "min_relative": 0.25}, 0.74),
    ],
)
def test_an_improvement_exceeds_the_threshold(settings, improves):
    rule = Patience("loss", 2, **settings)
    threshold = max(settings.get("min_delta", 0), settings.get("min_relative", 0))
    assert stop_of(rule, [1.0, 1.0 - threshold, 1.0 - threshold])[0] == 2  # equal is not more
    assert stop_of(rule, [1.0, improves, improves, 0.0])[0] is None


@pytest.mark.parametrize("scale", [1.0, -1.0])
def test_a_relative_threshold_is_of_the_size_also_of_a_negative_metric(scale):
    """Ignite's `score > best * (1 + delta)` makes an improvement of none where the metric is negative."""
    start = 1.0 if scale > 0 else -1.0
    worse_or_same = [start, start, start + 0.05, start]
    assert stop_of(Patience("loss", 3, min_relative=0.1), worse_or_same)[0] == 3
    better = [start]
    for _ in range(20):
        better.append(better[-1] - 0.11 * abs(better[-1]))
    assert stop_of(Patience("loss", 1, min_relative=0.1), better)[0] is None
    slower = [start, start - 0.09, start - 0.09]
    assert stop_of(Patience("loss", 2, min_relative=0.1), slower)[0] == 2


@pytest.mark.parametrize("setting", ["min_delta", "min_relative"])
def test_small_improvements_add_up_or_never_count(setting):
    """-0.009 per check at threshold .01: transformers and Ignite move the reference along and stop."""
    creeping = [1 - 0.009 * i for i in range(60)]
    stop, states = stop_of(Patience("loss", 3, **{setting: 0.01}), creeping)
    assert stop is None
    assert max(state["waited"] for state in states) == 1  # every second check is an improvement
    stop, states = stop_of(Patience("loss", 3, reference="best", min_delta=0.01), creeping)
    assert stop == 3
    assert states[3]["reference"] == creeping[3]


def test_references_differ_in_what_they_hold():
    values = [1.0, 0.95, 0.97, 0.7]
    qualifying = stop_of(Patience("loss", 9, min_delta=0.1), values)[1]
    assert [state["reference"] for state in qualifying] == [1.0, 1.0, 1.0, 0.7]
    best = stop_of(Patience("loss", 9, min_delta=0.1, reference="best"), values)[1]
    assert [state["reference"] for state in best] == [1.0, 0.95, 0.95, 0.7]
    assert [state["waited"] for state in best] == [0, 1, 2, 0]


def smoothed(values, how, window):
    if how == "none":
        return np.array(values)
    if how == "exponential":
        out = [values[0]]
        for value in values[1:]:
            out.append(np.average([out[-1], value], weights=[window - 1, 2]))
        return np.array(out)
    windows = [values[max(0, i + 1 - window) : i + 1] for i in range(len(values))]
    return np.array([getattr(np, how)(one) for one in windows])


@pytest.mark.parametrize("window", [1, 2, 5, 10])
@pytest.mark.parametrize("how", ["none", "exponential", "mean", "median"])
def test_smoothing_against_numpy(how, window):
    rng = random.Random(window)
    for _ in range(30):
        values = [math.exp(-i / 20) + rng.gauss(0, 0.2) for i in range(60)]
        rule = Patience("loss", 8, smoothing=how, smoothing_window=window)
        x = smoothed(values, how, window)
        best, since, expected, lowest = math.inf, 0, None, []
        for i, one in enumerate(x):
            best, since = (one, 0) if one < best else (best, since + 1)
            lowest.append(best)
            expected = i if since >= 8 and expected is None else expected
        stop, states = stop_of(rule, values)
        assert stop == expected
        np.testing.assert_allclose([state["reference"] for state in states], lowest, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("how", ["exponential", "mean", "median"])
def test_smoothing_keeps_no_more_than_its_window_and_nothing_that_is_not_finite(how):
    _, states = stop_of(Patience("loss", 99, smoothing=how, smoothing_window=4), [1.0, NAN, 2.0, INF, 3.0, 4.0] * 5)
    assert max(len(state["recent"]) for state in states) == (1 if how == "exponential" else 4)
    assert all(math.isfinite(value) for state in states for value in state["recent"])


def test_distance_and_evidence_count_down():
    rule, state, distances = Patience("loss", 4), Patience("loss", 4).init(), []
    for step, value in enumerate([1.0, 1.0, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0], 1):
        state, verdict = rule.update(state, Observation(step, {"loss": value}))
        distances.append(verdict.evidence["distance"])
        assert verdict.stop == (distances[-1] == 0)
        assert verdict.evidence["reference"] == (1.0 if step < 4 else 0.5)
    assert distances == [1, 0.75, 0.5, 1, 0.75, 0.5, 0.25, 0, 0]
