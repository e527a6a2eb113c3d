"""Every target counts the same: the baseline."""

from __future__ import annotations

from wmtp.types import IGNORE, Batch, ModelOutput, TokenWeights


class Uniform:
    """w = 1 on every valid target (a `TokenWeighting`)."""

    def __call__(self, batch: Batch, output: ModelOutput) -> TokenWeights:
        """[B,S,H] of ones and zeros."""
        del batch
        return TokenWeights((output.targets != IGNORE).float())
