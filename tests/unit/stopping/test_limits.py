"""Target, budget, health of a critic, and what isn't finite, on sequences judged by hand."""

from __future__ import annotations

import math

import pytest

from wmtp.stopping import Budget, CriticHealth, NonFinite, Observation, Target

NAN, INF = math.nan, math.inf


def holds(rule, rows, name="loss"):
    """At which rows it holds; a row is a value, None for none, or a dict of metrics."""
    state, found = rule.init(), []
    for step, row in enumerate(rows, 1):
        metrics = row if isinstance(row, dict) else {} if row is None else {name: row}
        state, verdict = rule.update(state, Observation(step, metrics))
        assert verdict.stop == bool(verdict.fired) == bool(verdict.reason)
        assert verdict.stop == (verdict.evidence["distance"] == 0)
        found.append(verdict.stop)
    return found


def first(rule, rows, name="loss"):
    found = holds(rule, rows, name)
    return found.index(True) if True in found else None


# Target


@pytest.mark.parametrize(
    ("settings", "values", "index"),
    [
        ({"below": 0.5}, [1.0, 0.51, 0.5, 0.4], 2),  # at the bound it is reached
        ({"above": 0.9}, [0.1, 0.89, 0.9], 2),
        ({"below": -1.0, "above": 1.0}, [0.0, 0.99, -1.0], 2),
        ({"below": -1.0, "above": 1.0}, [0.0, 0.99, 1.5], 2),
        ({"below": 0.5, "checks": 3}, [0.4, 0.4, 0.6, 0.4, 0.4, 0.4], 5),  # in a row
        ({"below": 0.5, "checks": 2}, [0.4, None, 0.4], 2),  # one that is missing interrupts nothing
        ({"below": 0.5, "checks": 2}, [0.4, NAN, 0.4, 0.4], 3),
        ({"below": 0.5}, [-INF, NAN], None),  # a glitch is not the target
        ({"above": 0.5}, [INF, NAN], None),
        ({"below": 0.0}, [0.1, 0.0], 1),
    ],
)
def test_target(settings, values, index):
    assert first(Target("loss", **settings), values) == index


def test_target_says_what_was_reached():
    state, verdict = Target("eval_loss", below=0.5).update({"reached": 0}, Observation(3, {"eval_loss": 0.25}))
    assert (verdict.reason, state) == ("target_reached", {"reached": 1})
    assert "eval_loss" in verdict.message
    assert "0.5" in verdict.message
    assert Target("loss").faults()
    assert not Target("loss", above=1.0).faults()


# Budget


def at(step):
    """8 steps an epoch, 100 tokens and a quarter of a second a step."""
    return Observation(step, {}, step / 8, step * 100, step / 4)


@pytest.mark.parametrize(
    ("settings", "last"),
    [
        ({"steps": 20}, 20),
        ({"epochs": 2}, 16),
        ({"epochs": 0.3}, 3),
        ({"tokens": 1000}, 10),
        ({"tokens": 1001}, 11),
        ({"seconds": 3}, 12),
        ({"steps": 20, "epochs": 2, "tokens": 1000, "seconds": 3}, 10),  # the first one counts
        ({"steps": 9, "epochs": 2, "tokens": 1000, "seconds": 3}, 9),
    ],
)
def test_budget(settings, last):
    rule = Budget(**settings)
    assert not rule.faults()
    state = rule.init()
    for step in range(1, last + 4):
        state, verdict = rule.update(state, at(step))
        assert verdict.stop == (step >= last)
        taken = {"steps": step, "epochs": step / 8, "tokens": step * 100, "seconds": step / 4}
        share = max(taken[name] / budget for name, budget in settings.items())
        assert verdict.evidence["distance"] == pytest.approx(max(0.0, 1 - share))
        assert verdict.reason == ("budget_spent" if step >= last else "")
    assert any(name in verdict.message for name in settings)
    assert Budget().faults()


# A critic


def health(**settings):
    return CriticHealth(**{"min_explained_variance": None, "max_variance_ratio": None, "warmup": 0, **settings})


