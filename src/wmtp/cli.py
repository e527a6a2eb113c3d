"""The commands. Each imports what it needs when it runs: `check` and `schema` answer without torch."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from importlib.resources import files
from pathlib import Path
from time import strftime
from typing import Annotated, Literal

import typer

from wmtp.cli_stop import AsJson, stop
from wmtp.errors import LostProcessError, UserError, WmtpError
from wmtp.version import __version__

RANK = int(os.environ.get("RANK", "0")) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None
"""Which of several processes a launcher has started this as; None if there is one."""
ECHO = 2.0
"""Seconds that a process other than 0 waits before it tells what is wrong: fewer than its neighbours take to see that
it is gone (`wmtp.training.distributed.NOTICE`), for then the launcher ends it."""

app = typer.Typer(
    help="Fine-tune code models that predict several tokens at once, and know when to stop.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(stop, name="stop")

Recipe = Annotated[Path, typer.Option("--recipe", "-r", help="the recipe: what is trained, and how")]
Config = Annotated[Path | None, typer.Option("--config", "-c", help="the config: where things are, on what to run")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a setting of either")]
Unsandboxed = Annotated[
    bool,
    typer.Option(
        "--i-accept-unsandboxed-code",
        help="run the model's programs even where no box can be had",
    ),
]


@app.command()
def train(
    recipe: Recipe,
    config: Config = None,
    overrides: Overrides = None,
    run_name: Annotated[str | None, typer.Option(help="override run.name")] = None,
    tags: Annotated[str | None, typer.Option(help="override run.tags: a,b,c")] = None,
    resume: Annotated[
        str | None, typer.Option(help="auto: go on where the run is, or start; PATH: from that checkpoint of it")
    ] = None,
    allow_change: Annotated[
        bool, typer.Option("--allow-change", help="resume although the settings or the data differ from the run's")
    ] = False,
    continue_stopped: Annotated[
        bool, typer.Option("--continue-stopped", help="train on although early stopping had ended the run")
    ] = False,
    shadow: Annotated[
        list[str] | None,
        typer.Option(metavar="RULE", help="ask this rule beside stage 2's own; it never stops: trend, {any: [..]}"),
    ] = None,
    nproc: Annotated[
        int | None, typer.Option(min=1, help="devices.num_proc: processes on this machine; torchrun starts its own")
    ] = None,
    no_eval: Annotated[bool, typer.Option("--no-eval", help="leave out the recipe's evaluation")] = False,
    accept_unsandboxed: Unsandboxed = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="load everything, say what would happen, stop")] = False,
    as_json: AsJson = False,
) -> None:
    """Train as the recipe says: all stages, the model saved, and evaluated."""
    changes = list(overrides or [])
    changes += [f"run.name={json.dumps(run_name)}"] if run_name is not None else []
    changes += [f"run.tags={json.dumps(tags.split(','))}"] if tags is not None else []
    changes += [f"devices.num_proc={nproc}"] if nproc is not None else []
    from wmtp.settings import load_settings

    settings = load_settings(recipe, config, changes + _shadow_rules(shadow or []))
    from wmtp import job

    if dry_run:
        job.dry_run(settings, accept_unsandboxed=accept_unsandboxed)
        return
    if settings.config.devices.num_proc > 1 and RANK is None:
        sys.exit(job.train_in_processes(settings, sys.argv[1:]))
    summary = job.train(
        settings,
        resume=resume,
        allow_change=allow_change,
        continue_stopped=continue_stopped,
        no_eval=no_eval,
        accept_unsandboxed=accept_unsandboxed,
    )
    if as_json and not RANK:
        typer.echo(json.dumps(summary))


def _shadow_rules(rules: list[str]) -> list[str]:
    """The overrides that `--shadow` stands for; a rule that is a bare name is called by it."""
    from wmtp.settings.values import read_value

    names = [rule if rule.isalnum() else f"shadow_{number}" for number, rule in enumerate(rules, 1)]
    values = {name: read_value("--shadow", rule) for name, rule in zip(names, rules, strict=True)}
    return [f"train.early_stopping.shadow_rules={json.dumps(values)}"] if values else []


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="folder that gets the run's folder")] = Path("runs"),
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """The whole main job on the embedded model and data: offline, minutes on two cores."""
    from wmtp import job
    from wmtp.assemble import cpu_multiplies_bf16
    from wmtp.settings import load_settings

    here = [f"paths.output={json.dumps(str(output))}", f"run.name=demo-{strftime('%Y%m%d-%H%M%S')}"]
    here += ["devices.mixed_precision=bf16"] if cpu_multiplies_bf16() else []
    settings = load_settings(Path(str(files("wmtp") / "demo.yaml")), None, [*here, *(overrides or [])])

    summary = job.train(settings)
    if as_json:
        typer.echo(json.dumps(summary))


@app.command("eval")
def evaluate(
    model: Annotated[str | None, typer.Argument(help="a run's folder, or a model: folder, .gguf file, hub id")] = None,
    recipe: Annotated[Path | None, typer.Option("--recipe", "-r", help="whose `eval` counts; else the run's")] = None,
    config: Config = None,
    data: Annotated[
        list[str] | None, typer.Option(help="mbpp, mbpp:validation or mbpp:PATH; also humaneval, contest, custom")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="eval.limit: the first N problems of each source")] = None,
    protocol: Annotated[str | None, typer.Option(help="eval.protocol: how problems are put")] = None,
    output: Annotated[Path | None, typer.Option(help="folder for the result; else the run's, or one in runs/")] = None,
    overrides: Overrides = None,
    self_check: Annotated[
        bool, typer.Option("--self-check", help="no model: references must pass, programs that do nothing must not")
    ] = False,
    accept_unsandboxed: Unsandboxed = False,
    as_json: AsJson = False,
) -> None:
    """Score a model by running what it writes, in a box; or check the judge itself."""
    from wmtp import evaluation

    changes = [f"eval.limit={limit}"] if limit is not None else []
    changes += [f"eval.protocol={json.dumps(protocol)}"] if protocol is not None else []
    changes += overrides or []
    asked = evaluation.choose(model, recipe, config, data or [], changes, output, self_check=self_check)
    if self_check:
        checks = evaluation.check_judge(asked, accept_unsandboxed=accept_unsandboxed)
        if as_json:
            typer.echo(json.dumps({name: found.to_json() for name, found in checks.items()}))
        sys.exit(any(found.bad for found in checks.values()))
    result = evaluation.score(asked, accept_unsandboxed=accept_unsandboxed)
    if as_json:
        typer.echo(json.dumps(result))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine has: devices, precision, and how safely it can run programs; with the cures."""
    from wmtp.doctor import examine, lines

    found = examine()
    typer.echo(json.dumps(found) if as_json else "\n".join(lines(found)))


