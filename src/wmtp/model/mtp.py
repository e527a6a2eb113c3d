"""The multi-token-prediction model: a trunk, and one more head for each token further ahead.

Shapes: B rows, S positions, H heads, D hidden, V vocabulary, N valid targets.

Head 1 is the trunk's own next-token prediction, so with `horizon` 1 nothing is added and nothing changes. Heads 2..H
share the trunk's final norm and unembedding and are of one of two kinds:

- `transformer`: one more decoder layer per head on the input of the trunk's last layer, a copy of that layer to begin
  with (Gloeckle et al. 2024, arXiv 2404.19737: the last layer *is* head 1, the others stand beside it);
- `residual`: h + silu(W h) on the trunk's last hidden state, W zero to begin with (Medusa, arXiv 2401.10774).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from wmtp.model.kv_cache import KVCache
from wmtp.ops.ce import linear_cross_entropy
from wmtp.ops.targets import shift_targets
from wmtp.types import IGNORE, Batch, ModelOutput

HeadKind = Literal["transformer", "residual"]


@dataclass(frozen=True, slots=True)
class TrunkOutput:
    """What the extra heads start from.

    Attributes:
        before_last: [B,S,D], the input of the trunk's last decoder layer.
        hidden: [B,S,D], the last layer's output after the final norm.
        run_layer: calls a decoder layer on [B,S,D] as the trunk called its last one (same mask, same positions).
    """

    before_last: Tensor
    hidden: Tensor
    run_layer: Callable[[nn.Module, Tensor], Tensor]


class Trunk(Protocol):
    """A decoder-only language model, taken apart where the heads are attached. Also an `nn.Module`."""

    last_layer: nn.Module
    norm: nn.Module
    unembedding: nn.Linear

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder layers, the last one included."""
        ...

    @property
    def window(self) -> int | None:
        """How many tokens the model was made for, None if it does not say."""
        ...

    def __call__(self, tokens: Tensor, positions: Tensor, cache: KVCache | None = None) -> TrunkOutput:
        """Hidden states of [B,S] tokens, which with `cache` go on from what is in there."""
        ...

    def keeps_documents_apart(self) -> bool:
        """Whether packed documents are computed as if each were alone."""
        ...


