"""Where metrics go: `metrics.jsonl` always, MLflow beside it.

MLflow is best effort: it lives in a thread of its own, and no answer of its server, no missing answer either, reaches
the training. Whatever it can't take is in `metrics.jsonl`.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, cast

from wmtp.training.mlflow_runs import quiet
from wmtp.training.run_folder import json_safe, write_text_atomic
from wmtp.types import JSON

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

Status: TypeAlias = Literal["finished", "preempted", "failed"]

_Row: TypeAlias = tuple[int, int, Mapping[str, float]]
"""Step, time in ms, metrics."""

# SCHEDULED would claim that somebody has put a preempted run in a queue. It was ended from outside, and when it is
# resumed, it is RUNNING again.
_MLFLOW_STATUS = {"finished": "FINISHED", "preempted": "KILLED", "failed": "FAILED"}

_QUEUE = 10_000
"""Rows that wait for MLflow at most."""
_BATCH = 1000
"""Metrics in one request; MLflow's own limit."""
_LENGTH = 5000
"""Characters of a parameter's or tag's value; MLflow's limits are 6000 and 5000 to 8000 (by version)."""
_INTERVAL, _FIRST_RETRY, _LAST_RETRY = 1.0, 5.0, 300.0
"""Seconds from one request to the next, if all goes well, after the first failure, after many."""


class Tracker(Protocol):
    """Where a run's metrics are shown. No method waits for anybody or raises."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Numbers that hold after `step`. One name belongs to one stage, whose steps go up."""
        ...

    def tag(self, **tags: str) -> None:
        """Words about the run; a later one replaces an earlier."""
        ...

    def finish(self, status: Status) -> None:
        """Nothing comes after this. Waits for a bounded time."""
        ...


class NoTracker:
    """Shows nothing (a `Tracker`): for runs with `mlflow.enabled: false`."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing."""

    def tag(self, **tags: str) -> None:
        """Nothing."""

    def finish(self, status: Status) -> None:
        """Nothing."""


class MetricsFile:
    """A log of JSON objects, one a line, each handed to the system before `append` returns.

    What a full or failing disk does not take is kept, and written before the next row.
    """

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        """`say` is told when the disk begins to refuse rows."""
        self._path, self._say = path, say
        self._file = path.open("ab", buffering=0)
        self._waiting = b""

    def append(self, row: Mapping[str, JSON]) -> None:
        """Add {**row, "time" (Unix seconds)}. Non-finite numbers become strings, see `json_safe`."""
        line = json.dumps(json_safe({**row, "time": round(time.time(), 3)}), allow_nan=False)
        refused, self._waiting = bool(self._waiting), self._waiting + line.encode() + b"\n"
        if (error := self._write()) and not refused:
            self._say(f"warning: {self._path} can't be written, its rows wait in memory: {error}")

    def _write(self) -> OSError | None:
        """Hand over what waits; why the disk does not take all of it."""
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError as error:
            return error
        return None

    def truncate(self, stage: str, step: int) -> None:
        """Drop what a stage logged from `step` on, everything after that, and a line that a crash left unfinished.

        A run resumed at `step` then leaves the same file as one that was never interrupted, but for the times. Rows
        have "stage" and "step"; each stage counts its own steps.
        """
        self._file.close()
        kept: list[str] = []
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            row = _whole_row(line)
            if row is None or (row.get("stage") == stage and row["step"] >= step):
                break
            kept.append(line)
        write_text_atomic(self._path, "".join(kept))
        self._file = self._path.open("ab", buffering=0)

    def close(self) -> None:
        """No more rows; those that wait are tried once more."""
        if error := self._write():
            self._say(f"warning: {self._path} lacks its last rows, which the disk did not take: {error}")
        self._file.close()


def _whole_row(line: str) -> dict[str, Any] | None:
    """The row that `line` holds, None if it is not whole."""
    try:
        row: object = json.loads(line) if line.endswith("\n") else None
    except ValueError:
        return None
    return cast("dict[str, Any]", row) if isinstance(row, dict) and "step" in row else None


