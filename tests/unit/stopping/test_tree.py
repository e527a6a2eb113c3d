"""Rules of rules: against truth tables, over different cadences, as a recipe names them, under changed settings."""

from __future__ import annotations

import itertools
import json
import random
import warnings

import pytest

from wmtp.errors import CheckpointError
from wmtp.stopping import EarlyStoppingConfig, EarlyStoppingConfigError, LossEarlyStopping, Observation, Rules
from wmtp.stopping.tree import REASONS, parse

# Three leaves with a reason of their own each, of which a test says at every observation whether it holds.
SWITCHES = {
    "a": ({"target": {"monitor": "a", "below": 0.5}}, "target_reached"),
    "b": ({"patience": {"monitor": "b", "patience": 1}}, "converged"),
    "c": ({"divergence": {"monitor": "c", "limit": 0.5, "limit_checks": 1, "warmup": 10**6}}, "diverged"),
}
VALUES = {"a": (1.0, 0.0), "b": (None, 1.0), "c": (0.0, 1.0)}
"""Of each switch the value at which it does not hold, and at which it does; b's falls for ever while it doesn't."""


def value_of(name, on, step):
    return 10.0 - step if name == "b" and not on else 20.0 if name == "b" else VALUES[name][on]


def rule_of(shape):
    if isinstance(shape, str):
        return SWITCHES[shape][0]
    how, *inner = shape
    return {how: [rule_of(one) for one in inner]}


def oracle(shape, on):
    """(whether it holds, codes that make it hold), by recursion over what every leaf says."""
    if isinstance(shape, str):
        return on.get(shape, False), {SWITCHES[shape][1]} if on.get(shape, False) else set()
    how, *inner = shape
    said = [oracle(one, on) for one in inner]
    holds = any(one for one, _ in said) if how == "any" else all(one for one, _ in said)
    return holds, set().union(*(codes for one, codes in said if one)) if holds else set()


SHAPES = [
    ("any", "a", "b", "c"),
    ("all", "a", "b", "c"),
    ("any", "a", ("all", "b", "c")),
    ("all", "a", ("any", "b", "c")),
    ("all", ("any", "a", "b"), ("any", "b", "c")),
    ("any", ("all", "a", "b"), ("all", "a", ("any", "c", "b"))),
    ("any", "b"),
    ("all", ("all", ("any", "c"))),
]
IDS = [json.dumps(shape).translate(str.maketrans("", "", '",')) for shape in SHAPES]


def tree_of(value):
    rule, faults = parse(value, "loss", {})
    assert not faults
    return rule


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_truth_table(shape):
    rule = tree_of(rule_of(shape))
    for row in itertools.product([False, True], repeat=3):
        on = dict(zip("abc", row, strict=True))
        state, _ = rule.update(rule.init(), Observation(1, {"a": 1.0, "b": 15.0, "c": 0.0}))
        state, verdict = rule.update(state, Observation(2, {name: value_of(name, on[name], 2) for name in "abc"}))
        holds, codes = oracle(shape, on)
        assert (verdict.stop, set(verdict.fired)) == (holds, codes)
        assert verdict.reason == "+".join(sorted(codes, key=REASONS.index))  # most serious first
        assert (verdict.evidence["distance"] == 0) == holds


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_rules_of_different_cadence_stand_by_what_they_said_last(shape):
    rng, rule = random.Random(0), tree_of(rule_of(shape))
    for _ in range(60):
        state, said = rule.init(), {}
        for step in range(1, 20):
            now = {name: rng.random() < 0.5 for name in "abc" if rng.random() < 0.4}
            if "b" in now and "b" not in said:
                now["b"] = False  # a first value is what the next are compared with
            metrics = {name: value_of(name, on, step) for name, on in now.items()}
            state, verdict = rule.update(json.loads(json.dumps(state)), Observation(step, metrics))
            said |= now
            holds, codes = oracle(shape, said)
            assert (verdict.stop, set(verdict.fired)) == (holds, codes)
            assert (verdict.evidence["distance"] == 0) == holds


def test_distance_is_that_of_the_nearest_or_of_the_farthest():
    leaves = [{"patience": {"patience": 4}}, {"patience": {"patience": 10}}, {"budget": {"steps": 8}}]
    for how, nearest in (("any", min), ("all", max)):
        rule, state = tree_of({how: leaves}), tree_of({how: leaves}).init()
        for step in range(1, 9):
            state, verdict = rule.update(state, Observation(step, {"loss": 1.0}))
            expected = nearest(1 - (step - 1) / 4, 1 - (step - 1) / 10, 1 - step / 8)
            assert verdict.evidence["distance"] == pytest.approx(max(0.0, expected))


def test_evidence_of_each_rule_is_under_its_name():
    inner = {"all": ["patience", {"budget": {"steps": 9}}]}
    rule = tree_of({"any": ["patience", {"patience": {"patience": 3}}, {"target": {"below": 0}}, inner, inner]})
    verdict = rule.update(rule.init(), Observation(1, {"loss": 1.0}))[1]
    assert set(verdict.evidence) == {"patience_1", "patience_2", "target", "all_1", "all_2", "distance"}
    assert set(verdict.evidence["all_1"]) == {"patience", "budget", "distance"}
    assert verdict.evidence["patience_2"] == {"reference": 1.0, "waited": 0.0, "distance": 1.0}


