"""Serves `/livez` and `/readyz` over HTTP, for the probes of kubelet and for monitoring; also `/metrics`.

`/livez`: the event loop answers, and the reconciler is not stuck. It fails only where a restart may help.
`/readyz`: the node enforces its policies. It does not fail while the source is out of reach: what was read last stays
enforced. The answer is `200 ok`, or 503 with one reason per line.

The listener is on loopback, so no pod with a network namespace of its own reaches it; a peer from elsewhere (with
`route_localnet`, a neighbour can send to 127.0.0.1) is disconnected. A client cannot use more than one bounded request
and two seconds. When too many connect, the oldest connection makes room, so that slow clients do not keep kubelet out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

import h11

from l7proxy.agent.dataplane.reconciler import Reconciler
from l7proxy.errors import ConfigError
from l7proxy.link.server import WorkerState
from l7proxy.model.net import HostPort

STUCK: Final = 300.0
"""Seconds that one round of the reconciler may take: several times those of the first one in the largest clusters."""
BEHIND: Final = 30.0
"""Seconds after which a round that has not ended makes the node not ready."""
MAX_REQUEST: Final = 8 << 10
MAX_CLIENTS: Final = 64
PATIENCE: Final = 2.0
"""Seconds that a client has to send its request and to take the answer."""

Check = Callable[[], Iterable[str]]
"""Returns the reasons for a negative answer; none means yes."""
Page = Callable[[str], Awaitable[tuple[str, bytes]]]
"""Accept header of the request → (content type, body)."""
PLAIN: Final = "text/plain; charset=utf-8"


def not_alive(reconciler: Reconciler) -> Iterable[str]:
    """Why a restart of the agent is needed."""
    if reconciler.busy > STUCK:
        yield f"reconciler: one round has been running for {reconciler.busy:.0f} s"


def not_ready(reconciler: Reconciler, workers: Iterable[WorkerState]) -> Iterable[str]:
    """Why the node does not enforce the newest policies that it has read."""
    current, kernel = reconciler.current, reconciler.kernel
    if current is None:
        yield "source: not fully read yet"
        return
    if kernel.error:
        yield f"kernel: {kernel.error}"
    elif not kernel.revision:
        yield f"kernel: revision {current.revision} is not enforced yet"
    elif kernel.installed is not None and not kernel.installed.intact:
        yield "kernel: the rules differ from those installed"
    if reconciler.busy > BEHIND:
        yield f"reconciler: a change has been waiting for {reconciler.busy:.0f} s"
    if current.snapshots.steers:
        reached = [worker.revision for worker in workers]
        if not reached:
            yield "workers: none is connected: traffic to ports with L7 rules is refused"
        elif max(reached) < kernel.revision:
            yield f"workers: none has applied revision {kernel.revision}: traffic to ports with L7 rules is refused"


def may_ask(peer: tuple[str, int] | None, listening: IPv4Address | IPv6Address) -> bool:
    """A listener on loopback serves loopback only. `peer`: None when it has left."""
    return peer is not None and (not listening.is_loopback or ip_address(peer[0]).is_loopback)


class HealthServer:
    """`async with HealthServer(address, port, checks).serving(): …`. `checks`: path → check, `pages`: path → page.

    `setting`: the one that the address is from. `patience`: seconds that a client has.
    """

    def __init__(
        self,
        address: IPv4Address | IPv6Address,
        port: int,
        checks: Mapping[str, Check],
        *,
        pages: Mapping[str, Page] | None = None,
        setting: str = "health-address",
        patience: float = PATIENCE,
    ) -> None:
        self._address = address
        self._port = port
        self._checks = checks
        self._pages = pages or {}
        self._setting = setting
        self._patience = patience
        self._open: dict[asyncio.StreamWriter, None] = {}

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        """Yields the port. ConfigError when the address cannot be used."""
        try:
            server = await asyncio.start_server(self._client, str(self._address), self._port, limit=MAX_REQUEST)
        except OSError as error:
            where = HostPort(str(self._address), self._port)
            raise ConfigError(
                f"{self._setting}: cannot listen at {where}: {error.strerror}: choose another address"
            ) from error
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for writer in self._open:
                writer.transport.abort()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not may_ask(writer.get_extra_info("peername"), self._address):
            writer.transport.abort()
            return
        if len(self._open) >= MAX_CLIENTS:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.transport.abort()
        self._open[writer] = None
        try:
            with suppress(OSError, TimeoutError):  # a client that leaves, or is slow
                async with asyncio.timeout(self._patience):
                    writer.write(await self._response(reader))
                    await writer.drain()
        finally:
            self._open.pop(writer, None)
            writer.close()

    async def _response(self, reader: asyncio.StreamReader) -> bytes:
        """The whole answer to one request; the connection is closed after it."""
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_REQUEST)
        try:
            while (event := connection.next_event()) is h11.NEED_DATA:
                connection.receive_data(await reader.read(MAX_REQUEST))
        except h11.RemoteProtocolError as error:
            return _encoded(connection, 400, _lines([str(error)]))
        if not isinstance(event, h11.Request):
            return b""  # the client left
        status, kind, text = await self._answer(event)
        return _encoded(connection, status, text, kind, body=event.method != b"HEAD")

    async def _answer(self, event: h11.Request) -> tuple[int, str, bytes]:
        """(status, content type, body)"""
        if event.method not in (b"GET", b"HEAD"):
            return 405, PLAIN, _lines(["only GET and HEAD are served"])
        path = event.target.partition(b"?")[0].decode("ascii", "replace")
        if (page := self._pages.get(path)) is not None:
            accept = b",".join(value for name, value in event.headers if name == b"accept")
            return 200, *await page(accept.decode("latin-1"))
        if (check := self._checks.get(path)) is None:
            known = ", ".join(sorted((*self._checks, *self._pages)))
            return 404, PLAIN, _lines([f"known paths: {known}"])
        reasons = list(check())
        return (503, PLAIN, _lines(reasons)) if reasons else (200, PLAIN, _lines(["ok"]))


def _lines(lines: Iterable[str]) -> bytes:
    return "".join(line.replace("\n", " ") + "\n" for line in lines).encode()


def _encoded(connection: h11.Connection, status: int, text: bytes, kind: str = PLAIN, *, body: bool = True) -> bytes:
    headers = [
        ("content-type", kind),
        ("content-length", str(len(text))),
        ("cache-control", "no-store"),
        ("connection", "close"),
    ]
    parts = [
        connection.send(h11.Response(status_code=status, headers=headers)),
        connection.send(h11.Data(text)) if body else None,
        connection.send(h11.EndOfMessage()),
    ]
    return b"".join(part for part in parts if part)
