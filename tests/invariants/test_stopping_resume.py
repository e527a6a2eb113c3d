"""Interrupted anywhere, a run decides as if it had not been: every rule, every nesting, every interruption point.

At each prefix the state goes through JSON and one more observation is taken in. If that always gives the verdict and
the next state of the uninterrupted run, then by induction so does every later observation, however often the run is
interrupted: step, reason, what fired and the evidence are equal.
"""

from __future__ import annotations

import copy
import json
import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wmtp.stopping import EarlyStoppingConfig, LossEarlyStopping, Observation, Rules
from wmtp.stopping.tree import parse

NAN, INF = math.nan, math.inf
CURVES = 200

DIVERGENCE = {"divergence": {"threshold": 3.0, "slack": 0.5, "warmup": 4, "persist": 4}}
HEALTH = {"critic_health": {"warmup": 2, "window": 3, "min_explained_variance": 0.2, "min_variance_ratio": 0.3}}
TARGET = {"target": {"monitor": "eval_loss", "below": 1.4, "checks": 2}}
BUDGET = {"budget": {"seconds": 70, "tokens": 60_000, "epochs": 2.5, "steps": 60}}
NON_FINITE = {"non_finite": {"monitor": "eval_loss", "checks": 2}}
WAITING = {
    "monitor": "eval_loss",
    "patience": 15,
    "unit": "seconds",
    "smoothing": "median",
    "smoothing_window": 3,
    "min_relative": 0.02,
}
LEAVES = {
    "plain": "plain",
    "patience": {"patience": {"patience": 5, "smoothing": "exponential", "smoothing_window": 3}},
    "patience in seconds": {"patience": WAITING},
    "trend": {"trend": {"window": 0.25, "tolerance": 0.3, "false_stop_rate": 0.1}},
    "divergence": DIVERGENCE,
    "divergence of the gradient": {"divergence": {"monitor": "grad_norm", "limit": 4.0, "limit_checks": 2}},
    "critic_health": HEALTH,
    "target": TARGET,
    "budget": BUDGET,
    "non_finite": NON_FINITE,
}
NESTINGS = {
    "any": {
        "any": [
            {"patience": {"patience": 20}},
            {"trend": {"false_stop_rate": 0.001}},
            {"divergence": {"threshold": 20.0}},
            {"critic_health": {"warmup": 5, "window": 10}},
            {"target": {"monitor": "eval_loss", "below": -2.5}},
            {"budget": {"steps": 85}},
            {"non_finite": {"checks": 4}},
        ]
    },
    "all": {"all": [{"patience": {"patience": 2}}, {"target": {"monitor": "eval_loss", "below": 2.5}}]},
    "two levels": {"any": [{"all": [LEAVES["trend"], {"patience": {"patience": 2}}]}, {"any": [TARGET, NON_FINITE]}]},
}
RULES = LEAVES | NESTINGS
SHADOWS = {"shadow_rules": {"one": NESTINGS["two levels"], "other": DIVERGENCE}}


def curve(seed: int) -> list[Observation]:
    """Four kinds of course, several metrics at several cadences, gaps, bursts of values that are not finite."""
    rng = random.Random(seed)
    length, kind, noise = rng.randrange(25, 45), rng.choice(["falls", "flat", "overfits", "explodes"]), rng.random() / 9
    every, stride, planned = rng.choice([1, 2, 3]), rng.choice([1, 1, 2]), rng.choice([True, False])
    turn, start, burst, seconds, seen = length // 2, rng.choice([3.0, -1.0]), 0, 0.0, list[Observation]()
    for i in range(length):
        later = max(0, i - turn)
        course = {"falls": -i / 25, "flat": -min(i, 8) / 6, "overfits": later / 9 - min(i, turn) / 20, "explodes": 0}
        level = start + (1.6**later / 5 if kind == "explodes" else course[kind])
        burst = rng.randrange(1, 4) if rng.random() < 0.04 else max(0, burst - 1)
        seconds += rng.random() * 4
        metrics = {
            "loss": level + rng.gauss(0, noise),
            "grad_norm": rng.expovariate(1) + later * (kind == "explodes"),
            "explained_variance": rng.gauss(0.5, 0.3) if kind != "explodes" else rng.gauss(-0.1, 0.2),
            "variance_ratio": rng.expovariate(1),
        }
        if i % every == 0:
            metrics["eval_loss"] = level + rng.gauss(0, noise / 3)
        if burst:
            metrics = {name: rng.choice([NAN, INF, -INF, value]) for name, value in metrics.items()}
        metrics = {name: value for name, value in metrics.items() if rng.random() > 0.05}
        step = 1 + i * stride
        seen.append(Observation(step, metrics, step / 20, 900 * step, seconds, planned * length * stride))
    return seen


def settings_of(rule: object, **more: object) -> dict[str, object]:
    return {"enabled": True, "rule": rule, "patience": 7, "grad_norm_threshold": 2.0, "max_nonfinite": 4, **more}


VARIANTS = {
    **{name: settings_of(rule) for name, rule in RULES.items()},
    "with rules in the shadow": settings_of("trend", **SHADOWS),
    "plain with rules in the shadow": settings_of("plain", **SHADOWS),
    "in the shadow": settings_of(NESTINGS["any"], shadow=True, **SHADOWS),
}


