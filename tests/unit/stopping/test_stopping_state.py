"""The stoppers: what they monitor, how long a stop lasts, what a saved state does under changed settings."""

import json
import math
import random
import warnings

import pytest

from wmtp.errors import CheckpointError, SettingsError
from wmtp.stopping import EarlyStoppingConfig, LossEarlyStopping, Observation, ValueHeadEarlyStopping


def loss_stopper(**settings):
    return LossEarlyStopping({"enabled": True, **settings})


def feed(stopper, *losses):
    return [stopper.should_stop({"loss": value}) for value in losses]


def loaded(state, **settings):
    stopper = loss_stopper(**settings)
    stopper.load_state(json.loads(json.dumps(state)))
    return stopper


def test_loss_means_the_stage_s_own_loss():
    first = ValueHeadEarlyStopping({"enabled": True, "patience": 1})
    assert [first.should_stop({"loss": -i, "value_loss": 1.0}) for i in range(2)] == [False, True]
    second = LossEarlyStopping(EarlyStoppingConfig(enabled=True, patience=1))
    assert [second.should_stop({"loss": 1.0, "value_loss": -i}) for i in range(2)] == [False, True]
    other = ValueHeadEarlyStopping({"enabled": True, "patience": 1, "monitor": "eval_loss"})
    assert [other.should_stop({"eval_loss": 1.0, "value_loss": -i}) for i in range(2)] == [False, True]


def test_default_never_stops_and_a_typo_is_refused():
    stopper = LossEarlyStopping()
    assert not any(feed(stopper, *[1.0] * 300))
    assert (stopper.stop_reason, stopper.should_stop_flag, stopper.best_value) == (None, False, 1.0)
    with pytest.raises(SettingsError, match="did you mean patience"):
        LossEarlyStopping({"enabled": True, "patince": 3})


def test_the_published_recipe_trains_a_fresh_value_head():
    stopper = ValueHeadEarlyStopping(
        {
            "enabled": True, "mode": "any", "patience": 10, "min_delta": 1e-4, "monitor": "value_loss",
            "grad_norm_threshold": 50.0, "grad_norm_window_size": 10, "grad_norm_threshold_ratio": 0.7,
            "variance_min": 0.1, "variance_max": 5.0,
        }
    )  # fmt: skip
    growing = [0.07 + 0.01 * i for i in range(30)]
    for i, variance in enumerate(growing):
        metrics = {"value_loss": 1 - 0.01 * i, "grad_norm": 3.0, "value_variance": variance}
        assert not stopper.should_stop(metrics)
    state = stopper.get_state()
    for sick in (0.02, 7.5):
        stopper.load_state(state)
        assert stopper.should_stop({"value_loss": 0.5, "grad_norm": 3.0, "value_variance": sick})
        assert stopper.stop_reason == "variance_invalid"


def test_calls_are_counted_from_one_unless_told_the_step():
    stopper = loss_stopper(min_steps=3, patience=1)
    assert feed(stopper, 1.0, 1.0, 1.0, 1.0) == [False, False, False, True]
    assert stopper.best_step == 3
    stopper = loss_stopper(min_steps=100, patience=1)
    assert [stopper.should_stop({"loss": 1.0}, step=step) for step in (99, 100, 200)] == [False, False, True]


def test_a_stop_lasts_until_reset():
    stopper = loss_stopper(patience=2)
    assert feed(stopper, 1.0, 1.0, 1.0) == [False, False, True]
    stop = stopper.verdict
    assert feed(stopper, 0.1, math.nan) == [True, True]
    assert stopper.should_stop({"lr": 0.1})
    assert stopper.verdict == stop
    assert (stopper.best_value, stopper.counter, stopper.stop_reason) == (1.0, 2, "converged")
    resumed = loaded(stopper.get_state(), patience=2)
    assert resumed.should_stop_flag
    assert resumed.verdict == stop
    assert resumed.message == stop.message
    assert feed(resumed, 0.1) == [True]
    resumed.reset()
    assert (resumed.should_stop_flag, resumed.stop_reason, resumed.best_value, resumed.counter) == (
        False, None, None, 0
    )  # fmt: skip
    assert resumed.get_state() == loss_stopper(patience=2).get_state()
    assert feed(resumed, 1.0, 1.0, 1.0) == [False, False, True]


def test_state_has_what_the_specification_names_and_is_a_copy():
    stopper = loss_stopper(grad_norm_threshold=1.0)
    for norm in (0.5, 2.0, math.nan):
        stopper.should_stop({"loss": 1.0, "grad_norm": norm})
    state = stopper.get_state()
    assert json.loads(json.dumps(state, allow_nan=False)) == state
    assert (state["best_value"], state["counter"], state["step"]) == (1.0, 2, 3)
    assert state["grad_norm_history"] == [False, True, True]
    state["grad_norm_history"].clear()
    state["config"]["patience"] = 1
    assert stopper.get_state()["grad_norm_history"] == [False, True, True]
    assert stopper.get_state()["config"]["patience"] == 100


