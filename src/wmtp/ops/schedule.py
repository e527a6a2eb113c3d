"""The learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from typing import Literal


def lr_factor(step: int, total_steps: int, warmup_steps: int, kind: Literal["cosine", "linear", "constant"]) -> float:
    """Share of the peak learning rate for update number `step` (from 0) of `total_steps`.

    Rises linearly over the first `warmup_steps` updates (the first takes 1/warmup_steps, not 0), then stays
    (`constant`) or falls to 0 at `total_steps` along a half cosine or a line.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if kind == "constant":
        return 1.0
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return 1.0 - done if kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
