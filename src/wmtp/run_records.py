"""Where a run's records and checkpoints go, from settings: folder, URL, MLflow."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from wmtp.assemble import Job
from wmtp.errors import CheckpointError
from wmtp.settings import Settings
from wmtp.training.distributed import World
from wmtp.training.preemption import Preemption
from wmtp.training.progress import ProgressBar
from wmtp.training.remote import RemoteFolder
from wmtp.training.run import Run
from wmtp.training.run_folder import RunFolder
from wmtp.training.store import CheckpointStore
from wmtp.training.tracking import MlflowTracker, NoTracker, Tracker


def make_run(
    settings: Settings,
    folder: RunFolder,
    screen: ProgressBar,
    tracker: Tracker,
    preempted: Preemption,
    job: Job,
    stores: Mapping[str, CheckpointStore],
    resume: str | None,
) -> Run:
    """The run that the loop writes to; `CheckpointError` if `resume` names no checkpoint of it."""
    config, world = settings.config, job.stages[-1].hardware.world
    paths = config.paths.checkpoints
    return Run(
        folder,
        world,
        preempted=preempted,
        screen=screen,
        tracker=tracker,
        checkpoints=stores,
        data={"train": job.train.key, "eval": job.held_out.key},
        save_interval=settings.save_interval,
        save_final=paths.save_final,
        save_wait=config.devices.distributed.save_wait,
        background=paths.background,
        log_interval=config.log_interval,
        start_from=None if resume in (None, "auto") else _start(resume, _checkpoints(settings, folder)),
    )


def _checkpoints(settings: Settings, folder: RunFolder) -> str:
    """Folder or URL that gets a folder of checkpoints for each stage."""
    base = settings.config.paths.checkpoints.base_path
    return f"{base.rstrip('/')}/{settings.recipe.run.name}" if base else str(folder.checkpoints)


def open_stores(
    settings: Settings, job: Job, folder: RunFolder, say: Callable[[str], None]
) -> dict[str, CheckpointStore]:
    """Together: where each stage's checkpoints go; `CheckpointError` if a URL can't be used."""
    base, world = _checkpoints(settings, folder), job.stages[-1].hardware.world
    apart, stores = world.apart(), dict[str, CheckpointStore]()

    def open_them() -> None:
        for stage in job.stages:
            remote = RemoteFolder(f"{base}/{stage.name}") if "://" in base else None
            local = folder.checkpoints / stage.name if remote else Path(base).absolute() / stage.name
            keep_last = settings.config.paths.checkpoints.keep_last
            stores[stage.name] = CheckpointStore(local, apart, say, keep_last, remote)

    try:
        world.together(open_them)
    except OSError as error:
        raise CheckpointError(f"paths.checkpoints.base_path: {error}") from error
    return stores


def _start(resume: str, base: str) -> tuple[str, int]:
    """Stage and step of the checkpoint that `--resume PATH` names."""
    place = resume.rstrip("/") if "://" in base else str(Path(resume).absolute())
    stage, _, name = place.removeprefix(base if "://" in base else str(Path(base).absolute())).strip("/").partition("/")
    if not re.fullmatch(r"step-\d{8,}", name) or not ("://" in base or Path(place).is_dir()):
        raise CheckpointError(
            f"--resume {resume}: not a checkpoint of this run, whose are in {base}; name one, or auto"
        )
    return stage, int(name.removeprefix("step-"))


def make_tracker(settings: Settings, folder: RunFolder, screen: ProgressBar, world: World) -> Tracker:
    """MLflow, unless it is switched off or another process writes."""
    config, recipe = settings.config, settings.recipe
    if not (config.mlflow.enabled and world.main):
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
