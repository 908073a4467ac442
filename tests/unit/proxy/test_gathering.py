"""Bytes of a fast body accumulate in the kernel before a wakeup: the last ones never wait, others only briefly."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat

import pytest

from l7proxy.flows.records import HttpResponse
from l7proxy.proxy.server import pipes as kernel
from tests.unit.proxy.bulk import ANY, BODY, download, dying, files, on_stage, upload
from tests.unit.proxy.stage import ANYTHING, answer, echo, request, snapshot


@pytest.fixture
def wakeups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes that each splice(2) from a socket was asked for."""
    seen: list[int] = []
    real = os.splice

    def counted(source: int, target: int, count: int, **options: int) -> int:
        if stat.S_ISFIFO(os.fstat(target).st_mode):
            seen.append(count)
        return real(source, target, count, **options)

    monkeypatch.setattr(os, "splice", counted)
    return seen


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coalesced bytes wait for longer than any test takes."""
    monkeypatch.setattr(kernel, "PATIENCE", 60.0)


async def test_a_wakeup_in_a_fast_body_moves_a_pipe_full(patient: None, wakeups: list[int]) -> None:
    async with on_stage(files, snapshot(ANY)) as (on, _):
        reader, writer = await on.client()
        writer.write(upload())
        for at in range(0, len(BODY), 1 << 17):  # 96 pieces
            writer.write(BODY[at : at + (1 << 17)])
            await writer.drain()
            await asyncio.sleep(0.002)
        assert await answer(reader) == (200, hashlib.sha256(BODY).hexdigest().encode())
        assert 0 < len(wakeups) < 48


@pytest.mark.parametrize("last", [1, 1000, 100_000, 700_000])
async def test_the_last_bytes_of_a_body_wait_for_no_others(patient: None, last: int) -> None:
    """Nor do the bytes that follow the body: the socket's setting is restored."""

    async def pauses(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY[:-last])
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(BODY[-last:])
        await files(reader, writer)

    async with on_stage(pauses, snapshot(ANY)) as (on, pipes):
        reader, writer = await on.client()
        writer.write(request())
        assert await answer(reader) == (200, BODY)
        writer.write(upload() + BODY[:-last])
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(BODY[-last:])
        assert await answer(reader) == (200, hashlib.sha256(BODY).hexdigest().encode())
        writer.write(download(5))
        assert await answer(reader) == (200, BODY[:5])
        assert pipes.runs == 2


async def test_what_has_no_known_end_waits_for_no_others(patient: None) -> None:
    async with on_stage(echo, snapshot(ANYTHING)) as (on, pipes):
        reader, writer = await on.client()
        for size in (1 << 20, 1, 3 << 20, 70_001, (1 << 20) + 1):
            writer.write(BODY[:size])
            async with asyncio.timeout(5):
                assert await reader.readexactly(size) == BODY[:size]
        assert pipes.runs >= 1


async def test_bytes_in_the_middle_of_a_body_wait_for_a_moment_only() -> None:
    """And not at all where few bytes come at a time: a dialogue within bodies is not delayed."""

    async def talks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1 << 40))
        writer.write(BODY)
        while word := await reader.read(1000):
            writer.write(word)

    async with on_stage(talks, snapshot(ANY)) as (on, pipes):
        reader, writer = await on.client()
        writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n")
        async with asyncio.timeout(5):
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(len(BODY)) == BODY
            for number in range(300):
                writer.write(word := b"%d" % number)
                assert await reader.readexactly(len(word)) == word
        assert pipes.used == 1


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
async def test_the_end_of_a_connection_waits_for_no_bytes(patient: None, reset: bool) -> None:
    async with on_stage(dying(reset=reset), snapshot(ANY)) as (on, pipes):
        reader, writer = await on.client()
        writer.write(request())
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(5):
                while True:
                    await reader.readexactly(1 << 16)
        await on.settled()
        assert pipes.runs == 1
        (told,) = [record for record in on.records if isinstance(record, HttpResponse)]
        assert told.policy_verdict.reason


async def test_the_end_of_a_client_waits_for_no_bytes(patient: None) -> None:
    async def reads(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1 << 20):
            pass

    async with on_stage(reads, snapshot(ANY)) as (on, pipes):
        _, writer = await on.client()
        writer.write(upload(1 << 40) + BODY)
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.close()
        await on.settled()
        assert pipes.runs == 1
        assert on.statuses() == [499]


async def test_a_run_that_gives_up_leaves_the_socket_as_it_was(patient: None) -> None:
    more = asyncio.Event()

    async def pauses(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1 << 40) + BODY)
        await more.wait()
        writer.write(b"more")
        await reader.read()

    async with on_stage(pauses, snapshot(ANY), limit=1) as (on, pipes):
        reader, writer = await on.client()
        writer.write(request())
        async with asyncio.timeout(5):
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(len(BODY) // 2)
            await asyncio.sleep(0.1)
            for _ in range(3):
                on.passes(1)
            only = pipes.take()  # so no other transfer is possible
            assert only is not None
            assert await reader.readexactly(len(BODY) // 2) == BODY[len(BODY) // 2 :]
            more.set()
            assert await reader.readexactly(4) == b"more"
            pipes.give(only, empty=True)
