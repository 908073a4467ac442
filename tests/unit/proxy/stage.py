"""A worker's proxy server on loopback, without privilege: real sockets, a clock set by the test, records in a list.

The client is 127.0.0.2 (identity 300), the server 127.0.0.3 (identity 301); policies are compiled tables of the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from l7proxy.flows.records import Connection, HttpRequest, HttpResponse, Malformed, Record
from l7proxy.gate.clock import Clock
from l7proxy.link.messages import PolicySnapshot
from l7proxy.model.endpoint import Frontend
from l7proxy.model.net import HostPort
from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import Action
from l7proxy.policy.rules import HttpRule, HttpRules
from l7proxy.policy.tables import DirectionPolicy, EndpointPolicy, Entry, LocalEndpoint, union
from l7proxy.proxy.policy_store import PolicyStore
from l7proxy.proxy.server.context import Timeouts, WorkerContext
from l7proxy.proxy.server.server import ProxyServer
from l7proxy.proxy.server.steering import Plain
from l7proxy.proxy.server.timer_wheel import TimerWheel

CLIENT, SERVER = "127.0.0.2", "127.0.0.3"
REF = RuleRef("CiliumNetworkPolicy", "default", "web", "spec.ingress[0]")
TIMES = Timeouts(connect=5, head=30, idle=3600, linger=2, stalled=30)

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def by_http(*rules: HttpRule, peers: tuple[int, ...] | None = None) -> DirectionPolicy:
    return union((Entry(Action.REDIRECT, REF, peers, 6, l7=HttpRules(rules)),), (REF,))


def gets(path: str = "/.*") -> DirectionPolicy:
    return by_http(HttpRule(REF, method="GET", path=path))


ANYTHING = union((Entry(Action.ALLOW, REF),), (REF,))
NOTHING = union((), (REF,))
_revisions = itertools.count(1)


def snapshot(
    ingress: DirectionPolicy | None = None,
    egress: DirectionPolicy | None = None,
    *,
    frontends: tuple[Frontend, ...] = (),
    identities: dict[str, int] | None = None,
    node_addresses: tuple[str, ...] = (),
) -> PolicySnapshot:
    return PolicySnapshot(
        revision=next(_revisions),
        endpoints=(
            LocalEndpoint(1, "default/client", (CLIENT,), EndpointPolicy(1, egress=egress)),
            LocalEndpoint(2, "default/server", (SERVER,), EndpointPolicy(2, ingress=ingress)),
        ),
        identities=identities or {f"{CLIENT}/32": 300, f"{SERVER}/32": 301},
        frontends=frontends,
        node_addresses=node_addresses,
    )


@dataclass
class Stage:
    """Test actions: publish policy snapshots, connect clients, advance the clock, read records."""

    ctx: WorkerContext
    proxy: ProxyServer
    records: list[Record] = field(default_factory=list)
    seconds: float = 0.0
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    @property
    def address(self) -> HostPort:
        return self.proxy.addresses[0]

    async def client(self, source: str = CLIENT) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        address = self.address
        reader, writer = await asyncio.open_connection(address.address, address.port, local_addr=(source, 0))
        self.writers.append(writer)
        return reader, writer

    async def dial(self) -> socket.socket:
        """A raw client socket, for misbehaving clients."""
        sock = socket.socket()
        sock.setblocking(False)
        sock.bind((CLIENT, 0))
        await asyncio.get_running_loop().sock_connect(sock, (self.address.address, self.address.port))
        return sock

    def passes(self, seconds: float) -> None:
        """Advances the clock."""
        self.seconds += seconds
        self.ctx.timers.advance(self.seconds)

    async def settled(self) -> None:
        """Waits until every session has ended: then all records are there."""
        async with asyncio.timeout(5):
            await self.ctx.policy_store.empty()

    async def until(self, true: Callable[[], object]) -> None:
        async with asyncio.timeout(5):
            while not true():  # noqa: ASYNC110 -- any condition, nobody to signal it
                await asyncio.sleep(0.002)

    def kinds(self) -> str:
        """The records so far, one letter each: c connection, q request, s response, m malformed."""
        letters = {Connection: "c", HttpRequest: "q", HttpResponse: "s", Malformed: "m"}
        return "".join(letters[type(record)] for record in self.records)

    def statuses(self) -> list[int]:
        return [record.status for record in self.records if isinstance(record, HttpResponse | Malformed)]


@contextlib.asynccontextmanager
async def stage(
    server: HostPort, first: PolicySnapshot | None = None, *, timeouts: Timeouts = TIMES, limit: int = 1000
) -> AsyncIterator[Stage]:
    records: list[Record] = []
    steering = Plain(HostPort("127.0.0.1", 0), server)
    ctx = WorkerContext(
        policy_store=PolicyStore(),
        steering=steering,
        timers=TimerWheel(0.0),
        records=records.append,
        clock=Clock(lambda: 1_000, time.monotonic_ns),
        timeouts=timeouts,
        limit=limit,
    )
    proxy = ProxyServer(ctx, steering.listen())
    made = Stage(ctx, proxy, records)
    if first is not None:
        await proxy.publish(first)
    try:
        yield made
    finally:
        await proxy.drain(0)
        ctx.poller.close()
        for writer in made.writers:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def backend(handler: Handler) -> AsyncIterator[HostPort]:
    """A server on 127.0.0.3; a connection that ends its handler does not fail the test."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await handler(reader, writer)
        writer.transport.abort() if writer.is_closing() else writer.close()

    server = await asyncio.start_server(serve, SERVER, 0)
    try:
        yield HostPort(SERVER, server.sockets[0].getsockname()[1])
    finally:
        server.close()


async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers each request with its request line as the body."""
    while head := await reader.readuntil(b"\r\n\r\n"):
        line = head.partition(b"\r\n")[0]
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(line), line))


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


def request(method: str = "GET", path: str = "/") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: server\r\n\r\n".encode()


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """One response with a content-length."""
    async with asyncio.timeout(5):
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        return int(head.split()[1]), await reader.readexactly(length)


def descriptors() -> int:
    return len(os.listdir(Path("/proc/self/fd")))  # noqa: PTH208 -- counting, not walking
