"""Optimizers, and their state by the names of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import SGD, AdamW, Optimizer

from wmtp.errors import CheckpointError


class Lion(Optimizer):
    """Sign of an interpolated momentum, with decoupled weight decay (Chen et al. 2023, arXiv 2302.06675, program 1)."""

    def __init__(
        self, params: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], weight_decay: float = 0.0
    ) -> None:
        """As torch's optimizers; Lion wants about a tenth of AdamW's learning rate and ten times its decay."""
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of all parameters that have a gradient."""
        del closure
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in cast("list[Tensor]", group["params"]):
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                momentum = cast(Tensor, state["exp_avg"])
                p.mul_(1.0 - group["lr"] * group["weight_decay"])
                p.add_(momentum.lerp(p.grad, 1.0 - beta1).sign_(), alpha=-group["lr"])
                momentum.lerp_(p.grad, 1.0 - beta2)


def make_optimizer(
    model: nn.Module,
    kind: Literal["adamw", "lion", "sgd"],
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    own_rates: Mapping[nn.Module, float] = MappingProxyType({}),
) -> Optimizer:
    """An optimizer over the parameters of `model` that require a gradient.

    Weight decay acts on matrices, not on norms and biases. SGD takes betas[0] as its momentum. Parts of the model in
    `own_rates` have a learning rate of their own.
    """
    apart = {parameter for part in own_rates for parameter in part.parameters()}
    rest = [p for p in model.parameters() if p not in apart]
    groups: list[dict[str, Any]] = [
        {
            "params": [p for p in params if p.requires_grad and (p.ndim >= 2) is matrices],
            "lr": rate,
            "weight_decay": weight_decay if matrices else 0.0,
        }
        for params, rate in [(rest, lr), *((list(part.parameters()), rate) for part, rate in own_rates.items())]
        for matrices in (True, False)
    ]
    groups = [group for group in groups if group["params"]]
    match kind:
        case "adamw":
            return AdamW(groups, lr=lr, betas=betas, fused=True)
        case "lion":
            return Lion(groups, lr=lr, betas=betas)
        case "sgd":
            return SGD(groups, lr=lr, momentum=betas[0])


Tensors: TypeAlias = dict[str, dict[str, Tensor]]
"""`model`: name -> parameter; `optimizer`: "name/slot" -> its state."""


def tensors_of(model: nn.Module, optimizer: Optimizer) -> Tensors:
    """Everything that an update changes, by name: the optimizer's parameters and its state of each.

    The tensors are the live ones. Parameters that the optimizer does not hold (a frozen trunk) are not in it.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    named = {name: p for name, p in model.named_parameters() if id(p) in held}
    state: dict[str, Tensor] = {}
    for name, p in named.items():
        state |= {f"{name}/{key}": value for key, value in optimizer.state.get(p, {}).items() if value is not None}
    return {"model": {name: p.detach() for name, p in named.items()}, "optimizer": state}


Like: TypeAlias = "Callable[[str, torch.Size, torch.dtype], Tensor]"
"""A new tensor for what a checkpoint holds under a key such as "model/norm.weight", given its whole shape."""


def like_parameters(model: nn.Module) -> Like:
    """Tensors to read a checkpoint of `tensors_of` into: each sharded as the parameter that it is of, else whole."""
    parameters = dict(model.named_parameters())

    def like(key: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        group, _, name = key.partition("/")
        p = parameters.get(name if group == "model" else name.rpartition("/")[0])
        if isinstance(p, DTensor) and p.shape == shape:
            return torch.empty_like(p, dtype=dtype, requires_grad=False)
        return torch.empty(shape, dtype=dtype)

    return like


# What each optimizer remembers of a parameter once it has updated it.
SLOTS: dict[type[Optimizer], set[str]] = {
    AdamW: {"step", "exp_avg", "exp_avg_sq"},
    Lion: {"exp_avg"},
    SGD: {"momentum_buffer"},
}


@torch.no_grad()
def load_tensors_into(model: nn.Module, optimizer: Optimizer, tensors: Tensors) -> None:
    """Put what `tensors_of` gave back, bit for bit.

    Raises:
        CheckpointError: it is of another model or optimizer; nothing is changed.
    """
    state: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.get("optimizer", {}).items():  # empty before the first step
        name, _, slot = key.rpartition("/")
        state.setdefault(name, {})[slot] = value
    if tensors["model"].keys() != tensors_of(model, optimizer)["model"].keys():
        raise CheckpointError("the checkpoint is of another model: it holds other weights than those that learn")
    if any(slots.keys() != SLOTS[type(optimizer)] for slots in state.values()):
        raise CheckpointError(f"the checkpoint is of another optimizer than {type(optimizer).__name__}")
    load_weights_into(model, tensors["model"])
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for name, slots in state.items():
        p = parameters[name]
        # A step counter stays where the optimizer keeps it; everything of the parameter's shape goes to its device.
        optimizer.state[p] = {k: v.to(p.device) if v.shape == p.shape else v for k, v in slots.items()}


@torch.no_grad()
def load_weights_into(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy `weights` into the parameters of the same names; `CheckpointError` where names or shapes differ."""
    parameters = dict(model.named_parameters())
    wrong = [name for name, w in weights.items() if name not in parameters or parameters[name].shape != w.shape]
    if wrong:
        raise CheckpointError(f"the checkpoint is of another model: {len(wrong)} weights differ (such as {wrong[0]})")
    for name, value in weights.items():
        parameters[name].copy_(value)
