"""What a decision costs with all rules on, over a run of 10,000 steps: microseconds, and a state that stays small."""

from __future__ import annotations

import gc
import json
import math
import random
import statistics
import time

import pytest

from wmtp.stopping import EarlyStoppingConfig, LossEarlyStopping, Observation

STEPS = 10_000
NEVER = 10**9
ALL = [
    {"patience": {"patience": NEVER}},
    "trend",
    "divergence",
    {"critic_health": {"min_explained_variance": -1.0}},
    {"target": {"below": -1.0}},
    {"budget": {"steps": NEVER, "seconds": NEVER}},
    "non_finite",
]
LIMIT = 20e-6
SLOW_MACHINE = 4


def run(planned):
    rng = random.Random(0)
    return [
        Observation(
            step,
            {
                "loss": 3 - 2 * step / STEPS + rng.gauss(0, 0.05),
                "grad_norm": rng.expovariate(1),
                "explained_variance": rng.gauss(0.5, 0.1),
                "variance_ratio": rng.gauss(1, 0.1),
            },
            step / 100,
            step * 1000,
            step * 0.5,
            planned,
        )
        for step in range(1, STEPS + 1)
    ]


def timed(stopper, seen):
    """Median seconds of an `observe`."""
    seconds, clock = [], time.perf_counter
    gc.disable()
    try:
        for one in seen:
            start = clock()
            stopper.observe(one)
            seconds.append(clock() - start)
    finally:
        gc.enable()
    return statistics.median(seconds)


@pytest.mark.parametrize("planned", [STEPS, 0], ids=["length known", "length unknown"])
def test_a_decision_with_all_rules_on_takes_microseconds(planned):
    # In the shadow: no rule ends the measurement, and every one is asked to the end.
    config, seen, medians = EarlyStoppingConfig(enabled=True, rule={"any": ALL}, shadow=True), run(planned), []
    while len(medians) < 3 and (not medians or min(medians) > LIMIT):
        stopper = LossEarlyStopping(config)
        medians.append(timed(stopper, seen))
        assert stopper.verdict.evidence["budget"]["distance"] == pytest.approx(1 - STEPS / NEVER)  # the last was judged
    assert min(medians) < SLOW_MACHINE * LIMIT


@pytest.mark.parametrize("planned", [STEPS, 0], ids=["length known", "length unknown"])
def test_the_state_is_bounded(planned):
    config = EarlyStoppingConfig(enabled=True, rule={"any": ALL}, shadow=True, shadow_rules={"all": {"all": ALL}})
    stopper, sizes = LossEarlyStopping(config), []
    for one in run(planned)[:4000]:
        stopper.observe(one)
        if one.step % 100 == 0:
            sizes.append(len(json.dumps(stopper.get_state())))
    assert math.isclose(max(sizes[20:]), max(sizes[:20]), rel_tol=0.5)
    assert max(sizes) < 20_000
