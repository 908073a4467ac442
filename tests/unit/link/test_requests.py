"""Requests over a real socket: acknowledged only when done and visible to the worker, refused in every other case."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from l7proxy.errors import RequestRefusedError
from l7proxy.link import framing
from l7proxy.link.client import LinkClient
from l7proxy.link.messages import (
    MAX_REQUESTS,
    PROTOCOL_VERSION,
    Acknowledged,
    AddressesLearned,
    FromAgent,
    FromWorker,
    Hello,
    PolicySnapshot,
    Refused,
    Request,
    RequestBody,
    SnapshotDelta,
    WorkerStats,
)
from l7proxy.link.outbox import Outbox
from l7proxy.link.requests import RequestHandler
from l7proxy.link.server import LinkServer

AGENT = """
import asyncio, sys
from pathlib import Path
from l7proxy.link.server import LinkServer

async def handler(body):
    print(body.name, flush=True)
    await asyncio.Event().wait()

async def main():
    async with LinkServer(Path(sys.argv[1]), on_flows=print, on_request=handler).serving():
        await asyncio.Event().wait()

asyncio.run(main())
"""
LONG = 20.0


def learned(name: str = "a.example", addresses: int = 1) -> AddressesLearned:
    return AddressesLearned(5, name, tuple(f"192.0.2.{number % 256}" for number in range(addresses)), 30)


def snapshot(revision: int, identities: int = 0) -> PolicySnapshot:
    known = {f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}/32": revision for n in range(identities)}
    return PolicySnapshot(revision, (), known)


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(LONG):
        while not true():  # noqa: ASYNC110 -- any condition, nobody to signal it
            await asyncio.sleep(0.001)


class Handler:
    """Keeps each request until the test lets it end."""

    def __init__(self) -> None:
        self.got: list[RequestBody] = []
        self.cancelled = 0
        self.let = asyncio.Event()

    async def __call__(self, body: RequestBody) -> None:
        self.got.append(body)
        try:
            await self.let.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


class Worker:
    def __init__(self, path: Path) -> None:
        self.applied: list[int] = []
        self.slow = 0.0
        self.client = LinkClient(path, 0, outbox=Outbox(), on_snapshot=self.apply, stats=WorkerStats)

    async def apply(self, snapshot: PolicySnapshot) -> tuple[str, ...]:
        await asyncio.sleep(self.slow)
        self.applied.append(snapshot.revision)
        return ()

    async def ask(self, body: RequestBody | None = None, seconds: float = LONG) -> str:
        """The reason of a refusal; empty when acknowledged."""
        try:
            await self.client.request(body or learned(), seconds)
        except RequestRefusedError as error:
            return str(error)
        return ""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Worker]:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(self.client.run(), name="link")
            await until(lambda: self.client.connected)
            yield self
            task.cancel()


@contextlib.asynccontextmanager
async def link(path: Path, handler: RequestHandler) -> AsyncIterator[tuple[LinkServer, Worker]]:
    server = LinkServer(path / "link.sock", on_flows=lambda flows: None, on_request=handler)
    async with server.serving(), Worker(path / "link.sock").running() as worker:
        yield server, worker


async def test_it_is_acknowledged_only_when_the_handler_is_done(tmp_path: Path) -> None:
    handler = Handler()
    async with link(tmp_path, handler) as (_, worker), asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(worker.ask(), name="ask")
        await until(lambda: handler.got)
        await asyncio.sleep(0.05)
        assert handler.got == [learned()] and not asked.done()
        handler.let.set()
        assert await asked == ""


async def test_many_are_handled_beside_each_other_and_each_gets_its_own_answer(tmp_path: Path) -> None:
    async def handler(body: RequestBody) -> None:
        number = int(body.name)
        await asyncio.sleep(0.02 if number % 2 else 0)
        if number % 3 == 0:
            raise RequestRefusedError(f"not {number}")

    async with link(tmp_path, handler) as (_, worker):
        told = await asyncio.gather(*(worker.ask(learned(str(number))) for number in range(MAX_REQUESTS)))
    assert told == [f"not {number}" if number % 3 == 0 else "" for number in range(MAX_REQUESTS)]


async def test_snapshots_published_by_the_handler_are_applied_before_its_answer(tmp_path: Path) -> None:
    """Also when the worker is slow, so that the snapshots fill the socket and the newest waits for it to read."""
    server: LinkServer

    async def handler(body: RequestBody) -> None:
        for revision in range(1, 6):
            await server.publish(snapshot(revision, identities=30_000))

    async with link(tmp_path, handler) as (server, worker):
        worker.slow = 0.1
        assert await worker.ask() == ""
        assert worker.applied[-1] == 5


async def test_an_agent_without_a_handler_refuses(tmp_path: Path) -> None:
    server = LinkServer(tmp_path / "link.sock", on_flows=lambda flows: None)
    async with server.serving(), Worker(tmp_path / "link.sock").running() as worker:
        assert await worker.ask() == "the agent has no handler for AddressesLearned"


async def test_a_handler_that_fails_refuses_and_the_link_lives(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(body: RequestBody) -> None:
        raise ValueError("no such table")

    async with link(tmp_path, handler) as (server, worker):
        assert await worker.ask() == "internal error of the agent: no such table"
        assert "AddressesLearned failed: ValueError('no such table')" in caplog.text
        await server.publish(snapshot(1))
        assert await server.wait_applied(1, LONG)
        assert await worker.ask() != ""


async def test_without_an_agent_or_an_answer_in_time_it_is_refused(tmp_path: Path) -> None:
    handler = Handler()
    worker = Worker(tmp_path / "link.sock")
    assert await worker.ask() == "no connection to the agent"
    async with link(tmp_path, handler) as (_, worker):
        assert await worker.ask(seconds=0.02) == "no answer from the agent within 0.02 s"
        handler.let.set()  # the late answer belongs to nobody
        assert await worker.ask() == ""


async def test_an_agent_that_dies_refuses_what_it_has_not_answered(tmp_path: Path) -> None:
    """The agent is a process, killed while it works on the request."""
    path = tmp_path / "link.sock"
    agent = await asyncio.create_subprocess_exec(sys.executable, "-c", AGENT, str(path), stdout=asyncio.subprocess.PIPE)
    async with Worker(path).running() as worker, asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(worker.ask(), name="ask")
        assert agent.stdout is not None
        assert await agent.stdout.readline() == b"a.example\n"
        agent.kill()
        assert await asked == "the connection to the agent was lost before its answer"
        await agent.wait()
        path.unlink()
        await until(lambda: not worker.client.connected)
        assert await worker.ask() == "no connection to the agent"


async def test_a_worker_that_leaves_cancels_its_handlers(tmp_path: Path) -> None:
    handler = Handler()
    server = LinkServer(tmp_path / "link.sock", on_flows=lambda flows: None, on_request=handler)
    async with server.serving():
        async with Worker(tmp_path / "link.sock").running() as worker, asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(worker.ask(seconds=0.2), name="ask")
            await until(lambda: handler.got)
            assert "no answer" in await asked
        await until(lambda: handler.cancelled)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (learned(addresses=1025), r"<= 1024 - at `\$.body.addresses`"),
        (learned("a" * 256), r"<= 255 - at `\$.body.name`"),
        (AddressesLearned(1, "a", (), -1), r">= 0 - at `\$.body.ttl_s`"),
    ],
    ids=["addresses", "name", "ttl"],
)
async def test_what_the_agent_would_not_accept_is_refused_here(tmp_path: Path, body: RequestBody, named: str) -> None:
    async with link(tmp_path, Handler()) as (server, worker):
        with pytest.raises(RequestRefusedError, match=named):
            await worker.client.request(body, LONG)
        await server.publish(snapshot(1))
        assert await server.wait_applied(1, LONG), "the link lives"


async def test_a_worker_sends_no_more_than_the_bound(tmp_path: Path) -> None:
    handler = Handler()
    async with link(tmp_path, handler) as (_, worker), asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(worker.ask(), name="ask") for _ in range(MAX_REQUESTS)]
        await until(lambda: len(handler.got) == MAX_REQUESTS)
        assert "no more are sent" in await worker.ask()
        handler.let.set()
        assert set(await asyncio.gather(*asked)) == {""}


class Peer:
    """A worker by hand, which keeps no rule."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._decoder = framing.from_agent()
        self.heard: list[FromAgent] = []

    @classmethod
    async def of(cls, path: Path) -> Peer:
        peer = cls(*await asyncio.open_unix_connection(path / "link.sock"))
        peer.send(Hello(PROTOCOL_VERSION, 7, 1))
        return peer

    def send(self, *messages: FromWorker) -> None:
        self.writer.write(b"".join(map(framing.encode, messages)))

    async def hears(self, count: int) -> list[FromAgent]:
        async with asyncio.timeout(LONG):
            while len(self.heard) < count and (data := await self.reader.read(1 << 20)):
                self.heard += self._decoder.feed(data)
        return self.heard


