"""Evaluations from settings to `eval.json`: of a model, and of the judge itself."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import torch

from wmtp.assemble import make_device, make_hardware
from wmtp.data import Location, MissingSplitError, Source, Split, Tokenizer, load_tokenizer
from wmtp.errors import DataError, UserError
from wmtp.evaluate.problems import Problem, load_problems
from wmtp.evaluate.prompts import protocol_for
from wmtp.evaluate.run import Task, Watch, Writer, evaluate
from wmtp.evaluate.sandbox import Sandbox
from wmtp.evaluate.self_check import SelfCheck, programs, self_check
from wmtp.inputs import cache_folder
from wmtp.model import MTPModel, fetch_model, load_model, tokenizer_location
from wmtp.model.files import predictor_hash
from wmtp.settings import Settings, load_settings
from wmtp.training.progress import ProgressBar
from wmtp.training.run_folder import write_json_atomic
from wmtp.training.step import Hardware
from wmtp.types import JSON
from wmtp.version import __version__

SOURCES: tuple[Source, ...] = ("mbpp", "humaneval", "contest", "custom")
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SAMPLES = "samples.jsonl"
RECIPE, CONFIG = "recipe.resolved.yaml", "config.resolved.yaml"
"""Names in a run's folder."""


@dataclass(frozen=True, slots=True)
class Part:
    """The problems of one source."""

    source: Source
    problems: list[Problem]


def parts(settings: Settings, asked: Sequence[str] = (), *, every_split: bool = False) -> list[Part]:
    """What is evaluated: `asked` in words like mbpp, mbpp:test or mbpp:PATH; or else what the recipe's metrics name.

    Args:
        settings: where the data sets are.
        asked: sources, each with a split or a path.
        every_split: of a source without a split take all that there are, not the test split.

    Raises:
        UserError: an unknown source, one whose place is not known, or problems that can't be read.
    """
    names = list(asked) or list(dict.fromkeys(metric.partition("_")[0] for metric in settings.recipe.eval.metrics))
    chosen: list[Part] = []
    for text in names:
        name, _, rest = text.partition(":")
        if name not in SOURCES:
            raise UserError(f"--data {text}: unknown source {name!r}; there are {', '.join(SOURCES)}")
        source = name
        split = rest if rest in SPLITS else None
        given = getattr(settings.config.paths.datasets, source)
        if rest and split is None:
            # A lone file of these is divided into training and validation; named here, all of it is the test.
            whole = source in ("contest", "custom") and not Path(rest).is_dir()
            location: Location = {"test": rest} if whole else rest
        elif given is None:
            raise UserError(f"--data {text}: where is it? Give {name}:PATH, or set paths.datasets.{name}")
        else:
            location = given if isinstance(given, str) else given.model_dump(exclude_none=True)
        splits = (split,) if split else SPLITS if every_split else ("test",)
        chosen.append(Part(source, _problems(source, location, splits)))
    return chosen


def _problems(source: Source, location: Location, splits: Sequence[Split]) -> list[Problem]:
    """All of them; a split that isn't there is passed over, unless it is the only one asked for."""
    found: list[Problem] = []
    for split in splits:
        try:
            found += load_problems(source, location, split, f"paths.datasets.{source}")
        except MissingSplitError:
            if len(splits) == 1:
                raise
    if not found:
        raise DataError(f"paths.datasets.{source}: {location!r} holds no {source} problems")
    return found


def evaluate_model(
    settings: Settings,
    model: MTPModel,
    tokenizer: Tokenizer,
    hardware: Hardware,
    *,
    what: Sequence[Part],
    sandbox: Sandbox,
    result: Path,
    watch: Watch,
) -> dict[str, JSON]:
    """Together: score `model` on `what`, as the recipe's `eval` says.

    Args:
        settings: recipe and config.
        model, tokenizer, hardware: what is evaluated and where it runs.
        what: see `parts`.
        sandbox: where programs run.
        result: file for the result; samples go beside it.
        watch: see `wmtp.evaluate.run.Watch`.

    Returns:
        What stands in `result`, described in docs/evaluation.md.
    """
    backend = tokenizer.backend_tokenizer.to_str().encode()
    writer = Writer(
        model=model,
        tokenizer=tokenizer,
        device=hardware.device,
        dtype=hardware.precision,
        identity=predictor_hash(model),
    )
    result.parent.mkdir(parents=True, exist_ok=True)
    samples = result.with_name(SAMPLES)
    peers = hardware.world if hardware.world.size > 1 else None
    tasks = [evaluate(_task(settings, part), writer, sandbox, samples, watch, peers) for part in what]
    whole: dict[str, JSON] = {
        "format": 1,
        "model": {
            "location": settings.config.paths.models.base,
            "weights_sha256": writer.identity,
            "horizon": model.horizon,
            "dtype": str(writer.dtype).removeprefix("torch."),
            "tokenizer_sha256": sha256(backend).hexdigest(),
        },
        "tasks": cast("list[JSON]", tasks),
        "sandbox": sandbox.report(),
        "versions": {
            "wmtp": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": version("transformers"),
        },
    }
    if hardware.world.main:
        write_json_atomic(result, whole)
    return whole


