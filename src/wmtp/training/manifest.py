"""A folder's manifest: the size and SHA-256 of every file in it, and its own hash.

A flipped bit is found by none of torch.save, safetensors 0.8 and torch.distributed.checkpoint (2.13): all
load without an error and give other weights. Cut or missing files they do notice. The hashes find damage,
not malice.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

from wmtp.training.run_folder import sync_folder, write_text_synced

MANIFEST = "manifest.json"


Entries: TypeAlias = "dict[str, dict[str, int | str]]"
"""File name -> its size and hash."""


def hash_files(files: Sequence[Path]) -> Entries:
    """Waits until the disk has the files, and hashes them meanwhile."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        synced = [pool.submit(_sync, file) for file in files]
        hashes = pool.map(_sha256, files)
        entries: Entries = {
            file.name: {"bytes": file.stat().st_size, "sha256": sha256}
            for file, sha256 in zip(files, hashes, strict=True)
        }
        for done in synced:
            done.result()
    return entries


def write_manifest(folder: Path, entries: Entries) -> None:
    """Writes the manifest of `folder`, given `hash_files` of all files in it."""
    write_text_synced(folder / MANIFEST, _text(entries))
    sync_folder(folder)


def find_damage(folder: Path, *, lengths_only: bool = False, rank: int = 0, ranks: int = 1) -> str | None:
    """What is wrong with the files in `folder`, each by name; None if they are as the manifest says.

    Args:
        folder: one that `write_manifest` has seen. Files added since don't matter.
        lengths_only: don't read the files, so that a change which keeps the length goes unnoticed.
        rank, ranks: look at every `ranks`-th file alone, where so many processes share the work.
    """
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        entries: Entries = json.loads(text)["files"]
        intact = text == _text(entries)
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} can't be read ({error})"
    if not intact:
        return f"{MANIFEST} has changed since it was written"

    def check(name: str) -> str | None:
        return _file_damage(folder / name, entries[name], lengths_only)

    with ThreadPoolExecutor(max_workers=2) as pool:
        return "; ".join(filter(None, pool.map(check, sorted(entries)[rank::ranks]))) or None


def _text(entries: Mapping[str, Mapping[str, int | str]]) -> str:
    """The manifest to the byte. Its own hash tells a damaged manifest from a damaged file."""
    own = hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
    return json.dumps({"format": 1, "files": entries, "sha256": own}, indent=1, sort_keys=True) + "\n"


def _file_damage(file: Path, entry: Mapping[str, int | str], length_only: bool) -> str | None:
    try:
        size = file.stat().st_size
        if size != entry["bytes"]:
            return f"{file.name} has {size} bytes, not {entry['bytes']}"
        if not length_only and _sha256(file) != entry["sha256"]:
            return f"{file.name} has changed since it was written"
    except FileNotFoundError:
        return f"{file.name} is missing"
    except OSError as error:
        return f"{file.name} can't be read ({error})"
    return None


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
