"""What a decision costs: every rule on, 10,000 steps.

python benchmarks/stopping/cost.py [--steps 10000] [--repeats 5]

Microseconds per `observe`, for planned and for unknown length: of the repeats the one with the lowest median.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time

from wmtp.stopping import LossEarlyStopping, Observation

# Settings under which none of them stops the run.
RULES = [
    {"patience": {"patience": 1e9}},
    "trend",
    {"divergence": {"threshold": 1e6}},
    {"critic_health": {"min_explained_variance": -1e9}},
    {"target": {"below": -1}},
    {"budget": {"seconds": 1e9}},
    "non_finite",
]


def times(steps: int, total: int) -> tuple[list[float], int]:
    """Sorted microseconds per decision, and bytes of the state at the end."""
    stopper = LossEarlyStopping({"enabled": True, "monitor": "loss", "rule": {"any": RULES}})
    noise, found = random.Random(0), list[float]()
    for step in range(1, steps + 1):
        loss = 3 * (1 + step / 100) ** -0.5 + noise.gauss(0, 0.05)
        metrics = {"loss": loss, "grad_norm": 1.0, "explained_variance": 0.3, "variance_ratio": 0.5}
        seen = Observation(step, metrics, step / 100, step * 100, float(step), total)
        start = time.perf_counter()
        verdict = stopper.observe(seen)
        found.append(1e6 * (time.perf_counter() - start))
        assert not verdict.stop, verdict
    return sorted(found), len(json.dumps(stopper.get_state()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    for name, total in (("planned", args.steps), ("unknown length", 0)):
        found, size = min(
            (times(args.steps, total) for _ in range(args.repeats)), key=lambda run: run[0][args.steps // 2]
        )
        median, mean, high = statistics.median(found), statistics.fmean(found), found[int(0.999 * len(found))]
        print(f"{name}: median {median:.1f} us, mean {mean:.1f}, 99.9 % below {high:.0f}; state {size} bytes")


if __name__ == "__main__":
    main()
