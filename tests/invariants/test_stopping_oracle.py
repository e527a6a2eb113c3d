"""The plain rules against a slow oracle over the whole history (SPEC 3.1, and `min_steps`, grace and budget of 3.2)."""

import json
import math
import random
from collections import Counter

from wmtp.stopping import EarlyStoppingConfig, LossEarlyStopping, Observation, ValueHeadEarlyStopping

SEQUENCES = 2000


def oracle(config, history):
    """The decision at the end of `history` by itself: (reason or None, what fired, counter, best)."""
    name = config["monitor"]
    checks = [seen for seen in history if name in seen.metrics and seen.step >= config["min_steps"]]
    values = [seen.metrics[name] for seen in checks]
    finite = [value for value in values if math.isfinite(value)]
    best, counter = None, 0
    for value in finite:
        if best is None or value < best - config["min_delta"]:
            best, counter = value, 0
        else:
            counter += 1
    if not checks or checks[-1] is not history[-1]:
        return None, set(), counter, best
    fired = set()
    latest = values[-config["max_nonfinite"] :]
    if len(latest) == config["max_nonfinite"] and not any(math.isfinite(value) for value in latest):
        fired.add("non_finite")
    if math.isfinite(values[-1]) and counter >= config["patience"]:
        fired.add("diverged" if blew_up(config, finite, best) else "converged")
    if unstable(config, [seen.metrics["grad_norm"] for seen in checks if "grad_norm" in seen.metrics]):
        fired.add("gradient_unstable")
    if invalid(config, [seen.metrics["value_variance"] for seen in checks if "value_variance" in seen.metrics]):
        fired.add("variance_invalid")
    return decide(config["mode"], fired), fired, counter, best


def blew_up(config, finite, best):
    length = max(2, config["patience"])
    worse = [
        finite[i] > finite[i - 1] + config["min_delta"] or finite[i] > finite[0] + config["min_delta"]
        for i in range(1, len(finite))
    ]
    far = finite[-1] > finite[0] + config["min_delta"] or (best > 0 and finite[-1] > 2 * best)
    return far and len(worse) >= length and all(worse[-length:])


def unstable(config, norms):
    threshold, size = config["grad_norm_threshold"], config["grad_norm_window_size"]
    if threshold is None or len(norms) < size:
        return False
    over = [norm for norm in norms[len(norms) - size :] if not math.isfinite(norm) or norm > threshold]
    return len(over) / size >= config["grad_norm_threshold_ratio"]


def invalid(config, variances):
    low, high = config["variance_min"], config["variance_max"]
    variances = [variance for variance in variances if not math.isnan(variance)]
    if not variances or (low is None and high is None):
        return False
    inside = [not math.isinf(v) and (low is None or not v < low) and (high is None or not v > high) for v in variances]
    armed = any(inside) or len(variances) > config["variance_grace_steps"]
    return armed and not inside[-1]


def decide(mode, fired):
    loss = fired & {"converged", "diverged"}
    sick = fired & {"gradient_unstable", "variance_invalid"}
    acting = fired & {"non_finite"}
    if mode == "any":
        acting = fired
    elif mode == "loss_only" or not sick:
        acting = acting | loss
    for reason in ("non_finite", "diverged", "gradient_unstable", "variance_invalid", "converged"):
        if reason in acting:
            return reason
    return None


def random_config(rng):
    return {
        "enabled": True,
        "monitor": rng.choice(["loss", "eval_loss"]),
        "mode": rng.choice(["any", "all", "loss_only"]),
        "patience": rng.choice([1, 2, 3, 4, 6]),
        "min_delta": rng.choice([0.25, 0.1, 1e-4]),
        "grad_norm_threshold": rng.choice([None, 1.0, 1.0]),
        "grad_norm_window_size": rng.choice([1, 2, 3, 5]),
        "grad_norm_threshold_ratio": rng.choice([0.2, 0.6, 0.7, 1.0]),
        "variance_min": rng.choice([None, 0.1, 0.1]),
        "variance_max": rng.choice([None, 5.0, 5.0]),
        "min_steps": rng.choice([0, 0, 3, 8]),
        "variance_grace_steps": rng.choice([0, 2, 5]),
        "max_nonfinite": rng.choice([1, 2, 3]),
        "restore_best": False,
        "shadow": False,
    }


