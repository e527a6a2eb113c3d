"""Checkpoints at a URL: published or not there, with a file system that fails on command."""

from __future__ import annotations

import errno
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from wmtp.errors import CheckpointError
from wmtp.training import remote_files
from wmtp.training.manifest import MANIFEST, find_damage, hash_files, write_manifest
from wmtp.training.remote import RemoteFolder

OLD, NEW = "step-00000010", "step-00000020"


class Faulty(MemoryFileSystem):
    """Keeps files in memory; `fault` sees every operation first, and may fail, wait or do something else."""

    protocol = "faulty"
    store: dict[str, Any] = {}  # noqa: RUF012 (as the base has it)
    pseudo_dirs = [""]  # noqa: RUF012
    fault: Callable[[str, str], None]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("faulty://", "memory://"))

    def put_file(self, lpath: str, rpath: str, callback: Any = None, **options: Any) -> None:
        Faulty.fault("put", rpath)
        super().put_file(lpath, rpath, callback=callback, **options)

    def get_file(self, rpath: str, lpath: str, callback: Any = None, **options: Any) -> None:
        Faulty.fault("get", rpath)
        super().get_file(rpath, lpath, callback=callback, **options)

    def rm_file(self, path: str) -> None:
        Faulty.fault("rm", path)
        super().rm_file(path)

    def find(self, path: str, **options: Any) -> Any:
        Faulty.fault("find", path)
        return super().find(path, **options)


def no_fault(operation: str, path: str) -> None:
    pass


