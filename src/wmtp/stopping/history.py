"""What past runs have logged, as the observations that a stopping rule would have seen.

Rows of one step are one observation (transformers and Lightning log training and evaluation apart). Where a log goes
back in its steps because the run was resumed, the later rows hold. Metrics keep the names that they have in the log.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias, cast

from wmtp.errors import DataError
from wmtp.types import JSON, Observation

Row: TypeAlias = tuple[str, Mapping[str, Any]]
"""Where it stands ("metrics.jsonl:12"), and its keys and values, "step" among them."""

METRICS_FILE, STATE_FILE, CSV_FILE = "metrics.jsonl", "trainer_state.json", "metrics.csv"
SUFFIXES = (".jsonl", ".json", ".csv")

_PLACE = {"epoch": "epoch", "tokens": "tokens", "num_input_tokens_seen": "tokens", "seconds": "seconds",
          "total_steps": "total_steps"}  # fmt: skip
"""Keys that are fields of `Observation`, not metrics."""
_OTHER = {"stage", "step", "time", "timestamp", "_timestamp", "created_at", "total_flos"}
"""Keys that are no metrics either."""
_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_STEP_COLUMNS = ("step", "global_step", "trainer/global_step", "_step")
_NAME_COLUMNS, _RUN_COLUMNS = ("key", "metric"), ("run_id", "run id", "run")


@dataclass(frozen=True, slots=True)
class History:
    """One stage of one run.

    Attributes:
        name: the run's; `stage`: of the run, "" where the log knows none.
        observations: in the order of their steps, each step once.
        decisions: by step, what the run itself wrote of its stopping rule (`Verdict.fired` and `.evidence`).
        source: the file, or whatever else it was read from.
    """

    name: str
    stage: str
    observations: tuple[Observation, ...]
    decisions: Mapping[int, Mapping[str, JSON]] = field(default_factory=dict[int, Mapping[str, JSON]])
    source: str = ""

    def points(self, metric: str) -> list[tuple[int, float]]:
        """(step, value) wherever the metric was logged."""
        return [(seen.step, seen.metrics[metric]) for seen in self.observations if metric in seen.metrics]

    @property
    def metrics(self) -> list[str]:
        """The names of all metrics in the log."""
        return list(dict.fromkeys(name for seen in self.observations for name in seen.metrics))


def read_histories(path: Path) -> list[History]:
    """The stages of the run at `path`.

    Args:
        path: a run's folder or its `metrics.jsonl`; the `trainer_state.json` of transformers or a folder with one (of
            several checkpoints the newest); a CSV file with a column "step", or a folder with a `metrics.csv`.

    Raises:
        DataError: no such log, or a damaged one; names the line. A last line that is cut off is left out: the run may
            be under way.
    """
    log = find_log(path)
    if log is None:
        what = "is no log of a run" if path.is_file() else "no such file" if not path.exists() else "no log in there"
        raise DataError(f"{path}: {what}; give a run's folder, {METRICS_FILE}, {STATE_FILE} or a CSV file")
    try:
        match log.suffix:
            case ".jsonl":
                rows = list(_json_lines(log))
            case ".csv":
                return _csv_histories(log)
            case _:
                rows = _trainer_state(log)
    except OSError as error:
        raise DataError(f"{log}: can't be read: {error.strerror}") from error
    return histories_of(_name(log), rows, str(log))


def find_log(path: Path) -> Path | None:
    """The log that `path` is or has in it, none if there is none."""
    if path.is_file():
        return path if path.suffix in SUFFIXES else None
    if not path.is_dir():
        return None
    for name in (METRICS_FILE, STATE_FILE, CSV_FILE):
        if (path / name).is_file():
            return path / name
    checkpoints = {
        int(match[1]): state
        for state in path.glob(f"checkpoint-*/{STATE_FILE}")
        if (match := re.fullmatch(r"checkpoint-(\d+)", state.parent.name))
    }
    return checkpoints[max(checkpoints)] if checkpoints else None


def histories_of(name: str, rows: Iterable[Row], source: str = "") -> list[History]:
    """Rows of a log, in the order in which they were written, as a history per "stage".

    A row's "after_decision" names those of its metrics that were measured when its stopping rule had decided already:
    no rule sees them.

    Raises:
        DataError: a row without a step, or nothing to observe at all.
    """
    stages: dict[str, list[Observation]] = {}
    decisions: dict[str, dict[int, Mapping[str, JSON]]] = {}
    for where, row in rows:
        stage, step = str(row.get("stage") or ""), _step(where, row.get("step"))
        kept = stages.setdefault(stage, [])
        while kept and kept[-1].step > step:
            decisions[stage].pop(kept.pop().step, None)
        _take_in(kept, step, row)
        decision = row.get("early_stopping")
        if isinstance(decision, dict):
            decisions.setdefault(stage, {})[step] = cast("dict[str, JSON]", decision)
        decisions.setdefault(stage, {})
    found = [History(name, stage, tuple(seen), decisions[stage], source) for stage, seen in stages.items()]
    if not any(history.metrics for history in found):
        raise DataError(f"{source or name}: nothing is logged in there")
    return found


def _take_in(kept: list[Observation], step: int, row: Mapping[str, Any]) -> None:
    """`row` as a new observation, or a part of the last one if that is of the same step."""
    told: object = row.get("after_decision")
    hidden = cast("list[object]", told) if isinstance(told, list) else []
    metrics: dict[str, float] = {}
    place: dict[str, Any] = {}
    for key, value in row.items():
        number = _WORDS.get(value) if isinstance(value, str) else value
        if not isinstance(number, int | float) or isinstance(number, bool) or key in _OTHER or key in hidden:
            continue
        if key not in _PLACE:
            metrics[key] = number
        elif math.isfinite(number):
            place[_PLACE[key]] = number if key in ("epoch", "seconds") else int(number)
    # What this row does not tell (an evaluation's has no tokens) is as it was.
    last = kept[-1] if kept else Observation(step, {})
    if kept and last.step == step:
        kept.pop()
        metrics = {**last.metrics, **metrics}
    kept.append(replace(last, step=step, metrics=metrics, **place))


def _step(where: str, value: object) -> int:
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1 and value >= 0:
        return int(value)
    raise DataError(f"{where}: step {value!r} is not a whole number, from 0")


def _name(log: Path) -> str:
    """The folder's name for a log that is called as all of them are, else the file's."""
    if log.name not in (METRICS_FILE, STATE_FILE, CSV_FILE):
        return log.stem
    folder = log.resolve().parent
    return folder.parent.name if re.fullmatch(r"checkpoint-\d+", folder.name) else folder.name


def _json_lines(log: Path) -> Iterator[Row]:
    lines = log.read_bytes().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row: object = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                return
            raise DataError(f"{log}:{number}: not valid JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{log}:{number}: not a JSON object")
        yield f"{log}:{number}", cast("dict[str, Any]", row)


def _trainer_state(log: Path) -> list[Row]:
    """Rows of `log_history`; that which sums up the run is none (it gives the mean training loss a last step)."""
    try:
        state: object = json.loads(log.read_bytes())
    except json.JSONDecodeError as error:
        raise DataError(f"{log}:{error.lineno}: not valid JSON ({error.msg})") from error
    except ValueError as error:
        raise DataError(f"{log}: not UTF-8 text ({error})") from error
    fields = cast("dict[str, Any]", state) if isinstance(state, dict) else {}
    rows: object = fields.get("log_history")
    if not isinstance(rows, list):
        raise DataError(f"{log}: no log_history in there; is it a {STATE_FILE} of transformers?")
    planned: object = fields.get("max_steps")
    total = {"total_steps": planned} if isinstance(planned, int) and planned > 0 else {}
    found: list[Row] = []
    for number, row in enumerate(cast("list[object]", rows)):
        if not isinstance(row, dict):
            raise DataError(f"{log}: log_history[{number}] is not a JSON object")
        if not {"train_runtime", "train_loss"} <= row.keys():  # the summary at the end
            found.append((f"{log}: log_history[{number}]", {**total, **cast("dict[str, Any]", row)}))
    return found


def _csv_histories(log: Path) -> list[History]:
    """Wide (a column per metric), or long as MLflow exports them (columns key or metric, value, step)."""
    header, lines = _csv_lines(log)
    low = [name.strip().lower() for name in header]

    def column(names: Sequence[str]) -> int | None:
        return next((low.index(name) for name in names if name in low), None)

    step, name, value = column(_STEP_COLUMNS), column(_NAME_COLUMNS), column(("value",))
    if step is None:
        raise DataError(f"{log}:1: no column step; there are {', '.join(header)}")
    long = name is not None and value is not None
    runs: dict[str, list[Row]] = {}
    numeric = _numeric_columns(lines)
    named = {i: low[i] if low[i] in _PLACE or low[i] in _OTHER else header[i] for i in numeric}
    run = column(_RUN_COLUMNS) if long else None
    for where, cells in lines:
        row: dict[str, Any] = {"step": _number(where, header[step], cells[step])}
        if name is not None and value is not None:
            row[cells[name]] = _number(where, header[value], cells[value])
        else:
            spare = (i for i in numeric if low[i] not in _STEP_COLUMNS and cells[i].strip())
            row |= {named[i]: _number(where, header[i], cells[i]) for i in spare}
        runs.setdefault(_name(log) if run is None else cells[run], []).append((where, row))
    if long:  # one metric after the other: in the order of the steps instead
        runs = {key: sorted(rows, key=lambda row: _step(row[0], row[1]["step"])) for key, rows in runs.items()}
    found = [history for key, rows in runs.items() for history in histories_of(key, rows, str(log))]
    if not found:
        raise DataError(f"{log}: nothing is logged in there")
    return found


def _csv_lines(log: Path) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The names of the columns; each row and where it stands."""
    try:
        text = log.read_bytes().decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        lines = [(reader.line_num, cells) for cells in reader if cells]
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{log}: not a CSV file in UTF-8 ({error})") from error
    if not lines:
        raise DataError(f"{log}: is empty")
    (_, header), *rest = lines
    if rest and len(rest[-1][1]) < len(header) and not text.endswith("\n"):
        rest.pop()
    for number, cells in rest:
        if len(cells) != len(header):
            raise DataError(f"{log}:{number}: {len(cells)} cells, but {len(header)} columns")
    return header, [(f"{log}:{number}", cells) for number, cells in rest]


def _numeric_columns(lines: Sequence[tuple[str, list[str]]]) -> list[int]:
    """Columns most of whose filled cells are numbers; the others are names, dates and the like."""

    def is_number(cell: str) -> bool:
        try:
            float(cell)
        except ValueError:
            return False
        return True

    filled = [
        [cell for _, cells in lines if (cell := cells[i].strip())] for i in range(len(lines[0][1]) if lines else 0)
    ]
    return [i for i, column in enumerate(filled) if 2 * sum(map(is_number, column)) > len(column)]


def _number(where: str, column: str, cell: str) -> float:
    try:
        return float(cell)
    except ValueError as error:
        raise DataError(f"{where}: {column} = {cell!r} is not a number") from error