def random_history(rng, monitor):
    """Values on a grid, so that differences often equal `min_delta` exactly; glitches, gaps, metrics of other names."""
    sick, holes, level, step, history = rng.random() < 0.4, rng.random() * 0.3, rng.choice([4.0, 1.0, -2.0]), 0, []
    drift = rng.choice([[-0.25, -0.5, -0.25, 0.0], [-0.25, 0.0, 0.25], [0.0], [0.25, 0.5], [-1.0, 1.0], [-0.75]])
    nonfinite, turn = rng.choice([0.0, 0.1, 0.5]), rng.choice([4, 8])
    bad = [math.nan, math.inf, -math.inf]
    for i in range(rng.randrange(5, 20)):
        step += rng.choice([1, 1, 2])
        level += rng.choice(drift) if i < turn or not sick else rng.choice([0.25, 1.0, 4.0])
        values = {
            monitor: rng.choice(bad) if rng.random() < nonfinite else level + rng.choice([0.0, 0.0, 0.05]),
            "grad_norm": rng.choice([0.5, 0.9, 1.0, 1.1, 30.0, *(bad if rng.random() < nonfinite else [])]),
            "value_variance": rng.choice([0.07, 0.1, 1.0, 5.0, *([7.0, math.nan, math.inf] if sick else [1.0])]),
            "lr": 0.1,
        }
        history.append(Observation(step, {k: v for k, v in values.items() if rng.random() >= holes}))
    return history


def through_json(stopper, config):
    state = json.loads(json.dumps(stopper.get_state(), allow_nan=False))
    new = type(stopper)(config)
    new.load_state(state)
    return new


def test_two_thousand_sequences_saved_and_loaded_at_every_step():
    reasons = Counter()
    for seed in range(SEQUENCES):
        rng = random.Random(seed)
        raw = random_config(rng)
        config = EarlyStoppingConfig.from_mapping(raw)
        stopper = rng.choice([LossEarlyStopping, ValueHeadEarlyStopping])(config)
        named = {**raw, "monitor": stopper.config.monitor}
        history, stopped = random_history(rng, named["monitor"]), None
        for i, seen in enumerate(history):
            stopper = through_json(stopper, config)
            verdict = stopper.observe(seen)
            if stopped is None:
                reason, fired, counter, best = oracle(named, history[: i + 1])
                assert (verdict.stop, verdict.reason) == (reason is not None, reason or ""), (seed, i)
                assert (set(verdict.fired), stopper.counter, stopper.best_value) == (fired, counter, best), (seed, i)
                stopped = verdict if verdict.stop else None
            else:
                assert verdict == stopped, (seed, i)
                assert (stopper.counter, stopper.best_value) == (counter, best), (seed, i)
        assert stopper.should_stop_flag == (stopped is not None)
        assert stopper.stop_reason == (stopped.reason if stopped else None)
        reasons[stopper.stop_reason] += 1
    rare = {reason: n for reason, n in reasons.items() if n < 30}
    assert len(reasons) == 6, reasons  # five reasons and none: the sequences reach them all
    assert not rare, reasons


def test_stopped_exactly_when_distance_is_zero():
    for seed in range(300):
        rng = random.Random(seed)
        config = EarlyStoppingConfig.from_mapping(random_config(rng))
        stopper = LossEarlyStopping(config)
        for seen in random_history(rng, config.monitor):
            verdict = stopper.observe(seen)
            if verdict.evidence:
                assert 0 <= verdict.evidence["distance"] <= 1
                assert (verdict.evidence["distance"] == 0) == verdict.stop, (seed, verdict)
