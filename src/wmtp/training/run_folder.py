"""A run's folder: one process at a time, and files that are whole or not there.

The lock is the kernel's (`flock`), so it goes when its process dies, `kill -9` included; the file's text
only says who holds it. Unix only. On a network file system that does not know `flock`, opening the folder
fails, saying so.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import socket
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeAlias
from uuid import uuid4

from wmtp.errors import CheckpointError, UserError
from wmtp.types import JSON

RunStatus: TypeAlias = Literal["running", "finished", "preempted", "failed"]

_LOCK = "run.lock"


class RunFolder:
    """The open folder of one run; a context manager, locked from construction to `close`.

    Of several processes the main one alone locks it and writes there; the others know where it is.

    Attributes:
        path: the folder.
        holds_run: whether an earlier process has begun a run here.

    Raises:
        CheckpointError: another process has it open.
        UserError: it can't be made or written, or it holds a run and `resume` is false.
    """

    def __init__(self, path: Path, *, resume: bool, main: bool = True) -> None:
        self.path, self.main, self._lock = path, main, -1
        self._writing = threading.Lock()
        self._status: dict[str, JSON] = {"state": "running", "pid": os.getpid(), "step": 0, "stage": "", "reason": ""}
        self.holds_run = False
        if not main:
            return
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(path / _LOCK)
            self.holds_run = any(entry.name != _LOCK for entry in path.iterdir())
        except OSError as error:
            raise UserError(f"{path}: can't be used as the run's folder ({error})") from error
        if self.holds_run and not resume:
            self.close()
            raise UserError(f"{path} already holds a run; --resume auto to go on, or another run.name")
        # flock belongs to the open file, which forked data loader workers share: without this, workers that
        # outlive a killed run by some seconds would keep the run locked.
        os.register_at_fork(after_in_child=self.close)

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """The log of all metrics, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def mlflow_run_id(self) -> Path:
        """The file that remembers the MLflow run, so that a resumed run goes on in it."""
        return self.path / "mlflow_run_id"

    def write_status(self, state: RunStatus, **changes: JSON) -> None:
        """Write `status.json`: what a scheduler reads, because launchers such as torchrun hide exit codes.

        `changes` to `step`, `stage`, `reason` and `checkpoint` are remembered for later calls.
        """
        if self.main:
            with self._writing:  # a checkpoint that is saved in the background says so from there
                self._status |= {"state": state, **changes}
                self._tell(self._status)

    def write_last_words(self, reason: str) -> None:
        """Write that the run has failed, for the main process if it is gone without a word."""
        path = self.path / "status.json"
        status = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if status is not None and status["state"] == "running":
            self._tell(status | {"state": "failed", "reason": reason})

    def _tell(self, status: dict[str, JSON]) -> None:
        path = self.path / "status.json"
        try:
            write_json_atomic(path, status)
        except OSError as error:  # no reason to end a run, nor to hide why one ends
            warnings.warn(f"{path} can't be written: {error}", stacklevel=2)

    def write_summary(self, summary: Mapping[str, JSON]) -> None:
        """Writes `summary.json`: per stage how it ended."""
        if self.main:
            write_json_atomic(self.path / "summary.json", dict(summary))

    def close(self) -> None:
        """Gives the lock back. The lock file stays: removing it would let two processes lock two files."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _lock(path: Path) -> int:
    """The descriptor that holds the lock on `path`. Names this process there, for the one that is refused."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 200, 0).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        raise CheckpointError(
            f"{path.parent}: another process is at work on this run ({holder}); wait for it or end it"
        ) from None
    except OSError:
        os.close(lock)
        raise
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return lock


def write_json_atomic(path: Path, value: JSON) -> None:
    """Writes `value` as strict JSON (`json_safe`); after a crash the file holds the old text or the new."""
    write_text_atomic(path, json.dumps(json_safe(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text_atomic(path: Path, text: str) -> None:
    """Writes `text`; after a crash the file holds the old text or the new, never a part."""
    temporary = path.with_name(f".{path.name}.tmp-{uuid4().hex}")
    try:
        write_text_synced(temporary, text)
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_synced(path: Path, text: str) -> None:
    """Writes `text` and waits until the disk has it; a crash can leave a part."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Waits until the disk has the names in folder `path`."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def json_safe(value: JSON) -> JSON:
    """The same value with non-finite numbers as the strings "NaN", "Infinity", "-Infinity".

    Strict JSON has no such numbers, and a line that only Python can read would spoil the log for jq, pandas
    and browsers. `float()` reads all three back.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    return value
