"""A model spread over processes with FSDP2: weights, gradients and optimizer state in pieces.

Every decoder layer and every head is gathered on its own, when it is called; what is left (embedding, final norm,
unembedding) is gathered with the model and stays until its backward pass is done. Gradients are added up over
processes and never divided: the loss is divided already, by the number of targets of all of them.

No process but the first of each machine ever holds a whole copy: `spread` is given a model without values, and the
pieces are sent from process 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from wmtp.errors import UserError
from wmtp.model import MTPModel
from wmtp.training.distributed import World


@dataclass(frozen=True, slots=True)
class Sharding:
    """How a model is spread.

    Attributes:
        kind: full: over all processes; hybrid: over groups of `shard_size`, each with a copy; none: a copy each.
        shard_size: for hybrid; None: the processes of one machine.
        param_dtype: what weights are gathered and used in; the pieces themselves stay fp32.
        cpu_offload: pieces in the CPU's memory.
        reshard_after_forward: free a layer's weights until its backward pass.
    """

    kind: Literal["full", "hybrid", "none"] = "full"
    shard_size: int | None = None
    param_dtype: torch.dtype = torch.float32
    cpu_offload: bool = False
    reshard_after_forward: bool = True

    def mesh(self, world: World, kind: str) -> DeviceMesh:
        """Together: copies x pieces; `UserError` if the processes can't be divided so."""
        pieces = {"full": world.size, "hybrid": self.shard_size or world.local_size, "none": 1}[self.kind]
        if world.size % pieces:
            raise UserError(
                f"devices.fsdp.shard_size: {pieces}: the {world.size} processes can't be divided into groups of so many"
            )
        if pieces == world.size:
            return init_device_mesh(kind, (pieces,), mesh_dim_names=("shard",))
        return init_device_mesh(kind, (world.size // pieces, pieces), mesh_dim_names=("copy", "shard"))


def recompute(model: MTPModel) -> None:
    """Have layers and heads keep their inputs alone, and compute the rest again in the backward pass."""
    for layer in model.layers():
        # Inside of the layer's hooks, where FSDP's are: what it has gathered is there for the second time too.
        layer.forward = _recomputed(layer.forward)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return cast(Any, checkpoint)(forward, *args, use_reentrant=False, **kwargs)

    return run


def spread(model: MTPModel, whole: MTPModel | None, world: World, device: torch.device, how: Sharding) -> None:
    """Together: cut `model` into pieces on `device`, with the values of process 0's `whole`.

    Args:
        model: on the meta device (`wmtp.model.model_skeleton`).
        whole: the same with values, None on other processes than 0.
        world: all processes.
        device: where the pieces go.
        how: the sharding.
    """
    mesh = how.mesh(world, device.type)
    offload: OffloadPolicy = CPUOffloadPolicy() if how.cpu_offload else OffloadPolicy()
    dtype = None if how.param_dtype == torch.float32 else how.param_dtype

    def shard(module: nn.Module, *, root: bool) -> None:
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=not root)
        again = how.reshard_after_forward and not root
        sharded = fully_shard(module, mesh=mesh, reshard_after_forward=again, mp_policy=policy, offload_policy=offload)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)

    for layer in model.layers():
        shard(layer, root=False)
    shard(model, root=True)
    register_fsdp_forward_method(model, "token_losses")
    _fill(model, whole, world, device)


def _fill(model: MTPModel, whole: MTPModel | None, world: World, device: torch.device) -> None:
    """Pieces of the parameters, and whole buffers, from process 0."""
    source = {} if whole is None else dict(whole.named_parameters(remove_duplicate=False))
    filled: dict[int, nn.Parameter] = {}  # tied weights stay tied
    values: dict[str, nn.Parameter] = {}
    for name, empty in model.named_parameters(remove_duplicate=False):
        assert isinstance(empty, DTensor)
        if id(empty) not in filled:
            value = source[name].detach() if name in source else torch.empty(empty.shape, dtype=empty.dtype)
            piece = distribute_tensor(value.to(device), empty.device_mesh, empty.placements)
            filled[id(empty)] = nn.Parameter(piece, requires_grad=empty.requires_grad)
        values[name] = filled[id(empty)]
    model.load_state_dict(values, strict=False, assign=True)
    buffers = world.share({} if whole is None else {name: value.cpu() for name, value in whole.named_buffers()})
    for name, value in buffers.items():
        place, _, own = name.rpartition(".")
        setattr(model.get_submodule(place), own, value.to(device))


def whole_weights(model: nn.Module, world: World) -> dict[str, Tensor]:
    """Together: all weights by name, whole and on the CPU, on the main process; nothing on others."""
    found: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        full = value.full_tensor() if isinstance(value, DTensor) else cast(Tensor, value)
        if world.main:
            found[name] = full.cpu()
    return found
