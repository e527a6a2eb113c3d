"""A run on disk: what the loop asks for when it saves, resumes and records (a `wmtp.training.loop.RunLog`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, cast

from torch import Tensor

from wmtp.errors import CheckpointError
from wmtp.training.distributed import World
from wmtp.training.loop import Progress, Stage
from wmtp.training.optim import Like, Tensors
from wmtp.training.progress import ProgressBar
from wmtp.training.run_folder import RunFolder
from wmtp.training.saver import Saver
from wmtp.training.store import CheckpointStore
from wmtp.training.tensor_files import read_tensors
from wmtp.training.tracking import MetricsFile, Tracker
from wmtp.types import JSON, Verdict

SLOW = 0.2
"""Seconds a step that a process may take on its own, beyond twice what the others take."""


class Run:
    """The folder, trackers and screen of one run."""

    def __init__(
        self,
        folder: RunFolder,
        world: World,
        *,
        preempted: Callable[[], bool],
        screen: ProgressBar,
        tracker: Tracker,
        checkpoints: Mapping[str, CheckpointStore],
        data: Mapping[str, str],
        save_interval: int,
        save_final: bool,
        save_wait: float,
        background: bool,
        log_interval: int,
        start_from: tuple[str, int] | None = None,
    ) -> None:
        """A run in `folder`.

        Args:
            folder: open, and so locked.
            world: the processes of the run. The main one writes the records.
            preempted: whether a signal asked this process to leave.
            screen, tracker: where metrics go, beside `metrics.jsonl`.
            checkpoints: those of each stage.
            data: hashes of the data; a checkpoint made with other data is refused, unless `allow_change` is set.
            save_interval: steps between two checkpoints; `save_final`: and one at the end.
            save_wait: seconds that a checkpoint waits for the one before to be written.
            background: write while training goes on, from a copy in the CPU's memory.
            log_interval: steps between two lines on the screen and in the tracker; `metrics.jsonl` has every step.
            start_from: stage and step of the checkpoint to resume from, None for the newest valid one.
        """
        self.folder, self.world, self.preempted, self.screen, self.tracker = folder, world, preempted, screen, tracker
        self.checkpoints, self.data = dict(checkpoints), dict(data)
        self.save_interval, self.save_final, self.log_interval = save_interval, save_final, log_interval
        self.start_from = start_from
        self.allow_change = self.continue_stopped = False
        """Whether to go on with other data; although the saved stage had been stopped early."""
        self.metrics = MetricsFile(folder.metrics, screen.say) if world.main else None
        self._last_log = (0, 0.0)
        self._paces, self._next_warning = [0.0] * world.size, 10
        self._saver = Saver(world, save_wait, screen.say, background=background)

    def close(self) -> None:
        """No more records, and nothing is being saved any more."""
        self._saver.close()
        if self.metrics is not None:
            self.metrics.close()

    def begin(self, stage: Stage[Any], progress: Progress) -> None:
        """Show the stage on the screen."""
        self._last_log = (progress.tokens, progress.step_seconds)
        self.screen.begin(stage.name, stage.total_steps, progress.step)

    def save_due(self, step: int, *, ended: bool) -> bool:
        """At every multiple of the interval, and at the end."""
        return (ended and self.save_final) or (step > 0 and step % self.save_interval == 0)

    def save(
        self, stage: str, step: int, tensors: Tensors, state: dict[str, JSON], best: int | None, *, wait: bool
    ) -> None:
        """Save a checkpoint, with `wait` before this returns; delete old ones, but never that of step `best`.

        One that can't be saved is told and training goes on, but for the last one and the third in a row.

        Raises:
            CheckpointError: it, or the one before it, can't be saved.
        """
        if self.preempted():
            self.screen.say(f"asked to leave: saving step {step}; launchers such as torchrun wait 30 seconds for it")

        def write(copy: Tensors) -> None:
            kept = () if best is None else (best,)
            place = self.checkpoints[stage].save(step, copy, {"data": dict(self.data), **state}, kept)
            self.folder.write_status("running", step=step, stage=stage, checkpoint=place)

        self._saver.save(f"step {step}", tensors, write, wait=wait)

    def restore(self, stage: str, like: Like) -> tuple[Tensors, Mapping[str, Any]] | None:
        """The newest valid checkpoint of `stage`, or the one asked for; what was logged after it is dropped."""
        store = self.checkpoints[stage]
        if self.start_from is not None and self.start_from[0] == stage:
            found = store.at(self.start_from[1])
        else:
            found = store.newest_valid()
        if found is None:
            self._forget(stage, 0)
            return None
        state: dict[str, Any] = dict(found.run_state)
        if state["data"] != self.data and not self.allow_change:
            raise CheckpointError(f"{found.path}: made with other data; --allow-change to go on with the new")
        store.discard_after(found.step)  # they are made again
        if self.continue_stopped:
            state["stopper"] = None  # a fresh rule: the loop then drops the stop, but not a limit that was reached
        unsettled = state["progress"]["pending"] is not None
        self._forget(stage, found.step + (0 if unsettled else 1))
        self.screen.say(f"resuming stage {stage} at step {found.step} ({found.path.name})")
        return read_tensors(found.path, like=like), state

    def _forget(self, stage: str, step: int) -> None:
        if self.metrics is not None:
            self.metrics.truncate(stage, step)

    def weights_at(self, stage: str, step: int, like: Like) -> dict[str, Tensor] | None:
        """Weights in the checkpoint of `step`, None if it is gone or damaged (and says so)."""
        self._saver.wait()
        try:
            found = self.checkpoints[stage].at(step)
        except CheckpointError as error:
            self.screen.say(f"warning: the best step's weights can't be had, the last ones stay: {error}")
            return None
        return read_tensors(found.path, only="model/", like=like)["model"]

    def paces(self, step: int, seconds: Sequence[float]) -> None:
        """Warn of a process that all others wait for.

        What processes do in step (the passes through a model in pieces) takes them all equally long, whoever is slow.
        """
        self._paces = [0.9 * mean + 0.1 * new for mean, new in zip(self._paces, seconds, strict=True)]
        *others, slowest = sorted(self._paces)
        if step >= self._next_warning and others and slowest > SLOW + 2 * median(others):
            self._next_warning = step + 1000
            each = ", ".join(f"{rank}: {mean:.2f}" for rank, mean in enumerate(self._paces))
            rank = self._paces.index(slowest)
            self.screen.say(f"warning: all wait for process {rank}: seconds a step that each takes on its own: {each}")

    def record(self, stage: Stage[Any], progress: Progress, metrics: dict[str, float], verdict: Verdict) -> None:
        """Every step into `metrics.jsonl`; every `log_interval`-th, evaluations and the end to screen and tracker."""
        if self.metrics is None:
            return
        row: dict[str, JSON] = {"stage": stage.name, "step": progress.step, "epoch": progress.epoch}
        row |= {"tokens": progress.tokens, "seconds": progress.seconds, "total_steps": stage.total_steps, **metrics}
        if verdict.evidence:
            row["early_stopping"] = {"fired": list(verdict.fired), **verdict.evidence}
        if verdict.stop and progress.step % stage.eval_interval and progress.step < stage.total_steps:
            # The loop evaluates once more when it stops; a replay of the rule must not see what the rule didn't.
            row["after_decision"] = [name for name in metrics if name.startswith("eval_")]
        self.metrics.append(row)
        if progress.reason:
            self._tell_shadows(verdict)
        step, evaluated = progress.step, "eval_loss" in metrics
        if not (evaluated or progress.reason or step % self.log_interval == 0):
            return
        speed = self._tokens_per_second(progress)
        self.screen.update(step, metrics, speed, verdict)
        more = {"epoch": progress.epoch, "tokens": float(progress.tokens), "tokens_per_s": speed}
        distance = verdict.evidence.get("distance")
        if isinstance(distance, int | float):
            more["early_stopping/distance"] = float(distance)
        prefix = "" if stage.name == "train" else f"{stage.name}/"
        self.tracker.log(step, {prefix + key: value for key, value in (metrics | more).items()})

    def _tell_shadows(self, verdict: Verdict) -> None:
        stops = cast("dict[str, JSON]", verdict.evidence.get("shadow_rules", {}))
        stops |= {"early stopping": verdict.evidence["shadow_stop"]} if "shadow_stop" in verdict.evidence else {}
        for name, stop in stops.items():
            where = f"at step {stop['step']} ({stop['reason']})" if isinstance(stop, dict) else "nowhere"
            self.screen.say(f"in the shadow: {name} would have stopped {where}")

    def _tokens_per_second(self, progress: Progress) -> float:
        (tokens, seconds), self._last_log = self._last_log, (progress.tokens, progress.step_seconds)
        return (progress.tokens - tokens) / max(progress.step_seconds - seconds, 1e-9)
