"""The values that cross the seams.

Shapes: B sequences (rows), S positions, H heads (the horizon), D hidden width, V vocabulary. Head k in 1..H at position
t predicts token t+k and is stored at index k-1. Nothing here imports torch at run time, so `wmtp.stopping` stays light.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, NewType, TypeAlias

if TYPE_CHECKING:
    import torch
    from torch import Tensor

IGNORE = -100
"""Label of a token that is not learnt (prompt, padding): the convention of torch's cross-entropy."""

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows of tokens. A row holds one document, or several after one another (packing), then padding.

    Attributes:
        tokens: [B,S] int64, token ids.
        labels: [B,S] int64, the token's own id where it is to be learnt, else `IGNORE`. Not shifted.
        documents: [B,S] int64, index in the data set of the document that the token belongs to, -1 for padding.
        positions: [B,S] int64, position of the token in its document, from 0. Padding counts on from the row's last
            document: nothing looks at it, and a row with one document then needs no attention mask at all.
    """

    tokens: Tensor
    labels: Tensor
    documents: Tensor
    positions: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        return Batch(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))

    def rows(self, start: int, stop: int) -> Batch:
        """Rows start..stop-1, cut to the longest of them."""
        width = max(1, int((self.documents[start:stop] >= 0).sum(dim=1).max()))
        return Batch(*(getattr(self, f.name)[start:stop, :width] for f in fields(self)))

    def __len__(self) -> int:
        return self.tokens.shape[0]


@dataclass(frozen=True, slots=True)
class StateBatch:
    """Hidden states of a frozen model for some responses, and the rewards that a value head learns to foresee.

    A row is the response of one document: what a prompt's tokens say of the reward is not learnt, so they are not here.

    Attributes:
        hidden: [B,S,D], any floating dtype; 0 for padding.
        rewards: [B,S] fp32, standardised reward that comes with each token; 0 for padding.
        documents: [B,S] int64, index in the data set of the document that the token belongs to, -1 for padding.
    """

    hidden: Tensor
    rewards: Tensor
    documents: Tensor

    @property
    def response(self) -> Tensor:
        """[B,S] bool, the tokens that count."""
        return self.documents >= 0

    def to(self, device: torch.device) -> StateBatch:
        """The same batch on `device`."""
        return StateBatch(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))

    def rows(self, start: int, stop: int) -> StateBatch:
        """Rows start..stop-1, cut to the longest of them."""
        width = max(1, int((self.documents[start:stop] >= 0).sum(dim=1).max()))
        return StateBatch(*(getattr(self, f.name)[start:stop, :width] for f in fields(self)))

    def __len__(self) -> int:
        return self.documents.shape[0]


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """What a model's forward pass gives: never logits.

    Attributes:
        ce: [B,S,H] fp32, cross-entropy in nats of head k at t for token t+k, with gradient; 0 where there is no target.
        targets: [B,S,H] int64, the token that each head is to predict, `IGNORE` where there is none.
        hidden: [B,S,D], the trunk's last hidden states (after the final norm), detached.
    """

    ce: Tensor
    targets: Tensor
    hidden: Tensor


TokenWeights = NewType("TokenWeights", "Tensor")
"""[B,S,H] fp32, detached, >= 0, zero where there is no target, mean one over the valid targets of each document."""


@dataclass(frozen=True, slots=True)
class StepOutput:
    """Undivided sums over the targets of a batch; whoever knows the global count divides, once.

    Attributes:
        loss: scalar with gradient, the sum of weight * CE (not yet divided); or [K], several such sums, each to be
            divided by its own count.
        metrics: name -> [2] fp32 detached tensor (numerator, denominator): adds up over micro-batches and ranks.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Observation:
    """What a stopping rule sees at one step: global numbers alone, already reduced over ranks.

    Attributes:
        step: updates made so far.
        metrics: what was measured at this step.
        epoch, tokens, seconds: how much of each the stage has taken so far.
        total_steps: updates that are planned in all, 0 if nobody knows.
    """

    step: int
    metrics: Mapping[str, float]
    epoch: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    total_steps: int = 0


class Verdict(NamedTuple):
    """A stopping rule's decision, and what it rests on.

    Attributes:
        stop: whether to stop.
        reason: machine-readable code ("converged", "gradient_unstable", "non_finite", ...), "" if none.
        fired: names of all criteria that hold at this observation, also those that the mode does not act on.
        message: one sentence for a person, with the numbers.
        evidence: what was compared with what, JSON-safe; "distance" in [0,1] is how far there is to go until a stop.
    """

    stop: bool = False
    reason: str = ""
    fired: tuple[str, ...] = ()
    message: str = ""
    evidence: Mapping[str, JSON] = MappingProxyType({})
