"""Finding 7: traffic in progress when policy starts to refuse it ends on both sides, and a flow gives the reason."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from l7proxy.wire import http2_frames as frames
from tests.attacks.labs import AttackLab

PORT = 8097
POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: under-way}}
spec:
  endpointSelector: {{matchLabels: {{role: victim}}}}
  ingress:
  - fromEndpoints: [{{matchLabels: {{role: friend}}}}]
    toPorts:
    - ports: [{{port: "8097", protocol: TCP}}]
      rules: {{http: [{{path: "{path}"}}]}}
"""
ALLOWED, REFUSED = POLICY.format(path="/public.*"), POLICY.format(path="/other")
END = 10.0
"""Seconds after which nothing more is expected to end: twice what a slow machine needs."""


@contextlib.contextmanager
def serving(lab: AttackLab, family: int, serve: Callable[[socket.socket], None]) -> Iterator[list[str]]:
    """A server of one connection in the victim, and how the connection ended: `eof` or `reset`."""
    ends: list[str] = []

    def run(listening: socket.socket) -> None:
        with contextlib.suppress(TimeoutError):
            connection, _ = listening.accept()
            with connection:
                connection.settimeout(END)
                try:
                    serve(connection)
                    ends.append("eof")
                except ConnectionError:
                    ends.append("reset")

    with lab.pod("victim").receiver(PORT, family, kind=socket.SOCK_STREAM) as listening:
        listening.settimeout(END)
        thread = threading.Thread(target=run, args=(listening,), daemon=True)
        thread.start()
        with lab.applied(ALLOWED):
            yield ends
        thread.join(END)


def pour(connection: socket.socket) -> None:
    """A response without an end."""
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
    while True:
        connection.sendall(bytes(65536))
        time.sleep(0.001)


def swallow(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def told(lab: AttackLab, since: int) -> bool:
    return bool(
        lab.flow(
            "node-1",
            since,
            lambda flow: flow.get("verdict") == "DROPPED" and "policy changed: no rule matched" in json.dumps(flow),
        )
    )


def opened(lab: AttackLab, family: int, data: bytes) -> socket.socket:
    client = lab.pod("friend").open_socket(family, seconds=END)
    client.connect((lab.pod("victim").addresses[family], PORT))
    client.sendall(data)
    return client


def until_end(client: socket.socket) -> str:
    try:
        while client.recv(1 << 20):
            pass
    except ConnectionError:
        return "reset"
    except TimeoutError:
        return "goes on"
    return "eof"


def read_until(client: socket.socket, what: bytes) -> bytes:
    got = b""
    while what not in got:
        data = client.recv(65536)
        assert data, got
        got += data
    return got


def test_a_download_under_way_is_cut(lab: AttackLab, family: int) -> None:
    with serving(lab, family, pour) as ends:
        with opened(lab, family, b"GET /public HTTP/1.1\r\nHost: v\r\n\r\n") as client:
            for _ in range(50):
                assert client.recv(65536)
            since = time.time_ns()
            lab.apply(REFUSED)
            assert until_end(client) == "reset"
        assert told(lab, since)
    assert ends == ["reset"]


@pytest.mark.once
def test_an_upload_under_way_is_cut(lab: AttackLab) -> None:
    with serving(lab, 4, swallow) as ends:
        head = b"POST /public HTTP/1.1\r\nHost: v\r\nContent-Length: 1000000000\r\n\r\n"
        with opened(lab, 4, head + bytes(100_000)) as client:
            time.sleep(0.1)
            since = time.time_ns()
            lab.apply(REFUSED)
            read_until(client, b"HTTP/1.1 403 ")
        assert told(lab, since)
    assert ends == ["reset"]


HELLO = frames.PREFACE + frames.settings([])
POST = b"\x83\x86\x04\x07/public\x01\x01v"


def cancelled(stream: int) -> bytes:
    return frames.rst_stream(stream, frames.Code.CANCEL)


@pytest.mark.once
def test_an_http2_upload_and_a_stream_that_waits_for_room_end(lab: AttackLab) -> None:
    heard = bytearray()

    def serve(connection: socket.socket) -> None:
        connection.sendall(frames.settings([(frames.Setting.MAX_CONCURRENT_STREAMS, 1)]))
        while data := connection.recv(65536):
            heard.extend(data)

    with serving(lab, 4, serve):
        both = frames.headers(1, POST, end=False) + frames.headers(3, POST, end=True)
        with opened(lab, 4, HELLO + both + frames.frame(frames.DATA, 0, 1, b"half")) as client:
            client.sendall(frames.frame(frames.PING, 0, 0, b"are you?"))
            read_until(client, b"are you?")
            deadline = time.monotonic() + END
            while b"half" not in heard and time.monotonic() < deadline:
                time.sleep(0.01)
            since = time.time_ns()
            lab.apply(REFUSED)
            got = read_until(client, b"Access denied")
            while got.count(b"Access denied") < 2:
                got += client.recv(65536)
            client.sendall(frames.frame(frames.DATA, 0, 1, b"secret"))
            deadline = time.monotonic() + END
            while cancelled(1) not in heard and time.monotonic() < deadline:
                time.sleep(0.01)
        assert told(lab, since)
    assert cancelled(1) in heard
    assert b"secret" not in heard
    assert b"\x00\x00\x00\x03" not in heard, "the stream that waited was forwarded"
