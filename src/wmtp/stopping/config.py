"""The settings of early stopping: one definition, that pydantic reads in `wmtp.settings` and plain code here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar, Literal, cast

from annotated_types import Ge, Gt, Le, MinLen

from wmtp.errors import SettingsError
from wmtp.stopping.check import fault, nearest, type_hints
from wmtp.stopping.tree import Rule, parse


class EarlyStoppingConfigError(SettingsError, ValueError):
    """Invalid settings, all of them, one a line. A `ValueError` too: to those pydantic adds the place."""


@dataclass(frozen=True, slots=True)
class EarlyStoppingConfig:
    """When a stage of training stops early. A check is an observation that has the monitored metric.

    Attributes:
        enabled: false never stops; the best value is still tracked.
        patience: that many checks in a row without an improvement are convergence.
        min_delta: an improvement is a value below the best by more than this; absolute, in the metric's unit.
        monitor: the metric that is to fall; "loss" means the stage's own loss.
        mode: any: convergence, an unstable gradient or an invalid variance, each alone stops. all:
            convergence with a stable gradient and a valid variance stops ("finished in good health").
            loss_only: convergence alone stops. In every mode `max_nonfinite` stops as well: a failure, not a
            criterion to choose.
        grad_norm_threshold: a gradient norm (before clipping) exceeds it, as does one not finite; none: no check.
        grad_norm_window_size: how many of the latest gradient norms count; fewer than these never fire.
        grad_norm_threshold_ratio: unstable when at least this share of the window exceeds.
        variance_min: a variance of the predicted values below it is invalid; none: no lower bound.
        variance_max: one above it is invalid; none: no upper bound.
        min_steps: observations of steps before this one are ignored, not merely delayed.
        variance_grace_steps: a variance out of bounds counts only after the first one within bounds or after
            this many have been seen, whichever comes first (a fresh head's starts near zero); 0: at once; none:
            one that is too low counts only after one that was not, one that is too high at once.
        max_nonfinite: that many monitored values in a row that are NaN or infinite stop the stage.
        restore_best: whether the stage hands on the weights of its best check instead of the last ones.
        shadow: decides and records, never stops.
        rule: what stops the stage: plain, the rules of the fields above; or another rule, beside which only
            `min_steps`, `max_nonfinite`, `restore_best` and `shadow` hold: a name, {name: {settings}}, {any: [rules]}
            or {all: [rules]}, nested at will; names: patience, trend, divergence, critic_health, target, budget,
            non_finite.
        shadow_rules: further rules that are asked beside, by a name of yours; they never stop, but where they would
            have is in the log.

    Raises:
        EarlyStoppingConfigError: if values have the wrong type or are out of range; lists all of them.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}

    enabled: bool = False
    patience: Annotated[int, Ge(1)] = 100
    min_delta: Annotated[float, Gt(0)] = 1e-4
    monitor: Annotated[str, MinLen(1)] = "loss"
    mode: Literal["any", "all", "loss_only"] = "any"
    grad_norm_threshold: Annotated[float, Gt(0)] | None = None
    grad_norm_window_size: Annotated[int, Ge(1)] = 10
    grad_norm_threshold_ratio: Annotated[float, Gt(0), Le(1)] = 0.7
    variance_min: float | None = None
    variance_max: float | None = None
    min_steps: Annotated[int, Ge(0)] = 0
    variance_grace_steps: Annotated[int, Ge(0)] | None = 20
    max_nonfinite: Annotated[int, Ge(1)] = 3
    restore_best: bool = False
    shadow: bool = False
    rule: str | dict[str, Any] = "plain"
    shadow_rules: dict[str, str | dict[str, Any]] = field(default_factory=dict[str, "str | dict[str, Any]"])

    def __post_init__(self) -> None:
        hints = type_hints(EarlyStoppingConfig)
        plain = [f.name for f in fields(self) if f.name not in ("rule", "shadow_rules")]
        problems = [f"{name}: {text}" for name in plain if (text := fault(hints[name], getattr(self, name)))]
        problems += self.tree({})[1] + self.shadow_trees({})[1]
        low, high = self.variance_min, self.variance_max
        if not problems and low is not None and high is not None and low > high:
            problems = [f"variance_min: {low!r} is above variance_max ({high!r}); swap them"]
        if problems:
            raise EarlyStoppingConfigError("\n".join(problems))

    def tree(self, aliases: Mapping[str, str]) -> tuple[Rule | None, list[str]]:
        """The rule in place of the plain ones, None for these; and what is wrong with it.

        Args:
            aliases: what names of metrics stand for.
        """
        return (None, []) if self.rule == "plain" else parse(self.rule, self.monitor, aliases)

    def shadow_trees(self, aliases: Mapping[str, str]) -> tuple[dict[str, Rule], list[str]]:
        """`shadow_rules` as rules, and what is wrong with them."""
        if not isinstance(cast(object, self.shadow_rules), dict):
            return {}, [f"shadow_rules: {self.shadow_rules!r} is not a mapping of names to rules"]
        found = {
            name: parse(value, self.monitor, aliases, f"shadow_rules.{name}")
            for name, value in self.shadow_rules.items()
        }
        rules = {name: rule for name, (rule, _) in found.items() if rule is not None}
        return rules, [fault for _, faults in found.values() for fault in faults]

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, object], where: str = "early_stopping") -> EarlyStoppingConfig:
        """The settings in `mapping`, defaults for the others.

        Args:
            mapping: names and values, as YAML or JSON gives them.
            where: key path of `mapping`, for error messages.

        Raises:
            EarlyStoppingConfigError: for unknown names (gives the nearest) and bad values, all at once.
        """
        if not isinstance(cast(object, mapping), Mapping):
            raise EarlyStoppingConfigError(f"{where}: {mapping!r} is not a mapping of settings")
        names = [f.name for f in fields(cls)]
        unknown = [str(key) for key in mapping if key not in names]
        problems = [f"{key}: no such setting; {nearest(key, names)}" for key in unknown]
        try:
            config = cls(**cast(Any, {key: value for key, value in mapping.items() if key in names}))
        except EarlyStoppingConfigError as error:
            problems += str(error).split("\n")
        else:
            if not problems:
                return config
        raise EarlyStoppingConfigError("\n".join(f"{where}.{problem}" for problem in problems))


@dataclass(frozen=True, slots=True)
class ValueHeadStoppingConfig(EarlyStoppingConfig):
    """The same with stage 1's default: how many steps a fresh head needs to reach a variance depends on the learning
    rate, the batch and the rewards, so no number of them makes one that has not reached it a collapsed one."""

    variance_grace_steps: Annotated[int, Ge(0)] | None = None
