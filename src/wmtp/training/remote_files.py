"""Files at a URL that fsspec knows: every operation ends in bounded time, is tried again, and fails in one way.

A file system without an asynchronous interface (s3, gs and az have one) can't be interrupted: what hangs
there stays behind in a thread.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import wait
from pathlib import Path
from typing import Any, TypeVar, cast
from uuid import uuid4

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.callbacks import Callback
from fsspec.config import conf
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

from wmtp.errors import CheckpointError

_CONCURRENT = 4
"""Parts of 50 MiB that s3fs has under way, all of them in memory; its own default is 10."""
_UNDER_WAY = _CONCURRENT * 50 * 2**20
_SLOWEST = 1e6
"""Bytes per second; a slower connection counts as dead."""
_FUTILE = (FileNotFoundError, PermissionError, ImportError, ValueError)
"""Errors that another try does not mend: no bucket, no access, no package, no such protocol."""
_CURES: Mapping[type[Exception], str] = {
    ImportError: "install the file system's package (s3fs for s3://, gcsfs for gs://, adlfs for az://)",
    PermissionError: "check the credentials in the environment, and what they allow",
    FileNotFoundError: "check the URL, and that the bucket exists",
}

_T = TypeVar("_T")


class RemoteFiles:
    """The files below a URL. For one thread at a time; also in a process forked from one that has used it.

    Attributes:
        url: as the user gave it, for messages.
        root: the URL's path within its file system.
    """

    def __init__(self, url: str, *, retries: int, timeout: float) -> None:
        """Nothing is connected yet; see `attempt` and `connect`.

        Args:
            url: such as `s3://bucket/path`.
            retries: how often `attempt` tries, >= 1.
            timeout: seconds without progress after which an operation ends; the part of a file that is under
                way gets up to 210 s more.
        """
        if retries < 1 or timeout <= 0:
            raise ValueError(f"retries is {retries}, timeout {timeout}; there must be a try, and time for it")
        self.url = url
        self._retries, self._timeout = retries, timeout

    def attempt(self, failure: str, work: Callable[[], _T]) -> _T:
        """What `work` returns, tried again after an error, with pauses of 0.5 s, 1 s, 2 s, ..

        Args:
            failure: what an error means, for the message.
            work: may be run again after it has failed anywhere.

        Raises:
            CheckpointError: the last try failed, or the first with an error that stays.
        """
        for number in range(1, self._retries + 1):
            try:
                return work()
            except Exception as error:
                # File systems are plug-ins, whose errors have no base in common: botocore's are no OSError.
                if number == self._retries or isinstance(error, _FUTILE):
                    cure = next((f"; {cure}" for kind, cure in _CURES.items() if isinstance(error, kind)), "")
                    tries = f" (try {number} of {self._retries})" if number > 1 else ""
                    raise CheckpointError(
                        f"{self.url}: {failure}: {str(error) or type(error).__name__}{tries}{cure}"
                    ) from error
                time.sleep(0.5 * 2 ** (number - 1))
        raise AssertionError

    def connect(self) -> None:
        """Opens the file system, without asking it for anything yet."""
        protocol, separator, _ = self.url.partition("://")
        if not separator:
            raise ValueError("not a URL such as s3://bucket/path")
        files, root = cast(
            "tuple[fsspec.AbstractFileSystem, str]",
            fsspec.url_to_fs(self.url, skip_instance_cache=True, **_options(protocol, self._timeout)),
        )
        self._files = files if isinstance(files, AsyncFileSystem) else AsyncFileSystemWrapper(files, asynchronous=False)
        self._forget_listings = files.invalidate_cache  # the wrapper does not pass it on
        self.root, self._pid = root.rstrip("/"), os.getpid()

    def probe(self) -> None:
        """Writes, lists, reads and deletes a small file."""
        folder, text = f"{self.root}/.wmtp-probe-{uuid4().hex}", b"wmtp"
        self._call("pipe_file", f"{folder}/probe", text)
        if list(self.sizes(folder).values()) != [len(text)] or self._call("cat_file", f"{folder}/probe") != text:
            raise OSError("what was written does not come back")
        self.delete_folder(folder)

    def sizes(self, folder: str) -> dict[str, int]:
        """{path: bytes} of all files below `folder` now; {} if there is none."""
        found = cast("dict[str, dict[str, Any]]", self._call("find", folder, detail=True))
        return {path: info["size"] for path, info in found.items()}

    def upload(self, file: Path, path: str) -> None:
        """Copies the local `file` to `path`, over what is there."""
        size = file.stat().st_size
        self._call("put_file", str(file), path, moves=size)
        arrived = cast("dict[str, Any]", self._call("info", path))["size"]
        if arrived != size:
            raise OSError(f"{file.name} has {arrived} bytes there, not {size}")

    def download(self, path: str, file: Path, size: int) -> None:
        """Copies `path`, of `size` bytes, to the local `file`, and waits until the disk has it."""
        self._call("get_file", path, str(file), moves=size)
        with file.open("rb") as stream:
            os.fsync(stream.fileno())

    def delete(self, paths: Iterable[str]) -> None:
        """Deletes files, in this order; stops at the first error."""
        for path in paths:  # one by one: s3fs does not tell what a bulk deletion left
            self._call("rm_file", path)

    def delete_folder(self, folder: str, first: str = "") -> None:
        """Deletes all below `folder`: the file named `first` before the others."""
        self.delete(sorted(self.sizes(folder), key=lambda path: path != f"{folder}/{first}"))
        if self._call("exists", folder):  # where a folder is more than a part of its files' names
            self._call("rm", folder, recursive=True)

    def _call(self, method: str, *arguments: Any, moves: int = 0, **options: Any) -> Any:
        """Runs a method of the file system in fsspec's own thread; cancels it when nothing moves any more.

        Args:
            method: `put_file` and `get_file` tell how far they are, others have to be done in time.
            moves: bytes of the file.
        """
        if self._pid != os.getpid():
            self.connect()  # forked; the connections are the parent's
        self._forget_listings()
        allowed, progress = self._timeout + min(moves, _UNDER_WAY) / _SLOWEST, _Progress()
        if method in ("put_file", "get_file"):
            options["callback"] = progress
        loop = cast("asyncio.AbstractEventLoop", self._files.loop)
        future = asyncio.run_coroutine_threadsafe(getattr(self._files, f"_{method}")(*arguments, **options), loop)
        try:
            while not wait([future], max(0.0, progress.at + allowed - time.monotonic())).done:
                if time.monotonic() >= progress.at + allowed:
                    raise TimeoutError(f"nothing has moved for {allowed:.0f} s")
            return future.result()
        finally:
            future.cancel()


class _Progress(Callback):
    """Notes when something last moved."""

    def __init__(self) -> None:
        super().__init__()
        self.at = time.monotonic()

    def call(self, *_: Any, **__: Any) -> None:
        self.at = time.monotonic()


def _options(protocol: str, timeout: float) -> dict[str, Any]:
    """Settings of the file system. The user's, in fsspec's configuration, go first."""
    if protocol in ("file", "local"):
        return {"auto_mkdir": True}
    if protocol not in ("s3", "s3a"):
        return {}
    mine = {"read_timeout": timeout}  # s3fs's 15 s are short for a store that joins a large file's parts
    user: Mapping[str, Any] = conf.get(protocol, {})
    return {"max_concurrency": _CONCURRENT, **user, "config_kwargs": mine | dict(user.get("config_kwargs", {}))}
