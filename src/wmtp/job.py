"""The main job: train what the settings say, in a run's folder, hand on the model, and evaluate it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from wmtp.assemble import Job, assemble, make_device, make_hardware
from wmtp.errors import LostProcessError, PreemptedError, WmtpError
from wmtp.evaluate.sandbox import Sandbox
from wmtp.evaluation import evaluate_model, parts, score_lines, scores_of
from wmtp.model import MTPModel, load_model
from wmtp.report import write_report
from wmtp.run_records import make_run, make_tracker, open_stores
from wmtp.run_settings import refuse_changes, write_settings
from wmtp.settings import Settings
from wmtp.training.distributed import World, join_world
from wmtp.training.launch import launch
from wmtp.training.loop import LIMITS, Progress, Stage, fit
from wmtp.training.preemption import Preemption
from wmtp.training.progress import ProgressBar
from wmtp.training.run_folder import RunFolder
from wmtp.training.step import Hardware
from wmtp.training.store import CheckpointStore
from wmtp.training.tracking import Tracker
from wmtp.types import JSON


def train(
    settings: Settings,
    *,
    resume: str | None = None,
    allow_change: bool = False,
    continue_stopped: bool = False,
    no_eval: bool = False,
    accept_unsandboxed: bool = False,
) -> dict[str, JSON]:
    """Train all stages, save the model, and evaluate it as the recipe says.

    Args:
        settings: recipe and config.
        resume: "auto" goes on with the run of this name, or starts it; a path names one of its checkpoints.
        allow_change: go on although settings or data have changed since.
        continue_stopped: go on although early stopping had ended it.
        no_eval: leave out the recipe's evaluation.
        accept_unsandboxed: evaluate even where no box can be had for the programs that the model writes.

    Returns:
        What `summary.json` holds: per stage `total_steps`, `early_stopped`, `stop_reason`, `final_loss`, `seconds`, ..
        and the scores, under `eval`.

    Raises:
        UserError: a mistake in settings, data, model, or the run's folder.
        TrainingFailedError: not finite; the last checkpoint is whole.
        PreemptedError: a signal came, a checkpoint was saved.
    """
    config = settings.config
    device, between = make_device(config), config.devices.distributed
    with join_world(device, between.backend, between.start_timeout) as world:
        how = How(resume, allow_change, continue_stopped, no_eval, accept_unsandboxed)
        return _train(settings, make_hardware(config, device, world), how)


def _last_words(folder: RunFolder, world: World, lost: LostProcessError, *, say: bool = True) -> None:
    """Why the run ends, from one of the processes that are left."""
    if world.rank == min({*range(world.size)} - {*lost.missing}):
        folder.write_last_words(str(lost))
        if say:
            sys.stderr.write(f"{lost}; go on with: --resume auto\n")


def train_in_processes(settings: Settings, words: Sequence[str]) -> int:
    """Run `wmtp` with `words`, a `train` command, in `devices.num_proc` processes; gives the exit code.

    Raises:
        LostProcessError: one of them was killed; says which.
    """
    status = Path(settings.config.paths.output) / settings.recipe.run.name / "status.json"
    before = status.stat().st_mtime_ns if status.is_file() else 0
    code = launch(words, settings.config.devices.num_proc)
    if code > 128 and status.is_file() and status.stat().st_mtime_ns != before:  # an earlier run's says nothing
        code = {"preempted": PreemptedError.exit_code, "finished": 0}.get(json.loads(status.read_text())["state"], code)
    return code


@dataclass(frozen=True, slots=True)
class How:
    """What the caller of `train` asks for, see there."""

    resume: str | None
    allow_change: bool
    continue_stopped: bool
    no_eval: bool
    accept_unsandboxed: bool


def _train(settings: Settings, hardware: Hardware, how: How) -> dict[str, JSON]:
    path, world = Path(settings.config.paths.output) / settings.recipe.run.name, hardware.world
    with (
        RunFolder(path, resume=how.resume is not None, main=world.main) as folder,
        ProgressBar(quiet=not world.main) as screen,
        Preemption(launched=world.size > 1) as preempted,
        world.watched(settings.config.devices.distributed.start_timeout, partial(_last_words, folder, world)),
    ):
        if world.main:
            refuse_changes(folder, settings, how.allow_change)
        exam = None if how.no_eval else _exam(settings, folder, screen, preempted, how.accept_unsandboxed)
        # A mistake that shows itself here leaves nothing behind.
        job = assemble(settings, hardware, screen.say, accept_unsandboxed=how.accept_unsandboxed)
        stores = open_stores(settings, job, folder, screen.say)
        if world.main:
            write_settings(folder, settings)
        folder.write_status("running")
        tracker = make_tracker(settings, folder, screen, world)
        try:
            summary = _stages(settings, job, stores, folder, screen, preempted, tracker, exam, how)
            folder.write_status("finished")
            _tell(folder, summary, screen)
        except BaseException as error:
            lost = world.lost(error) if isinstance(error, RuntimeError) else None
            if isinstance(error, PreemptedError) or (lost and world.left(lost.missing)):
                world.leave()
                folder.write_status("preempted", reason=preempted.name or "another process was asked to leave")
                tracker.finish("preempted")
                raise PreemptedError(f"{lost or error}; go on with: --resume auto") from None
            told = lost or error
            folder.write_status("failed", reason=str(told) if isinstance(told, WmtpError) else repr(told))
            if lost:
                _last_words(folder, world, lost, say=False)
            tracker.finish("failed")
            raise told from error
        tracker.finish("finished")
        return summary


def _stages(
    settings: Settings,
    job: Job,
    stores: Mapping[str, CheckpointStore],
    folder: RunFolder,
    screen: ProgressBar,
    preempted: Preemption,
    tracker: Tracker,
    exam: Exam | None,
    how: How,
) -> dict[str, JSON]:
    """Train and hand on; with evaluations before and after."""
    between, world = settings.config.devices.distributed, job.stages[-1].hardware.world
    before = exam(job, job.fresh, "eval_before.json") if exam and settings.recipe.eval.before else None
    done: dict[str, Progress] = {}
    told: dict[str, dict[str, JSON]] = {}
    with (
        closing(make_run(settings, folder, screen, tracker, preempted, job, stores, how.resume)) as run,
        world.watched(between.timeout, partial(_last_words, folder, world)),
    ):
        run.allow_change, run.continue_stopped = how.allow_change, how.continue_stopped
        for stage in job.stages:
            done[stage.name] = fit(stage, run)
            told[stage.name] = job.after(stage.name, done[stage.name], folder.path)
    summary = _hand_on(job, done, told, folder, screen, tracker)
    if exam:
        after = exam(job, partial(load_model, str(folder.path / "model"), horizon=None), "eval.json")
        for name in before or {}:
            screen.say(f"{name}: {(before or {})[name]:.1%} before training, {after[name]:.1%} after")
        summary["eval"] = cast("JSON", {"before": before, "after": after} if before else {"after": after})
        last = done[job.stages[-1].name].step
        tracker.log(last, {f"eval/{name.replace('@', '_at_')}": value for name, value in after.items()})
    return summary


Exam = Callable[[Job, Callable[[], MTPModel], str], dict[str, float]]
"""Evaluates a job's model into a file of the run's folder and gives the scores. Several processes take the model that
the second argument makes, whole, and share the problems: they don't write in step, as a model in pieces asks for."""


