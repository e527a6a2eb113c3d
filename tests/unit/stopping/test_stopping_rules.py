"""The criteria and their combination, each on sequences whose outcome is known by hand."""

import copy
import json
import math
import random
import statistics
import time

import pytest

from wmtp.stopping import (
    Convergence,
    EarlyStoppingConfig,
    GradientStability,
    NonFinite,
    Observation,
    Rules,
    VarianceBounds,
)

NAN, INF = math.nan, math.inf


def fold(rule, name, values, first_step=1):
    """(state at the end, verdicts); a value of None is an observation without the metric."""
    state, verdicts = rule.init(), []
    for step, value in enumerate(values, first_step):
        state, verdict = rule.update(state, Observation(step, {} if value is None else {name: value}))
        verdicts.append(verdict)
    return state, verdicts


def holds(rule, name, values):
    return [verdict.stop for verdict in fold(rule, name, values)[1]]


def plain(**settings):
    return Rules(EarlyStoppingConfig(enabled=True, **settings))


def run(rule, rows, first_step=1):
    """Verdicts on rows of (loss, grad_norm, value_variance), None for a missing one; and the last state."""
    state, verdicts = rule.init(), []
    for step, row in enumerate(rows, first_step):
        metrics = {k: v for k, v in zip(("loss", "grad_norm", "value_variance"), row, strict=True) if v is not None}
        state, verdict = rule.update(state, Observation(step, metrics))
        verdicts.append(verdict)
    return state, verdicts


# Convergence


def test_improvement_has_to_exceed_min_delta():
    rule = Convergence("loss", patience=2, min_delta=0.25)
    state, verdicts = fold(rule, "loss", [1.0, 0.75, 0.5, 0.5])
    assert state["best_value"] == 0.5  # 0.75 is not below 1 - 0.25, 0.5 is
    assert (state["best_step"], state["counter"]) == (3, 1)
    assert [verdict.evidence["counter"] for verdict in verdicts] == [0, 1, 0, 1]
    assert [verdict.evidence["distance"] for verdict in verdicts] == [1.0, 0.5, 1.0, 0.5]


def test_the_message_has_the_numbers():
    verdict = fold(Convergence("loss", 2, 0.01), "loss", [2.0, 1.5, 1.51, 1.495])[1][-1]
    assert verdict.message == (
        "loss did not improve by more than 0.01 in 2 checks in a row: best 1.5 at step 2, now 1.495"
    )


def test_one_rise_is_no_divergence():
    verdicts = fold(Convergence("loss", patience=1, min_delta=0.1), "loss", [2.0, 1.0, 7.0])[1]
    assert [verdict.reason for verdict in verdicts] == ["", "", "converged"]


# Non-finite values


def test_a_finite_value_renews_the_budget():
    assert holds(NonFinite("loss", 2), "loss", [NAN, 1.0, INF, None, 1.0, -INF, None, NAN]) == [False] * 7 + [True]


# Gradients


def test_window_has_to_be_full():
    rule = GradientStability(threshold=1.0, window=4, ratio=0.5)
    assert holds(rule, "grad_norm", [2.0, 2.0, 2.0, 0.5]) == [False, False, False, True]


def test_ten_norms_of_which_seven_exceed():
    rule = GradientStability(threshold=50.0, window=10, ratio=0.7)
    over, under = 51.0, 50.0  # at the threshold is not over it
    assert holds(rule, "grad_norm", [over] * 6 + [under] * 4 + [over])[-2:] == [False, False]
    assert holds(rule, "grad_norm", [under] * 3 + [over] * 7)[-2:] == [False, True]
    assert holds(rule, "grad_norm", [over] * 7 + [under] * 4)[-2:] == [True, False]


def test_norms_that_are_not_finite_exceed_and_missing_ones_do_not_count():
    rule = GradientStability(threshold=1e9, window=3, ratio=1.0)
    assert holds(rule, "grad_norm", [NAN, None, INF, -INF, None]) == [False, False, False, True, True]


