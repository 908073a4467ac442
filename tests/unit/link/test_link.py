"""Agent and workers over a real socket: policy snapshots out, records in, and either side restarting."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest

from l7proxy.errors import ConfigError
from l7proxy.flows.batch import Flows
from l7proxy.flows.pack import pack
from l7proxy.flows.records import Connection, HttpResponse, Record
from l7proxy.link import framing, local
from l7proxy.link.client import LinkClient
from l7proxy.link.delta import SnapshotDecoder
from l7proxy.link.messages import (
    CONNECTION,
    PROTOCOL_VERSION,
    Hello,
    PolicySnapshot,
    Refused,
    SnapshotDelta,
    WorkerStats,
)
from l7proxy.link.outbox import Outbox
from l7proxy.link.server import LinkServer
from l7proxy.model.policy_verdict import Conn, PolicyVerdict
from l7proxy.model.verdict import Direction, Verdict
from l7proxy.wire.head import MAX_HEAD


def record(number: int) -> Connection:
    conn = Conn("10.0.0.1", number % 65536, "10.0.0.2", 80, 300, 301)
    return Connection(number, conn, PolicyVerdict(Verdict.DROPPED, Direction.INGRESS, reason="no"))


def snapshot(revision: int) -> PolicySnapshot:
    return PolicySnapshot(revision=revision, endpoints=(), identities={"10.0.0.1/32": 300}, epoch=1)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 -- any condition, nobody to signal it
            await asyncio.sleep(0.001)


class Agent:
    """A LinkServer and the records it received."""

    def __init__(self, path: Path) -> None:
        self.records: list[Record] = []
        self.lost = 0
        self.news = asyncio.Event()
        self.server = LinkServer(path, on_flows=self.heard)

    def heard(self, flows: Flows) -> None:
        self.records += flows.records()
        self.lost += flows.lost
        self.news.set()

    def has(self, number: int) -> bool:
        return any(each.time_ns == number for each in self.records[-1:])

    async def until(self, count: int) -> None:
        async with asyncio.timeout(60):
            while len(self.records) + self.lost < count:
                self.news.clear()
                await self.news.wait()


class Worker:
    """A LinkClient and the policy snapshots it received."""

    def __init__(self, path: Path, index: int = 0, capacity: int = 1000) -> None:
        self.outbox = Outbox(capacity=capacity)
        self.snapshots: asyncio.Queue[PolicySnapshot] = asyncio.Queue()
        self.client = LinkClient(
            path, index, outbox=self.outbox, on_snapshot=self.apply, stats=lambda: WorkerStats(1, 2, 3, lost=9)
        )

    async def apply(self, snapshot: PolicySnapshot) -> tuple[str, ...]:
        self.snapshots.put_nowait(snapshot)
        return (f"problem of {snapshot.revision}",)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Worker]:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(self.client.run(), name="link")
            yield self
            task.cancel()

    async def gets(self, revision: int) -> PolicySnapshot:
        async with asyncio.timeout(10):
            while (got := await self.snapshots.get()).revision != revision:
                pass
        return got


async def test_a_snapshot_is_applied_and_records_come_back(tmp_path: Path) -> None:
    agent = Agent(tmp_path / "link.sock")
    worker = Worker(tmp_path / "link.sock", 4)
    async with agent.server.serving(), worker.running():
        await agent.server.publish(snapshot(1))
        assert await worker.gets(1) == snapshot(1)
        assert await agent.server.wait_applied(1, 5)
        for number in range(700):
            worker.outbox.put(record(number))
        await agent.until(700)
        assert agent.records == [record(number) for number in range(700)]
        assert agent.lost == 0
        assert await worker.client.flush(1)
        (state,) = agent.server.workers()
        assert (state.pid, state.worker, state.revision, state.problems) == (os.getpid(), 4, 1, ("problem of 1",))
        assert state.stats == WorkerStats(1, 2, 3, lost=9)


async def test_records_as_long_as_they_can_be_come_through(tmp_path: Path) -> None:
    """URLs and headers of maximum size, which the remote side may choose: more than fits one frame."""
    agent, worker = Agent(tmp_path / "link.sock"), Worker(tmp_path / "link.sock")
    conn, policy_verdict = record(1).conn, record(1).policy_verdict
    url, headers = "http://a/" + "b" * MAX_HEAD, (("x-id", "\xff" * MAX_HEAD),)
    records = [
        HttpResponse(number, conn, policy_verdict, "GET", url, "HTTP/1.1", 200, 1, headers) for number in range(300)
    ]
    for one in records:
        worker.outbox.put(one)
    async with agent.server.serving(), worker.running():
        await agent.until(len(records))
    assert agent.records == records
    assert agent.lost == 0


async def test_what_workers_have_sent_is_read_when_the_agent_ends(tmp_path: Path) -> None:
    agent = Agent(tmp_path / "link.sock")
    with socket.socket(socket.AF_UNIX) as worker:
        async with agent.server.serving():
            worker.connect(os.fspath(tmp_path / "link.sock"))
            worker.sendall(framing.encode(Hello(version=PROTOCOL_VERSION, pid=1, worker=0)))
            await until(lambda: bool(agent.server.workers()))
            worker.sendall(framing.encode(pack([record(1)], 0)))
            worker.shutdown(socket.SHUT_WR)
        assert agent.records == [record(1)]


async def test_a_worker_that_does_not_close_is_cut_off_when_the_agent_ends(tmp_path: Path) -> None:
    agent = Agent(tmp_path / "link.sock")
    with socket.socket(socket.AF_UNIX) as worker:
        async with asyncio.timeout(10):
            async with agent.server.serving():
                worker.connect(os.fspath(tmp_path / "link.sock"))
                await until(lambda: bool(agent.server._connected))
            await until(lambda: not agent.server._connected)


async def test_nobody_connected_is_nobody_to_wait_for(tmp_path: Path) -> None:
    server = LinkServer(tmp_path / "link.sock", on_flows=lambda flows: None)
    async with server.serving():
        assert await server.wait_applied(7, 0.01)


async def test_waiting_is_bounded_and_ends_when_the_worker_leaves(tmp_path: Path) -> None:
    path = tmp_path / "link.sock"
    server = LinkServer(path, on_flows=lambda flows: None)
    async with server.serving():
        await server.publish(snapshot(1))
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(framing.encode(Hello(PROTOCOL_VERSION, 77, 0)))
        assert [got async for got in first_snapshot(reader)] == [snapshot(1)]
        assert not await server.wait_applied(1, 0.05)
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(server.wait_applied(1, 10), name="wait")
            writer.transport.abort()
        assert waiting.result()


async def first_snapshot(reader: asyncio.StreamReader) -> AsyncIterator[PolicySnapshot]:
    decoder = framing.from_agent()
    while True:
        for got in decoder.feed(await reader.read(65536)):
            assert isinstance(got, SnapshotDelta)
            yield SnapshotDecoder().open(got)
            return


async def test_the_agent_goes_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "link.sock"
    worker = Worker(path)
    async with worker.running():
        for revision in (1, 2):
            agent = Agent(path)
            async with agent.server.serving():
                await agent.server.publish(snapshot(revision))
                await worker.gets(revision)
                worker.outbox.put(record(revision))
                await agent.until(1)
                assert agent.records == [record(revision)]
            assert not path.exists()


async def test_while_the_agent_is_away_records_wait_and_those_over_the_bound_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "link.sock"
    worker = Worker(path, capacity=300)
    async with worker.running():
        for number in range(1000):
            worker.outbox.put(record(number))
        assert not await worker.client.flush(0.01)
        agent = Agent(path)
        async with agent.server.serving():
            await agent.until(1000)
            assert len(agent.records) == 300
            assert agent.lost == 700


async def test_an_agent_that_does_not_read_costs_counted_records_and_no_waiting(tmp_path: Path) -> None:
    path = tmp_path / "link.sock"
    worker = Worker(path, capacity=1000)
    listener = local.listen(path)
    async with worker.running():
        deaf, _ = await asyncio.get_running_loop().sock_accept(listener)
        listener.close()
        for number in range(50_000):
            worker.outbox.put(record(number))
            if number % 500 == 0:
                await asyncio.sleep(0)
        assert len(worker.outbox) == 1000  # full: the socket's buffer took some, the rest was counted as lost
        deaf.close()
        path.unlink()
        agent = Agent(path)
        async with agent.server.serving():
            await agent.until(1000)
            assert agent.lost > 10_000


async def test_a_slow_worker_skips_snapshots_and_gets_the_newest(tmp_path: Path) -> None:
    path = tmp_path / "link.sock"
    server = LinkServer(path, on_flows=lambda flows: None)
    async with server.serving():
        reader, writer = await asyncio.open_unix_connection(path, limit=1024)
        writer.write(framing.encode(Hello(PROTOCOL_VERSION, 77, 0)))
        big = {f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}/32": 300 for n in range(60_000)}
        for revision in range(1, 21):
            await server.publish(PolicySnapshot(revision=revision, endpoints=(), identities=big))
            await asyncio.sleep(0)
        decoder, snapshots = framing.from_agent(), SnapshotDecoder()
        got: list[int] = []
        while not got or got[-1] != 20:
            heard = decoder.feed(await reader.read(1 << 20))
            got += [snapshots.open(message).revision for message in heard if isinstance(message, SnapshotDelta)]
        assert len(got) < 20
        writer.transport.abort()


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="http"),
        pytest.param(framing.encode(WorkerStats()), id="stats before hello"),
        pytest.param(framing.encode(Hello(99, 1, 0)), id="another version"),
        pytest.param(framing.encode(Hello(PROTOCOL_VERSION, 1, 0)) * 2, id="hello twice"),
        pytest.param(framing.encode(Hello(PROTOCOL_VERSION, 1, 0)) + b"\xff\xff\xff\xff", id="garbage later"),
    ],
)
async def test_nonsense_ends_that_connection_and_not_the_agent(
    tmp_path: Path, words: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    agent = Agent(tmp_path / "link.sock")
    async with agent.server.serving():
        reader, writer = await asyncio.open_unix_connection(tmp_path / "link.sock")
        writer.write(words)
        (told,) = framing.from_agent().feed(await reader.read())
        assert isinstance(told, Refused) and told.id == CONNECTION and told.reason in caplog.text
        writer.transport.abort()
        assert "closed the connection to" in caplog.text
        await agent.server.publish(snapshot(1))
        async with Worker(tmp_path / "link.sock").running() as worker:
            await worker.gets(1)


async def test_an_agent_that_speaks_nonsense_does_not_kill_the_worker(tmp_path: Path) -> None:
    path = tmp_path / "link.sock"
    worker = Worker(path)
    async with worker.running():
        listener = local.listen(path)
        liar, _ = await asyncio.get_running_loop().sock_accept(listener)
        liar.sendall(b"\xff" * 64)
        listener.close()
        liar.close()
        path.unlink()
        agent = Agent(path)
        async with agent.server.serving():
            await agent.server.publish(snapshot(5))
            await worker.gets(5)


async def test_the_socket_is_ours_alone_and_never_stolen(tmp_path: Path) -> None:
    path = tmp_path / "link.sock"
    agent = Agent(path)
    async with agent.server.serving():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(ConfigError, match="in use by another"):
            local.listen(path)
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(os.fspath(path))
    dead.close()
    async with agent.server.serving(), Worker(path).running():
        await agent.server.publish(snapshot(1))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
async def test_another_user_is_refused_even_when_the_file_lets_him() -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "link.sock"
        agent = Agent(path)
        async with agent.server.serving():
            Path(place).chmod(0o755)
            path.chmod(0o666)
            child = await asyncio.create_subprocess_exec(
                "/usr/bin/python3",
                "-c",
                f"import os, socket; os.setuid(65534); s = socket.socket(1); s.connect({os.fspath(path)!r});"
                "print('dialled', s.recv(9))",
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            out, _ = await child.communicate()
            assert b"dialled b''" in out or b"ConnectionReset" in out
            assert not agent.server.workers()


async def test_records_that_could_not_be_handed_over_go_to_the_next_agent_in_their_order(tmp_path: Path) -> None:
    """The agent restarts repeatedly while records are produced: those that a dead link did not take are sent later."""
    path = tmp_path / "link.sock"
    worker = Worker(path, capacity=100_000)
    got: list[int] = []
    async with worker.running():
        for turn in range(4):
            agent = Agent(path)
            async with agent.server.serving():
                await until(lambda: worker.client.connected)
                for number in range(3000):
                    worker.outbox.put(record(turn * 3000 + number))
                    if number % 100 == 0:
                        await asyncio.sleep(0)
                if turn == 3:
                    assert await worker.client.flush(5)
                    await until(partial(agent.has, 11_999))
            got += [each.time_ns for each in agent.records]
            await until(lambda: not worker.client.connected)
    assert got == sorted(set(got)), "in order, and none twice"
