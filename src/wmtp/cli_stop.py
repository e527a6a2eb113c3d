"""`wmtp stop ..`: stopping rules on past runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

stop = typer.Typer(
    help="Try stopping rules on past runs.", no_args_is_help=True, add_completion=False, rich_markup_mode=None
)

Sources = Annotated[
    list[str],
    typer.Argument(help="run folder, metrics.jsonl, trainer_state.json, CSV file, folder of these, mlflow:RUN_ID"),
]
Stage = Annotated[str | None, typer.Option(help="only this stage of wmtp's runs: pretrain, train")]
Judge = Annotated[
    str | None, typer.Option(metavar="METRIC", help="what regret is of, like eval_loss; else what a rule monitors")
]
TrackingUri = Annotated[str | None, typer.Option(help="where mlflow:RUN_ID is; else MLFLOW_TRACKING_URI")]
Page = Annotated[Path | None, typer.Option(metavar="FILE.html", help="write a page with pictures")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON value on stdout; all else goes to stderr")]


@stop.command("replay")
def stop_replay(
    sources: Sources,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="a setting of an early_stopping block")
    ] = None,
    rules: Annotated[
        list[str] | None, typer.Option("--rule", help="its rule, as YAML: trend, {any: [trend, divergence]}")
    ] = None,
    stage: Stage = None,
    judge: Judge = None,
    tracking_uri: TrackingUri = None,
    page: Page = None,
    as_json: AsJson = False,
) -> None:
    """Say where rules would have stopped past runs, what that saves and loses; by default the run's own and others."""
    from wmtp.stop_view import table, view_stops

    found, troubles = view_stops(
        sources, overrides or [], rules or [], stage=stage, judge=judge, tracking_uri=tracking_uri, page=page
    )
    for trouble in troubles:
        typer.echo(f"warning: {trouble}", err=True)
    typer.echo(json.dumps([one for run in found for one in run.to_json()]) if as_json else "\n".join(table(found)))


@stop.command("tune")
def stop_tune(
    sources: Sources,
    trials: Annotated[int, typer.Option(min=1, help="how many rules to try")] = 200,
    seed: Annotated[int, typer.Option(help="of the split and the search")] = 0,
    max_false: Annotated[float, typer.Option(min=0, max=1, help="share of runs that may end too early")] = 0.0,
    monitor: Annotated[str | None, typer.Option(metavar="METRIC", help="what to watch; else what judges")] = None,
    judge: Judge = None,
    stage: Stage = None,
    tracking_uri: TrackingUri = None,
    page: Page = None,
    as_json: AsJson = False,
) -> None:
    """Find settings that save most on past runs and stop none too early: chosen on one half, tested on the other."""
    from wmtp.stop_tune import lines, tune

    tuned = tune(
        sources,
        trials=trials,
        seed=seed,
        max_false=max_false,
        monitor=monitor,
        judge=judge,
        stage=stage,
        tracking_uri=tracking_uri,
        page=page,
        say=lambda text: typer.echo(text, err=True),
    )
    for reason in tuned.left_out:
        typer.echo(f"left out: {reason}", err=True)
    typer.echo(json.dumps(tuned.to_json()) if as_json else "\n".join(lines(tuned)))
