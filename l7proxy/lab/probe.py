"""Requests from inside a pod: what a client there would see, and the address and port it used.

A probe is a thread in the pod's network namespace with plain sockets, so that it sees a refusal as the kernel reports
it, and hundreds of probes need no processes. The result is one word: a status code, `ok`, `reset`, `timeout`…
"""

from __future__ import annotations

import errno
import itertools
import json
import re
import socket
from dataclasses import dataclass, field
from typing import Any, Final

import h11

from l7proxy.errors import ConfigError
from l7proxy.lab import netns
from l7proxy.model.net import HostPort

OK: Final = "ok"
RESET: Final = "reset"
TIMEOUT: Final = "timeout"
CLOSED: Final = "closed"
"""The results besides status codes. A refused connect and a reset give one word: both are an RST (RFC 9293 §3.10.7)."""

SOURCE_PORTS: Final = range(10_000, 32_768)
"""Below Linux's ephemeral ports (ip_local_port_range), which the kernel could assign as well."""
_source_port: Final = itertools.cycle(SOURCE_PORTS)
_RESETS: Final = frozenset({errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE})
_REQUEST = re.compile(r"(?P<method>[A-Z]+) http://(?P<host>\[[^]]+\]|[^/:]+)(:(?P<port>\d+))?(?P<path>/\S*)\Z")
_L4 = re.compile(r"(?P<kind>tcp|udp) (?P<host>\[[^]]+\]|[^/:]+):(?P<port>\d+)\Z")


@dataclass(frozen=True, slots=True)
class Request:
    """`method` is `tcp` or `udp` for those echo servers. `headers` are sent unchanged, after Host."""

    method: str
    host: str
    port: int
    path: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    @property
    def is_http(self) -> bool:
        return self.method not in {"tcp", "udp"}


@dataclass(frozen=True, slots=True)
class Seen:
    """The result of a request. `source`: the client's address as the server saw it, if it answered."""

    word: str
    source: str = ""
    local: HostPort | None = None
    answer: dict[str, Any] = field(default_factory=dict)


def parse(text: str, headers: dict[str, str] | None = None, body: str = "") -> Request:
    """`GET http://backend/api/x`, `tcp backend:9000`, `udp backend:53`."""
    if match := _REQUEST.match(text):
        port = int(match["port"] or 80)
        return Request(
            match["method"],
            match["host"].strip("[]"),
            port,
            match["path"],
            tuple((headers or {}).items()),
            body.encode(),
        )
    if match := _L4.match(text):
        return Request(match["kind"], match["host"].strip("[]"), int(match["port"]), body=body.encode() or b"hello")
    raise ConfigError(f"request {text!r}: must be `GET http://HOST[:PORT]/PATH`, `tcp HOST:PORT` or `udp HOST:PORT`")


def send(namespace: str, own: str, request: Request, address: str, *, seconds: float) -> Seen:
    """Send it to `address` (that of `request.host`) from inside the namespace, whose address is `own`."""
    return netns.inside(namespace, lambda: _send(own, request, address, seconds))


def _send(own: str, request: Request, address: str, seconds: float) -> Seen:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_DGRAM if request.method == "udp" else socket.SOCK_STREAM
    with socket.socket(family, kind) as sock:
        sock.settimeout(seconds)
        local = HostPort(own, _bind(sock, "::" if family == socket.AF_INET6 else "0.0.0.0"))
        try:
            sock.connect((address, request.port))
            return _exchange(sock, request, local)
        except TimeoutError:
            return Seen(TIMEOUT, local=local)
        except OSError as error:
            word = RESET if error.errno in _RESETS else errno.errorcode.get(error.errno or 0, str(error))
            return Seen(word, local=local)


def _bind(sock: socket.socket, address: str) -> int:
    """A source port that no recent probe used: it identifies the flows, also of a request without a response."""
    for _ in range(len(SOURCE_PORTS)):
        port = next(_source_port)
        try:
            sock.bind((address, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return port
    raise ConfigError(f"no free source port from {SOURCE_PORTS.start} to {SOURCE_PORTS.stop - 1}")


def _exchange(sock: socket.socket, request: Request, local: HostPort) -> Seen:
    if request.is_http:
        return _http(sock, request, local)
    sock.sendall(request.body)
    data = b""
    while data.count(b"\n") == 0 or not data.partition(b"\n")[2]:
        if not (more := sock.recv(65536)):
            return Seen(CLOSED, local=local)
        data += more
    source, _, echoed = data.partition(b"\n")
    return Seen(OK if request.body.startswith(echoed) else "garbled", source.decode(), local)


def _http(sock: socket.socket, request: Request, local: HostPort) -> Seen:
    client = h11.Connection(h11.CLIENT)
    name = f"[{request.host}]" if ":" in request.host else request.host
    headers = [("Host", name if request.port == 80 else f"{name}:{request.port}"), *request.headers]
    if request.body:
        headers.append(("Content-Length", str(len(request.body))))
    sock.sendall(client.send(h11.Request(method=request.method, target=request.path, headers=headers)) or b"")
    if request.body:
        sock.sendall(client.send(h11.Data(data=request.body)) or b"")
    sock.sendall(client.send(h11.EndOfMessage()) or b"")
    status, body = "", b""
    while True:
        event = client.next_event()
        if event is h11.NEED_DATA:
            data = sock.recv(65536)
            if not data and not status:
                return Seen(CLOSED, local=local)
            client.receive_data(data)
        elif isinstance(event, h11.Response):
            status = str(event.status_code)
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            break
        elif not isinstance(event, h11.InformationalResponse):
            return Seen(CLOSED, local=local)
    answer = _json(body)
    return Seen(status, str(answer.get("peer", "")), local, answer)


def _json(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
