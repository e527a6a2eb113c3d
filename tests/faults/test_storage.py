"""Checkpoints on S3 while the line breaks, the sender is killed, the store lies or lets nobody in."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.config import conf

from tests.faults.storage import BUCKET, KEYS, Line, State, Store, s3_server
from wmtp.errors import CheckpointError
from wmtp.training.manifest import MANIFEST, find_damage, hash_files, write_manifest
from wmtp.training.remote import RemoteFolder

__all__ = ["s3_server"]

URL = f"s3://{BUCKET}/team/run"
OLD, NEW = "step-00000010", "step-00000020"
SHARD = 1_000_000
TIMEOUT = 5.0
SLACK = 10.0
"""For a busy machine, as is the time-out."""


@pytest.fixture(scope="session")
def _bucket(s3_server: tuple[str, int]) -> Store:
    store = Store(s3_server)
    store.client.create_bucket(Bucket=BUCKET)
    return store


@pytest.fixture
def store(_bucket: Store) -> Iterator[Store]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    yield _bucket
    _bucket.clear()


@pytest.fixture
def line(store: Store, s3_server: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    """The line to the bucket; the environment has its address."""
    between = Line(s3_server)
    for name, value in {
        **KEYS,
        "AWS_MAX_ATTEMPTS": "2",
        "AWS_ENDPOINT_URL": between.url,
        "AWS_CONFIG_FILE": os.devnull,
    }.items():
        monkeypatch.setenv(name, value)
    yield between
    between.close()


def checkpoint(root: Path, name: str, size: int = SHARD) -> Path:
    """A local checkpoint of two random shards and a small file."""
    folder = root / name
    folder.mkdir(parents=True)
    for shard in ("__0_0.distcp", "__1_0.distcp"):
        (folder / shard).write_bytes(os.urandom(size))
    (folder / ".metadata").write_bytes(b"hidden")
    write_manifest(folder, hash_files(sorted(folder.iterdir())))
    return folder


def shards(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.name != MANIFEST)


def send(remote: RemoteFolder, folder: Path) -> None:
    remote.put(folder.name, shards(folder))
    remote.publish(folder.name, folder / MANIFEST)


def assert_comes_back(remote: RemoteFolder, folder: Path, target: Path) -> None:
    remote.fetch(folder.name, target)
    assert find_damage(target) is None
    assert {file.name: file.read_bytes() for file in target.iterdir()} == {
        file.name: file.read_bytes() for file in folder.iterdir()
    }


def test_round_trip(line: Line, store: Store, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, NEW)
    remote = RemoteFolder(URL)
    other = RemoteFolder(URL)
    assert other.names() == []
    send(remote, folder)
    assert other.names() == [NEW], "a stale listing"
    assert store.keys() == [f"team/run/{NEW}/{file.name}" for file in sorted(folder.iterdir())]
    for file in folder.iterdir():
        assert store.read(f"team/run/{NEW}/{file.name}") == file.read_bytes()
    assert_comes_back(other, folder, tmp_path / "back")
    other.delete(NEW)
    assert remote.names() == []
    assert store.keys() == []


def test_a_large_file_goes_in_parts(line: Line, store: Store, tmp_path: Path) -> None:
    folder = tmp_path / NEW
    folder.mkdir()
    (folder / "__0_0.distcp").write_bytes(os.urandom(2**20) * 101 + b"end")
    write_manifest(folder, hash_files(sorted(folder.iterdir())))
    remote = RemoteFolder(URL)
    send(remote, folder)
    tag = store.client.head_object(Bucket=BUCKET, Key=f"team/run/{NEW}/__0_0.distcp")["ETag"]
    assert tag.endswith('-3"'), "S3 tells the number of parts behind a dash"
    assert_comes_back(remote, folder, tmp_path / "back")


@pytest.mark.parametrize(
    ("state", "sent"), [("cut", 0), ("cut", SHARD // 2), ("cut", SHARD * 3 // 2), ("plugged", SHARD // 2)]
)
def test_the_line_breaks_while_sending(line: Line, tmp_path: Path, state: State, sent: int) -> None:
    """The error comes in time, the older checkpoint stays; when the line is back, so is everything."""
    remote, hasty = RemoteFolder(URL), RemoteFolder(URL, retries=1, timeout=TIMEOUT)
    old, new = checkpoint(tmp_path, OLD), checkpoint(tmp_path, NEW)
    send(remote, old)
    line.fail_after(sent, state)
    begin = time.monotonic()
    with pytest.raises(CheckpointError, match=rf"{NEW} can't be sent, other checkpoints are as they were"):
        send(hasty, new)
    assert time.monotonic() - begin < TIMEOUT + SHARD / 1e6 + SLACK
    line.mend()
    assert remote.names() == [OLD]
    assert_comes_back(remote, old, tmp_path / "old")
    send(remote, new)
    assert remote.names() == [OLD, NEW]
    assert_comes_back(remote, new, tmp_path / "new")


def test_a_break_that_passes_is_not_seen(line: Line, tmp_path: Path) -> None:
    remote, folder = RemoteFolder(URL, retries=4, timeout=20), checkpoint(tmp_path, NEW)
    line.fail_after(SHARD // 2, "cut")

    def mend_once_cut() -> None:
        line.wait_until("cut")
        line.mend()

    mend = threading.Thread(target=mend_once_cut)
    mend.start()
    send(remote, folder)
    mend.join()
    assert_comes_back(remote, folder, tmp_path / "back")


def test_the_line_breaks_while_fetching(line: Line, tmp_path: Path) -> None:
    remote, folder = RemoteFolder(URL, retries=1), checkpoint(tmp_path, NEW)
    send(remote, folder)
    line.fail_after(2, "cut", request=b"GET ")
    with pytest.raises(CheckpointError, match=f"{NEW} can't be fetched"):
        remote.fetch(NEW, tmp_path / "here" / "back")
    assert list((tmp_path / "here").iterdir()) == []
    line.mend()
    assert_comes_back(remote, folder, tmp_path / "here" / "back")


SENDER = """
import sys
from pathlib import Path
from wmtp.training.remote import RemoteFolder
folder = Path(sys.argv[2])
remote = RemoteFolder(sys.argv[1])
print("begin", flush=True)
sys.stdin.readline()
remote.put(folder.name, sorted(file for file in folder.iterdir() if file.name != "manifest.json"))
remote.publish(folder.name, folder / "manifest.json")
"""


@pytest.mark.parametrize(("sent", "request_line"), [(SHARD // 2, b""), (SHARD * 3 // 2, b""), (3, b"PUT ")])
def test_kill_9_of_the_sender(line: Line, store: Store, tmp_path: Path, sent: int, request_line: bytes) -> None:
    """What was being sent is no checkpoint; sent again, it is. The fourth request for writing is the manifest's."""
    remote = RemoteFolder(URL)
    old, new = checkpoint(tmp_path, OLD), checkpoint(tmp_path, NEW)
    send(remote, old)
    command = [sys.executable, "-c", SENDER, URL, str(new)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as sender:
        assert sender.stdin is not None
        assert sender.stdout is not None
        assert sender.stdout.readline() == "begin\n"
        line.fail_after(sent, "plugged", request_line)
        sender.stdin.write("\n")
        sender.stdin.flush()
        line.wait_until("plugged")
        sender.kill()
    assert sender.returncode == -signal.SIGKILL
    line.mend()
    if request_line:
        arrived = [file.name for file in shards(new)]
        assert store.keys()[-3:] == [f"team/run/{NEW}/{name}" for name in arrived]
    assert remote.names() == [OLD]
    assert remote.leftovers() == [NEW]
    send(remote, new)
    assert (remote.names(), remote.leftovers()) == ([OLD, NEW], [])
    assert_comes_back(remote, new, tmp_path / "back")


def test_a_flipped_bit_in_the_store_is_found(line: Line, store: Store, tmp_path: Path) -> None:
    remote, folder = RemoteFolder(URL), checkpoint(tmp_path, NEW)
    send(remote, folder)
    key = f"team/run/{NEW}/__1_0.distcp"
    content = bytearray(store.read(key))
    content[SHARD // 3] ^= 8
    store.write(key, bytes(content))
    remote.fetch(NEW, tmp_path / "back")
    assert find_damage(tmp_path / "back") == "__1_0.distcp has changed since it was written"


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_the_line_breaks_while_deleting(line: Line, tmp_path: Path, done: int) -> None:
    remote, folder = RemoteFolder(URL, retries=1), checkpoint(tmp_path, NEW, size=1000)
    send(remote, folder)
    line.fail_after(done, "cut", request=b"DELETE ")
    with pytest.raises(CheckpointError, match=f"{NEW} can't be deleted"):
        remote.delete(NEW)
    line.mend()
    assert (remote.names(), remote.leftovers()) == (([NEW], []) if done == 0 else ([], [NEW]))
    if done == 0:
        assert_comes_back(remote, folder, tmp_path / "back")
    remote.delete(NEW)
    assert (remote.names(), remote.leftovers()) == ([], [])


def told(url: str = URL) -> str:
    with pytest.raises(CheckpointError) as caught:
        RemoteFolder(url, retries=1, timeout=TIMEOUT)
    text = str(caught.value)
    assert text.startswith(f"{url}: can't be used for checkpoints: ")
    assert "\n" not in text
    return text


def test_wrong_bucket(line: Line, store: Store) -> None:
    assert "bucket does not exist; check the URL" in told("s3://rums/team/run")
    assert [bucket["Name"] for bucket in store.client.list_buckets()["Buckets"]] == [BUCKET], "it was made"


def test_settings_of_fsspec_count(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    settings = {"endpoint_url": line.url, "config_kwargs": {"user_agent_extra": "of-the-user"}, "max_concurrency": 1}
    monkeypatch.setitem(conf, "s3", settings)
    passed = line.passed
    send(RemoteFolder(URL), checkpoint(tmp_path, NEW, size=1000))
    assert line.passed > passed
    assert b"of-the-user" in line.last_request


def test_no_credentials(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    assert "Unable to locate credentials" in told()


def test_wrong_credentials_and_rights_for_reading_only(
    line: Line, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.iam.create_user(UserName="reader")
    reading = '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["s3:Get*","s3:List*"],"Resource":"*"}]}'
    store.iam.put_user_policy(UserName="reader", PolicyName="reading", PolicyDocument=reading)
    key = store.iam.create_access_key(UserName="reader")["AccessKey"]
    require_rights(store, "0")
    try:
        assert "Access Key Id you provided does not exist in our records.; check the credentials" in told()
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
        assert "signature we calculated does not match" in told()
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
        assert "Access Denied; check the credentials" in told()
    finally:
        require_rights(store, "inf")
    assert store.keys() == []


def require_rights(store: Store, after: str) -> None:
    """moto looks at credentials after so many requests."""
    request = urllib.request.Request(
        f"{store.url}/moto-api/reset-auth", data=after.encode(), headers={"Content-Type": "text/plain"}
    )
    urllib.request.urlopen(request, timeout=10).close()


@pytest.mark.parametrize("state", ["cut", "plugged"])
def test_no_answer(line: Line, state: State) -> None:
    line.fail_after(0, state)
    begin = time.monotonic()
    text = told()
    assert ("nothing has moved for 5 s" if state == "plugged" else line.url) in text
    assert time.monotonic() - begin < TIMEOUT + SLACK


AT_EXIT = """
import gc, os, sys, threading
from wmtp.errors import CheckpointError
from wmtp.training.remote import RemoteFolder
remote = RemoteFolder(sys.argv[1], timeout=30)
how = sys.argv[2]
if how == "thread":
    thread = threading.Thread(target=lambda: print(remote.names()))
    thread.start()
elif how == "fork":
    remote.names()
    child = os.fork()
    print(remote.names(), flush=True)
    if not child:
        gc.collect()
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    print(remote.names(), flush=True)
else:
    print("begin", flush=True)
    sys.stdin.readline()
    threading.Thread(target=remote.names, daemon=True).start()
    sys.stdin.readline()
"""


@pytest.mark.parametrize("how", ["thread", "fork", "stuck"])
def test_nothing_hangs_at_exit(line: Line, tmp_path: Path, how: str) -> None:
    """Used from a thread; forked, both go on with it; left while another thread waits for the store."""
    send(RemoteFolder(URL), checkpoint(tmp_path, OLD, size=1000))
    command = [sys.executable, "-c", AT_EXIT, URL, how]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        if how == "stuck":
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "begin\n"
            line.fail_after(0, "plugged")
            process.stdin.write("\n")
            process.stdin.flush()
            line.wait_until("plugged")
        out, err = process.communicate("\n", timeout=30)
    assert process.returncode == 0, err
    assert err == ""
    assert out.splitlines() == {"thread": 1, "fork": 3, "stuck": 0}[how] * [f"['{OLD}']"]
