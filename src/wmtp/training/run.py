"""A run on disk: what the loop asks for when it saves, resumes and records (a `wmtp.training.loop.RunLog`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from wmtp.errors import CheckpointError
from wmtp.training import checkpoint
from wmtp.training.loop import Progress, Stage
from wmtp.training.optim import Tensors
from wmtp.training.progress import ProgressBar
from wmtp.training.run_folder import RunFolder
from wmtp.training.tracking import MetricsFile, Tracker
from wmtp.types import JSON, Verdict


class Run:
    """The folder, trackers and screen of one run."""

    def __init__(
        self,
        folder: RunFolder,
        *,
        preempted: Callable[[], bool],
        screen: ProgressBar,
        tracker: Tracker,
        checkpoints: Path,
        data: Mapping[str, str],
        save_interval: int,
        save_final: bool,
        keep_last: int,
        log_interval: int,
        start_from: Path | None = None,
    ) -> None:
        """A run in `folder`.

        Args:
            folder: open, and so locked.
            preempted: whether a signal asked us to leave.
            screen, tracker: where metrics go, beside `metrics.jsonl`.
            checkpoints: gets a folder per stage.
            data: hashes of the data; a checkpoint made with other data is refused, unless `allow_change` is set.
            save_interval: steps between two checkpoints; `save_final`: and one at the end.
            keep_last: checkpoints kept beside the best.
            log_interval: steps between two lines on the screen and in the tracker; `metrics.jsonl` has every step.
            start_from: the checkpoint to resume from, None for the newest valid one.
        """
        self.folder, self.preempted, self.screen, self.tracker = folder, preempted, screen, tracker
        self.checkpoints, self.data = checkpoints, dict(data)
        self.save_interval, self.save_final, self.keep_last = save_interval, save_final, keep_last
        self.log_interval = log_interval
        self.start_from = start_from
        self.allow_change = self.continue_stopped = False
        """Whether to go on with other data; although the saved stage had been stopped early."""
        self.metrics = MetricsFile(folder.metrics)
        self._last_log = (0, 0.0)

    def close(self) -> None:
        """No more records."""
        self.metrics.close()

    def begin(self, stage: Stage[Any], progress: Progress) -> None:
        """Show the stage on the screen."""
        self._last_log = (progress.tokens, progress.step_seconds)
        self.screen.begin(stage.name, stage.total_steps, progress.step)

    def save_due(self, step: int, *, ended: bool) -> bool:
        """At every multiple of the interval, and at the end."""
        return (ended and self.save_final) or (step > 0 and step % self.save_interval == 0)

    def save(self, stage: str, step: int, tensors: Tensors, state: dict[str, JSON], best: int | None) -> None:
        """Save a checkpoint; delete old ones, but never that of step `best`."""
        path = checkpoint.save(
            self.checkpoints / stage,
            step,
            tensors,
            {"data": dict(self.data), **state},
            keep_last=self.keep_last,
            protect=() if best is None else (best,),
            say=self.screen.say,
        )
        self.folder.write_status("running", step=step, stage=stage, checkpoint=str(path))

    def restore(self, stage: str) -> tuple[Tensors, Mapping[str, Any]] | None:
        """The newest valid checkpoint of `stage`, or the one asked for; what was logged after it is dropped."""
        root = self.checkpoints / stage
        if self.start_from is not None and self.start_from.parent == root:
            found = checkpoint.open_checkpoint(self.start_from)
        else:
            found = checkpoint.newest_valid(root, self.screen.say)
        if found is None:
            self.metrics.truncate(stage, 0)
            return None
        state: dict[str, Any] = dict(found.run_state)
        if state["data"] != self.data and not self.allow_change:
            raise CheckpointError(f"{found.path}: made with other data; --allow-change to go on with the new")
        checkpoint.discard_after(root, found.step)  # they are made again
        if self.continue_stopped:
            state["stopper"] = None  # a fresh rule: the loop then drops the stop, but not a limit that was reached
        unsettled = state["progress"]["pending"] is not None
        self.metrics.truncate(stage, found.step + (0 if unsettled else 1))
        self.screen.say(f"resuming stage {stage} at step {found.step} ({found.path.name})")
        return checkpoint.read_tensors(found), state

    def weights_at(self, stage: str, step: int) -> dict[str, Tensor] | None:
        """Weights in the checkpoint of `step`, None if it is gone or damaged (and says so)."""
        try:
            found = checkpoint.open_checkpoint(self.checkpoints / stage / f"step-{step:08d}")
        except CheckpointError as error:
            self.screen.say(f"warning: the best step's weights can't be had, the last ones stay: {error}")
            return None
        return checkpoint.read_tensors(found, only="model/")["model"]

    def record(self, stage: Stage[Any], progress: Progress, metrics: dict[str, float], verdict: Verdict) -> None:
        """Every step into `metrics.jsonl`; every `log_interval`-th, evaluations and the end to screen and tracker."""
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
