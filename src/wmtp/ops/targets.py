"""Which token each head has to predict.

Shapes: B rows, S positions, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wmtp.types import IGNORE


def shift_targets(labels: Tensor, documents: Tensor, horizon: int) -> Tensor:
    """Targets of every head: head k at position t has to predict token t+k.

    A target exists iff token t+k is inside the row, in the same document as token t, and itself to be learnt: the mask
    follows the target token, not the position that predicts it.

    Args:
        labels: [B,S] int64, a token's own id where it is learnt, else `IGNORE`; not shifted.
        documents: [B,S] int64, the document that a token belongs to.
        horizon: H.

    Returns:
        [B,S,H] int64, `IGNORE` where there is no target.
    """
    B, S = labels.shape
    targets = labels.new_full((B, S, horizon), IGNORE)
    for k in range(1, min(horizon, S - 1) + 1):
        same = documents[:, k:] == documents[:, :-k]
        targets[:, :-k, k - 1] = torch.where(same, labels[:, k:], IGNORE)
    return targets
