"""The main job: train what the settings say, in a run's folder, hand on the model, and evaluate it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, cast

from wmtp.assemble import Job, assemble
from wmtp.errors import CheckpointError, PreemptedError, WmtpError
from wmtp.evaluate.sandbox import Sandbox
from wmtp.evaluation import CONFIG, RECIPE, evaluate_model, parts, score_lines, scores_of
from wmtp.model import save_model
from wmtp.report import write_report
from wmtp.settings import Settings, dump_yaml, load_config, load_recipe
from wmtp.training.loop import LIMITS, Progress, Stage, fit
from wmtp.training.preemption import Preemption
from wmtp.training.progress import ProgressBar
from wmtp.training.run import Run
from wmtp.training.run_folder import RunFolder, write_text_atomic
from wmtp.training.tracking import MlflowTracker, NoTracker, Tracker
from wmtp.types import JSON

# What may differ between a run and its resumption: it changes neither data nor updates. A changed early-stopping block
# is taken with a warning (SPEC 3.3).
FREE = (
    "run.tags",
    "train.early_stopping",
    "pretrain.early_stopping",
    "eval.",
    "log_interval",
    "mlflow",
    "paths.output",
    "paths.cache",
    "paths.checkpoints",
    "train.save_interval",
    "devices.micro_batch_size",
)


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
    path = Path(settings.config.paths.output) / settings.recipe.run.name
    with RunFolder(path, resume=resume is not None) as folder, ProgressBar() as screen, Preemption() as preempted:
        _refuse_changes(folder, settings, allow_change)
        exam = None if no_eval else _exam(settings, folder, screen, preempted, accept_unsandboxed)
        # A mistake that shows itself here leaves nothing behind.
        job = assemble(settings, screen.say, accept_unsandboxed=accept_unsandboxed)
        _write_settings(folder, settings)
        folder.write_status("running")
        tracker = _tracker(settings, folder, screen)
        try:
            with closing(_run(settings, folder, screen, tracker, preempted, job, resume)) as run:
                run.allow_change, run.continue_stopped = allow_change, continue_stopped
                before = exam(job, "eval_before.json") if exam and settings.recipe.eval.before else None
                done: dict[str, Progress] = {}
                told: dict[str, dict[str, JSON]] = {}
                for stage in job.stages:
                    done[stage.name] = fit(stage, run)
                    told[stage.name] = job.after(stage.name, done[stage.name], folder.path)
            summary = _hand_on(job, done, told, folder, screen, tracker)
            if exam:
                after = exam(job, "eval.json")
                for name in before or {}:
                    screen.say(f"{name}: {(before or {})[name]:.1%} before training, {after[name]:.1%} after")
                summary["eval"] = cast("JSON", {"before": before, "after": after} if before else {"after": after})
                last = done[job.stages[-1].name].step
                tracker.log(last, {f"eval/{name.replace('@', '_at_')}": value for name, value in after.items()})
            folder.write_status("finished")
            _tell(folder, summary, screen)
        except PreemptedError as error:
            folder.write_status("preempted", reason=preempted.name)
            tracker.finish("preempted")
            raise PreemptedError(f"{error}; go on with: --resume auto") from None
        except BaseException as error:
            folder.write_status("failed", reason=str(error) if isinstance(error, WmtpError) else repr(error))
            tracker.finish("failed")
            raise
        tracker.finish("finished")
        return summary


Exam = Callable[[Job, str], dict[str, float]]


def _exam(
    settings: Settings, folder: RunFolder, screen: ProgressBar, preempted: Preemption, accept_unsandboxed: bool
) -> Exam | None:
    """What evaluates a job's model into a file of the run's folder and gives the scores; None if nothing is asked.

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

    def exam(job: Job, name: str) -> dict[str, float]:
        with Sandbox(accept_unsandboxed=accept_unsandboxed) as sandbox:
            result = evaluate_model(
                settings,
                job.model,
                job.tokenizer,
                job.stages[0].hardware,
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
        job = assemble(settings, screen.say, accept_unsandboxed=accept_unsandboxed)
        for stage in job.stages:
            learnt = sum(p.numel() for group in stage.optimizer.param_groups for p in group["params"])
            screen.say(
                f"stage {stage.name}: {stage.total_steps} steps at most ({stage.limit}), {learnt:,} weights learn"
            )


def _run(
    settings: Settings,
    folder: RunFolder,
    screen: ProgressBar,
    tracker: Tracker,
    preempted: Preemption,
    job: Job,
    resume: str | None,
) -> Run:
    paths = settings.config.paths.checkpoints
    base = Path(paths.base_path) / settings.recipe.run.name if paths.base_path else folder.checkpoints
    start_from = None if resume in (None, "auto") else Path(resume).absolute()
    if start_from is not None and (start_from.parent.parent != base.absolute() or not start_from.is_dir()):
        raise CheckpointError(
            f"--resume {resume}: not a checkpoint of this run, whose are in {base}; name one, or auto"
        )
    return Run(
        folder,
        preempted=preempted,
        screen=screen,
        tracker=tracker,
        checkpoints=base.absolute(),
        data={"train": job.train.key, "eval": job.held_out.key},
        save_interval=settings.save_interval,
        save_final=paths.save_final,
        keep_last=paths.keep_last,
        log_interval=settings.config.log_interval,
        start_from=start_from,
    )


def _tracker(settings: Settings, folder: RunFolder, screen: ProgressBar) -> Tracker:
    config, recipe = settings.config, settings.recipe
    if not config.mlflow.enabled:
        return NoTracker()
    return MlflowTracker(
        config.mlflow.tracking_uri or f"sqlite:///{Path(config.paths.output).absolute() / 'mlflow.db'}",
        experiment=config.mlflow.experiment or config.project,
        run_name=recipe.run.name,
        params={"seed": config.seed, **recipe.model_dump(mode="json", by_alias=True)},
        tags=dict.fromkeys(recipe.run.tags, "true"),
        id_file=folder.mlflow_run_id,
        say=screen.say,
        close_timeout=60.0,  # a first sqlite store takes seconds to make, and a short run should still reach it
    )


def _refuse_changes(folder: RunFolder, settings: Settings, allow_change: bool) -> None:
    """`CheckpointError` with a diff if the run was begun with other settings."""
    recipe, config = folder.path / RECIPE, folder.path / CONFIG
    if allow_change or not (recipe.is_file() and config.is_file()):
        return
    if changes := list(_changes(Settings(load_recipe(recipe), load_config(config)), settings)):
        listed = "\n  ".join(changes)
        raise CheckpointError(
            f"{folder.path}: the run was begun with other settings:\n  {listed}\n"
            "set them back, give the run another name, or add --allow-change to go on with the new ones"
        )


def _write_settings(folder: RunFolder, settings: Settings) -> None:
    write_text_atomic(folder.path / RECIPE, dump_yaml(settings.recipe))
    write_text_atomic(folder.path / CONFIG, dump_yaml(settings.config))


def _changes(before: Settings, now: Settings) -> Iterator[str]:
    for old, new in ((before.recipe, now.recipe), (before.config, now.config)):
        was, will = (dict(_flat(part.model_dump(mode="json", by_alias=True))) for part in (old, new))
        for key in sorted(was.keys() | will.keys()):
            if was.get(key) != will.get(key) and not key.startswith(FREE):
                yield f"{key}: {json.dumps(was.get(key))} -> {json.dumps(will.get(key))}"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(cast("Mapping[str, Any]", value), f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _hand_on(
    job: Job,
    done: dict[str, Progress],
    told: dict[str, dict[str, JSON]],
    folder: RunFolder,
    screen: ProgressBar,
    tracker: Tracker,
) -> dict[str, JSON]:
    """Save the model; write and tell the summary."""
    save_model(job.model, job.tokenizer, folder.path / "model")
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