def _exam(
    settings: Settings, folder: RunFolder, screen: ProgressBar, preempted: Preemption, accept_unsandboxed: bool
) -> Exam | None:
    """How this job is evaluated; None if nothing is asked.

    Raises:
        UserError: problems or box can't be had: told before training, not after.
    """
    what = parts(settings)
    if not what:
        return None
    Sandbox(accept_unsandboxed=accept_unsandboxed).close()

    def watch(title: str, done: int, total: int, text: str) -> None:
        screen.count(title, done, total, text)
        if preempted():
            raise PreemptedError(f"the evaluation was interrupted at {done} of {total} ({title})")

    def exam(job: Job, whole: Callable[[], MTPModel], name: str) -> dict[str, float]:
        hardware = job.stages[-1].hardware
        model = job.model if hardware.world.size == 1 else whole().to(hardware.device)
        with Sandbox(accept_unsandboxed=accept_unsandboxed) as sandbox:
            result = evaluate_model(
                settings,
                model,
                job.tokenizer,
                hardware,
                what=what,
                sandbox=sandbox,
                result=folder.path / name,
                watch=watch,
            )
        for line in score_lines(result):
            screen.say(line)
        return scores_of(result)

    return exam


def dry_run(settings: Settings, *, accept_unsandboxed: bool = False) -> None:
    """Load data and model and say what training would do; see `train`."""
    with ProgressBar() as screen:
        hardware = make_hardware(settings.config, make_device(settings.config))
        job = assemble(settings, hardware, screen.say, accept_unsandboxed=accept_unsandboxed)
        for stage in job.stages:
            learnt = sum(p.numel() for group in stage.optimizer.param_groups for p in group["params"])
            screen.say(
                f"stage {stage.name}: {stage.total_steps} steps at most ({stage.limit}), {learnt:,} weights learn"
            )