class ResidualHead(nn.Module):
    """h + silu(W h), the identity while W is zero."""

    def __init__(self, like: nn.Linear) -> None:
        super().__init__()
        width = like.in_features
        self.linear = nn.Linear(width, width, bias=False, device=like.weight.device, dtype=like.weight.dtype)
        nn.init.zeros_(self.linear.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B,S,D] -> [B,S,D]."""
        return hidden + nn.functional.silu(self.linear(hidden))


class MTPModel(nn.Module):
    """A trunk and `horizon` - 1 extra heads; gives cross-entropies, never logits."""

    def __init__(
        self, trunk: nn.Module, horizon: int, head: HeadKind = "transformer", *, detach_heads: bool = False
    ) -> None:
        """Attach heads to `trunk` (a `Trunk`).

        Args:
            trunk: the language model.
            horizon: H >= 1, how many tokens ahead are predicted.
            head: kind of the extra heads.
            detach_heads: heads 2..H learn, but push neither the trunk nor the shared norm and unembedding.
        """
        super().__init__()
        self.trunk = trunk
        self.horizon, self.head, self.detach_heads = horizon, head, detach_heads
        self.value_head: nn.Module | None = None  # learns beside the heads and is saved with them in checkpoints
        self.drops_targets = False  # whether the loss gives many targets weight 0; see `linear_cross_entropy`
        parts = self._trunk
        self.heads = nn.ModuleList(
            ResidualHead(parts.unembedding) if head == "residual" else copy.deepcopy(parts.last_layer)
            for _ in range(horizon - 1)
        )

    @property
    def width(self) -> int:
        """D."""
        return self._trunk.unembedding.in_features

    @property
    def vocabulary(self) -> int:
        """V, how many tokens it knows."""
        return self._trunk.unembedding.out_features

    @property
    def window(self) -> int | None:
        """How many tokens the trunk was made for, None if it does not say."""
        return self._trunk.window

    @property
    def _trunk(self) -> Trunk:
        return cast(Trunk, self.trunk)

    def forward(self, batch: Batch) -> ModelOutput:
        """Cross-entropy of every head for every target of `batch`."""
        targets = shift_targets(batch.labels, batch.documents, self.horizon)
        valid = targets != IGNORE
        hiddens, trunk = self._hiddens(batch)
        ce = torch.zeros(targets.shape, dtype=torch.float32, device=targets.device)
        # One pass over the unembedding for all heads that push it alike. Positions without a target never get there.
        for heads in [slice(0, 1), slice(1, None)] if self.detach_heads and self.horizon > 1 else [slice(0, None)]:
            here = torch.zeros_like(valid)
            here[..., heads] = valid[..., heads]
            # [H,B,S] order: each head's rows are taken from its own [B,S,D] tensor, and no [B,S,H,D] stack is made.
            chosen = here.permute(2, 0, 1)
            rows = torch.cat([h[mask] for h, mask in zip(hiddens, chosen, strict=True)])
            weight, bias = self._unembedding(detached=self.detach_heads and heads.start > 0)
            of_rows = targets.permute(2, 0, 1)[chosen]
            values = linear_cross_entropy(rows, weight, bias, of_rows, drops_targets=self.drops_targets)
            ce = ce.permute(2, 0, 1).masked_scatter(chosen, values).permute(1, 2, 0)
        # FSDP hangs a hook on what a model returns, which a view could lose.
        return ModelOutput(ce=ce.clone(), targets=targets, hidden=trunk.hidden.detach())

    @torch.no_grad()
    def token_losses(self, batch: Batch) -> Tensor:
        """[B,S] fp32, head 1's cross-entropy for each learnt token given what stands before it; NaN for others.

        By token, not by target: what head 1 at t says of token t+1 stands at t+1.
        """
        targets = shift_targets(batch.labels, batch.documents, 1)[..., 0]
        trunk = self._trunk(batch.tokens, batch.positions)
        weight, bias = self._unembedding(detached=True)
        valid = targets != IGNORE
        losses = torch.full(targets.shape, torch.nan, device=targets.device)
        values = linear_cross_entropy(trunk.hidden[valid], weight, bias, targets[valid])
        losses[:, 1:] = losses[:, :-1].masked_scatter(valid[:, :-1], values)
        return losses

    def layers(self) -> list[nn.Module]:
        """The decoder layers of the trunk, then heads 2..H: what is computed, and spread over processes, one by one."""
        return [*self._trunk.layers, *self.heads]

    def train_trunk(self, on: bool) -> None:
        """Whether the trunk learns (its norm and unembedding with it), or heads 2..H alone."""
        self.trunk.requires_grad_(on)

    def keeps_documents_apart(self) -> bool:
        """Whether a document that is packed behind another one is computed as if it were alone."""
        return self._trunk.keeps_documents_apart()

    def _hiddens(self, batch: Batch) -> tuple[list[Tensor], TrunkOutput]:
        """Hidden states [B,S,D] of each head, ready for the unembedding."""
        trunk = self._trunk(batch.tokens, batch.positions)
        return self.run_heads(trunk, self.horizon), trunk

    def run_heads(self, trunk: TrunkOutput, heads: int) -> list[Tensor]:
        """Hidden states [B,S,D] of heads 1 to `heads`, ready for the unembedding."""
        hiddens = [trunk.hidden]
        source = trunk.hidden if self.head == "residual" else trunk.before_last
        if self.detach_heads:
            source = source.detach()
        for head in self.heads[: heads - 1]:
            if self.head == "residual":
                hiddens.append(head(source))
            else:
                hiddens.append(self._norm(trunk.run_layer(head, source)))
        return hiddens

    def _norm(self, hidden: Tensor) -> Tensor:
        norm = self._trunk.norm
        if not self.detach_heads:
            return norm(hidden)
        return functional_call(norm, {name: p.detach() for name, p in norm.named_parameters()}, (hidden,))

    def _unembedding(self, *, detached: bool) -> tuple[Tensor, Tensor | None]:
        linear = self._trunk.unembedding
        bias = cast("Tensor | None", linear.bias)
        if detached:
            return linear.weight.detach(), None if bias is None else bias.detach()
        return linear.weight, bias
