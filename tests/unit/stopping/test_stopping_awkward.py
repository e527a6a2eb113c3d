"""Every row of the table of awkward inputs (research/early_stopping.md 1.10), with the right reason; patience 3."""

import json
import math

import pytest

from wmtp.stopping import LossEarlyStopping, ValueHeadEarlyStopping

NAN, INF = math.nan, math.inf
FALLING = [1 - 0.05 * i for i in range(16)]


def with_at(index, value):
    return [*FALLING[:index], value, *FALLING[index + 1 :]]


def blown_up(before):
    """The five values of `before`, then 1.5 times more per check."""
    return before + [before[-1] * 1.5**k for k in range(1, 11)]


ROWS = {
    "improves to the end": (FALLING, 1e-4, None, None),
    "exact plateau from 4": ([1.0, 0.9, 0.8, 0.7] + [0.6] * 10, 1e-4, 7, "converged"),
    "-0.009 per check, threshold 0.01": ([1 - 0.009 * i for i in range(100)], 0.01, None, None),
    "NaN first, then improving": (with_at(0, NAN), 1e-4, None, None),
    "one NaN at 5, improving": (with_at(5, NAN), 1e-4, None, None),
    "NaN from 5 on": (FALLING[:5] + [NAN] * 10, 1e-4, 7, "non_finite"),
    "all NaN": ([NAN] * 10, 1e-4, 2, "non_finite"),
    "inf from 5 on": (FALLING[:5] + [INF] * 10, 1e-4, 7, "non_finite"),
    "one -inf glitch, improving": (with_at(5, -INF), 1e-4, None, None),
    "diverges, after 1/(1+i)": (blown_up([1 / (1 + i) for i in range(5)]), 1e-4, 7, "diverged"),
    "diverges, after 0.9^i": (blown_up([0.9**i for i in range(5)]), 1e-4, 7, "diverged"),
    "diverges, after 0.5^i": (blown_up([0.5**i for i in range(5)]), 1e-4, 7, "diverged"),
    "diverges, after 1-0.1i": (blown_up([1 - 0.1 * i for i in range(5)]), 1e-4, 7, "diverged"),
    "diverges with a NaN in it": (
        [1, 0.9, 0.8, 0.7, 0.6, 0.9, NAN, 1.35, 2.0, 3.0], 1e-4, 8, "diverged"
    ),
    "negative metric, best -1.25 at 1, then -1.20 for ever": ([-1.0, -1.25] + [-1.20] * 10, 0.01, 4, "converged"),
    # What must not be called divergence:
    "noise around the best": ([1, 0.5, 0.52, 0.51, 0.53, 0.5], 1e-4, 4, "converged"),
    "over-fitting sets in": ([2.0, 1.5, 1.0, 1.01, 1.03, 1.06, 1.1], 1e-4, 5, "converged"),
    # and what must: gone up at once and stayed there, worse than at the start.
    "jumps and stays up": ([5.0, 3.0, 2.0, 10.8, 10.8, 10.8, 10.8], 1e-4, 5, "diverged"),
}  # fmt: skip


@pytest.mark.parametrize(("curve", "min_delta", "index", "reason"), ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("mode", ["any", "all", "loss_only"])
@pytest.mark.parametrize(("stage", "metric"), [(LossEarlyStopping, "loss"), (ValueHeadEarlyStopping, "value_loss")])
def test_row(curve, min_delta, index, reason, mode, stage, metric):
    stopper = stage({"enabled": True, "patience": 3, "min_delta": min_delta, "mode": mode})
    stops = [stopper.should_stop({metric: value}) for value in curve]
    assert stops == [index is not None and i >= index for i in range(len(curve))]
    assert stopper.stop_reason == reason
    assert stopper.verdict.reason == (reason or "")
    counted = curve[: len(curve) if index is None else index + 1]
    finite = [value for value in counted if math.isfinite(value)]
    if min_delta == 1e-4:
        assert stopper.best_value == (min(finite) if finite else None)


def test_ignored_values_are_said_so():
    stopper = LossEarlyStopping({"enabled": True, "patience": 3})
    for value, word in ((1.0, ""), (-INF, "-inf"), (0.9, ""), (NAN, "nan")):
        assert not stopper.should_stop({"loss": value})
        assert (word in stopper.message) if word else stopper.message == ""
        assert stopper.verdict.evidence["value"] == (word or value)
    assert "ignored" in stopper.message
    assert stopper.best_value == 0.9
    json.dumps(dict(stopper.verdict.evidence), allow_nan=False)


@pytest.mark.parametrize("every", range(1, 12))
def test_preempted_every_k_checks_stops_at_nine_with_patience_five(every):
    config = {"enabled": True, "patience": 5}
    curve = [1.0, 0.9, 0.8, 0.7, 0.6] + [0.65, 0.7] * 10
    stopper, stops = LossEarlyStopping(config), []
    for i, value in enumerate(curve):
        if i % every == 0:
            state = json.dumps(stopper.get_state(), allow_nan=False)
            stopper = LossEarlyStopping(config)
            stopper.load_state(json.loads(state))
        stops.append(stopper.should_stop({"loss": value}))
    assert stops.index(True) == 9
    assert all(stops[9:])
