"""Judged programs on disk, a JSON row each: the file that counts, and what other processes have on the way to it."""

from __future__ import annotations

import json
from pathlib import Path

from wmtp.evaluate.summary import Row


def file_of(samples: Path, rank: int | str) -> Path:
    """Where a process writes: the first to `samples` itself, another beside it until all are put together."""
    return samples if rank == 0 else samples.with_name(f"{samples.stem}.process-{rank}{samples.suffix}")


def collect(samples: Path) -> None:
    """Rows of other processes go into `samples`, none twice; none of them may be writing."""
    for file in sorted(samples.parent.glob(file_of(samples, "*").name)):
        rows, known = read_rows(file), read_rows(samples)
        with samples.open("a", encoding="utf-8") as whole:
            whole.writelines(json.dumps(row) + "\n" for key, row in rows.items() if key not in known)
        file.unlink()


def read_rows(samples: Path, keys: set[str] | None = None) -> dict[str, Row]:
    """Rows by key: all, or those with one of `keys`. A last line that a kill cut off is passed over, and ended."""
    rows: dict[str, Row] = {}
    if samples.exists():
        text = samples.read_text(encoding="utf-8")
        for line in text.splitlines():
            row: Row | None = json.loads(line) if line.endswith("}") else None
            if row is not None and (keys is None or row["key"] in keys):
                rows[row["key"]] = row
        if text and not text.endswith("\n"):
            with samples.open("a", encoding="utf-8") as file:
                file.write("\n")
    return rows