def test_resumed_at_every_point_equals_uninterrupted():
    settings = {"patience": 4, "grad_norm_threshold": 2.0, "variance_min": 0.1, "mode": "all", "max_nonfinite": 2}
    for seed in range(20):
        rng = random.Random(seed)
        history = [
            Observation(
                step,
                {
                    "loss": rng.choice([math.nan, *[rng.gauss(2, 0.3)] * 4]),
                    "grad_norm": rng.expovariate(1),
                    "value_variance": rng.expovariate(2),
                },
            )
            for step in range(1, 25)
        ]
        whole = loss_stopper(**settings)
        verdicts, states = [], []
        for seen in history:
            states.append(whole.get_state())
            verdicts.append(whole.observe(seen))
        for cut, state in enumerate(states):
            resumed = loaded(state, **settings)
            assert [resumed.observe(seen) for seen in history[cut:]] == verdicts[cut:]
            assert resumed.get_state() == whole.get_state()


def test_changed_settings_win_with_a_warning_that_names_them():
    old = loss_stopper(patience=10)
    feed(old, 1.0, 1.0, 1.0)
    with pytest.warns(UserWarning, match=r"patience 10 -> 4, mode 'any' -> 'all'") as caught:
        new = loaded(old.get_state(), patience=4, mode="all")
    assert len(caught) == 1
    assert "stays stopped" not in str(caught[0].message)
    assert (new.config.patience, new.counter, new.best_value) == (4, 2, 1.0)
    assert feed(new, 1.0, 1.0) == [False, True]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded(new.get_state(), patience=4, mode="all")  # the same: no warning


def test_a_stopped_run_stays_stopped_under_changed_settings_unless_they_never_stop():
    old = loss_stopper(patience=2)
    feed(old, 1.0, 1.0, 1.0)
    with pytest.warns(UserWarning, match=r"patience 2 -> 50.*stays stopped \(converged\)"):
        assert feed(loaded(old.get_state(), patience=50), 0.1) == [True]
    for never in ({"enabled": False}, {"shadow": True}):
        with pytest.warns(UserWarning, match=next(iter(never))):
            new = loaded(old.get_state(), patience=2, **never)
        assert feed(new, 0.1) == [False]
        assert (new.should_stop_flag, new.stop_reason, new.best_value) == (False, None, 0.1)


def test_what_a_state_keeps_under_other_settings():
    old = loss_stopper(grad_norm_threshold=1.0, variance_min=0.1)
    for norm in (9.0, 9.0, 0.1, 0.1, 9.0):
        old.should_stop({"loss": 1.0, "grad_norm": norm, "value_variance": 1.0})
    same = {"grad_norm_threshold": 1.0, "variance_min": 0.1}

    def under(**settings):
        with pytest.warns(UserWarning, match="the new ones hold"):
            return loaded(old.get_state(), **{**same, **settings}).get_state()

    assert under(grad_norm_window_size=2)["grad_norm_history"] == [False, True]
    assert under(grad_norm_window_size=20)["grad_norm_history"] == [True, True, False, False, True]
    assert under(grad_norm_threshold=2.0)["grad_norm_history"] == []
    assert under(variance_min=0.2)["variance_armed"] is False
    other = under(monitor="eval_loss")
    assert (other["best_value"], other["counter"], other["variance_armed"]) == (None, 0, True)
    assert other["grad_norm_history"] == [True, True, False, False, True]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"counter": "3"}, "counter: '3' is not a whole number"),
        ({"counter": -1}, "counter: -1 is too small"),
        ({"best_value": math.nan}, "best_value: nan is not finite"),
        ({"grad_norm_history": [True, 3]}, "grad_norm_history: 3 is not true or false"),
        ({"grad_norm_history": None}, "grad_norm_history: None is not a list"),
        ({"variance_armed": 1}, "variance_armed: 1 is not true or false"),
        ({"stopped": {"step": 3}}, "stopped: reason: missing"),
        ({"stopped": True}, "stopped: True is not a mapping"),
        ({"config": {"patience": 0}}, "config.patience: 0 is too small"),
        ({"config": {"rule": "trendy"}}, "config.rule: there is no rule 'trendy'; did you mean trend?"),
        ({"extra": 1}, "extra: no such entry"),
    ],
)
def test_a_damaged_state_is_refused(change, words):
    stopper = loss_stopper()
    feed(stopper, 1.0)
    with pytest.raises(CheckpointError, match="damaged or of another version") as caught:
        stopper.load_state({**stopper.get_state(), **change})
    assert words in str(caught.value)
    with pytest.raises(CheckpointError, match="counter: missing"):
        stopper.load_state({k: v for k, v in stopper.get_state().items() if k != "counter"})
    assert stopper.best_value == 1.0  # and nothing of it was taken over


def test_a_metric_that_the_stage_lacks_is_refused_before_the_first_step():
    metrics = ["loss", "wmtp_loss", "grad_norm", "lr", "eval_loss"]
    with pytest.raises(SettingsError, match=r"no metric 'eval_los'; did you mean eval_loss\?"):
        loss_stopper(monitor="eval_los").check_metrics(metrics)
    loss_stopper(monitor="eval_loss", grad_norm_threshold=1.0).check_metrics(metrics)
    LossEarlyStopping({"monitor": "value_loss"}).check_metrics(metrics)  # disabled: nothing needs it
    with pytest.raises(SettingsError):
        LossEarlyStopping({"monitor": "value_loss", "restore_best": True}).check_metrics(metrics)
    with pytest.warns(UserWarning, match="no value_variance"):
        loss_stopper(variance_max=5.0).check_metrics(metrics)