class MlflowTracker:
    """Shows a run in MLflow, from a thread of its own; implements `Tracker`.

    The first failure is told; then it tries again after 5 s, 10 s, .. 5 min, while up to 10,000 rows wait and then
    the oldest go. Steps that MLflow already has are not sent again, so a run that was killed after its last
    checkpoint and resumed has each step once.

    Args:
        uri: tracking server or store, such as sqlite:///mlflow.db.
        experiment: its name; made if need be.
        run_name: as shown.
        params: nested JSON, logged once as a.b.c; values over 5000 characters are cut.
        tags: words about the run.
        id_file: remembers the run's id; where it exists, that run goes on.
        say: told once that MLflow fails, and at the end what it lacks.
        close_timeout: seconds that `finish` waits at most.
    """

    def __init__(
        self,
        uri: str,
        *,
        experiment: str,
        run_name: str,
        params: Mapping[str, JSON],
        tags: Mapping[str, str],
        id_file: Path,
        say: Callable[[str], None],
        close_timeout: float = 10.0,
    ) -> None:
        self._uri, self._experiment, self._run_name = uri, experiment, run_name
        self._params = dict(_flatten(params))
        self._id_file, self._say, self._close_timeout = id_file, say, close_timeout
        self._rows: deque[_Row] = deque(maxlen=_QUEUE)
        self._tags = dict(tags)
        self._unsent: list[Metric] = []
        self._sent: dict[str, int] = {}
        self._run_id = ""
        self._lost = 0
        self._lock = threading.Lock()
        self._ending, self._ended = threading.Event(), False
        self._status: Status = "failed"
        quiet()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Puts the numbers into the queue."""
        with self._lock:
            self._lost += len(self._rows) == _QUEUE
            self._rows.append((step, time.time_ns() // 1_000_000, dict(metrics)))

    def tag(self, **tags: str) -> None:
        """Puts the words into the queue."""
        with self._lock:
            self._tags |= tags

    def finish(self, status: Status) -> None:
        """Sends what is left and ends the run truthfully, within `close_timeout`."""
        self._status = status
        self._ending.set()
        self._thread.join(self._close_timeout)
        lost = self._lost + len(self._rows) + len({metric.step for metric in self._unsent})
        if lost or not self._ended:
            end = "" if self._ended else " and the run's end"
            self._say(f"MLflow at {self._uri} lacks {lost} rows{end}; metrics.jsonl has them")

    def _work(self) -> None:
        """The thread: connects, sends once a second, and starts again where it fails."""
        client: MlflowClient | None = None
        told, pause = False, 0.0
        while True:
            ending = self._ending.wait(pause)
            try:
                if client is None:
                    client = self._connect()
                self._send(client)
                if ending:
                    client.set_terminated(self._run_id, _MLFLOW_STATUS[self._status])
                    self._ended = True
                    return
                pause = _INTERVAL
            except Exception as error:  # noqa: BLE001 - the boundary: whatever ails MLflow, training goes on
                if not told:
                    reason = " ".join(str(error).split())[:200]
                    self._say(f"MLflow at {self._uri} fails ({type(error).__name__}: {reason}); training goes on")
                if ending:
                    return
                told, pause = True, min(max(_FIRST_RETRY, 2 * pause), _LAST_RETRY)

    def _connect(self) -> MlflowClient:
        """Opens the run, a new one or that of `id_file`. Importing mlflow and making its tables takes seconds."""
        from mlflow import MlflowClient

        client = MlflowClient(self._uri)
        run = self._earlier_run(client)
        if run is None:
            found = client.get_experiment_by_name(self._experiment)
            experiment = client.create_experiment(self._experiment) if found is None else found.experiment_id
            run = client.create_run(experiment, run_name=self._run_name)
            write_text_atomic(self._id_file, run.info.run_id + "\n")
        else:
            client.update_run(run.info.run_id, status="RUNNING")
            for key in run.data.metrics:
                history = client.get_metric_history(run.info.run_id, key)
                self._sent[key] = max(metric.step for metric in history)
        self._run_id = run.info.run_id
        self._log_params(client, run.data.params)
        return client

    def _earlier_run(self, client: MlflowClient) -> Run | None:
        """The run that `id_file` names, None where there is none (any more)."""
        from mlflow.exceptions import MlflowException

        if not self._id_file.exists():
            return None
        try:
            return client.get_run(self._id_file.read_text(encoding="utf-8").strip())
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self._say(f"MLflow at {self._uri} no longer has this run; it gets a new one, from here on")
            return None

    def _log_params(self, client: MlflowClient, logged: Mapping[str, str]) -> None:
        """MLflow refuses to change a parameter; where the recipe has changed, a tag tells the new value."""
        from mlflow.entities import Param, RunTag

        new = [Param(key, value) for key, value in self._params.items() if key not in logged]
        changed = {key: value for key, value in self._params.items() if logged.get(key, value) != value}
        tags = [RunTag(f"changed.{key}", value) for key, value in changed.items()]
        client.log_batch(self._run_id, params=new, tags=tags)

    def _send(self, client: MlflowClient) -> None:
        """Everything in the queue; what fails stays for the next time."""
        from mlflow.entities import Metric, RunTag

        with self._lock:
            rows, tags = list(self._rows), dict(self._tags)
            self._rows.clear()
        for step, milliseconds, metrics in rows:
            for key, value in metrics.items():
                if step > self._sent.get(key, -1):
                    self._unsent.append(Metric(key, value, milliseconds, step))
                    self._sent[key] = step
        while self._unsent:
            client.log_batch(self._run_id, metrics=self._unsent[:_BATCH])
            del self._unsent[:_BATCH]
        if tags:
            client.log_batch(self._run_id, tags=[RunTag(key, value[:_LENGTH]) for key, value in tags.items()])
            with self._lock:
                self._tags = {key: value for key, value in self._tags.items() if tags.get(key) != value}


def _flatten(params: Mapping[str, JSON], prefix: str = "") -> Iterator[tuple[str, str]]:
    """("a.b.c", text) pairs, as short as MLflow wants them."""
    for key, value in params.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, (value if isinstance(value, str) else json.dumps(value))[:_LENGTH]