@app.command()
def check(
    recipe: Recipe,
    config: Config = None,
    overrides: Overrides = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="how many there are; else devices.num_proc")] = None,
    gpu: Annotated[str | None, typer.Option(help="kind, for its memory and speed: A100, H100, ..")] = None,
    gpu_memory: Annotated[str | None, typer.Option(metavar="SIZE", help="memory of each, like 80GB")] = None,
    tflops: Annotated[float | None, typer.Option(min=1e-3, help="that each really does; else 40 % of its peak")] = None,
    no_estimate: Annotated[bool, typer.Option("--no-estimate", help="valid or not, at once")] = False,
    as_json: AsJson = False,
) -> None:
    """Say whether recipe and config are valid, what they come to, and what memory, disk and time that needs."""
    from wmtp.settings import dump_yaml, load_settings

    settings = load_settings(recipe, config, overrides or [])
    if not as_json:
        typer.echo(f"# recipe\n{dump_yaml(settings.recipe)}\n# config\n{dump_yaml(settings.config)}")
        typer.echo("valid", err=True)
    found = None
    if not no_estimate:
        from wmtp.estimate import estimate, lines, machine_of

        found = estimate(settings, machine_of(settings, gpus, gpu, gpu_memory, tflops))
        if not as_json:
            typer.echo("\n# estimate\n" + "\n".join(f"# {line}" for line in lines(found)))
    if as_json:
        both = {"recipe": settings.recipe, "config": settings.config}
        dumped = {name: part.model_dump(mode="json", by_alias=True) for name, part in both.items()}
        typer.echo(json.dumps(dumped | {"estimate": found}))


@app.command()
def report(run: Annotated[Path, typer.Argument(help="the folder of a run")]) -> None:
    """Write report.html into a run's folder: losses, gradient norm, distance to stopping, and why it ended."""
    from wmtp.report import write_report

    typer.echo(write_report(run))


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="a run's folder, or a model: folder or .gguf file")],
    out: Annotated[Path, typer.Argument(help="the new folder")],
    to: Annotated[
        Literal["hf", "meta"],
        typer.Option(help="hf: the trunk, for transformers and vLLM; meta: trunk and heads in Meta's own form"),
    ],
    as_json: AsJson = False,
) -> None:
    """Write a trained model in a form that other programs read."""
    from wmtp.export import export

    signal.signal(signal.SIGTERM, _leave)  # so that the half-made folder goes too
    export(model, out, to)
    typer.echo(json.dumps({"path": str(out), "form": to}) if as_json else out)


def _leave(number: int, _: object) -> None:
    """End as a person's Ctrl-C does: what is open is closed."""
    sys.exit(128 + number)


@app.command()
def weights(
    run: Annotated[Path, typer.Argument(help="the folder of a finished run")],
    sample: Annotated[int, typer.Option(min=1, help="how many documents of the training data, drawn by the seed")] = 8,
    document: Annotated[list[int] | None, typer.Option(help="this one of them instead, by its index from 0")] = None,
    overrides: Overrides = None,
    accept_unsandboxed: Unsandboxed = False,
    as_json: AsJson = False,
) -> None:
    """Write weights.html into a run's folder: programs with each token shaded by how much it counts, per head."""
    from wmtp.weights_view import view_weights

    shown = view_weights(run, sample, document or [], overrides or [], accept_unsandboxed=accept_unsandboxed)
    typer.echo(json.dumps(shown) if as_json else shown["path"])


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipe and config, for editors."""
    from wmtp.settings import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="print the version")] = False) -> None:
    """Options of wmtp itself."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


def _one_line(message: Warning | str, *place: object) -> str:
    """A warning is for the person at the terminal: what it says, not where in the code."""
    del place
    return f"warning: {message}\n"


def main() -> None:
    """Run a command; what went wrong is one message, and an exit code that says whose fault it is."""
    warnings.formatwarning = _one_line
    try:
        app()
    except WmtpError as error:
        label = "error: " if isinstance(error, UserError) else ""
        if RANK:
            # What is wrong on process 0 too is told there, and the launcher then ends this one before it repeats it.
            time.sleep(0.0 if isinstance(error, LostProcessError) else ECHO)
            label = f"process {RANK}: {label}"
        typer.echo(f"{label}{error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:  # a disk, a file, a connection: nothing that a traceback would tell more of
        typer.echo(f"{f'process {RANK}: ' if RANK else ''}error: {error}", err=True)
        sys.exit(UserError.exit_code)
