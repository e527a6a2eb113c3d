"""The seams: what a weighting, an objective and a stopping rule have to be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch import Tensor, nn

    from wmtp.types import Batch, ModelOutput, Observation, StepOutput, TokenWeights, Verdict

State = TypeVar("State")
T = TypeVar("T")


class Peers(Protocol):
    """The processes of a run (`wmtp.training.distributed.World`). What they say, all have to say at the same point."""

    @property
    def rank(self) -> int:
        """This process, from 0."""
        ...

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def share(self, value: T) -> T:
        """The value that process 0 gave."""
        ...

    def gather(self, value: T) -> list[T]:
        """Everybody's value, by rank."""
        ...


class TokenWeighting(Protocol):
    """How much each target matters.

    Sequence-local: the weights of a document depend on that document alone. Detached, >= 0, zero where there is no
    target, mean one over the valid targets of each document.
    """

    def __call__(self, batch: Batch, output: ModelOutput) -> TokenWeights:
        """Weights of the targets of `output`, which is the model's for `batch`."""
        ...


class Rows(Protocol):
    """Rows of data of any kind (`Batch`, `StateBatch`), as the training step cuts them into pieces."""

    @property
    def documents(self) -> Tensor:
        """[B,S] int64, the document that a token belongs to, -1 for padding."""
        ...

    def to(self, device: torch.device) -> Self:
        """The same on `device`."""
        ...

    def rows(self, start: int, stop: int) -> Self:
        """Rows start..stop-1, cut to the longest of them."""
        ...

    def __len__(self) -> int: ...


RowsT = TypeVar("RowsT", bound=Rows)
RowsT_contra = TypeVar("RowsT_contra", bound=Rows, contravariant=True)


class Objective(Protocol[RowsT_contra]):
    """What a stage minimises: a sum over targets, divided by `num_targets` over all micro-batches and ranks."""

    def num_targets(self, batch: RowsT_contra) -> Tensor:
        """Scalar int64 (or one for each of several losses): the denominator's share of this batch, known before any
        forward pass."""
        ...

    def __call__(self, model: nn.Module, batch: RowsT_contra) -> StepOutput:
        """Undivided sums; `loss`, of the shape of `num_targets`, carries the gradient."""
        ...

    def derive(
        self, metrics: Mapping[str, float], memory: Sequence[Sequence[float]] = ()
    ) -> tuple[dict[str, float], list[list[float]]]:
        """What is told, from the means over all micro-batches and ranks (a variance is no sum, it is made of sums).

        `memory` is what this gave at the step before, nothing at first or for held-out data: JSON data, a part of every
        checkpoint.
        """
        ...


class StoppingRule(Protocol[State]):
    """A pure fold over observations: state is JSON data, and the same observations give the same verdicts, always."""

    def init(self) -> State:
        """The state before the first observation."""
        ...

    def update(self, state: State, seen: Observation) -> tuple[State, Verdict]:
        """The state after `seen`, and the decision; `state` itself is not changed."""
        ...
