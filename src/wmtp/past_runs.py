"""Past runs for `wmtp stop`: what a person names, read; and the stopping object that a live run of a stage asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from wmtp.errors import UserError
from wmtp.stopping import EarlyStopping, EarlyStoppingConfig, LossEarlyStopping, ValueHeadEarlyStopping
from wmtp.stopping.config import ValueHeadStoppingConfig
from wmtp.stopping.history import History, find_log, histories_of, read_histories
from wmtp.training.mlflow_runs import metric_history
from wmtp.training.run_folder import write_text_atomic
from wmtp.types import JSON

_MLFLOW = "mlflow:"


def resolve(sources: Sequence[str], *, stage: str | None = None, tracking_uri: str | None = None) -> list[History]:
    """The stages of all runs that `sources` name: logs (see `read_histories`), folders of logs, `mlflow:RUN_ID`.

    Raises:
        UserError: a source is none or damaged, or no run has such a stage.
    """
    found: list[History] = []
    for source in sources:
        if source.startswith(_MLFLOW):
            found += _from_mlflow(source.removeprefix(_MLFLOW), tracking_uri)
        else:
            for path in _logs(Path(source)):
                found += read_histories(path)
    chosen = [history for history in found if stage is None or history.stage == stage]
    if not chosen:
        stages = ", ".join(dict.fromkeys(repr(history.stage) for history in found))
        raise UserError(f"--stage {stage}: no run has such a stage; there are {stages}")
    names = [(history.name, history.stage) for history in chosen]
    return [
        replace(history, name=history.source) if names.count((history.name, history.stage)) > 1 else history
        for history in chosen
    ]


def _logs(path: Path) -> list[Path]:
    """The log that `path` is, or all those in a folder of them (a folder of runs, a folder of files)."""
    if find_log(path) is not None or not path.is_dir():
        return [path]
    return sorted(entry for entry in path.iterdir() if find_log(entry)) or [path]


def _from_mlflow(run_id: str, tracking_uri: str | None) -> list[History]:
    """wmtp's runs have a prefix before the metrics of stage 1; what it derives for MLflow alone is left out."""
    name, rows = metric_history(run_id, tracking_uri)
    derived = ("early_stopping/", "tokens_per_s")
    found: dict[str, list[tuple[str, dict[str, Any]]]] = {"pretrain": [], "": []}
    for row in rows:
        parts: dict[str, dict[str, float]] = {"pretrain": {}, "": {}}
        for key, value in row.items():
            stage, _, metric = key.partition("/")
            stage, metric = (stage, metric) if stage == "pretrain" else ("", key)
            if key != "step" and not metric.startswith(derived):
                parts[stage][metric] = value
        for stage, metrics in parts.items():
            if metrics:
                found[stage].append((f"mlflow:{run_id}", {"stage": stage, "step": row["step"], **metrics}))
    return histories_of(name, [row for rows in found.values() for row in rows], f"mlflow:{run_id}")


def stopper_of(stage: str, settings: Mapping[str, JSON] | EarlyStoppingConfig) -> EarlyStopping:
    """The object that a live run of that stage asks."""
    of_values = stage == "pretrain"
    if not isinstance(settings, EarlyStoppingConfig):
        kind = ValueHeadStoppingConfig if of_values else EarlyStoppingConfig
        settings = kind.from_mapping(settings)
    return ValueHeadEarlyStopping(settings) if of_values else LossEarlyStopping(settings)


def write_page(page: Path, text: str) -> None:
    """Write the HTML of `--page`.

    Raises:
        UserError: it can't be written there.
    """
    try:
        write_text_atomic(page, text)
    except OSError as error:
        raise UserError(f"--page {page}: can't be written ({error.strerror})") from error


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows, the first of them names, as lines with columns of one width; a column with nothing in it is left out."""
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    shown = zip(*columns, strict=True)
    return ["  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip() for row in shown]