@pytest.fixture(autouse=True)
def _faulty() -> Iterator[None]:
    Faulty.fault = staticmethod(no_fault)
    fsspec.register_implementation("faulty", Faulty, clobber=True)
    yield
    Faulty.store.clear()
    del Faulty.pseudo_dirs[1:]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses between tries, which are skipped."""
    asked: list[float] = []
    monkeypatch.setattr(remote_files.time, "sleep", asked.append)
    return asked


def failing(error: Exception, operation: str, times: int = 10**9, at: str = "") -> list[str]:
    """From now on the first `times` calls of `operation` on a path that ends in `at` fail. Returns all calls."""
    calls: list[str] = []

    def fault(name: str, path: str) -> None:
        if name == operation and path.endswith(at):
            calls.append(path)
            if len(calls) <= times:
                raise error

    Faulty.fault = staticmethod(fault)
    return calls


def checkpoint(root: Path, name: str = NEW, size: int = 1000) -> Path:
    """A local checkpoint of three files, one of them empty, whose bytes follow from its name."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "__0_0.distcp").write_bytes(name.encode() * (size // len(name)))
    (folder / "__1_0.distcp").write_bytes(bytes(range(256)) * (size // 256))
    (folder / "run_state.json").write_bytes(b"")
    write_manifest(folder, hash_files(sorted(folder.iterdir())))
    return folder


def shards(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.name != MANIFEST)


def send(remote: RemoteFolder, folder: Path) -> None:
    remote.put(folder.name, shards(folder))
    remote.publish(folder.name, folder / MANIFEST)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(params=["faulty://runs/a", "faulty://", "file"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> RemoteFolder:
    return RemoteFolder((tmp_path / "far").as_uri() if request.param == "file" else request.param)


def test_round_trip_with_files_from_two_ranks(remote: RemoteFolder, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    first, *others = shards(folder)
    remote.put(NEW, [first])
    remote.put(NEW, others)
    assert (remote.names(), remote.leftovers()) == ([], [NEW])
    remote.publish(NEW, folder / MANIFEST)
    assert (remote.names(), remote.leftovers()) == ([NEW], [])
    remote.fetch(NEW, tmp_path / "here" / "back")
    assert find_damage(tmp_path / "here" / "back") is None
    assert contents(tmp_path / "here" / "back") == contents(folder)
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["back"]


def test_nothing_of_the_probe_stays_and_other_files_are_no_checkpoints(remote: RemoteFolder, tmp_path: Path) -> None:
    assert (remote.names(), remote.leftovers()) == ([], [])
    send(remote, checkpoint(tmp_path))
    remote.delete(NEW)
    if remote.url.startswith("file:"):
        assert list((tmp_path / "far").iterdir()) == []
        (tmp_path / "far" / "step-12").mkdir()
        (tmp_path / "far" / "step-12" / MANIFEST).write_text("{}")
        (tmp_path / "far" / "step-00000030").write_text("a file")
    else:
        assert Faulty.store == {}
    assert (remote.names(), remote.leftovers()) == ([], [])


def test_listings_are_never_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many file systems keep what they have listed until they are told that it has changed."""
    kept: dict[tuple[str, str], Any] = {}

    def keeping(method: str) -> Callable[..., Any]:
        original = getattr(Faulty, method)

        def call(self: Faulty, path: str, **options: Any) -> Any:
            if (method, path) not in kept:
                kept[method, path] = original(self, path, **options)
            return kept[method, path]

        return call

    for method in ("find", "info"):
        monkeypatch.setattr(Faulty, method, keeping(method))
    monkeypatch.setattr(Faulty, "invalidate_cache", lambda self, path=None: kept.clear())
    remote, other = RemoteFolder("faulty://runs"), RemoteFolder("faulty://runs")
    for size in (1000, 5000):
        folder = checkpoint(tmp_path / str(size), size=size)
        assert other.names() == []
        send(remote, folder)
        assert other.names() == [NEW]
        other.delete(NEW)


def test_names_are_in_the_order_of_steps(remote: RemoteFolder, tmp_path: Path) -> None:
    steps = ["step-100000000", "step-00000009", "step-99999999"]
    for name in steps:
        send(remote, checkpoint(tmp_path, name))
        remote.put(name.replace("-", "-3"), shards(tmp_path / name))
    assert remote.names() == ["step-00000009", "step-99999999", "step-100000000"]
    assert remote.leftovers() == ["step-300000009", "step-399999999", "step-3100000000"]


def test_a_failed_try_is_overwritten_and_what_else_it_left_does_not_matter(
    remote: RemoteFolder, tmp_path: Path
) -> None:
    earlier = checkpoint(tmp_path / "earlier", size=5000)
    (earlier / "__7_0.distcp").write_bytes(b"of a rank that is gone")
    remote.put(NEW, shards(earlier))
    folder = checkpoint(tmp_path)
    send(remote, folder)
    remote.fetch(NEW, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(folder)
    remote.delete(NEW)
    assert (remote.names(), remote.leftovers()) == ([], [])


def test_sending_again_takes_the_published_one_back_first(tmp_path: Path, pauses: list[float]) -> None:
    """Never is there a manifest beside files that it does not describe."""
    remote = RemoteFolder("faulty://runs")
    send(remote, checkpoint(tmp_path, OLD))
    send(remote, checkpoint(tmp_path))
    failing(OSError(errno.EIO, "broken"), "put", at="__1_0.distcp")
    with pytest.raises(CheckpointError, match="other checkpoints are as they were"):
        send(remote, checkpoint(tmp_path / "again", size=9000))
    assert (remote.names(), remote.leftovers()) == ([OLD], [NEW])
    remote.fetch(OLD, tmp_path / "back")
    assert find_damage(tmp_path / "back") is None


@pytest.mark.parametrize("fault", ["missing", "short"])
def test_publish_refuses_what_is_not_complete(remote: RemoteFolder, tmp_path: Path, fault: str) -> None:
    folder = checkpoint(tmp_path)
    remote.put(NEW, shards(folder) if fault == "short" else shards(folder)[1:])
    if fault == "short":
        (tmp_path / "__0_0.distcp").write_bytes(b"short")
        remote.put(NEW, [tmp_path / "__0_0.distcp"])
    state = {"missing": "is missing", "short": f"has 5 bytes, not {(folder / '__0_0.distcp').stat().st_size}"}
    with pytest.raises(CheckpointError, match=rf"can't be published.*__0_0.distcp {state[fault]}"):
        remote.publish(NEW, folder / MANIFEST)
    assert (remote.names(), remote.leftovers()) == ([], [NEW])


@pytest.mark.parametrize("operation", ["put", "get", "find", "rm"])
def test_an_error_that_passes_is_not_seen(tmp_path: Path, pauses: list[float], operation: str) -> None:
    remote, folder = RemoteFolder("faulty://runs"), checkpoint(tmp_path)
    calls = failing(OSError(errno.EIO, "broken"), operation, times=2)
    send(remote, folder)
    assert remote.names() == [NEW]
    remote.fetch(NEW, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(folder)
    remote.delete(NEW)
    assert remote.names() == []
    assert len(calls) > 2
    assert pauses == [0.5, 1.0]


@pytest.mark.parametrize(
    ("operation", "work"),
    [
        ("put", lambda remote, folder: send(remote, folder)),
        ("find", lambda remote, folder: remote.names()),
        ("find", lambda remote, folder: remote.leftovers()),
        ("get", lambda remote, folder: remote.fetch(OLD, folder.parent / "back")),
        ("rm", lambda remote, folder: remote.delete(OLD)),
    ],
)
def test_an_error_that_stays_is_told_once(
    tmp_path: Path, pauses: list[float], operation: str, work: Callable[[RemoteFolder, Path], object]
) -> None:
    remote, folder = RemoteFolder("faulty://runs", retries=4), checkpoint(tmp_path)
    send(remote, checkpoint(tmp_path, OLD))
    before = dict(Faulty.store)
    calls = failing(OSError(errno.EIO, "broken"), operation)
    with pytest.raises(CheckpointError, match=r"faulty://runs: .*can't be .*broken \(try 4 of 4\)"):
        work(remote, folder)
    assert len(calls) == 4
    assert pauses == [0.5, 1.0, 2.0]
    assert Faulty.store == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [OLD, NEW], "debris of a fetch"


@pytest.mark.parametrize("error", [PermissionError("Forbidden"), FileNotFoundError("no such bucket")])
def test_errors_that_another_try_does_not_mend(pauses: list[float], error: Exception) -> None:
    calls = failing(error, "find")
    with pytest.raises(CheckpointError, match=f"can't be used for checkpoints: {error}; check the"):
        RemoteFolder("faulty://runs")
    assert len(calls) == 1
    assert pauses == []


@pytest.mark.parametrize("at", [MANIFEST, "__0_0.distcp", "run_state.json"])
def test_deleted_in_part_is_a_leftover(tmp_path: Path, pauses: list[float], at: str) -> None:
    remote = RemoteFolder("faulty://runs")
    send(remote, checkpoint(tmp_path, OLD))
    send(remote, checkpoint(tmp_path))
    failing(OSError(errno.EIO, "broken"), "rm", at=at)
    with pytest.raises(CheckpointError, match=r"can't be deleted: .*broken"):
        remote.delete(OLD)
    if at == MANIFEST:
        assert remote.names() == [OLD, NEW]
        remote.fetch(OLD, tmp_path / "back")
        assert find_damage(tmp_path / "back") is None
    else:
        assert (remote.names(), remote.leftovers()) == ([NEW], [OLD])
    Faulty.fault = staticmethod(no_fault)
    remote.delete(OLD)
    assert (remote.names(), remote.leftovers()) == ([NEW], [])


def test_an_upload_that_arrives_cut_is_noticed(tmp_path: Path, pauses: list[float]) -> None:
    remote, folder = RemoteFolder("faulty://runs"), checkpoint(tmp_path)
    put_file = MemoryFileSystem.put_file

    def half(self: MemoryFileSystem, local: str, path: str, **options: Any) -> None:
        put_file(self, local, path, **options)
        self.store[path].truncate(7)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryFileSystem, "put_file", half)
        with pytest.raises(CheckpointError, match=r"__0_0.distcp has 7 bytes there, not 988"):
            remote.put(NEW, shards(folder))


def test_what_hangs_is_given_up_in_time(tmp_path: Path) -> None:
    remote, folder = RemoteFolder("faulty://runs", retries=2, timeout=0.2), checkpoint(tmp_path)
    hang = threading.Event()

    def fault(operation: str, path: str) -> None:
        if operation == "put":
            hang.wait()
            raise OSError(errno.EIO, "the thread that was left behind ends here")

    Faulty.fault = staticmethod(fault)
    begin = time.monotonic()
    try:
        with pytest.raises(CheckpointError, match=r"nothing has moved for 0 s \(try 2 of 2\)"):
            remote.put(NEW, shards(folder))
        assert 0.9 <= time.monotonic() - begin < 5  # two tries of 0.2 s and a pause of 0.5 s
        assert remote.names() == []  # others still work
    finally:
        hang.set()


def test_what_moves_slowly_is_not_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote, folder = RemoteFolder("faulty://runs", retries=1, timeout=0.5), checkpoint(tmp_path)
    put_file = Faulty.put_file

    def slow(self: Faulty, local: str, path: str, callback: Any, **options: Any) -> None:
        for _ in range(10):
            time.sleep(0.1)
            callback.relative_update(1)
        put_file(self, local, path, callback=callback, **options)

    monkeypatch.setattr(Faulty, "put_file", slow)
    remote.put(NEW, shards(folder)[:1])
    assert remote.leftovers() == [NEW]


def test_from_another_thread(tmp_path: Path) -> None:
    remote, folder = RemoteFolder("faulty://runs"), checkpoint(tmp_path)
    thread = threading.Thread(target=send, args=(remote, folder))
    thread.start()
    thread.join(20)
    assert remote.names() == [NEW]


def hostile_manifests() -> dict[str, str]:
    names = ["../out", "/etc/out", "..", "", "a/b"]
    broken = ["", "[]", "{}", '{"files": 3}', '{"files": {"a": 1}}', '{"files": {"a": {}}}', "\0" * 9]
    return dict.fromkeys(broken, "can't be read") | {
        json.dumps({"files": {name: {"bytes": 1}}}): "which is no file's name" for name in names
    }


@pytest.mark.parametrize(("text", "message"), hostile_manifests().items())
def test_a_strange_manifest_writes_nothing(tmp_path: Path, text: str, message: str) -> None:
    remote, folder = RemoteFolder("faulty://runs"), checkpoint(tmp_path)
    send(remote, folder)
    fsspec.filesystem("faulty").pipe_file(f"/runs/{NEW}/{MANIFEST}", text.encode())
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match=rf"{MANIFEST} .*{message}"):
        remote.fetch(NEW, tmp_path / "back")
    assert sorted(tmp_path.rglob("*")) == before


def test_fetch_never_touches_what_is_there(remote: RemoteFolder, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    send(remote, folder)
    (tmp_path / "back").mkdir()
    with pytest.raises(CheckpointError, match="back is there already"):
        remote.fetch(NEW, tmp_path / "back")
    with pytest.raises(CheckpointError, match=f"{OLD} can't be fetched"):
        remote.fetch(OLD, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_store_that_is_not_to_be_had(monkeypatch: pytest.MonkeyPatch, pauses: list[float]) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for url, message in {
        "gs://bucket/run": "gs://bucket/run: can't be used for checkpoints: .*install.*gcsfs",
        "nothing://bucket": "can't be used for checkpoints: Protocol not known: nothing",
        "s3:/bucket": "not a URL such as",
        "file:///dev/null/run": "can't be used for checkpoints: .*Not a directory",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            RemoteFolder(url)
