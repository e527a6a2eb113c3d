"""One update, and one held-out evaluation.

Losses are sums, divided once by the number of targets of the whole batch, which is counted before any forward pass. So
an update does not depend on how the batch is cut into micro-batches, nor on how many processes share it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from wmtp.errors import TrainingFailedError
from wmtp.protocols import Objective, Rows, RowsT
from wmtp.training.distributed import ALONE, World, local

# Below this scale no fp16 gradient can overflow any more: what is not finite then is broken, not too large.
SMALLEST_FP16_SCALE = 1.0


@dataclass(frozen=True, slots=True)
class Hardware:
    """Where and how forward passes are computed; none of it changes an update beyond rounding.

    Attributes:
        device: where the model is.
        precision: dtype of matrix products; weights, sums and losses are fp32 always.
        micro_batch_size: rows per forward pass, None for all at once.
        world: the processes that share the work. All have equally many rows of a batch, empty ones if need be.
    """

    device: torch.device
    precision: torch.dtype = torch.float32
    micro_batch_size: int | None = None
    world: World = ALONE

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass."""
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.precision)

    def micro_batches(self, batch: RowsT) -> Iterable[RowsT]:
        """`batch` in pieces on the device, each cut to its longest row."""
        size = self.micro_batch_size or len(batch)
        for start in range(0, len(batch), size):
            yield batch.rows(start, start + size).to(self.device)


def make_scaler(hardware: Hardware) -> torch.amp.GradScaler:
    """Loss scaling for fp16; does nothing in bf16 and fp32."""
    return torch.amp.GradScaler(hardware.device.type, enabled=hardware.precision == torch.float16)


