"""Limits of silence, by the timer wheel's clock: a day within a request, its answer or a tunnel, an hour between."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from l7proxy.flows.records import HttpResponse
from l7proxy.proxy.server.context import Timeouts
from tests.unit.proxy.stage import ANYTHING, Handler, Stage, answer, backend, gets, request, snapshot, stage, web

HOURS = 23 * 3600.0
UPGRADE = b"GET /ws HTTP/1.1\r\nHost: server\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def before(handler: Handler, *, by_request: bool = True) -> AsyncIterator[tuple[Stage, Client]]:
    """A stage with the default timeouts of workers, and one client."""
    policy = snapshot(gets() if by_request else ANYTHING)
    async with backend(handler) as server, stage(server, policy, timeouts=Timeouts()) as on:
        yield on, await on.client()


async def silence(on: Stage, seconds: float) -> None:
    """Time passes in steps, with the loop running in between."""
    await asyncio.sleep(0.02)  # everything sent has been read
    for _ in range(10):
        on.passes(seconds / 10)
        await asyncio.sleep(0)
    await asyncio.sleep(0.02)


async def test_a_long_poll_is_answered_after_hours() -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await go.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate")
        await reader.read()

    async with before(late) as (on, (reader, writer)):
        writer.write(request())
        await asked.wait()
        await silence(on, HOURS)
        go.set()
        assert await answer(reader) == (200, b"late")


async def test_an_event_stream_may_be_silent_for_hours_between_events() -> None:
    events: asyncio.Queue[bytes] = asyncio.Queue()

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(CHUNKED)
        while event := await events.get():
            writer.write(event)

    async with before(stream) as (on, (reader, writer)):
        writer.write(request())
        assert await reader.readexactly(len(CHUNKED)) == CHUNKED
        for number in range(3):
            await silence(on, HOURS)
            events.put_nowait(b"6\r\ndata:%d\r\n" % number)
            assert await reader.readexactly(11) == b"6\r\ndata:%d\r\n" % number
        events.put_nowait(b"")
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""  # the stream broke off: it may not look complete
        await on.settled()
        assert on.statuses() == [200]


async def test_an_upload_may_pause_for_hours() -> None:
    asked = asyncio.Event()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        assert await reader.readexactly(4) == b"half"
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await reader.read()

    async with before(take) as (on, (reader, writer)):
        writer.write(b"GET / HTTP/1.1\r\nHost: server\r\nContent-Length: 4\r\n\r\nha")
        await asked.wait()
        await silence(on, HOURS)
        writer.write(b"lf")
        assert await answer(reader) == (200, b"")


@pytest.mark.parametrize("by_request", [True, False], ids=["websocket", "tcp"])
async def test_a_tunnel_may_be_silent_for_hours(by_request: bool) -> None:
    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if by_request:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(SWITCHED)
        while data := await reader.read(100):
            writer.write(data)

    async with before(tunnel, by_request=by_request) as (on, (reader, writer)):
        if by_request:
            writer.write(UPGRADE)
            assert await reader.readexactly(len(SWITCHED)) == SWITCHED
        for _ in range(2):
            writer.write(b"ping")
            assert await reader.readexactly(4) == b"ping"
            await silence(on, HOURS)
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"


async def test_between_requests_an_hour_is_the_end() -> None:
    async with before(web) as (on, (reader, writer)):
        writer.write(request())
        assert (await answer(reader))[0] == 200
        await silence(on, 3590)
        assert len(on.ctx.policy_store) == 1
        await silence(on, 20)
        assert await reader.read() == b""
        assert writer.can_write_eof()


async def test_what_is_dead_for_more_than_a_day_ends_with_its_record() -> None:
    asked = asyncio.Event()

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await reader.read()

    async with before(mute) as (on, (reader, writer)):
        writer.write(request())
        await asked.wait()
        await silence(on, 86_500)
        assert (await answer(reader))[0] == 504
        writer.close()
        await on.settled()
        assert [record.policy_verdict.reason for record in on.records if isinstance(record, HttpResponse)] == [
            "response timeout"
        ]


async def test_a_dead_tunnel_ends_after_more_than_a_day() -> None:
    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(SWITCHED)
        await reader.read()

    async with before(tunnel) as (on, (reader, writer)):
        writer.write(UPGRADE)
        assert await reader.readexactly(len(SWITCHED)) == SWITCHED
        await silence(on, 86_500)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
        await on.settled()
        assert on.statuses() == [101]
