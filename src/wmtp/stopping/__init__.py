"""Early stopping: pure rules with JSON state. Needs neither torch nor pydantic nor numpy; usable alone."""

from wmtp.stopping.config import EarlyStoppingConfig, EarlyStoppingConfigError
from wmtp.stopping.criteria import Convergence, GradientStability, NonFinite, VarianceBounds
from wmtp.stopping.early_stopping import EarlyStopping, LossEarlyStopping, ValueHeadEarlyStopping
from wmtp.stopping.rules import REASONS, PlainRules
from wmtp.types import Observation, Verdict

__all__ = [
    "REASONS",
    "Convergence",
    "EarlyStopping",
    "EarlyStoppingConfig",
    "EarlyStoppingConfigError",
    "GradientStability",
    "LossEarlyStopping",
    "NonFinite",
    "Observation",
    "PlainRules",
    "ValueHeadEarlyStopping",
    "VarianceBounds",
    "Verdict",
]
