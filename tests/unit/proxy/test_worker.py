"""The worker as a process, without privilege: it serves, outlives its agent, drains on SIGTERM, exits 0."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from l7proxy.errors import ConfigError
from l7proxy.flows.records import HttpResponse, Record
from l7proxy.link.server import LinkServer
from l7proxy.model.net import HostPort
from l7proxy.proxy.server.steering import Plain
from l7proxy.proxy.worker import run_worker
from l7proxy.setting_definitions import WorkerSettings
from tests.unit.proxy.stage import CLIENT, answer, backend, gets, request, snapshot, web

PROGRAM = """
import sys
from pathlib import Path
from l7proxy.model.net import HostPort
from l7proxy.proxy.server.steering import Plain
from l7proxy.proxy.worker import run_worker
from l7proxy.setting_definitions import WorkerSettings
link, port, server, server_port, drain, *given = sys.argv[1:]
ready, changes, *_ = (*map(int, given), None, None)
way = Plain(HostPort("127.0.0.1", int(port)), HostPort(server, int(server_port)))
settings = WorkerSettings(run_dir=Path(link).parent, drain=float(drain))
sys.exit(run_worker(settings, steering=way, ready=ready, changes=changes))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110 -- another process is waited for
            await asyncio.sleep(0.02)


class Agent:
    def __init__(self, path: Path) -> None:
        self.records: list[Record] = []
        self.server = LinkServer(path, on_flows=lambda flows: self.records.extend(flows.records()))
        self.revision = 0

    @property
    def responses(self) -> list[HttpResponse]:
        return [record for record in self.records if isinstance(record, HttpResponse)]

    async def publish(self) -> None:
        """A policy snapshot that allows GET, applied by the one worker."""
        made = snapshot(gets())
        await self.server.publish(made)
        await until(lambda: [state.revision for state in self.server.workers()] == [made.revision])


@contextlib.asynccontextmanager
async def worker(
    link: Path, server: HostPort, drain: float = 5, given: tuple[int, ...] = ()
) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    port = free_port()
    words = (os.fspath(link), str(port), server.address, str(server.port), str(drain), *map(str, given))
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", PROGRAM, *words, pass_fds=given)
    try:
        yield process, port
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@contextlib.asynccontextmanager
async def client(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(CLIENT, 0))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def get(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
    writer.write(request())
    return (await answer(reader))[0]


async def test_it_serves_on_without_its_agent_and_tells_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "link.sock"
    async with backend(web) as server, worker(path, server) as (process, port):
        first = Agent(path)
        async with first.server.serving():
            await first.publish()
            async with client(port) as talk:
                assert await get(*talk) == 200
            await until(lambda: first.responses)  # what is under way when an agent ends is lost
        async with client(port) as talk:
            assert await get(*talk) == 200  # no agent receives its records now
            second = Agent(path)
            async with second.server.serving():
                await until(lambda: second.records)
                await second.publish()
                assert await get(*talk) == 200
                process.send_signal(signal.SIGTERM)
                assert await talk[0].read() == b""
                async with asyncio.timeout(10):
                    assert await process.wait() == 0
                await until(lambda: len(second.responses) == 2)  # the worker's last ones may still be in the socket
                assert len(first.responses) == 1


@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGTERM, signal.SIGTERM]], ids=["int", "term twice"])
async def test_a_hurry_does_not_wait_for_what_is_open(tmp_path: Path, signals: list[signal.Signals]) -> None:
    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    agent = Agent(tmp_path / "link.sock")
    link = tmp_path / "link.sock"
    async with agent.server.serving(), backend(never) as server, worker(link, server, drain=60) as (process, port):
        await agent.publish()
        async with client(port) as (reader, writer):
            writer.write(request())
            await until(lambda: agent.records)
            for one in signals:
                process.send_signal(one)
                await asyncio.sleep(0.2)
            async with asyncio.timeout(10):
                assert await process.wait() == 0
            with pytest.raises(ConnectionResetError):
                await reader.read()
        await until(lambda: agent.responses)
        assert [record.status for record in agent.responses] == [499]


async def test_changed_settings_are_in_force_at_once(tmp_path: Path) -> None:
    """A client may have half of the connections: one of two."""
    link = tmp_path / "link.sock"
    agent, (_, ready), (changes, writing) = Agent(link), os.pipe(), os.pipe()

    async def refused(port: int) -> bool:
        with contextlib.suppress(ConnectionResetError):
            async with client(port) as (reader, writer):
                writer.write(request())
                return await reader.read(1) == b""
        return True

    async with (
        agent.server.serving(),
        backend(web) as server,
        worker(link, server, given=(ready, changes)) as (_, port),
    ):
        await agent.publish()
        async with client(port) as first, client(port) as second:
            assert [await get(*one) for one in (first, second)] == [200, 200]
            few = WorkerSettings(run_dir=tmp_path, worker_connections=2)
            os.write(writing, few.dump().encode() + b"\n")
            async with asyncio.timeout(20):
                while not await refused(port):
                    pass
            os.close(writing)
            assert [await get(*one) for one in (first, second)] == [200, 200]


async def test_it_carries_no_kubernetes_and_no_kernel_tables() -> None:
    names = ("yaml", "pyroute2", "tproxy_rules", "typer", "h2")
    program = f"import l7proxy.proxy.worker, sys; print([m for m in {names} if m in sys.modules])"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert out == b"[]\n"


def test_what_stops_it_from_listening_is_a_config_error(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        way = Plain(HostPort("127.0.0.1", other.getsockname()[1]), HostPort("127.0.0.3", 80))
        with pytest.raises(ConfigError, match="is in use"):
            run_worker(WorkerSettings(run_dir=tmp_path), steering=way)


async def test_it_is_ready_once_it_has_a_policy_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "link.sock"
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    agent = Agent(path)
    async with backend(web) as server, agent.server.serving(), worker(path, server, given=(writing,)) as (_, port):
        await until(agent.server.workers)
        with pytest.raises(BlockingIOError):
            os.read(reading, 1)
        await agent.publish()
        await until(lambda: _byte(reading))
        async with client(port) as talk:
            assert await get(*talk) == 200
    os.close(reading)
    os.close(writing)


def _byte(descriptor: int) -> bytes:
    with contextlib.suppress(BlockingIOError):
        return os.read(descriptor, 1)
    return b""
