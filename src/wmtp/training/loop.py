"""The training loop: one for both stages.

A stage differs from another in its objective, its data and its stopping rule, all of them plain values in `Stage`. An
iteration either takes a step or settles the one taken: evaluates if due, asks the stopping rule, records, saves. What
is not settled yet is part of the saved state, so a run may be cut off anywhere and goes on as if nothing had happened:
data order, learning rate and random numbers are functions of the step alone.

Several processes run this loop side by side. What they decide by has been added up over all of them first, so that
they decide alike: to stop, to evaluate, to save, to leave.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from wmtp.errors import PreemptedError
from wmtp.protocols import Objective, RowsT
from wmtp.stopping import EarlyStopping
from wmtp.training.optim import Like, Tensors, like_parameters, load_tensors_into, load_weights_into, tensors_of
from wmtp.training.step import Hardware, evaluate, make_scaler, train_step
from wmtp.types import JSON, Observation, Verdict

LIMITS = ("max_steps", "epochs_done")
"""Reason codes of a stage that made all its steps. The others are the stopping rule's."""


RowsT_co = TypeVar("RowsT_co", covariant=True)


class Batches(Protocol[RowsT_co]):
    """Training data as a pure function of the step."""

    def at(self, step: int) -> tuple[float, RowsT_co]:
        """The batch of update number `step` (from 0), and how many epochs are done after it."""
        ...


@dataclass(frozen=True, kw_only=True)
class Stage(Generic[RowsT]):
    """What one stage of training does. Losses are nats per token.

    Attributes:
        name: of the stage, for messages, metrics and the folder of its checkpoints.
        model: already on the device of `hardware`.
        objective: what is minimised.
        optimizer: over the parameters of `model` that learn, its `lr` being the peak.
        lr_factor: share of the peak learning rate for an update (from 0).
        batches: the training data.
        total_steps: updates in all, and `limit`: the reason code if they are all made ("max_steps", "epochs_done").
        stopper: decides after each step.
        held_out: objective and data of the held-out loss; measured before step 1, then every `eval_interval` steps and
            at the end.
        grad_clip: largest norm of the gradient, None for no limit.
        before_step: called with the number of the update to come (from 0): warm-ups that freeze parts of the model.
        restore_best: hand on the weights of the best evaluation of the stopper's monitor, instead of the last ones.
    """

    name: str
    model: nn.Module
    objective: Objective[RowsT]
    optimizer: Optimizer
    lr_factor: Callable[[int], float]
    batches: Batches[RowsT]
    total_steps: int
    limit: str
    stopper: EarlyStopping
    held_out: tuple[Objective[RowsT], Callable[[], Iterable[RowsT]]]
    eval_interval: int
    hardware: Hardware
    seed: int
    grad_clip: float | None = None
    before_step: Callable[[int], None] | None = None
    restore_best: bool = False


@dataclass(slots=True)
class Progress:
    """How far a stage is: JSON data, a part of every checkpoint.

    Attributes:
        step: updates made.
        epoch: epochs done, a fraction between two ends.
        tokens: tokens seen, padding not counted.
        seconds: spent in the stage before its newest update was made, over all times that it was resumed;
            `step_seconds`: in updates alone.
        pending: metrics of a step that is not settled yet. Before the first step there is the held-out loss to measure.
        first, last: metrics of the first and the newest settled step, held-out ones kept until measured anew.
        best_step, best_value: of the stopper's monitor, at evaluations.
        memory: the objective's, see `Objective.derive`.
        reason, message: why the stage ended; empty while it goes on.
    """

    step: int = 0
    epoch: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    step_seconds: float = 0.0
    pending: dict[str, float] | None = field(default_factory=dict[str, float])
    first: dict[str, float] = field(default_factory=dict[str, float])
    last: dict[str, float] = field(default_factory=dict[str, float])
    best_step: int | None = None
    best_value: float | None = None
    memory: list[list[float]] = field(default_factory=list[list[float]])
    reason: str = ""
    message: str = ""


class RunLog(Protocol):
    """The run that a stage is part of: its checkpoints, its records, and whether it has to go."""

    def begin(self, stage: Stage[Any], progress: Progress) -> None:
        """Training goes on from `progress`."""
        ...

    def preempted(self) -> bool:
        """Whether a signal asked us to save and leave."""
        ...

    def save_due(self, step: int, *, ended: bool) -> bool:
        """Whether the settings want a checkpoint at this step, which may be the stage's last."""
        ...

    def save(
        self, stage: str, step: int, tensors: Tensors, state: dict[str, JSON], best: int | None, *, wait: bool
    ) -> None:
        """Save a checkpoint, with `wait` before this returns; delete old ones, but never that of step `best`."""
        ...

    def restore(self, stage: str, like: Like) -> tuple[Tensors, Mapping[str, Any]] | None:
        """Tensors and state of the newest valid checkpoint, None to start afresh; `like`: see `like_parameters`."""
        ...

    def weights_at(self, stage: str, step: int, like: Like) -> dict[str, Tensor] | None:
        """Weights in the checkpoint of `step`, None if it is gone or damaged."""
        ...

    def paces(self, step: int, seconds: Sequence[float]) -> None:
        """What each process took on its own before step `step`: to load its data, above all."""
        ...

    def record(self, stage: Stage[Any], progress: Progress, metrics: dict[str, float], verdict: Verdict) -> None:
        """Write a settled step to the records and the screen."""
        ...