@pytest.mark.parametrize("size", range(1, 30))
def test_shares_are_exact(size):
    for count in range(1, size + 1):  # k of n reaches the ratio k/n, written as a decimal or not
        rule = GradientStability(threshold=1.0, window=size, ratio=count / size)
        assert holds(rule, "grad_norm", [0.0] * (size - count) + [2.0] * count)[-1]
        assert not holds(rule, "grad_norm", [0.0] * (size - count + 1) + [2.0] * (count - 1))[-1]


# Variance


def test_a_fresh_head_is_waited_for_and_a_later_collapse_or_explosion_is_caught():
    rule = VarianceBounds(low=0.1, high=5.0, grace=20)
    fresh = [0.07, 0.08, 0.09]
    assert holds(rule, "value_variance", [*fresh, 0.1, 0.5, 5.0]) == [False] * 6
    assert holds(rule, "value_variance", [*fresh, 0.3, 0.02, 0.3]) == [False] * 4 + [True, False]
    assert holds(rule, "value_variance", [*fresh, 0.3, 5.1]) == [False] * 4 + [True]
    assert holds(rule, "value_variance", [*fresh, 0.3, INF]) == [False] * 4 + [True]


def test_a_head_that_never_gets_there_is_caught_after_the_grace():
    assert holds(VarianceBounds(0.1, 5.0, grace=20), "value_variance", [0.07] * 22) == [False] * 20 + [True] * 2
    assert holds(VarianceBounds(0.1, 5.0, grace=0), "value_variance", [0.07]) == [True]


def test_each_bound_alone_works_and_nan_is_undefined():
    assert holds(VarianceBounds(0.1, None, 0), "value_variance", [1e9, 0.0]) == [False, True]
    assert holds(VarianceBounds(None, 5.0, 0), "value_variance", [0.0, 5.1]) == [False, True]
    assert holds(VarianceBounds(None, None, 0), "value_variance", [0.0, 1e9, INF]) == [False] * 3
    rule = VarianceBounds(0.1, 5.0, grace=2)
    assert holds(rule, "value_variance", [NAN, 0.0, NAN, None, 0.0, NAN, 0.0]) == [False] * 6 + [True]


# The combination


def test_modes_differ_in_what_they_act_on_and_agree_in_what_they_see():
    rows = [(1.0, 9.0, 1.0), (1.0, 9.0, 1.0), (1.0, 9.0, 0.0), (1.0, 9.0, 1.0), (1.0, 0.1, 1.0), (1.0, 0.1, 1.0)]
    settings = {
        "patience": 3,
        "grad_norm_threshold": 1.0,
        "grad_norm_window_size": 4,
        "grad_norm_threshold_ratio": 0.75,
        "variance_min": 0.1,
    }
    reasons = {
        mode: [(verdict.stop, verdict.reason) for verdict in run(plain(mode=mode, **settings), rows)[1]]
        for mode in ("any", "all", "loss_only")
    }
    assert reasons["any"] == [(False, "")] * 2 + [(True, "variance_invalid")] * 4
    assert reasons["loss_only"] == [(False, "")] * 3 + [(True, "converged")] * 3
    assert reasons["all"] == [(False, "")] * 5 + [(True, "converged")]
    seen = run(plain(mode="all", **settings), rows)[1]
    assert [set(verdict.fired) for verdict in seen] == [
        set(),
        set(),
        {"variance_invalid"},
        {"gradient_unstable", "converged"},
        {"gradient_unstable", "converged"},
        {"converged"},
    ]
    stop = run(plain(mode="loss_only", **settings), rows)[1][-1]
    assert stop.fired == ("gradient_unstable", "converged")  # seen, though not acted on
    assert stop.message.startswith("loss did not improve")
    assert "grad_norm was above 1 in 4 of the last 4 checks" in stop.message


