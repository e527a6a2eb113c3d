"""What an update holds in memory, found by computing one with tensors that have a shape but no values.

Nothing is modelled by hand: forward and backward pass of the model itself are run on fake tensors, and every
allocation is counted until it is freed. So any architecture, horizon and kind of head is counted as it is, in a second.

Not seen: what allocators and kernels add of their own (rounding, fragmentation, workspaces). Every position counts as
learnt and every row as full of packed documents, so padding and prompts make the truth a little smaller.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wmtp.errors import ModelError
from wmtp.model import MTPModel
from wmtp.model.trunk import CausalTrunk
from wmtp.ops.ce import BLOCK_ELEMENTS, linear_cross_entropy
from wmtp.training.sharding import recompute

TRACED_LAYERS = 2
"""Of the trunk: the first and the last; those between are the first's like, and are added by arithmetic."""


@dataclass(frozen=True, slots=True)
class Live:
    """Bytes that are held at one moment, beside weights and optimizer.

    Attributes:
        activations: of layers and heads, what their backward pass works with included.
        loss: of the cross-entropies.
        casts: copies of weights in autocast's dtype.
        layer_gradients: of weights of layers and heads; `root_gradients`: of embedding, final norm and unembedding.
    """

    activations: int = 0
    loss: int = 0
    casts: int = 0
    layer_gradients: int = 0
    root_gradients: int = 0

    def plus(self, other: Live, times: int = 1) -> Live:
        """This and `times` the other."""
        return Live(*(getattr(self, name) + times * getattr(other, name) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Pass:
    """A forward and backward pass.

    Attributes:
        rows, length: of the micro-batch.
        precision: of matrix products, as `Hardware.precision`.
        device: kind of device, which decides how the cross-entropy is cut into blocks.
        checkpointing: layers and heads keep their inputs alone.
    """

    rows: int
    length: int
    precision: torch.dtype
    device: str
    checkpointing: bool


def footprint(model: MTPModel, run: Pass, param_dtype: torch.dtype) -> list[Live]:
    """Every moment of `run` at which something was allocated: forward, loss, backward; the end is the last one.

    Args:
        model: on the meta device (`wmtp.model.model_skeleton`), frozen where it does not learn; it is left as it is.
        run: the pass.
        param_dtype: in which weights are used: fp32, or what FSDP gathers them in.

    Raises:
        ModelError: what the model computes depends on values (such as experts that tokens are sent to).
    """
    model, more = _shortened(model)
    watch = _Watch()
    with FakeTensorMode(), _blocks_of(run.device):
        _fill(model, param_dtype)
        if run.checkpointing:
            recompute(model)
        watch.follow(model)
        tokens = torch.zeros(run.rows, run.length, dtype=torch.int64)
        positions = torch.arange(run.length).expand(run.rows, run.length)
        try:
            with watch:
                _update(model, tokens, positions, run.precision, watch)
        except RuntimeError as error:  # of the fake tensors: the operation that can't be told without values
            name = type(cast(CausalTrunk, model.trunk).lm).__name__
            raise ModelError(f"what a {name} holds can't be told without computing it: {error}") from error
    cut = len(watch.moments) if watch.cut is None else watch.cut
    learnt = Live(layer_gradients=watch.gradients_per_layer)
    late = [moment.plus(learnt, more) for moment in watch.moments[cut:]]
    return [moment.plus(watch.per_layer, more) for moment in watch.moments[:cut]] + late


def _shortened(model: MTPModel) -> tuple[MTPModel, int]:
    """A copy with the first and the last layer of the trunk, and how many were left out."""
    model = copy.deepcopy(model)
    (layers,) = (m for m in cast(CausalTrunk, model.trunk).lm.base_model.children() if isinstance(m, nn.ModuleList))
    more = max(0, len(layers) - TRACED_LAYERS)
    del layers[TRACED_LAYERS - 1 : TRACED_LAYERS - 1 + more]
    return model, more


def _fill(model: nn.Module, dtype: torch.dtype) -> None:
    """Fake tensors for weights and buffers, tied ones as one."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(p) not in made:
                made[id(p)] = nn.Parameter(torch.empty(p.shape, dtype=dtype), requires_grad=p.requires_grad)
            setattr(module, name, made[id(p)])
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def _update(model: MTPModel, tokens: Tensor, positions: Tensor, precision: torch.dtype, watch: _Watch) -> None:
    """Forward and backward pass as `MTPModel` and `wmtp.training.step` make them, every position learnt."""
    trunk = cast(CausalTrunk, model.trunk)
    chosen = torch.arange(tokens.numel()) // tokens.shape[1], torch.arange(tokens.numel()) % tokens.shape[1]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision != torch.float32):
        out = trunk(tokens, positions)
        hiddens = model.run_heads(out, model.horizon)
        watch.phase = "loss"
        total = torch.zeros(())
        for heads in [slice(0, 1), slice(1, None)] if model.detach_heads and model.horizon > 1 else [slice(0, None)]:
            total = total + _loss(model, torch.cat([hidden[chosen] for hidden in hiddens[heads]]), heads, watch)
        if model.value_head is not None:
            total = total + model.value_head(out.hidden[chosen].detach()).square().sum()
    del out, hiddens
    total.backward()
    watch.note()


def _loss(model: MTPModel, rows: Tensor, heads: slice, watch: _Watch) -> Tensor:
    if rows.requires_grad:
        rows.register_hook(watch.in_layers)
    unembedding = cast(CausalTrunk, model.trunk).unembedding
    weight = unembedding.weight.detach() if model.detach_heads and heads.start else unembedding.weight
    targets = torch.zeros(len(rows), dtype=torch.int64)
    return linear_cross_entropy(rows, weight, cast("Tensor | None", unembedding.bias), targets).sum()


@contextmanager
def _blocks_of(device: str) -> Generator[None]:
    """The CPU's fake tensors stand for those of `device`, whose blocks of logits are of another size."""
    before = BLOCK_ELEMENTS["cpu"]
    BLOCK_ELEMENTS["cpu"] = BLOCK_ELEMENTS.get(device, BLOCK_ELEMENTS["cuda"])
    try:
        yield
    finally:
        BLOCK_ELEMENTS["cpu"] = before


class _Watch(TorchDispatchMode):
    """Counts the bytes of storages from when an operation gives them until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = "activations"
        self.moments: list[Live] = []
        self.cut: int | None = None  # from this moment on the backward pass is in the first layer or done with it
        self.per_layer, self.gradients_per_layer = Live(), 0
        self._live = dict.fromkeys(Live.__slots__, 0)
        self._kind: dict[int, tuple[str, int]] = {}  # of each living storage: what it is, bytes
        self._weights: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run `func`, and count what is new."""
        out = func(*args, **(kwargs or {}))
        cast_of_weight = func is torch.ops.aten._to_copy.default and _key(args[0]) in self._weights
        for value in tree_leaves(out):
            if isinstance(value, Tensor) and _key(value) not in self._kind and _key(value) not in self._weights:
                self._add(value, "casts" if cast_of_weight else self.phase)
        return out

    def note(self) -> None:
        """Remember this moment."""
        self.moments.append(Live(**self._live))

    def in_layers(self, gradient: Tensor) -> None:
        """The backward pass has left the loss."""
        del gradient
        self.phase = "activations"

    def _in_first_layer(self, gradient: Tensor) -> None:
        del gradient
        self.cut = len(self.moments)

    def follow(self, model: MTPModel) -> None:
        """Learn what is a weight, a gradient, and where the first layer begins and ends."""
        of_layers = {id(p) for layer in model.layers() for p in layer.parameters()}
        for p in model.parameters():
            self._weights.add(_key(p))
            if p.requires_grad:
                kind = "layer_gradients" if id(p) in of_layers else "root_gradients"
                p.register_post_accumulate_grad_hook(partial(self._is_gradient, kind))
        first = next(iter(model.layers()))
        self.gradients_per_layer = sum(p.numel() * p.element_size() for p in first.parameters() if p.requires_grad)
        before: list[Live] = []

        def begins(*_: object) -> None:
            before.append(Live(**self._live))

        def ends(module: nn.Module, args: object, output: Any) -> None:
            del module, args
            hidden = cast(Tensor, output if isinstance(output, Tensor) else output[0])
            if hidden.requires_grad and self.per_layer == Live():  # a frozen one keeps nothing
                self.per_layer = Live(**self._live).plus(before[0], -1)
                hidden.register_hook(self._in_first_layer)

        first.register_forward_pre_hook(begins)
        first.register_forward_hook(ends)

    def _add(self, value: Tensor, kind: str) -> None:
        storage, key = value.untyped_storage(), _key(value)
        self._kind[key] = (kind, storage.nbytes())
        self._live[kind] += storage.nbytes()
        weakref.finalize(storage, self._free, key)
        self.note()

    def _free(self, key: int) -> None:
        kind, size = self._kind.pop(key)
        self._live[kind] -= size

    def _is_gradient(self, kind: str, p: Tensor) -> None:
        assert p.grad is not None
        was, size = self._kind[_key(p.grad)]
        self._kind[_key(p.grad)] = (kind, size)
        self._live[was] -= size
        self._live[kind] += size


def _key(value: Tensor) -> int:
    return cast(int, value.untyped_storage()._cdata)  # pyright: ignore[reportPrivateUsage]
