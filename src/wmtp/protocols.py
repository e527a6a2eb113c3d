"""The seams: what a weighting, an objective and a stopping rule have to be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor, nn

    from wmtp.types import Batch, ModelOutput, Observation, StepOutput, TokenWeights, Verdict

State = TypeVar("State")


class TokenWeighting(Protocol):
    """How much each target matters.

    Sequence-local: the weights of a document depend on that document alone. Detached, >= 0, zero where there is no
    target, mean one over the valid targets of each document.
    """

    def __call__(self, batch: Batch, output: ModelOutput) -> TokenWeights:
        """Weights of the targets of `output`, which is the model's for `batch`."""
        ...


class Objective(Protocol):
    """What a stage minimises: a sum over targets, divided by `num_targets` over all micro-batches and ranks."""

    def num_targets(self, batch: Batch) -> Tensor:
        """Scalar int64: the denominator's share of this batch, known before any forward pass."""
        ...

    def __call__(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Undivided sums; `loss` carries the gradient."""
        ...


class StoppingRule(Protocol[State]):
    """A pure fold over observations: state is JSON data, and the same observations give the same verdicts, always."""

    def init(self) -> State:
        """The state before the first observation."""
        ...

    def update(self, state: State, seen: Observation) -> tuple[State, Verdict]:
        """The state after `seen`, and the decision; `state` itself is not changed."""
        ...