def test_failure_goes_before_convergence_in_the_reason():
    settings = {"patience": 2, "grad_norm_threshold": 1.0, "grad_norm_window_size": 3, "variance_max": 5.0}
    verdict = run(plain(**settings), [(1.0, 9.0, 1.0), (1.0, 9.0, 1.0), (1.0, 9.0, 9.0)])[1][-1]
    assert verdict.reason == "gradient_unstable"
    assert verdict.fired == ("gradient_unstable", "variance_invalid", "converged")


def test_a_run_that_blows_up_has_not_finished_in_good_health():
    rows = [(value, 0.1, 1.0) for value in (1.0, 0.5, 1.0, 2.0, 4.0)]
    verdict = run(plain(patience=3, mode="all", grad_norm_threshold=1.0, variance_max=5.0), rows)[1][-1]
    assert (verdict.stop, verdict.reason) == (True, "diverged")
    assert "got worse in 3 checks" in verdict.message


def test_not_finite_stops_in_every_mode_and_is_never_convergence():
    for mode in ("any", "all", "loss_only"):
        state, verdicts = run(plain(mode=mode, patience=1, max_nonfinite=2), [(NAN, None, None), (INF, None, None)])
        assert [verdict.reason for verdict in verdicts] == ["", "non_finite"]
        assert (state["best_value"], state["counter"]) == (None, 0)


def test_converged_but_unwell_does_not_stop_on_a_nan():
    rule = plain(mode="all", patience=1, grad_norm_threshold=1.0, grad_norm_window_size=1)
    verdicts = run(rule, [(1.0, 9.0, None), (1.0, 9.0, None), (NAN, 0.1, None), (1.0, 0.1, None)])[1]
    assert [verdict.stop for verdict in verdicts] == [False, False, False, True]


def test_steps_before_min_steps_are_ignored_not_delayed():
    rows = [(0.1, 99.0, 0.0), (NAN, 99.0, 0.0), (0.1, 99.0, 0.0)] + [(1.0, 0.1, 1.0), (0.9, 0.1, 1.0)] * 2
    settings = {"patience": 9, "grad_norm_threshold": 1.0, "grad_norm_window_size": 3, "variance_min": 0.1}
    rule = plain(min_steps=4, max_nonfinite=1, variance_grace_steps=0, **settings)
    state, verdicts = run(rule, rows)
    assert not any(verdict.stop for verdict in verdicts)
    assert all(verdict.evidence == {} for verdict in verdicts[:3])
    assert (state["best_value"], state["best_step"], state["grad_norm_history"]) == (0.9, 5, [False] * 3)
    assert run(plain(min_steps=4), [(1.0, None, None)], first_step=4)[0]["best_step"] == 4  # step 4 is not before 4


def test_observations_without_the_monitored_metric_change_nothing():
    rule = plain(patience=1, grad_norm_threshold=1.0, grad_norm_window_size=1, variance_grace_steps=0, variance_min=1)
    state, _ = rule.update(rule.init(), Observation(1, {"loss": 1.0}))
    after, verdict = rule.update(state, Observation(2, {"grad_norm": 99.0, "value_variance": 0.0}))
    assert after == state
    assert (verdict.stop, verdict.fired, verdict.evidence) == (False, (), {})


def test_shadow_records_the_first_stop_and_goes_on():
    rows = [(1.0, None, None)] * 3 + [(0.5, None, None)] + [(0.5, None, None)] * 3
    state, verdicts = run(plain(patience=2, shadow=True), rows)
    assert not any(verdict.stop or verdict.reason for verdict in verdicts)
    assert [verdict.evidence["shadow_stop"] for verdict in verdicts] == [None] * 2 + [
        {"step": 3, "reason": "converged"}
    ] * 5
    assert (state["best_value"], state["counter"], state["stopped"]) == (0.5, 3, None)


