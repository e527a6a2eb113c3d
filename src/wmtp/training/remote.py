"""Checkpoints on object storage, or at any other URL that fsspec knows.

A checkpoint is sent file by file, the manifest last. What has no manifest is a leftover of a try that failed,
and no checkpoint. Such stores can't rename, but one object appears whole or not at all.

Limit. A killed process can leave parts of a large file with the store, unseen but paid for; a lifecycle rule
of the bucket has to clear them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from shutil import rmtree
from typing import cast
from uuid import uuid4

from wmtp.errors import CheckpointError
from wmtp.training.manifest import MANIFEST
from wmtp.training.remote_files import RemoteFiles
from wmtp.training.run_folder import sync_folder

_NAME = re.compile(r"step-(\d{8,})")


class RemoteFolder:
    """A folder of checkpoints at a URL. For one thread at a time; also in a forked process.

    Attributes:
        url: where it is.
    """

    def __init__(self, url: str, *, retries: int = 3, timeout: float = 60.0) -> None:
        """Connects, and proves with a small file that it may be written, listed, read and deleted.

        Args:
            url: such as `s3://bucket/path`; credentials and endpoint come from the environment.
            retries: how often an operation is tried, >= 1.
            timeout: seconds without progress after which a try ends; see `RemoteFiles`.

        Raises:
            CheckpointError: unknown protocol, package missing, no such bucket, no access, no answer.
        """
        self._files = RemoteFiles(url, retries=retries, timeout=timeout)
        self.url = self._files.url
        self._files.attempt("can't be used for checkpoints", self._files.connect)
        self._files.attempt("can't be used for checkpoints", self._files.probe)

    def put(self, name: str, files: Sequence[Path]) -> None:
        """Uploads `files` to `name`, over what an earlier try left; the checkpoint exists from `publish` on.

        Several processes may send their files to one name. A checkpoint published there before is taken back first.

        Raises:
            CheckpointError: it failed; other checkpoints are as they were.
        """
        folder, failure = self._path(name), f"{name} can't be sent, other checkpoints are as they were"
        self._files.attempt(failure, lambda: self._take_back(folder))
        for file in files:
            assert file.name != MANIFEST, "the manifest goes last, with publish"
            self._files.attempt(failure, lambda file=file: self._files.upload(file, f"{folder}/{file.name}"))

    def publish(self, name: str, manifest: Path) -> None:
        """Uploads the local file `manifest`: from now on checkpoint `name` exists.

        Raises:
            CheckpointError: it failed, or a file that the manifest names is not there in full length. Where only the
                answer was lost, the checkpoint exists all the same.
        """
        folder, failure = self._path(name), f"{name} can't be published, other checkpoints are as they were"
        found = self._files.attempt(failure, lambda: self._files.sizes(folder))
        for file, size in _sizes(manifest, f"{self.url}/{name}").items():
            if (arrived := found.get(f"{folder}/{file}")) != size:
                state = "is missing" if arrived is None else f"has {arrived} bytes, not {size}"
                raise CheckpointError(f"{self.url}: {failure}: {file} {state}")
        self._files.attempt(failure, lambda: self._files.upload(manifest, f"{folder}/{MANIFEST}"))

    def names(self) -> list[str]:
        """Checkpoints that have a manifest, oldest step first.

        Raises:
            CheckpointError: the store can't be listed.
        """
        return [name for name, published in self._listed() if published]

    def leftovers(self) -> list[str]:
        """Those without a manifest, being sent or left by a try that failed; oldest step first.

        Raises:
            CheckpointError: the store can't be listed.
        """
        return [name for name, published in self._listed() if not published]

    def fetch(self, name: str, target: Path) -> None:
        """Downloads checkpoint `name` into the new folder `target`, which appears when all is there.

        Hashes are left to the caller (`manifest.find_damage`).

        Raises:
            CheckpointError: no such checkpoint, its manifest can't be read, `target` is there, or it failed.
        """
        folder, failure = self._path(name), f"{name} can't be fetched"
        if target.exists():
            raise CheckpointError(f"{self.url}: {failure}: {target} is there already")
        new = target.with_name(f"{target.name}.tmp-{uuid4().hex}")
        get, attempt = self._files.download, self._files.attempt
        try:
            attempt(failure, lambda: new.mkdir(parents=True, exist_ok=True))
            attempt(failure, lambda: get(f"{folder}/{MANIFEST}", new / MANIFEST, 0))
            for file, size in _sizes(new / MANIFEST, f"{self.url}/{name}").items():
                attempt(failure, lambda file=file, size=size: get(f"{folder}/{file}", new / file, size))
            attempt(failure, lambda: _appear(new, target))
        finally:
            rmtree(new, ignore_errors=True)

    def delete(self, name: str) -> None:
        """Deletes checkpoint or leftover `name`, the manifest first: deleted in part, it is a leftover.

        Raises:
            CheckpointError: it failed; `names` and `leftovers` tell what is there now.
        """
        folder = self._path(name)
        self._files.attempt(f"{name} can't be deleted", lambda: self._files.delete_folder(folder, first=MANIFEST))

    def _path(self, name: str) -> str:
        assert _NAME.fullmatch(name), f"{name} is no checkpoint's name"
        return f"{self._files.root}/{name}"

    def _take_back(self, folder: str) -> None:
        self._files.delete(path for path in self._files.sizes(folder) if path == f"{folder}/{MANIFEST}")

    def _listed(self) -> list[tuple[str, bool]]:
        """(name, whether it has a manifest), oldest first."""
        root = self._files.root
        found: dict[str, bool] = {}
        for path in self._files.attempt("can't be listed", lambda: self._files.sizes(root)):
            name, _, file = path.removeprefix(f"{root}/").partition("/")
            if file and _NAME.fullmatch(name):
                found[name] = found.get(name, False) or file == MANIFEST
        return sorted(found.items(), key=lambda item: int(item[0].removeprefix("step-")))


def _sizes(manifest: Path, place: str) -> dict[str, int]:
    """{file name: bytes}; a CheckpointError if it can't be read, or a name would lead out of the folder."""
    try:
        files = cast("Mapping[str, Mapping[str, int]]", json.loads(manifest.read_text(encoding="utf-8"))["files"])
        sizes = {name: int(entry["bytes"]) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{place}: {MANIFEST} can't be read ({error!r})") from error
    strange = [name for name in sizes if name in ("", ".", "..") or "/" in name]
    if strange:
        raise CheckpointError(f"{place}: {MANIFEST} names {strange[0]!r}, which is no file's name")
    return sizes


def _appear(new: Path, target: Path) -> None:
    new.rename(target)
    sync_folder(target.parent)