def fit(stage: Stage[Any], run: RunLog) -> Progress:
    """Train until the stage ends; `Progress.reason` says why.

    Raises:
        PreemptedError: asked to leave; saved.
        TrainingFailedError: a loss or gradient was not finite; the last checkpoint is untouched.
    """
    scaler = make_scaler(stage.hardware)
    now = _restore(stage, run, scaler)
    run.begin(stage, now)
    stage.model.train()
    begun, leave = time.monotonic() - now.seconds, False
    while not now.reason:
        if leave:
            _save(stage, run, now, scaler, wait=True)
            raise PreemptedError(f"asked to leave at step {now.step} of stage {stage.name}; saved")
        leave = _take_step(stage, run, now, scaler, begun) if now.pending is None else _settle(stage, run, now, scaler)
    now.seconds = time.monotonic() - begun
    if stage.restore_best and now.best_step not in (None, now.step):
        _load_best(stage, run, now)
    return now


def _take_step(stage: Stage[Any], run: RunLog, now: Progress, scaler: torch.amp.GradScaler, begun: float) -> bool:
    """One update; whether a signal asked any process to leave."""
    started, world = time.monotonic(), stage.hardware.world
    epoch, batch = stage.batches.at(now.step)
    if stage.before_step is not None:
        stage.before_step(now.step)
    # Dropout is a function of the step and the process, not of the history.
    torch.manual_seed((stage.seed * 1_000_003 + now.step) * 1009 + world.rank)
    own = time.monotonic() - started

    def tell() -> dict[str, float]:
        # Clocks differ, and a rule may look at them: the main process's counts.
        seconds = time.monotonic() - begun if world.main else 0.0
        paces = {f"pace_{rank}": own * (rank == world.rank) for rank in range(world.size)}
        tokens = float((batch.documents >= 0).sum())
        return {"tokens": tokens, "seconds": seconds, "leave": float(run.preempted()), **paces}

    metrics = train_step(
        stage.model,
        stage.objective,
        batch,
        stage.optimizer,
        scaler,
        stage.hardware,
        lr_factor=stage.lr_factor(now.step),
        grad_clip=stage.grad_clip,
        tell=tell,
    )
    now.tokens += int(metrics.pop("tokens"))
    now.seconds, leave = metrics.pop("seconds"), metrics.pop("leave") > 0
    run.paces(now.step + 1, [metrics.pop(f"pace_{rank}") for rank in range(world.size)])
    now.pending, now.memory = stage.objective.derive(metrics, now.memory)
    now.step, now.epoch = now.step + 1, epoch
    now.step_seconds += time.monotonic() - started
    return leave


def _settle(stage: Stage[Any], run: RunLog, now: Progress, scaler: torch.amp.GradScaler) -> bool:
    """Evaluate if due, decide, record, save; on every process the same. True, and nothing is changed, if a signal
    interrupts the evaluation."""
    assert now.pending is not None
    metrics = dict(now.pending)
    done = now.step >= stage.total_steps
    if evaluated := now.step % stage.eval_interval == 0 or done:
        held_out = _evaluate(stage, run)
        if held_out is None:
            return True
        metrics |= held_out
    verdict = stage.stopper.observe(
        Observation(now.step, metrics, now.epoch, now.tokens, now.seconds, stage.total_steps)
    )
    if verdict.stop and not evaluated:
        metrics |= _evaluate(stage, run) or {}  # the decision is made; this is for whoever asks what was reached
    new_best = evaluated and _note_best(now, metrics.get(stage.stopper.config.monitor))
    if verdict.stop or done:
        now.reason = verdict.reason if verdict.stop else stage.limit
        now.message = verdict.message if verdict.stop else f"all {stage.total_steps} steps made"
    now.pending = None
    now.last |= metrics
    now.first = now.first or dict(metrics)
    run.record(stage, now, metrics, verdict)
    if run.save_due(now.step, ended=bool(now.reason)) or (new_best and stage.restore_best):
        _save(stage, run, now, scaler, wait=bool(now.reason))
    return False


def _evaluate(stage: Stage[Any], run: RunLog) -> dict[str, float] | None:
    """The held-out metrics; None if a signal came."""
    objective, batches = stage.held_out
    held_out = evaluate(stage.model, objective, batches(), stage.hardware, run.preempted)
    return None if held_out is None else {f"eval_{name}": value for name, value in held_out.items()}


def _note_best(now: Progress, value: float | None) -> bool:
    # A comparison with NaN is false, so a value that is not finite never becomes best.
    if value is None or not value < (float("inf") if now.best_value is None else now.best_value):
        return False
    now.best_step, now.best_value = now.step, value
    return True


def _save(stage: Stage[Any], run: RunLog, now: Progress, scaler: torch.amp.GradScaler, *, wait: bool) -> None:
    state: dict[str, JSON] = {
        "progress": asdict(now),
        "stopper": stage.stopper.get_state(),
        "scaler": scaler.state_dict(),
    }
    best = now.best_step if stage.restore_best else None
    run.save(stage.name, now.step, tensors_of(stage.model, stage.optimizer), state, best, wait=wait)


def _restore(stage: Stage[Any], run: RunLog, scaler: torch.amp.GradScaler) -> Progress:
    found = run.restore(stage.name, like_parameters(stage.model))
    if found is None:
        return Progress()
    tensors, state = found
    load_tensors_into(stage.model, stage.optimizer, tensors)
    if state["scaler"] and scaler.is_enabled():
        scaler.load_state_dict(state["scaler"])
    if state["stopper"] is not None:
        stage.stopper.load_state(state["stopper"])
    now = Progress(**state["progress"])
    raised = now.reason in LIMITS and now.step < stage.total_steps
    released = now.reason not in LIMITS and not stage.stopper.should_stop_flag
    if raised or released:
        now.reason = now.message = ""
    return now


def _load_best(stage: Stage[Any], run: RunLog, now: Progress) -> None:
    assert now.best_step is not None
    best = run.weights_at(stage.name, now.best_step, like_parameters(stage.model))
    if best is not None:
        load_weights_into(stage.model, best)
