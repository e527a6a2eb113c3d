"""What a stage minimises."""

from wmtp.objectives.weighted_mtp import WeightedMTP

__all__ = ["WeightedMTP"]