def test_a_code_that_fires_twice_is_named_once_and_every_message_is_told():
    rule = {"any": [{"patience": {"patience": 2}}, {"patience": {"patience": 1, "unit": "steps"}}]}
    stopper = LossEarlyStopping({"enabled": True, "rule": {"all": [rule, {"target": {"below": 3}}]}})
    assert [stopper.should_stop({"loss": 2.0}) for _ in range(2)] == [False, True]
    assert (stopper.stop_reason, stopper.verdict.fired) == ("converged+target_reached", ("converged", "target_reached"))
    assert "has not improved for 1 steps" in stopper.message
    assert "has been below 3" in stopper.message


def test_a_rule_without_a_metric_of_its_own_takes_the_block_s_and_names_stand_for_the_stage_s():
    rule = tree_of(
        {"any": ["trend", {"divergence": {"monitor": "grad_norm"}}, "critic_health", {"budget": {"steps": 1}}]}
    )
    assert rule.monitors == ("loss", "grad_norm", "explained_variance", "variance_ratio")
    renamed, _ = parse({"any": ["trend", {"target": {"monitor": "x", "below": 1}}]}, "loss", {"loss": "value_loss"})
    assert renamed.monitors == ("value_loss", "x")


# As a recipe names them

MISTAKES = {
    "unknown rule": ("trendy", ["rule: ", "'trendy'", "did you mean trend?"]),
    "unknown in a nest": ({"any": ["trend", "budgt"]}, ["rule.any[1]", "'budgt'", "did you mean budget?"]),
    "unknown setting": ({"trend": {"windw": 0.1}}, ["rule.trend.windw", "did you mean window?"]),
    "bad value": ({"patience": {"patience": -3}}, ["rule.patience.patience", "-3", "above 0"]),
    "wrong type": ({"divergence": {"persist": "long"}}, ["rule.divergence.persist", "'long'", "a whole number"]),
    "no choice": ({"patience": {"unit": "hours"}}, ["rule.patience.unit", "'hours'", "seconds"]),
    "not settings": ({"trend": [1]}, ["rule.trend", "[1]", "not a mapping of settings"]),
    "two rules": ({"trend": {}, "patience": {}}, ["rule: ", "not a rule", "critic_health"]),
    "nothing": (None, ["rule: None", "not a rule"]),
    "number": (3, ["rule: 3", "not a rule"]),
    "no list": ({"all": {"trend": {}}}, ["rule.all", "not a list of rules"]),
    "empty": ({"any": []}, ["rule.any", "[]", "not a list of rules"]),
    "plain nested": ({"any": ["plain"]}, ["rule.any[0]", "'plain'"]),
    "target of nothing": ("target", ["rule.target", "needs `below` or `above`"]),
    "budget of nothing": ({"budget": {}}, ["rule.budget", "needs `steps`, `epochs`, `tokens` or `seconds`"]),
    "deep": ({"any": [{"all": ["trend", {"target": {"blow": 1}}]}]}, ["rule.any[0].all[1].target.blow", "below?"]),
}


