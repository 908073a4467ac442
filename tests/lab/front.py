"""A real worker behind TPROXY in front of a test server: HTTP rules on port 80, records as they arrive."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from l7proxy.flows.records import Connection, HttpRequest, HttpResponse, Malformed, Record
from l7proxy.gate.options import HttpOptions
from l7proxy.link.messages import PolicySnapshot
from l7proxy.model.verdict import Action
from l7proxy.policy.rules import HttpRule, HttpRules
from l7proxy.policy.tables import EndpointPolicy, Entry, LocalEndpoint, union
from l7proxy.wire.path import PathRules
from tests.lab.test_worker_packets import CLIENT, REF, SERVER, Agent, Net, agent

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Front:
    net: Net
    agent: Agent
    family: int = 4
    open: list[asyncio.StreamWriter] = field(default_factory=list)

    @property
    def records(self) -> list[Record]:
        return self.agent.records

    async def publish(self, *rules: HttpRule, paths: PathRules | None = None) -> None:
        """Applies these HTTP rules to the server's port 80."""
        policy = union((Entry(Action.REDIRECT, REF, None, 6, 80, 80, l7=HttpRules(rules)),), (REF,))
        self.agent.revision += 1
        snapshot = PolicySnapshot(
            revision=self.agent.revision,
            endpoints=(LocalEndpoint(2, "default/server", tuple(SERVER.values()), EndpointPolicy(2, ingress=policy)),),
            identities={f"{CLIENT[4]}/32": 300, f"{CLIENT[6]}/128": 300},
            http=HttpOptions(paths=paths or PathRules(), flow_query=True),
        )
        await self.agent.server.publish(snapshot)
        assert await self.agent.server.wait_applied(self.agent.revision, 10)

    async def dial(self) -> socket.socket:
        return await asyncio.to_thread(self.net.dial, self.family, SERVER[self.family], 80)

    async def client(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connected client in its namespace; closed with the front."""
        reader, writer = await asyncio.open_connection(sock=await self.dial())
        self.open.append(writer)
        return reader, writer

    def told(self) -> list[str]:
        """Verdict of each request and each cut, status of each answer."""
        return [_word(record) for record in self.records]

    async def until_told(self, *words: str) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                while len(self.records) < len(words):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        assert self.told() == list(words)


def _word(record: Record) -> str:
    match record:
        case HttpRequest():
            return f"{record.policy_verdict.verdict.name} {record.method} {record.url}"
        case HttpResponse() | Malformed():
            return str(record.status)
        case Connection():
            return f"connection {record.policy_verdict.verdict.name}"


@contextlib.asynccontextmanager
async def front(net: Net, place: Path, *rules: HttpRule, family: int = 4) -> AsyncIterator[Front]:
    """A front with `rules` enforced and one worker serving."""
    async with agent(net, place) as on:
        made = Front(net, on, family)
        await made.publish(*rules)
        await on.worker()
        try:
            yield made
        finally:
            for writer in made.open:
                writer.transport.abort()


def bound(net: Net, family: int = 4) -> socket.socket:
    """A listener on port 80 of the server's namespace."""
    sock = net.server.socket(socket.AF_INET6 if family == 6 else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((SERVER[family], 80))
    return sock


@contextlib.asynccontextmanager
async def serving(net: Net, handler: Handler, family: int = 4) -> AsyncIterator[None]:
    """Passes each connection to the handler; its failures fail the test."""
    faults: list[BaseException] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client's disconnect is no failure
        except Exception as fault:  # noqa: BLE001 -- told below
            faults.append(fault)
        writer.transport.abort() if writer.is_closing() else writer.close()

    server = await asyncio.start_server(serve, sock=bound(net, family))
    try:
        yield
    finally:
        server.close()
    assert not faults, faults