@pytest.mark.parametrize(
    ("settings", "name", "values", "index"),
    [
        ({"min_explained_variance": 0.2}, "explained_variance", [0.3, 0.2, 0.2, 0.1], 3),  # at the bound is not below
        ({"min_explained_variance": 0.0}, "explained_variance", [0.5, -0.1], 1),
        ({"min_variance_ratio": 0.1}, "variance_ratio", [50.0, 0.1, 0.09], 2),  # no upper bound
        ({"max_variance_ratio": 10.0}, "variance_ratio", [0.0, 10.0, 10.5], 2),  # no lower bound
        ({"min_variance_ratio": 0.1, "max_variance_ratio": 10.0}, "variance_ratio", [1.0, 0.05], 1),
        ({"min_variance_ratio": 0.1, "max_variance_ratio": 10.0}, "variance_ratio", [1.0, 11.0], 1),
        ({"min_explained_variance": 0.0}, "explained_variance", [NAN, NAN, -1.0], 2),  # NaN is of one value alone
        ({"min_explained_variance": 0.0}, "explained_variance", [0.5, -INF], 1),
        ({"max_variance_ratio": 10.0}, "variance_ratio", [1.0, INF], 1),
        ({"max_variance_ratio": 10.0}, "explained_variance", [-9.0, -INF], None),  # not looked at
    ],
)
def test_bounds_of_a_critic(settings, name, values, index):
    assert first(health(window=1, **settings), values, name) == index


@pytest.mark.parametrize("window", [1, 3, 8])
def test_the_mean_over_a_full_window_counts(window):
    values = [0.5] * window + [-0.5] * window
    mean = [sum(values[i - window + 1 : i + 1]) / window if i >= window - 1 else 1.0 for i in range(len(values))]
    expected = [one < 0 for one in mean]
    assert holds(health(min_explained_variance=0.0, window=window), values, "explained_variance") == expected
    assert expected[-1]


@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_a_fresh_head_is_waited_for(warmup):
    rule = health(min_explained_variance=0.0, warmup=warmup, window=2)
    rows = [{"explained_variance": -1.0}, {"loss": 1.0}, {"explained_variance": NAN}] * 10
    assert first(rule, rows) == 3 * (warmup + 1)  # every third row is a check; the window has two of them then
    assert first(rule, [-1.0] * warmup + [0.5] * 20, "explained_variance") is None


def test_both_measures_are_named_when_both_are_bad():
    rule = CriticHealth(min_explained_variance=0.1, min_variance_ratio=0.1, warmup=0, window=2)
    state = rule.init()
    for step in (1, 2):
        bad = {"explained_variance": 0.0, "variance_ratio": 0.02}
        state, verdict = rule.update(state, Observation(step, bad))
    assert verdict.reason == "critic_unhealthy"
    assert "explained_variance is 0, " in verdict.message
    assert "variance_ratio is 0.02, " in verdict.message
    assert (verdict.evidence["explained_variance"], verdict.evidence["variance_ratio"]) == (0.0, 0.02)


def test_a_critic_that_recovers_is_well_and_the_state_stays_small():
    rule = health(min_explained_variance=0.0, window=4)
    found = holds(rule, [-0.1] * 4 + [0.5] * 400, "explained_variance")
    assert found[3]
    assert not any(found[5:])
    state = rule.init()
    for step in range(1000):
        state, _ = rule.update(state, Observation(step, {"explained_variance": step / 7}))
    assert state["explained"] == [step / 7 for step in range(996, 1000)]


def test_what_a_critic_needs():
    assert health().faults()
    assert health(min_variance_ratio=0.1).monitors == ("variance_ratio",)
    assert health(min_explained_variance=0.1).monitors == ("explained_variance",)
    assert CriticHealth().monitors == ("explained_variance", "variance_ratio")


# What isn't finite


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_non_finite_counts_its_own_metric_in_a_row(bad):
    rule = NonFinite("eval_loss", checks=2)
    rows = [{"loss": bad}, {"eval_loss": bad}, {"loss": bad}, {"eval_loss": 1.0}, {"eval_loss": bad}, {}]
    assert first(rule, [*rows, {"eval_loss": bad}]) == 6
    state, verdict = rule.update({"nonfinite_run": 1}, Observation(7, {"eval_loss": bad}))
    assert (verdict.reason, state) == ("non_finite", {"nonfinite_run": 2})