@pytest.mark.parametrize(("value", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_has_its_place_its_value_and_the_nearest_name(value, words):
    for setting, mapping in (("rule", {"rule": value}), ("shadow_rules.mine", {"shadow_rules": {"mine": value}})):
        with pytest.raises(EarlyStoppingConfigError) as caught:
            EarlyStoppingConfig.from_mapping(mapping)
        for word in words:
            word = word.replace("rule", setting, 1) if word.startswith("rule") else word
            assert word in str(caught.value)
        assert str(caught.value).startswith(f"early_stopping.{setting}")


def test_all_mistakes_are_told_at_once():
    rule = {"any": ["trendy", {"budget": {}}, {"patience": {"patience": 0, "units": "s"}}, {"all": [{"trend": 1}]}]}
    with pytest.raises(EarlyStoppingConfigError) as caught:
        EarlyStoppingConfig.from_mapping({"rule": rule, "patience": 0, "shadow_rules": {"x": "y"}, "modus": 1})
    lines = str(caught.value).split("\n")
    places = ["modus", "patience", "rule.any[0]", "rule.any[1].budget", "rule.any[2].patience.units"]
    places += ["rule.any[2].patience.patience", "rule.any[3].all[0].trend", "shadow_rules.x"]
    assert sorted(line.split(": ")[0] for line in lines) == sorted(f"early_stopping.{place}" for place in places)


@pytest.mark.parametrize("value", ["trend", {"trend": {}}, {"trend": None}, {"trend": {"monitor": ""}}])
def test_ways_to_write_the_same_rule(value):
    assert tree_of(value) == tree_of("trend")


# In the shadow

SHADOW = {
    "quick": {"patience": {"patience": 2}},
    "slow": {"patience": {"patience": 5}},
    "done": {"budget": {"steps": 4}},
}


@pytest.mark.parametrize("rule", ["plain", "trend", {"all": ["trend", "patience"]}])
@pytest.mark.parametrize("enabled", [True, False])
def test_rules_in_the_shadow_record_their_first_stop_and_never_stop(rule, enabled):
    config = EarlyStoppingConfig.from_mapping({"enabled": enabled, "rule": rule, "shadow_rules": SHADOW})
    rules = Rules(config)
    state, log = rules.init(), []
    for step, loss in enumerate([1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5], 1):
        state, verdict = rules.update(state, Observation(step, {"loss": loss}))
        assert not verdict.stop
        log.append(verdict.evidence["shadow_rules"])
    quick, done = {"step": 3, "reason": "converged"}, {"step": 4, "reason": "budget_spent"}
    nothing = {"quick": None, "slow": None, "done": None}
    assert log[:2] == [nothing] * 2
    assert log[2] == {**nothing, "quick": quick}
    assert log[3:] == [{**nothing, "quick": quick, "done": done}] * 4


# Under changed settings


def saved(losses=(1.0,) * 4, **settings):
    stopper = LossEarlyStopping({"enabled": True, **settings})
    for loss in losses:
        stopper.should_stop({"loss": loss})
    return json.loads(json.dumps(stopper.get_state()))


def loaded(state, **settings):
    stopper = LossEarlyStopping({"enabled": True, **settings})
    stopper.load_state(state)
    return stopper


def stops_after(stopper, loss=1.0):
    return next(count for count in range(1, 99) if stopper.should_stop({"loss": loss}))


def test_another_rule_wins_with_a_warning_and_begins_anew():
    old = saved(rule={"patience": {"patience": 6}})
    with pytest.warns(UserWarning, match="rule .*the new ones hold|the new ones hold.*rule .*'any'"):
        new = loaded(old, rule={"any": [{"patience": {"patience": 6}}, "trend"]})
    assert stops_after(new) == 7  # the first of them is what the next are compared with
    assert new.best_value == 1.0  # the best value is not the rule's


def test_the_same_rule_with_other_settings_goes_on():
    old = saved(rule={"patience": {"patience": 6}})
    with pytest.warns(UserWarning, match="the new ones hold"):
        assert stops_after(loaded(old, rule={"patience": {"patience": 4}})) == 1  # it has waited for 3
    for other in ({"monitor": "eval_loss"}, {"unit": "seconds"}, {"smoothing": "mean"}, {"reference": "best"}):
        with pytest.warns(UserWarning, match="the new ones hold"):
            new = loaded(old, rule={"patience": {"patience": 6, **other}})
        assert new.get_state()["rule"]["waited"] == 0  # counted in another unit, or of another metric


def test_rules_in_the_shadow_that_are_unchanged_go_on():
    shadows = {"kept": {"patience": {"patience": 6}}, "changed": "trend", "dropped": "non_finite"}
    old = saved(rule={"patience": {"patience": 9}}, shadow_rules=shadows)
    with pytest.warns(UserWarning, match="shadow_rules"):
        new = loaded(old, rule="trend", shadow_rules={"kept": shadows["kept"], "changed": "patience", "new": "trend"})
    state = new.get_state()["shadow_rules"]
    assert set(state) == {"kept", "changed", "new"}
    assert state["kept"] == old["shadow_rules"]["kept"]
    assert state["changed"]["state"]["reference"] is None
    for _ in range(3):
        new.should_stop({"loss": 1.0})
    assert new.verdict.evidence["shadow_rules"]["kept"] == {"step": 7, "reason": "converged"}


@pytest.mark.parametrize("rule", ["trend", {"all": ["patience", {"any": ["divergence", {"budget": {"steps": 9}}]}]}])
def test_unchanged_rules_load_without_a_warning_and_damaged_states_are_refused(rule):
    old = saved(rule=rule)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loaded(old, rule=rule).get_state() == old
    for damaged in (None, {}, {**old["rule"], "more": 1}, {"rules": [], "said": []}):
        with pytest.raises(CheckpointError, match="damaged"):
            loaded({**old, "rule": damaged}, rule=rule)


@pytest.mark.parametrize(
    "inner",
    [{"steps": 3}, {"any": [{"budget": {"steps": 3}}, {"target": {"monitor": "eval_loss", "below": 0}}]}],
)
def test_a_budget_in_a_nest_is_looked_at_as_often_as_one_by_itself(inner):
    inner = {"budget": inner} if "steps" in inner else inner
    for monitor in ("loss", "eval_loss"):
        stopper = LossEarlyStopping({"enabled": True, "monitor": monitor, "rule": {"any": ["trend", inner]}})
        assert [stopper.should_stop({"loss": 1.0}) for _ in range(3)] == [False, False, True]


def test_a_damaged_state_leaves_the_stopper_as_it_was():
    stopper = LossEarlyStopping({"enabled": True, "rule": "trend", "shadow_rules": {"x": "trend"}})
    stopper.should_stop({"loss": 1.0})
    good = stopper.get_state()
    for damage in ({"rule": {}}, {"shadow_rules": {}}):
        with pytest.raises(CheckpointError):
            stopper.load_state({**good, **damage})
        assert stopper.get_state() == good
