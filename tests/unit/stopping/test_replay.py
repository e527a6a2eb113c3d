"""A replay is the live rule on the same observations; what it saves and loses is counted by hand here."""

from __future__ import annotations

import math
import random
import time
from typing import Any

import pytest

from wmtp.errors import UserError
from wmtp.stopping import LossEarlyStopping, Observation, ValueHeadEarlyStopping
from wmtp.stopping.history import History
from wmtp.stopping.replay import regret, replay, verdicts


def history(losses: list[float], every: int = 1, metric: str = "loss", **more: list[float]) -> History:
    """A run that logs each `every` steps, from step `every` on; 7 tokens and half a second a step."""
    seen = [
        Observation(
            step := every * (i + 1),
            {metric: loss, **{name: values[i] for name, values in more.items()}},
            tokens=7 * step,
            seconds=step / 2,
            total_steps=every * len(losses),
        )
        for i, loss in enumerate(losses)
    ]
    return History("run", "train", tuple(seen))


def stopper(**settings: Any) -> LossEarlyStopping:
    return LossEarlyStopping({"enabled": True, **settings})


def test_a_stop_is_counted_in_steps_tokens_and_seconds() -> None:
    # Best so far at the stop (step 50): 3. Best of all: 1, at 80. Improvement in all: 5 - 1, of it lost: 3 - 1.
    run = history([5, 3, 4, 4, 4, 4, 2, 1, 1.5, 1.5], every=10)
    found = replay(run, stopper(patience=3), name="three")
    assert (found.run, found.stage, found.rule, found.monitor, found.judge) == ("run", "train", "three", "loss", "loss")
    assert (found.stopped, found.step, found.reason, found.fired) == (True, 50, "converged", ("converged",))
    assert "best 3 at step 20" in found.message
    assert (found.last_step, found.saved, found.saved_tokens, found.saved_seconds) == (100, 0.5, 350, 25.0)
    assert found.regret == pytest.approx(2 / 4)


def test_a_run_that_goes_to_its_end_saves_and_loses_nothing() -> None:
    run = history([5.0, 4.0, 3.0])
    found = replay(run, stopper(patience=3), name="r")
    assert (found.stopped, found.step, found.reason, found.fired, found.message) == (False, None, "", (), "")
    assert (found.saved, found.saved_tokens, found.saved_seconds, found.regret) == (0.0, 0, 0.0, 0.0)


def test_another_metric_may_judge() -> None:
    """The training loss stands still from step 2 on, the held-out loss falls until step 5."""
    run = history([2.0, 1.0, 1.0, 1.0, 1.0, 1.0], eval_loss=[9.0, 8.0, 8.0, 7.0, 5.0, 6.0])
    found = replay(run, stopper(patience=2), name="r", judge="eval_loss")
    assert (found.step, found.monitor, found.judge) == (4, "loss", "eval_loss")
    assert found.regret == pytest.approx((7 - 5) / (9 - 5))
    assert replay(run, stopper(patience=2), name="r").regret == 0


@pytest.mark.parametrize(
    ("losses", "stop", "expected"),
    [
        ([4, 2, 1], 1, 1.0),
        ([4, 2, 1], 2, 1 / 3),
        ([4, 2, 1], 3, 0.0),
        ([4, 5, 6], 2, None),  # never below its first value
        ([4], 1, None),
        ([math.nan, 4, 2, -math.inf, 1], 3, 1 / 3),  # finite values alone
        ([math.nan, 4, 2], 1, None),  # nothing finite up to the stop
        ([math.nan], 1, None),
        ([], 1, None),
    ],
)
def test_regret(losses: list[float], stop: int, expected: float | None) -> None:
    assert regret(list(enumerate(losses, 1)), stop) == (expected if expected is None else pytest.approx(expected))


def test_loss_is_the_stages_own() -> None:
    run = history([1.0] * 9, metric="value_loss")
    rule = ValueHeadEarlyStopping({"enabled": True, "patience": 4})
    found = replay(run, rule, name="r", judge="loss")
    assert (found.monitor, found.judge, found.step) == ("value_loss", "value_loss", 5)


def test_a_metric_that_is_not_in_the_log_is_refused() -> None:
    run = history([1.0, 1.0], eval_loss=[1.0, 1.0])
    with pytest.raises(UserError, match=r"run, stage train: no metric 'eval_los' is logged; did you mean eval_loss\?"):
        replay(run, stopper(monitor="eval_los"), name="r")
    with pytest.raises(UserError, match=r"no metric 'eval_bleu' is logged"):
        replay(run, stopper(), name="r", judge="eval_bleu")


RULES: list[dict[str, Any]] = [
    {"patience": 3},
    {"patience": 6, "mode": "all", "grad_norm_threshold": 1.5, "grad_norm_window_size": 4},
    {"patience": 5, "monitor": "eval_loss", "min_steps": 20},
    {"patience": 50, "max_nonfinite": 1},
    {"patience": 4, "shadow": True},
    {"rule": "trend"},
    {"rule": {"any": ["trend", {"divergence": {"warmup": 5, "persist": 4}}, {"budget": {"tokens": 300}}]}},
    {"rule": {"all": [{"patience": {"patience": 9, "unit": "steps"}}, {"target": {"below": 1.2}}]}, "min_steps": 3},
    {"patience": 50, "shadow_rules": {"early": {"patience": {"patience": 4, "monitor": "eval_loss"}}}},
]


@pytest.mark.parametrize("settings", RULES)
def test_a_replay_is_the_live_run(settings: dict[str, Any]) -> None:
    """Random runs, interrupted anywhere: same step, reason and evidence at every check."""
    choose = random.Random(str(settings))
    for _ in range(40):
        losses = [3 / (1 + i / 5) + choose.gauss(0, 0.1) for i in range(60)]
        losses = [math.nan if choose.random() < 0.02 else loss for loss in losses]
        run = history(
            losses, grad_norm=[choose.expovariate(1) for _ in losses], eval_loss=losses[::-1][:30] + losses[:30]
        )
        live, cut, seen_live = stopper(**settings), choose.randrange(60), []
        for seen in run.observations:
            seen_live.append(live.observe(seen))
            if seen_live[-1].stop:
                break
            if seen.step == cut:
                resumed = stopper(**settings)
                resumed.load_state(live.get_state())
                live = resumed
        replayed = [verdict for _, verdict in verdicts(run, stopper(**settings))]
        assert repr(replayed) == repr(seen_live)  # repr: NaN is not equal to itself
        found = replay(run, stopper(**settings), name="r")
        assert found.stopped == live.should_stop_flag
        assert found.step == (len(seen_live) if live.should_stop_flag else None)
        assert found.reason == (live.stop_reason or "")


def test_a_rule_that_was_used_before_starts_afresh() -> None:
    run, rule = history([3, 2, 2, 2, 1, 1, 1]), stopper(patience=2)
    assert replay(run, rule, name="r") == replay(run, rule, name="r")


@pytest.mark.parametrize("rule", ["plain", "trend", {"any": ["trend", "divergence"]}])
def test_ten_thousand_rows_take_half_a_second(rule: Any) -> None:
    choose = random.Random(0)
    run = history([3 + choose.gauss(0, 0.1) - i / 10_000 for i in range(10_000)])
    started = time.process_time()
    found = replay(run, stopper(patience=10_000, rule=rule), name="r")
    assert not found.stopped
    assert time.process_time() - started < 2  # leaves room for a slow machine
