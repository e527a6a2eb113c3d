"""The commands. Each imports what it needs when it runs: `check` and `schema` answer without torch."""

from __future__ import annotations

import json
import sys
import warnings
from importlib.resources import files
from pathlib import Path
from time import strftime
from typing import Annotated

import typer

from wmtp import __version__
from wmtp.errors import UserError, WmtpError

app = typer.Typer(
    help="Fine-tune code models that predict several tokens at once, and know when to stop.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Recipe = Annotated[Path, typer.Option("--recipe", "-r", help="the recipe: what is trained, and how")]
Config = Annotated[Path | None, typer.Option("--config", "-c", help="the config: where things are, on what to run")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a setting of either")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON value on stdout; all else goes to stderr")]


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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="load everything, say what would happen, stop")] = False,
    as_json: AsJson = False,
) -> None:
    """Train as the recipe says: all stages, and the model saved at the end."""
    changes = list(overrides or [])
    changes += [f"run.name={json.dumps(run_name)}"] if run_name is not None else []
    changes += [f"run.tags={json.dumps(tags.split(','))}"] if tags is not None else []
    from wmtp.settings import load_settings

    settings = load_settings(recipe, config, changes)
    from wmtp import job

    if dry_run:
        job.dry_run(settings)
        return
    summary = job.train(settings, resume=resume, allow_change=allow_change, continue_stopped=continue_stopped)
    if as_json:
        typer.echo(json.dumps(summary))


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


@app.command()
def check(recipe: Recipe, config: Config = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Say whether recipe and config are valid, and what they come to."""
    from wmtp.settings import dump_yaml, load_settings

    settings = load_settings(recipe, config, overrides or [])
    if as_json:
        both = {"recipe": settings.recipe, "config": settings.config}
        typer.echo(json.dumps({name: part.model_dump(mode="json", by_alias=True) for name, part in both.items()}))
    else:
        typer.echo(f"# recipe\n{dump_yaml(settings.recipe)}\n# config\n{dump_yaml(settings.config)}")
        typer.echo("valid", err=True)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="the folder of a run")]) -> None:
    """Write report.html into a run's folder: losses, gradient norm, distance to stopping, and why it ended."""
    from wmtp.report import write_report

    typer.echo(write_report(run))


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
        typer.echo(f"{label}{error}", err=True)
        sys.exit(error.exit_code)
