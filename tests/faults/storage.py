"""An S3 server on loopback, and a line to it that can be cut or plugged in the middle of a transfer."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Literal

import boto3
import pytest
from moto.server import ThreadedMotoServer

BUCKET = "runs"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}

State = Literal["whole", "cut", "plugged"]


class Line:
    """A TCP proxy on loopback.

    Attributes:
        state: "whole"; "cut": connections are reset, new ones too; "plugged": nothing moves any more.
        passed: bytes sent to the server so far, by all connections.
        last_request: what was sent last, from the beginning of the request on.
    """

    def __init__(self, server: tuple[str, int]) -> None:
        self.state: State = "whole"
        self.passed = 0
        self.last_request = b""
        self._server = server
        self._failure: tuple[int, bytes, State] | None = None
        self._moved = threading.Condition()
        self._mended = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def fail_after(self, sent: int, state: State, request: bytes = b"") -> None:
        """The line becomes `state` when `sent` more bytes (or requests that begin so) would go to the server."""
        with self._moved:
            self._mended.clear()
            self._failure = (sent if request else self.passed + sent, request, state)

    def mend(self) -> None:
        with self._moved:
            self.state, self._failure = "whole", None
            self._mended.set()

    def close(self) -> None:
        self.mend()
        self._listener.close()

    def wait_until(self, state: State) -> None:
        with self._moved:
            assert self._moved.wait_for(lambda: self.state == state, 60), "the fault was not reached"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client = self._listener.accept()[0]
                server = socket.create_connection(self._server)
                threading.Thread(target=self._pump, args=(client, server, True), daemon=True).start()
                threading.Thread(target=self._pump, args=(server, client, False), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, to_server: bool) -> None:
        with contextlib.suppress(OSError):  # the other pump has closed both
            while data := source.recv(2**16):
                self._pass(data if to_server else b"")
                if self.state == "plugged":
                    self._mended.wait()
                    break  # what has waited is not sent: it would come after what the sender does next
                if self.state == "cut":
                    break
                target.sendall(data)
            if data:  # a reset, not an orderly end, which some servers take for the end of a body
                for end in (source, target):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    end.shutdown(socket.SHUT_RD)
            else:
                target.shutdown(socket.SHUT_RDWR)
        source.close()
        target.close()

    def _pass(self, data: bytes) -> None:
        with self._moved:
            self.passed += len(data)
            if b" HTTP/1.1\r\n" in data:
                self.last_request = data
            if self._failure is None:
                return
            limit, request, state = self._failure
            if request and data.startswith(request):
                limit -= 1
                self._failure = (limit, request, state)
            if limit < (0 if request else self.passed):
                self.state = state
                self._moved.notify_all()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[str, int]]:
    """(host, port) of a server that keeps its objects in memory."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


class Store:
    """The bucket as Amazon's own client sees it, past the line and past our code."""

    def __init__(self, server: tuple[str, int]) -> None:
        self.url = f"http://{server[0]}:{server[1]}"
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        self.client = boto3.client("s3", endpoint_url=self.url, **keys)
        self.iam = boto3.client("iam", endpoint_url=self.url, **keys)

    def read(self, key: str) -> bytes:
        return self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()

    def write(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content)

    def keys(self) -> list[str]:
        return [entry["Key"] for entry in self.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])]

    def clear(self) -> None:
        for key in self.keys():
            self.client.delete_object(Bucket=BUCKET, Key=key)
