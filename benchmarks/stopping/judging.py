"""What a stop is worth where the truth is known, and the choice of settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peers import Stops, Values

FALSE = 0.01
"""Regret above which a stop was wrong."""
Row = dict[str, Any]


def regret_of(truth: Values, event: int | None = None) -> Values:
    """[T] regret of a stop at each index, if the best checkpoint is kept: (best so far - best) / (first - best). From
    `event` on nothing is learnt. 0 where the first value is the best."""
    known = truth if event is None else np.concatenate([truth[:event], np.full(len(truth) - event, np.inf)])
    low = np.fmin.accumulate(np.where(np.isnan(known), np.inf, known))
    first = known[np.isfinite(known)][0]
    return (low - low[-1]) / (first - low[-1]) if first > low[-1] else np.zeros(len(truth))


def oracle_of(regret: Values) -> int:
    """The first index without a regret above `FALSE`."""
    return int((regret <= FALSE).argmax())


def saved_of(stops: Stops, lengths: NDArray[np.int64]) -> Values:
    """[N] shares of the run that are not made, in %."""
    return 100 * (1 - np.minimum(stops + 1, lengths) / lengths)


def summary(saved: Values, regret: Values) -> Row:
    """All in %."""
    return {
        "saved": float(saved.mean()),
        "false": 100 * float((regret > FALSE).mean()),
        "regret_mean": 100 * float(regret.mean()),
        "regret_p95": 100 * float(np.quantile(regret, 0.95)),
        "runs": len(saved),
    }


def lost(stops: Stops, events: NDArray[np.int64], T: int) -> Row:
    """How a rule did on runs that are lost from `events` on; delays in values."""
    found = (stops >= events) & (stops < T)
    delays = (stops - events)[found]
    return {
        "early": 100 * float((stops < events).mean()),
        "found": 100 * float(found.mean()),
        "delay": float(np.median(delays)) if len(delays) else None,
        "delay_p95": float(np.quantile(delays, 0.95)) if len(delays) else None,
        "runs": len(stops),
    }


def choose(summaries: Mapping[str, Row], limit: float) -> str | None:
    """The setting that saves most among those with at most `limit` % of false stops; none: there is no such."""
    fit = {name: row["saved"] for name, row in summaries.items() if row["false"] <= limit}
    return max(fit, key=lambda name: fit[name]) if fit else None


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)]) + "\n"
