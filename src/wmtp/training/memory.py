"""Memory of each process in an update, by part: what it keeps, and what passes through.

Weights, gradients and optimizer state are fp32 and cut into pieces (`wmtp.training.sharding`); what is gathered of
them, and what forward and backward pass hold at the worst moment, comes on top.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from wmtp.model import MTPModel
from wmtp.training.footprint import Live, Pass, footprint
from wmtp.training.sharding import Sharding


def update_memory(
    model: MTPModel,
    run: Pass,
    *,
    accumulates: bool,
    slots: int,
    processes: int,
    sharding: Sharding,
    reference: MTPModel | None = None,
) -> dict[str, float]:
    """Bytes of each process by part, at the moment when they are most; `offloaded`: of the CPU's memory.

    Args:
        model: on the meta device, frozen where it does not learn.
        run: one forward and backward pass.
        accumulates: whether an update has several micro-batches, so that gradients are there from the start.
        slots: fp32 numbers that the optimizer keeps of each parameter that learns.
        processes: of the run; one alone is not sharded.
        sharding: how several are.
        reference: a frozen model that is asked in each step.
    """
    spread = _Spread.of(model, processes, sharding)
    found = footprint(model, run, spread.dtype)
    whole = 4 * spread.learnt / spread.pieces if accumulates else None

    def held(at: Live) -> dict[str, float]:
        kept, transit = spread.gradients(at, whole, last=at is found[-1])
        passing = spread.gathered + transit + at.casts
        return {"gradients": kept, "gathered": passing, "activations": at.activations, "loss": at.loss}

    parts: dict[str, float] = {
        "weights": 4 * count(model) / spread.pieces,
        "optimizer": 4 * slots * spread.learnt / spread.pieces,
        **max((held(at) for at in found), key=lambda parts: sum(parts.values())),
        "reference": 0.0 if reference is None else 4 * count(reference) / spread.pieces,
    }
    if sharding.cpu_offload and processes > 1:
        kept = ("weights", "optimizer", "gradients", "reference")
        parts = {**parts, **dict.fromkeys(kept, 0.0), "offloaded": sum(parts[name] for name in kept)}
    return parts


def pieces_of(sharding: Sharding, processes: int) -> int:
    """How many processes share a copy of the model."""
    return {"full": processes, "hybrid": sharding.shard_size or processes, "none": 1}[sharding.kind]


def count(module: nn.Module, *, learnt: bool = False) -> int:
    """Parameters, or those that learn; tied ones count once."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not learnt)


@dataclass(frozen=True, slots=True)
class _Spread:
    """How weights lie on several processes; on one: whole.

    Attributes:
        pieces: processes that share a copy, 1 where each has one.
        dtype: in which weights are used.
        gathered: bytes of what is gathered at a time: embedding, final norm, unembedding and two layers, or everything.
        layer, root: parameters of the largest layer, and of what is gathered beside the layers.
        learnt: parameters that learn.
        alone: whether there is one process, and nothing is gathered.
    """

    pieces: int
    dtype: torch.dtype
    gathered: float
    layer: int
    root: int
    learnt: int
    alone: bool

    @staticmethod
    def of(model: MTPModel, processes: int, sharding: Sharding) -> _Spread:
        layers = [count(layer) for layer in model.layers()]
        root, learnt = count(model) - sum(layers), count(model, learnt=True)
        if processes == 1:
            return _Spread(1, torch.float32, 0, max(layers), root, learnt, alone=True)
        pieces = pieces_of(sharding, processes)
        at_a_time = 2 * max(layers) if sharding.reshard_after_forward else sum(layers)
        dtype = sharding.param_dtype
        return _Spread(pieces, dtype, dtype.itemsize * (root + at_a_time), max(layers), root, learnt, alone=False)

    def gradients(self, at: Live, whole: float | None, *, last: bool) -> tuple[float, float]:
        """Bytes of gradients that are kept, `whole` if they are there from the start, and of those in transit.

        A layer's are reduced in fp32 as soon as they are complete, the root's at the very end.
        """
        if self.alone:
            return (at.layer_gradients + at.root_gradients if whole is None else whole), 0.0
        own = at.layer_gradients / self.dtype.itemsize * 4 / self.pieces if whole is None else whole
        # Beside the gradient itself stands the fp32 buffer that is sent.
        layer = (4 + self.dtype.itemsize) * self.layer if at.layer_gradients else 0
        return own, at.root_gradients + (4 * self.root if last else layer)