def train_step(
    model: nn.Module,
    objective: Objective[RowsT],
    batch: RowsT,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    hardware: Hardware,
    *,
    lr_factor: float,
    grad_clip: float | None,
    tell: Callable[[], Mapping[str, float]] = dict,
) -> dict[str, float]:
    """One update with everybody's `batch`; the device is synchronised once, to see that all is finite before anything
    is changed. Processes exchange the counts before it, and one vector with all else.

    Args:
        model: whose parameters `optimizer` holds, sharded or whole.
        objective: what is minimised.
        batch: this process's rows.
        optimizer: its groups' peak rates times `lr_factor` are used.
        scaler: from `make_scaler`.
        hardware: where it runs.
        lr_factor: share of the peak learning rate.
        grad_clip: largest norm of the gradient, None for no limit.
        tell: numbers to be added up over processes on the way, asked for when the gradient is there.

    Returns:
        The objective's metrics, divided; `grad_norm` before clipping; `lr` of the first parameter group; and the sums
        of what processes told, by its names.

    Raises:
        TrainingFailedError: a loss or gradient is not finite; the weights are as before, on every process.
    """
    world = hardware.world
    sums: dict[str, Tensor] = {}
    optimizer.zero_grad(set_to_none=True)
    with world.in_time() as done:
        counts = world.sum(objective.num_targets(batch))
        assert bool((counts > 0).any()), "the loader gives no batch without targets"
        targets = counts.clamp_min(1).to(hardware.device)
        for part in hardware.micro_batches(batch):
            with hardware.autocast():
                output = objective(model, part)
            scaler.scale((output.loss / targets).sum()).backward()
            _add(sums, output.metrics)
            done()
        scaler.unscale_(optimizer)
        world.sum_gradients(model)
        told = dict(tell())
        metrics, (square, *totals) = _reduce(objective, sums, hardware, [_square_norm(model, world), *told.values()])
    norm = torch.tensor(math.sqrt(square))
    metrics["grad_norm"] = float(norm)
    _fail_unless_finite(metrics, sums, batch, scaler, world)
    if grad_clip is not None:
        # As torch's clip_grad_norm_, on the parts of gradients that this process holds.
        factor = (grad_clip / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(_gradients(model), float(factor))  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("peak_lr", group["lr"]) * lr_factor
    scaler.step(optimizer)
    scaler.update()
    return metrics | {"lr": optimizer.param_groups[0]["lr"]} | dict(zip(told, totals, strict=True))


@torch.no_grad()
def evaluate(
    model: nn.Module,
    objective: Objective[RowsT],
    batches: Iterable[RowsT],
    hardware: Hardware,
    interrupted: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """The objective's metrics over everybody's `batches`; None if `interrupted` said so to anyone between two of them.

    Processes have equally many batches.
    """
    training = model.training
    model.eval()
    sums: dict[str, Tensor] = {}
    with hardware.world.in_time() as done:
        for batch in batches:
            for part in hardware.micro_batches(batch):
                with hardware.autocast():
                    _add(sums, objective(model, part).metrics)
            if hardware.world.any(interrupted()):
                _end(model, training)
                return None
            done()
        _end(model, training)
        return objective.derive(_reduce(objective, sums, hardware)[0])[0]


def _add(sums: dict[str, Tensor], metrics: dict[str, Tensor]) -> None:
    for name, value in metrics.items():
        sums[name] = sums[name] + value if name in sums else value


def _end(model: nn.Module, training: bool) -> None:
    """After an evaluation: the mode from before; what FSDP has gathered goes, for no backward pass will free it."""
    model.train(training)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _gradients(model: nn.Module) -> list[Tensor]:
    """What this process holds of them."""
    return [local(p.grad) for p in model.parameters() if p.grad is not None]


def _square_norm(model: nn.Module, world: World) -> Tensor:
    """This process's share of the squared norm of the gradient; all shares add up to it."""
    held: defaultdict[int, list[Tensor]] = defaultdict(list)
    for p in model.parameters():
        if p.grad is not None:
            held[world.copies(p)].append(local(p.grad))
    # In fp32 torch's norm is 1e-5 off, and by how much depends on how the tensors are cut.
    norms = {copies: torch.stack(torch._foreach_norm(grads, 2, torch.float64)) for copies, grads in held.items()}  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    return torch.stack([norm.square().sum() / copies for copies, norm in norms.items()]).sum()


def _reduce(
    owner: object, sums: dict[str, Tensor], hardware: Hardware, more: Sequence[Tensor | float] = ()
) -> tuple[dict[str, float], list[float]]:
    """Together: everybody's sums as means, and everybody's `more` added up; one transfer from the device.

    A head without a target has no mean and is left out.
    """
    names = hardware.world.names(owner, sums)
    nothing = torch.zeros(2, device=hardware.device)
    tail = [torch.as_tensor(value, dtype=torch.float64, device=hardware.device).reshape(1) for value in more]
    flat = torch.cat([*(sums.get(name, nothing).double() for name in names), *tail])
    values = cast("list[float]", hardware.world.sum(flat).tolist())
    pairs = zip(names, values[: 2 * len(names) : 2], values[1 : 2 * len(names) : 2], strict=True)
    return {name: total / count for name, total, count in pairs if count != 0}, values[2 * len(names) :]


def _fail_unless_finite(
    metrics: dict[str, float], own: dict[str, Tensor], batch: Rows, scaler: torch.amp.GradScaler, world: World
) -> None:
    broken = [name for name, value in metrics.items() if not math.isfinite(value)]
    # fp16 overflows now and then: the scaler then skips the update and takes a smaller scale.
    if broken == ["grad_norm"] and scaler.is_enabled() and scaler.get_scale() > SMALLEST_FP16_SCALE:
        return
    if broken:
        documents = sorted(set(cast("list[int]", batch.documents.flatten().tolist())) - {-1})
        mine = all(bool(value.isfinite().all()) for value in own.values())
        everybody = world.gather((mine, documents))
        suspects = [rank for rank, (fine, _) in enumerate(everybody) if not fine] or list(range(world.size))
        shown = "; ".join(_some(everybody[rank][1], f"process {rank}: " if world.size > 1 else "") for rank in suspects)
        values = ", ".join(f"{name} {value:.6g}" for name, value in metrics.items())
        raise TrainingFailedError(
            f"{' and '.join(broken)} not finite; this update was not made ({values}; documents {shown})"
        )


def _some(documents: list[int], of: str) -> str:
    return of + ", ".join(map(str, documents[:16])) + (", ..." if len(documents) > 16 else "")