def test_disabled_never_stops_but_tracks_the_best():
    rule = Rules(EarlyStoppingConfig(patience=1, max_nonfinite=1))
    state, verdicts = run(rule, [(1.0, None, None), (NAN, None, None)] + [(2.0, None, None)] * 5)
    assert not any(verdict.stop or verdict.reason for verdict in verdicts)
    assert all(verdict.evidence["distance"] == 1 for verdict in verdicts)
    assert state["best_value"] == 1.0


# Of every rule: pure, JSON, bounded

RULES = {
    "convergence": Convergence("loss", 3, 1e-4),
    "non_finite": NonFinite("loss", 3),
    "gradient": GradientStability(1.0, 5, 0.7),
    "variance": VarianceBounds(0.1, 5.0, 3),
    **{
        f"{mode}{' shadow' * shadow}": Rules(
            EarlyStoppingConfig(
                enabled=True,
                mode=mode,
                shadow=shadow,
                patience=6,
                grad_norm_threshold=1.0,
                variance_min=0.1,
                variance_max=5.0,
            )
        )
        for mode in ("any", "all", "loss_only")
        for shadow in (False, True)
    },
}


def noisy(rng, step):
    values = {"loss": rng.gauss(2, 0.3), "grad_norm": rng.expovariate(1), "value_variance": rng.expovariate(1)}
    return Observation(step, {k: rng.choice([v] * 8 + [NAN, INF]) for k, v in values.items() if rng.random() < 0.9})


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_update_is_pure_and_its_state_json(rule):
    rng = random.Random(1)
    state = rule.init()
    for step in range(1, 60):
        seen, before = noisy(rng, step), copy.deepcopy(state)
        new, verdict = rule.update(state, seen)
        assert state == before
        assert json.loads(json.dumps(new, allow_nan=False)) == new
        assert json.loads(json.dumps(dict(verdict.evidence), allow_nan=False)) == verdict.evidence
        assert rule.update(json.loads(json.dumps(before)), seen) == (new, verdict)
        assert new.keys() == state.keys()
        state = new


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_state_does_not_grow_with_the_run(rule):
    rng, state, sizes = random.Random(2), rule.init(), {}
    for step in range(1, 5001):
        state, _ = rule.update(state, noisy(rng, step))
        sizes[step] = len(json.dumps(state))
    assert sizes[5000] <= sizes[50] + 60  # a few digits more, and the record of a shadow stop


def test_a_decision_with_everything_on_takes_microseconds():
    rule = plain(
        patience=10**6, grad_norm_threshold=1.0, grad_norm_threshold_ratio=1.0, variance_min=0.1, variance_max=5.0
    )
    state, seconds = rule.init(), []
    for step in range(1, 3001):
        seen = Observation(step, {"loss": 1 / step, "grad_norm": 0.5 + step % 2, "value_variance": 1.0})
        start = time.perf_counter()
        state, verdict = rule.update(state, seen)
        seconds.append(time.perf_counter() - start)
        assert not verdict.stop
    assert statistics.median(seconds) < 100e-6  # 11 us on a quiet machine


@pytest.mark.parametrize(
    ("variances", "stops_at"),
    [
        ([0.0, 0.001, 0.05] * 20, None),  # a fresh head that learns slowly
        ([0.0, 0.05, 0.2, 0.3, 0.05], 4),  # it was there, and collapses
        ([0.0, 0.05, 7.0], 2),  # it explodes without having been there
        ([0.0, float("inf")], 1),
        ([0.5, 0.4, 0.2], None),
    ],
)
def test_without_a_grace_too_low_counts_only_after_one_that_was_not(variances, stops_at):
    rule = plain(patience=10**6, variance_min=0.1, variance_max=5.0, variance_grace_steps=None)
    state, stopped = rule.init(), None
    for step, variance in enumerate(variances):
        state, verdict = rule.update(state, Observation(step, {"loss": 1.0, "value_variance": variance}))
        if verdict.stop and stopped is None:
            stopped = step
            assert verdict.reason == "variance_invalid"
    assert stopped == stops_at