def _hand_on(
    job: Job,
    done: dict[str, Progress],
    told: dict[str, dict[str, JSON]],
    folder: RunFolder,
    screen: ProgressBar,
    tracker: Tracker,
) -> dict[str, JSON]:
    """Save the model; write and tell the summary."""
    job.save(folder.path / "model")
    summary: dict[str, JSON] = {"run": folder.path.name, "folder": str(folder.path)}
    for stage in job.stages:
        progress = done[stage.name]
        summary[stage.name] = _stage_summary(progress) | told[stage.name]
        folder.write_status("running", step=progress.step, stage=stage.name, reason=progress.reason)
        _track_end(tracker, stage, progress)
        screen.say(f"stage {stage.name} ended at step {progress.step}: {progress.reason} ({progress.message})")
        if (explained := progress.last.get("eval_explained_variance")) is not None:
            screen.say(f"value head: explains {explained:.1%} of the variance of held-out rewards")
        before, after = progress.first.get("eval_loss"), progress.last.get("eval_loss")
        if before is not None and after is not None:
            monitored = stage.stopper.config.monitor == "eval_loss" and progress.best_value is not None
            best = f", best {progress.best_value:.4f} at step {progress.best_step}" if monitored else ""
            screen.say(f"held-out loss: {before:.4f} before, {after:.4f} after{best} (nats per token)")
    folder.write_summary(summary)
    return summary


def _tell(folder: RunFolder, summary: dict[str, JSON], screen: ProgressBar) -> None:
    """Write and name what a person looks at."""
    if not folder.main:
        return
    folder.write_summary(summary)
    screen.say(f"report: {write_report(folder.path)}")
    screen.say(f"run folder: {folder.path}")


def _track_end(tracker: Tracker, stage: Stage[Any], progress: Progress) -> None:
    end = {"final_step": progress.step, "best_value": stage.stopper.best_value, "counter": stage.stopper.counter}
    prefix = "" if stage.name == "train" else f"{stage.name}/"
    tracker.log(
        progress.step,
        {f"{prefix}early_stopping/{key}": float(value) for key, value in end.items() if value is not None},
    )
    tracker.tag(**{f"{prefix}stop_reason": progress.reason, f"{prefix}stop_message": progress.message})


def _stage_summary(progress: Progress) -> dict[str, JSON]:
    return {
        "total_steps": progress.step,
        "early_stopped": progress.reason not in LIMITS,
        "stop_reason": progress.reason,
        "message": progress.message,
        "final_loss": progress.last.get("loss", progress.last.get("value_loss")),
        "seconds": progress.seconds,
        "tokens": progress.tokens,
        "best_step": progress.best_step,
        "best_value": progress.best_value,
        "first": dict(progress.first),
        "last": dict(progress.last),
    }
