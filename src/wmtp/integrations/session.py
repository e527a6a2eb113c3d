"""What the callbacks share: metrics become one observation per step, and a stop that a checkpoint keeps.

A trainer tells the metrics of one step in several goes (the training loss, then one evaluation or more). They are
one observation here: what is told of a step that was decided on already is added, and the step is decided anew from
the state before it. So a decision depends on the step's metrics, and not on the order in which they came.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import asdict, replace
from typing import Any, cast

from wmtp.errors import CheckpointError, SettingsError
from wmtp.stopping import EarlyStoppingConfig, LossEarlyStopping, Observation, Verdict
from wmtp.stopping.check import nearest


class Session:
    """One training under a stopper, from its first step on or from a checkpoint.

    Args:
        settings: of early stopping; in a mapping `enabled` is true unless it says otherwise.
        continue_stopped: a stop in a loaded state is forgotten, with all else: the rule starts anew.
        restore_best_cure: what to use in this trainer instead of `restore_best`, for the error message.

    Raises:
        EarlyStoppingConfigError: if the settings are not valid; lists everything that is wrong.
        SettingsError: for `restore_best`.
    """

    def __init__(
        self,
        settings: EarlyStoppingConfig | Mapping[str, object],
        continue_stopped: bool,
        restore_best_cure: str,
    ):
        if isinstance(settings, Mapping):
            settings = EarlyStoppingConfig.from_mapping({"enabled": True, **settings})
        if settings.restore_best:
            raise SettingsError(f"early_stopping.restore_best: true has no effect in this trainer: {restore_best_cure}")
        self.stopper = LossEarlyStopping(settings)
        self.continue_stopped = continue_stopped
        self.reset()

    def reset(self) -> None:
        """Forgets everything; the clock stands."""
        self.stopper.reset()
        self.stop: dict[str, Any] | None = None
        self._seen: Observation | None = None
        self._before: dict[str, Any] | None = None
        self._seconds, self._started = 0.0, None

    def start_clock(self) -> None:
        """Training begins or goes on now."""
        self._started: float | None = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time spent in training, over all processes that worked on it."""
        return self._seconds + (0.0 if self._started is None else time.monotonic() - self._started)

    @property
    def latest_names(self) -> Iterable[str]:
        """Names of the metrics of the step that was last decided on; the same on every rank."""
        return () if self._seen is None else self._seen.metrics

    def observe(self, seen: Observation) -> Verdict:
        """Decides on a step, with all that was told of it so far."""
        if self._seen is not None and self._before is not None and seen.step == self._seen.step:
            seen = replace(seen, metrics={**self._seen.metrics, **seen.metrics})
            self.stopper.load_state(self._before)
        else:
            self._before = self.stopper.get_state()
        self._seen = seen
        verdict = self.stopper.observe(seen)
        if not verdict.stop:
            self.stop = None
        elif self.stop is None or self.stop["step"] == seen.step:
            self.stop = stop_row(seen.step, verdict)
        return verdict

    def get_state(self) -> dict[str, Any]:
        """All that the next decision depends on, as JSON data."""
        return {
            "stopper": self.stopper.get_state(),
            "before": deepcopy(self._before),
            "seen": None if self._seen is None else {**asdict(self._seen), "metrics": dict(self._seen.metrics)},
            "stop": deepcopy(self.stop),
            "seconds": self.seconds,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state of `get_state`. Settings that have changed win, with a warning.

        Raises:
            CheckpointError: if the state is malformed.
        """
        if missing := {"stopper", "before", "seen", "stop", "seconds"} - set(state):
            raise CheckpointError(f"early-stopping state is damaged: it lacks {', '.join(sorted(missing))}")
        self.reset()
        self._seconds = float(state["seconds"])
        self.stopper.load_state(state["stopper"])
        if not self.stopper.should_stop_flag:
            self.stop = None
        elif self.continue_stopped:
            self.stopper.reset()
            return
        else:
            self.stop = deepcopy(state["stop"])
        # A step that was decided on under other settings stays as it is: the state before it does not fit these.
        if state["seen"] is not None and state["stopper"]["config"] == self.stopper.get_state()["config"]:
            self._seen, self._before = Observation(**state["seen"]), deepcopy(state["before"])

    def require(self, names: Iterable[str], available: Iterable[str], when: str) -> None:
        """Refuses the monitored metrics `names` if they are not `available`.

        Raises:
            SettingsError: with the nearest name.
        """
        config, known = self.stopper.config, sorted(available)
        missing = [name for name in names if name not in known]
        if missing and (config.enabled or config.shadow_rules):
            hints = "; ".join(f"no metric {name!r}, {nearest(name, known)}" for name in missing)
            raise SettingsError(f"early_stopping.monitor: {when}: {hints}")

    @property
    def monitors(self) -> tuple[str, ...]:
        """Names of all metrics that the rule watches."""
        return self.stopper.monitors

    def counts_tokens(self) -> bool:
        """Whether the settings count anything in tokens."""
        return re.search(r'"tokens"(?!: null)', json.dumps(self.stopper.get_state()["config"])) is not None


class Told:
    """What every callback tells of its session."""

    _session: Session

    @property
    def stopper(self) -> LossEarlyStopping:
        """The stopper, with the latest verdict, its evidence, and the best value."""
        return self._session.stopper

    @property
    def stop(self) -> dict[str, Any] | None:
        """The stop, if there was one: step, reason, fired, message, evidence. The same on every rank."""
        return self._session.stop

    @property
    def stop_reason(self) -> str | None:
        """Code of why training was stopped, or none."""
        return None if self.stop is None else self.stop["reason"]


def stop_row(step: int, verdict: Verdict) -> dict[str, Any]:
    """What is told and kept of a stop: JSON data."""
    evidence = deepcopy(dict(verdict.evidence))
    return {
        "step": step,
        "reason": verdict.reason,
        "fired": list(verdict.fired),
        "message": verdict.message,
        "evidence": evidence,
    }


def numbers(metrics: Mapping[str, object]) -> dict[str, float]:
    """The entries that are numbers, as plain ones."""
    return {name: float(cast(Any, value)) for name, value in metrics.items() if is_number(value)}


def is_number(value: object) -> bool:
    """Whether `value` is one number: of Python, numpy or torch."""
    return isinstance(value, int | float) or (hasattr(value, "item") and getattr(value, "ndim", None) == 0)
