"""Early stopping as an object: holds the state of `Rules`, for a training loop of any kind.

Example:
    >>> stopper = LossEarlyStopping({"enabled": True, "patience": 2})
    >>> [stopper.should_stop({"loss": loss}) for loss in (3.0, 2.0, 2.0, 2.0)]
    [False, False, False, True]
    >>> stopper.stop_reason, stopper.best_value, stopper.counter
    ('converged', 2.0, 2)
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import asdict, fields, replace
from types import MappingProxyType
from typing import Any, ClassVar, cast

from wmtp.errors import CheckpointError, SettingsError
from wmtp.stopping.check import fault, nearest
from wmtp.stopping.config import EarlyStoppingConfig, EarlyStoppingConfigError
from wmtp.stopping.criteria import Count
from wmtp.stopping.rules import Rules, RulesState
from wmtp.types import JSON, Observation, Verdict


class EarlyStoppingState(RulesState):
    """What a checkpoint keeps: the state of the rules, the step of the latest observation, the settings."""

    step: Count
    config: dict[str, JSON]


class EarlyStopping:
    """Decides after each step whether a stage of training stops; the decision is that of `Rules`.

    Not used itself: a stage says what "loss" means to it.

    Args:
        config: settings, or a mapping of them; none: the defaults, which never stop.

    Raises:
        EarlyStoppingConfigError: if the mapping is not valid; lists everything that is wrong.
    """

    aliases: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """What names of monitored metrics stand for in this stage."""

    def __init__(self, config: EarlyStoppingConfig | Mapping[str, object] | None = None):
        if not isinstance(config, EarlyStoppingConfig):
            config = EarlyStoppingConfig.from_mapping({} if config is None else config)
        alias = self.aliases.get(config.monitor)
        self.config = replace(config, monitor=alias) if alias else config
        self._rules = Rules(self.config, self.aliases)
        self.reset()

    def reset(self) -> None:
        """Forgets everything, a stop too."""
        self._state = self._rules.init()
        self._step = 0
        self._verdict = Verdict()

    def observe(self, seen: Observation) -> Verdict:
        """Takes in what was measured at a step, already reduced over ranks, and decides."""
        self._state, self._verdict = self._rules.update(self._state, seen)
        self._step = seen.step
        return self._verdict

    def should_stop(self, metrics: Mapping[str, float], step: int | None = None) -> bool:
        """Takes in what was measured at a step and decides.

        Args:
            metrics: names and global values; without the monitored one nothing changes.
            step: the training step, which `min_steps` refers to; by default one more than at the call
                before, so that calls are counted from 1.
        """
        return self.observe(Observation(self._step + 1 if step is None else step, metrics)).stop

    @property
    def verdict(self) -> Verdict:
        """The decision on the latest observation, with its evidence; after `load_state` the stop, if any."""
        return self._verdict

    @property
    def should_stop_flag(self) -> bool:
        """Whether the run has been stopped; stays so until `reset()`."""
        return self._rules.latched(self._state) is not None

    @property
    def stop_reason(self) -> str | None:
        """Code of why the run was stopped (one of `REASONS`), or none."""
        latched = self._rules.latched(self._state)
        return latched.reason if latched else None

    @property
    def message(self) -> str:
        """One sentence for a person on the latest decision, with the numbers; may be empty."""
        return self._verdict.message

    @property
    def monitors(self) -> tuple[str, ...]:
        """The metrics that the rule watches, those of rules in the shadow too."""
        return self._rules.monitors

    @property
    def best_value(self) -> float | None:
        """The latest monitored value that was below the best before it by more than `min_delta`."""
        return self._state["best_value"]

    @property
    def best_step(self) -> int | None:
        """The step of `best_value`."""
        return self._state["best_step"]

    @property
    def counter(self) -> int:
        """Finite monitored values since the best."""
        return self._state["counter"]

    def check_metrics(self, available: Iterable[str]) -> None:
        """Call before the first step: refuses a monitored metric that the stage does not produce.

        Warns of a threshold or bound that will never fire because its metric is missing.

        Raises:
            SettingsError: with the nearest name, if early stopping or `restore_best` needs the metric.
        """
        config, names = self.config, sorted(available)
        if not (config.enabled or config.restore_best or config.shadow_rules):
            return
        for key, monitor in (("monitor", config.monitor), *(("rule", name) for name in self.monitors)):
            if monitor not in names:
                hint = nearest(monitor, names)
                raise SettingsError(f"early_stopping.{key}: this stage has no metric {monitor!r}; {hint}")
        bounds = (config.variance_min, config.variance_max)
        for metric, limits in {"grad_norm": (config.grad_norm_threshold,), "value_variance": bounds}.items():
            if metric not in names and any(limit is not None for limit in limits):
                warnings.warn(f"this stage has no {metric}: its early-stopping limit never fires", stacklevel=2)

    def get_state(self) -> dict[str, Any]:
        """Everything that the next decision depends on, as JSON data: see `EarlyStoppingState`."""
        state = EarlyStoppingState(**deepcopy(self._state), step=self._step, config=asdict(self.config))
        return cast("dict[str, Any]", state)

    def load_state(self, state: Mapping[str, object]) -> None:
        """Goes on from a state that `get_state` gave.

        Settings that differ from those in the state win, with a warning that names them; `Rules.adapt` says
        what of the state they leave. A run that was stopped stays stopped (until `reset()`), unless the new
        settings never stop.

        Raises:
            CheckpointError: if the state is malformed.
        """
        if text := fault(EarlyStoppingState, dict(state)):
            raise CheckpointError(f"early-stopping state is damaged or of another version: {text}")
        loaded = cast(EarlyStoppingState, state)
        try:
            saved = EarlyStoppingConfig.from_mapping(loaded["config"], "config")
        except EarlyStoppingConfigError as error:
            raise CheckpointError(f"early-stopping state is damaged or of another version: {error}") from error
        if missing := saved.shadow_rules.keys() - loaded["shadow_rules"].keys():
            raise CheckpointError(f"early-stopping state is damaged: shadow_rules lacks {', '.join(sorted(missing))}")
        rules_state = cast(RulesState, {key: deepcopy(loaded[key]) for key in self._state})
        adapted = self._rules.adapt(rules_state, saved)
        if text := self._rules.fault(adapted):
            raise CheckpointError(f"early-stopping state is damaged or of another version: {text}")
        self._state, self._step = adapted, loaded["step"]
        self._verdict = self._rules.latched(self._state) or Verdict()
        changes = [
            f"{f.name} {old!r} -> {new!r}"
            for f in fields(saved)
            if (old := getattr(saved, f.name)) != (new := getattr(self.config, f.name))
        ]
        if changes:
            stopped = f"; the run stays stopped ({self.stop_reason})" if self.should_stop_flag else ""
            text = "early-stopping settings have changed since this state was saved, the new ones hold: "
            warnings.warn(f"{text}{', '.join(changes)}{stopped}", stacklevel=2)


class ValueHeadEarlyStopping(EarlyStopping):
    """For stage 1: "loss" is `value_loss`. Further metrics: `grad_norm`, `value_variance`."""

    aliases = MappingProxyType({"loss": "value_loss"})


class LossEarlyStopping(EarlyStopping):
    """For stage 2: "loss" is `loss`, what the algorithm minimises. Also: `eval_loss`, `wmtp_loss`, `grad_norm`."""
