"""How much each target matters: one module a weighting."""

from wmtp.weighting.uniform import Uniform

__all__ = ["Uniform"]