def as_json(value):
    return json.loads(json.dumps(value, allow_nan=False))


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_every_curve_interrupted_at_every_point_decides_as_uninterrupted(variant):
    config, reasons, differences = EarlyStoppingConfig.from_mapping(variant), Counter[str](), 0
    rules, after = Rules(config), Rules(config)
    for seed in range(CURVES):
        state, stop = rules.init(), None
        for seen in curve(seed):
            resumed = after.update(as_json(state), seen)
            state, verdict = rules.update(state, seen)
            differences += resumed != (state, verdict)
            if stop is not None:
                assert verdict == stop  # stopped stays stopped, with the same evidence
            stop = verdict if verdict.stop else None
        shadow = [state["shadow_stop"]] if config.shadow else []
        records = [state["stopped"], *shadow, *(one["stop"] for one in state["shadow_rules"].values())]
        reasons.update(record["reason"] if record else "" for record in records)
    assert differences == 0
    assert 3 <= reasons[""] < reasons.total() - 3, "some curves have to stop and some not, or nothing was compared"


@pytest.mark.parametrize(("index", "name"), [*enumerate(VARIANTS)], ids=VARIANTS)
def test_new_objects_that_load_the_state_go_on_as_the_old_one(index, name):
    config = EarlyStoppingConfig.from_mapping(VARIANTS[name])
    for seed in range(index, CURVES, 2 * len(VARIANTS)):
        whole, differences, stopped_at = LossEarlyStopping(config), 0, []
        for seen in curve(seed):
            resumed = LossEarlyStopping(config)
            resumed.load_state(as_json(whole.get_state()))
            assert (resumed.should_stop_flag, resumed.stop_reason) == (whole.should_stop_flag, whole.stop_reason)
            differences += resumed.observe(seen) != whole.observe(seen)
            differences += resumed.get_state() != whole.get_state()
            stopped_at.append(whole.should_stop_flag)
        assert differences == 0
        assert stopped_at == sorted(stopped_at)


def test_the_curves_reach_every_reason():
    rules, reasons = Rules(EarlyStoppingConfig.from_mapping(settings_of("plain", shadow_rules=RULES_BUT_PLAIN))), set()
    for seed in range(CURVES):
        state = rules.init()
        for seen in curve(seed):
            state, _ = rules.update(state, seen)
        reasons |= {code for one in state["shadow_rules"].values() if one["stop"] for code in split(one["stop"])}
        reasons |= set(split(state["stopped"])) if state["stopped"] else set()
    assert reasons >= {"converged", "rising", "diverged", "critic_unhealthy", "target_reached", "budget_spent"}
    assert reasons >= {"non_finite", "gradient_unstable"}


def split(record):
    return record["reason"].split("+")


RULES_BUT_PLAIN = {name: rule for name, rule in RULES.items() if rule != "plain"}
PARSED = {name: parse(rule, "loss", {})[0] for name, rule in RULES_BUT_PLAIN.items()}
NUMBERS = st.one_of(st.floats(width=32), st.floats(-3, 3), st.sampled_from([NAN, INF, -INF, 0.0, 1.0]))
METRICS = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(("loss", "eval_loss", "grad_norm", "explained_variance", "variance_ratio", "lr"), NUMBERS),
)


@st.composite
def runs(draw):
    rows, stride, step = draw(st.lists(METRICS, min_size=1, max_size=40)), draw(st.integers(1, 30)), 0
    planned = draw(st.sampled_from([0, 40, 2000]))
    seen = []
    for metrics in rows:
        step += draw(st.integers(1, stride))
        seen.append(Observation(step, metrics, step / 10, step * 100, step * 2.0, planned))
    return seen


@pytest.mark.parametrize("rule", PARSED.values(), ids=PARSED)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(seen=runs())
def test_every_rule_is_a_pure_fold_with_json_state_and_a_distance(rule, seen):
    state = rule.init()
    for one in seen:
        before, copied = copy.deepcopy(state), copy.deepcopy(dict(one.metrics))
        new, verdict = rule.update(state, one)
        assert state == before
        assert repr(dict(one.metrics)) == repr(copied)  # as text: NaN is not itself
        assert as_json(new) == new
        assert as_json(dict(verdict.evidence)) == verdict.evidence
        distance = verdict.evidence["distance"]
        assert 0 <= distance <= 1
        assert not verdict.stop or distance == 0
        assert bool(verdict.reason) == bool(verdict.fired) == verdict.stop
        state = new


@pytest.mark.parametrize("name", [name for name in PARSED if "budget" not in json.dumps(RULES_BUT_PLAIN[name])])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(seen=runs())
def test_an_observation_without_its_metrics_changes_nothing(name, seen):
    rule = PARSED[name]
    state = rule.init()
    for one in seen:
        state, verdict = rule.update(state, one)
        same, again = rule.update(state, Observation(one.step, {"lr": 1.0}, one.epoch, one.tokens, one.seconds))
        assert same == state
        assert (again.stop, again.reason, again.fired) == (verdict.stop, verdict.reason, verdict.fired)


@pytest.mark.parametrize("rule", PARSED.values(), ids=PARSED)
def test_values_that_start_with_nan_are_as_if_they_came_later(rule):
    """Leaving out the first values that are not finite changes no judgement (but what counts them is new then)."""
    late, on_time = rule.init(), rule.init()
    late, _ = rule.update(late, Observation(1, dict.fromkeys(("loss", "eval_loss", "grad_norm"), NAN)))
    for step in range(2, 40):
        metrics = dict.fromkeys(("loss", "eval_loss", "grad_norm"), 3 / step)
        late, verdict = rule.update(late, Observation(step, metrics))
        on_time, expected = rule.update(on_time, Observation(step, metrics))
        assert verdict == expected