def _task(settings: Settings, part: Part) -> Task:
    recipe = settings.recipe.eval
    protocol = protocol_for(recipe.protocol, part.source)
    own = [name for metric in recipe.metrics for source, _, name in [metric.partition("_")] if source == part.source]
    return Task(
        source=part.source,
        problems=part.problems[: recipe.limit],
        protocol=protocol,
        temperatures=tuple(dict.fromkeys([recipe.sampling.temperature, *recipe.sampling.temperature_grid])),
        top_p=recipe.sampling.top_p,
        n=recipe.sampling.n,
        metrics=own or ["pass@1"],
        seed=settings.config.seed,
        max_new_tokens=recipe.max_new_tokens or protocol.max_new_tokens,
        batch_size=recipe.batch_size,
        speculative=recipe.speculative,
    )


@dataclass(frozen=True, slots=True)
class Asked:
    """What one `wmtp eval` is to do.

    Attributes:
        settings: recipe and config; `paths.models.base` is the model that is scored.
        what: problems.
        result: file for the result, in the run's folder or one of its own.
    """

    settings: Settings
    what: list[Part]
    result: Path


def choose(
    model: str | None,
    recipe: Path | None,
    config: Path | None,
    data: Sequence[str],
    overrides: Sequence[str],
    output: Path | None,
    *,
    self_check: bool,
) -> Asked:
    """Read the settings of a `wmtp eval`: those of the run that `model` names, unless others are given.

    Raises:
        UserError: settings that are not valid, or nothing to evaluate.
    """
    if (model is None) != self_check:
        raise UserError("wmtp eval: give the folder of a run, or a model; or --self-check alone to check the judge")
    run = None if model is None or not (Path(model) / RECIPE).is_file() else Path(model)
    recipe = recipe or (run / RECIPE if run else Path(str(files("wmtp") / "eval.yaml")))
    config = config or (run / CONFIG if run else None)
    base = str(run / "model") if run else model
    changes = [*overrides, *([f"paths.models.base={json.dumps(base)}"] if base else [])]
    settings = load_settings(recipe, config, changes)
    what = parts(settings, data, every_split=self_check)
    if not what:
        raise UserError("nothing to evaluate: the recipe's eval.metrics is empty; say what with --data mbpp")
    folder = output or run or Path(settings.config.paths.output) / f"eval-{Path(model or 'judge').stem}"
    return Asked(settings, what, folder / "eval.json")


def score(asked: Asked, *, accept_unsandboxed: bool = False) -> dict[str, JSON]:
    """`wmtp eval MODEL`: write and tell the scores."""
    config = asked.settings.config
    with ProgressBar() as screen, Sandbox(accept_unsandboxed=accept_unsandboxed) as sandbox:
        path = fetch_model(config.paths.models.base, cache_folder(config))
        screen.say(f"loading {config.paths.models.base}")
        hardware = make_hardware(config, make_device(config))
        model = load_model(path, horizon=None, native_mtp="drop", seed=config.seed).to(hardware.device)
        result = evaluate_model(
            asked.settings,
            model,
            load_tokenizer(tokenizer_location(path)),
            hardware,
            what=asked.what,
            sandbox=sandbox,
            result=asked.result,
            watch=screen.count,
        )
        for line in score_lines(result):
            screen.say(line)
        screen.say(f"all of it: {asked.result}")
        return result


def check_judge(asked: Asked, *, accept_unsandboxed: bool = False) -> dict[str, SelfCheck]:
    """`wmtp eval --self-check`: put references and programs that do nothing before the judge, and tell."""
    workers, limit = os.cpu_count() or 1, asked.settings.recipe.eval.limit
    checks: dict[str, SelfCheck] = {}
    with ProgressBar() as screen, Sandbox(accept_unsandboxed=accept_unsandboxed) as sandbox:
        for part in asked.what:
            problems = part.problems[:limit]

            def watch(done: int, title: str = f"checking {part.source}", total: int = programs(problems)) -> None:
                screen.count(title, done, total, "")

            checks[part.source] = found = self_check(problems, sandbox, workers=workers, watch=watch)
            for line in found.lines(part.source):
                screen.say(line)
        screen.say(f"box: {sandbox.level}")
    return checks


def scores_of(result: Mapping[str, JSON]) -> dict[str, float]:
    """Metric -> value of `eval.json`'s content, at the first temperature."""
    return {row["name"]: row["value"] for task in _tasks(result) for row in task["scores"] if row["main"]}


def score_lines(result: Mapping[str, JSON]) -> Iterator[str]:
    """The scores for a person, one a line."""
    for task in _tasks(result):
        protocol, sampling = task["protocol"], task["sampling"]
        for row in task["scores"]:
            oracle = "best_temperature" in row
            at = f"oracle, T {row['best_temperature']:g}" if oracle else f"T {row['temperature']:g}"
            yield (
                f"{row['name']}: {row['value']:.1%} [{row['low']:.1%}, {row['high']:.1%}]  "
                f"({row['problems']} problems, {protocol['name']} v{protocol['version']}, n {sampling['n']}, {at})"
            )
        checked = task["self_check"]
        for key, why in [*checked["failed"].items(), *checked["passed_by_trivial_programs"].items()]:
            yield f"warning: {key} is left out, its tests tell nothing: {why}"


def _tasks(result: Mapping[str, JSON]) -> list[dict[str, Any]]:
    return cast("list[dict[str, Any]]", result["tasks"])