async def test_a_flood_is_refused_and_another_worker_gets_policies_and_answers(tmp_path: Path) -> None:
    handler = Handler()
    flood = 20_000
    async with link(tmp_path, handler) as (server, worker):
        peer = await Peer.of(tmp_path)
        peer.send(*(Request(number, learned("flood")) for number in range(1, flood + 1)))
        await peer.writer.drain()
        heard = await peer.hears(1)
        assert isinstance(heard[0], Refused) and f"works on {MAX_REQUESTS} requests" in heard[0].reason
        await server.publish(snapshot(1))
        await until(lambda: worker.applied == [1])
        assert len(handler.got) == MAX_REQUESTS
        handler.let.set()
        assert await worker.ask() == ""
        while sum(isinstance(one, Acknowledged) for one in peer.heard) < MAX_REQUESTS:
            await peer.hears(len(peer.heard) + 1)
        assert any(isinstance(one, SnapshotDelta) for one in peer.heard)
        peer.writer.transport.abort()


async def test_a_flood_of_a_worker_that_does_not_read_uses_no_memory(tmp_path: Path) -> None:
    """Neither requests nor their answers pile up."""

    async def handler(body: RequestBody) -> None:
        raise RequestRefusedError("x" * 1000)

    async with link(tmp_path, handler) as (server, worker):
        peer = await Peer.of(tmp_path)
        await until(lambda: len(server.workers()) == 2)
        for number in range(1, 100_001):
            peer.send(Request(number, learned()))
            if not number % 1000:
                await peer.writer.drain()
        (deaf,) = [one for one in server._connected if one.state and one.state.worker == 1]
        await until(lambda: not deaf.writable)
        assert len(deaf.answers) <= MAX_REQUESTS
        assert deaf.transport.get_write_buffer_size() < 1 << 20
        assert "xxx" in await worker.ask()
        peer.writer.transport.abort()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (framing.encode(Request(1, learned(addresses=1025))), "<= 1024"),
        (framing.encode(Request(0, learned())), ">= 1"),
        (framing.encode(Request(1, learned())) * 2, "came twice"),
        (b"\x7f\xff\xff\xff", "exceeds the limit"),
        (b"\0\0\0\1\xc1", "not a valid message"),
    ],
    ids=["oversize", "reserved id", "id in use", "long frame", "garbage"],
)
async def test_a_bad_frame_ends_the_connection_of_its_worker_only(tmp_path: Path, bad: bytes, reason: str) -> None:
    handler = Handler()
    async with link(tmp_path, handler) as (_, worker), asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(worker.ask(), name="ask")
        await until(lambda: len(handler.got) == 1)
        peer = await Peer.of(tmp_path)
        peer.writer.write(bad)
        (told,) = await peer.hears(2)
        assert isinstance(told, Refused) and reason in told.reason
        peer.writer.transport.abort()
        handler.let.set()
        assert await asked == ""


async def test_another_version_is_named_on_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("l7proxy.link.client.PROTOCOL_VERSION", 99)
    path = tmp_path / "link.sock"
    async with LinkServer(path, on_flows=lambda flows: None).serving(), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(Worker(path).client.run(), name="link")
        await until(lambda: "refused by the agent" in caplog.text)
        task.cancel()
    reason = f"it uses link protocol version 99, the agent uses {PROTOCOL_VERSION}: restart it"
    assert f"closed the connection to a peer without Hello: {reason}" in caplog.text
    assert f"closed the connection to the agent: refused by the agent: {reason}" in caplog.text
