"""Early stopping: pure rules with JSON state. Needs neither torch nor pydantic nor numpy; usable alone."""

from wmtp.stopping.config import EarlyStoppingConfig, EarlyStoppingConfigError
from wmtp.stopping.criteria import Convergence, GradientStability, NonFinite, VarianceBounds
from wmtp.stopping.divergence import Divergence
from wmtp.stopping.early_stopping import EarlyStopping, LossEarlyStopping, ValueHeadEarlyStopping
from wmtp.stopping.limits import Budget, CriticHealth, Target
from wmtp.stopping.patience import Patience
from wmtp.stopping.rules import Rules
from wmtp.stopping.tree import LEAVES, REASONS, Nest
from wmtp.stopping.trend import Trend
from wmtp.types import Observation, Verdict

__all__ = [
    "LEAVES",
    "REASONS",
    "Budget",
    "Convergence",
    "CriticHealth",
    "Divergence",
    "EarlyStopping",
    "EarlyStoppingConfig",
    "EarlyStoppingConfigError",
    "GradientStability",
    "LossEarlyStopping",
    "Nest",
    "NonFinite",
    "Observation",
    "Patience",
    "Rules",
    "Target",
    "Trend",
    "ValueHeadEarlyStopping",
    "VarianceBounds",
    "Verdict",
]
