"""What a worker must survive: readers that do not read, clients that leave in every way, and its own end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import socket
import struct

import pytest

from l7proxy.flows.records import HttpRequest, HttpResponse
from l7proxy.gate.options import MAX_DENIED
from l7proxy.proxy.server.session import Session
from l7proxy.proxy.server.socket_stream import HIGH_WATER
from tests.unit.proxy.stage import (
    ANYTHING,
    Stage,
    answer,
    backend,
    descriptors,
    echo,
    gets,
    request,
    snapshot,
    stage,
    web,
)

BIG = 64 << 20


async def test_a_client_that_does_not_read_stops_the_server_not_the_memory() -> None:
    poured = 0

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal poured
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % BIG)
        while poured < BIG:
            writer.write(b"x" * 65536)
            await writer.drain()
            poured += 65536
        await reader.read()

    async with backend(count) as server, stage(server, snapshot(gets())) as on:
        sock = await on.dial()
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, request())
        last = -1
        while last != poured:  # until nothing moves any more
            last = poured
            await asyncio.sleep(0.2)
        assert poured < BIG // 2
        (session,) = on.ctx.policy_store
        assert buffered(session) <= HIGH_WATER + (1 << 20)
        got = 0
        async with asyncio.timeout(20):
            while got < BIG:
                got += len(await loop.sock_recv(sock, 1 << 20))
        sock.close()
        await on.settled()
        assert on.statuses() == [200]


def buffered(session: object) -> int:
    assert isinstance(session, Session)
    return session.unsent


async def test_a_server_that_does_not_read_stops_the_client() -> None:
    go = asyncio.Event()

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await go.wait()
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        while await reader.read(1 << 20):
            pass

    async with backend(deaf) as server, stage(server, snapshot(ANYTHING)) as on:
        sock = await on.dial()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        sent = 0
        loop = asyncio.get_running_loop()
        try:
            while sent < BIG:
                async with asyncio.timeout(1):
                    await loop.sock_sendall(sock, b"x" * 65536)
                sent += 65536
        except TimeoutError:
            pass
        assert sent < BIG
        (session,) = on.ctx.policy_store
        assert buffered(session) <= HIGH_WATER + (1 << 20)
        go.set()
        sock.close()
        await on.settled()


async def test_a_client_that_asks_for_denials_and_reads_none_is_not_read_for_ever() -> None:
    """We buffer each answer until it is read: a client that reads none may not send more requests."""
    async with backend(echo) as server, stage(server, snapshot(gets("/allowed"))) as on:
        sock = await on.dial()
        loop = asyncio.get_running_loop()
        few = MAX_DENIED // 8  # more in one read would end the connection
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        with contextlib.closing(sock):
            asked, stuck = 0, False
            while not stuck:
                await loop.sock_sendall(sock, b"GET /denied HTTP/1.1\r\nHost: a\r\n\r\n" * few)
                asked += few
                try:
                    async with asyncio.timeout(1):
                        while len(on.statuses()) < asked:  # noqa: ASYNC110 -- nobody signals it
                            await asyncio.sleep(0)
                except TimeoutError:
                    stuck = True
                assert asked < BIG // 256, "it is read for ever"
            (session,) = on.ctx.policy_store
            assert buffered(session) <= HIGH_WATER + (1 << 20)
            async with asyncio.timeout(5):
                while len(on.statuses()) < asked:  # it continues when the client reads
                    assert await loop.sock_recv(sock, 1 << 20)
        await on.settled()


async def test_echo_of_much_arrives_whole() -> None:
    async with backend(echo) as server, stage(server, snapshot(ANYTHING)) as on:
        reader, writer = await on.client()
        data = random.Random(7).randbytes(8 << 20)

        async def send() -> None:
            writer.write(data)
            await writer.drain()
            writer.write_eof()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send(), name="send")
            assert await reader.read() == data
        await on.settled()


def leave_by_reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def leave_by_half(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the proxy was faster
        sock.shutdown(socket.SHUT_WR)
    sock.close()


WORDS = [
    b"",
    b"GET",
    request(),
    request("POST"),
    request() * 3,
    b"\x16\x03\x01\x00",
    b"POST / HTTP/1.1\r\nHost: a\r\ncontent-length: 100\r\n\r\nhalf",
    request(path="/slow"),
]


async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As `web`, but some answers never come and some servers leave in the middle."""
    while line := (await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")[0]:
        if b"/slow" in line:
            await reader.read()
            return
        if b"/torn" in line:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n123")
            writer.transport.abort()
            return
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")


async def test_no_descriptor_and_no_session_is_left_after_ends_of_every_kind() -> None:
    chance = random.Random(11)
    async with backend(answering) as server, stage(server, snapshot(gets())) as on:
        await one_visit(on, chance)
        await on.settled()
        await asyncio.sleep(0.05)
        before = descriptors()
        for number in range(200):
            await one_visit(on, chance)
            if number % 50 == 0:
                await on.proxy.publish(snapshot(gets()))
        for _ in range(40):  # the clock ends lingering connections
            on.passes(100)
            await asyncio.sleep(0.01)
        await on.settled()
        gc.collect()
        async with asyncio.timeout(5):
            while descriptors() > before:  # noqa: ASYNC110 -- the backend's ends close a little later
                await asyncio.sleep(0.01)
        assert len(on.ctx.timers) == 0
        asked = sum(isinstance(record, HttpRequest) for record in on.records)
        answered = sum(isinstance(record, HttpResponse) for record in on.records)
        assert asked == answered > 50
        assert on.ctx.counts.errors == 0


async def one_visit(on: Stage, chance: random.Random) -> None:
    sock = await on.dial()
    word = chance.choice([*WORDS, request(path="/torn")])
    await asyncio.get_running_loop().sock_sendall(sock, word)
    await asyncio.sleep(chance.choice([0, 0, 0.005]))
    chance.choice([leave_by_reset, leave_by_half, socket.socket.close])(sock)


async def test_draining_ends_what_is_idle_waits_for_what_is_not_and_accepts_nobody() -> None:
    async def later(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            await asyncio.sleep(0.2)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    async with backend(later) as server, stage(server, snapshot(gets())) as on:
        (idle, idle_writer), (busy, busy_writer) = await on.client(), await on.client()
        idle_writer.write(request())
        assert (await answer(idle))[0] == 200
        busy_writer.write(request())
        await on.until(lambda: on.kinds().count("q") == 2)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(on.proxy.drain(5), name="drain")
            assert await idle.read() == b""
            idle_writer.close()
            assert (await answer(busy))[0] == 200
            assert await busy.read() == b""
            busy_writer.close()
            with pytest.raises(ConnectionRefusedError):
                await on.client()
        assert not len(on.ctx.policy_store)
        assert on.statuses() == [200, 200]


async def test_the_first_answer_of_a_connection_that_was_open_before_the_drain_is_its_last() -> None:
    async with backend(web) as server, stage(server, snapshot(gets("/a"))) as on:
        early, early_writer = await on.client()
        begun, begun_writer = await on.client()
        begun_writer.write(b"P")  # may still be HTTP/2
        denied, denied_writer = await on.client()
        await on.until(lambda: len(on.ctx.policy_store) == 3)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(on.proxy.drain(5), name="drain")
            await asyncio.sleep(0)
            early_writer.write(request(path="/a"))
            begun_writer.write(b"OST /no HTTP/1.1\r\nHost: h\r\n\r\n")
            denied_writer.write(request(path="/no"))
            for reader, writer in ((early, early_writer), (begun, begun_writer), (denied, denied_writer)):
                assert b"\r\nconnection: close\r\n" in (await reader.read()).lower()
                writer.close()
        assert sorted(on.statuses()) == [200, 403, 403]


async def test_what_is_accepted_while_we_stop_is_told_so() -> None:
    async with backend(web) as server, stage(server, snapshot(gets("/a"))) as on:
        on.ctx.draining = True
        reader, writer = await on.client()
        writer.write(request(path="/a"))
        assert b"\r\nConnection: close\r\n" in await reader.read()
        writer.close()


async def test_a_drain_that_is_shortened_leaves_the_connections_their_events() -> None:
    """Their sockets may have got the descriptors of the closed listeners."""
    go = asyncio.Event()

    async def later(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await go.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    async with backend(later) as server, stage(server, snapshot(gets())) as on:
        clients = [await on.client() for _ in range(4)]
        await on.until(lambda: len(on.ctx.policy_store) == 4)
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(on.proxy.drain(60), name="drain")
            await asyncio.sleep(0)
            for _, writer in clients:
                writer.write(request())
            await on.until(lambda: on.kinds() == "qqqq")
            first.cancel()
            tasks.create_task(on.proxy.drain(20), name="hurried")
            await asyncio.sleep(0)
            go.set()
            for reader, writer in clients:
                assert (await answer(reader))[0] == 200
                writer.close()


async def test_what_does_not_end_by_the_deadline_is_cut_with_its_records() -> None:
    async with backend(answering) as server, stage(server, snapshot(gets())) as on:
        reader, writer = await on.client()
        writer.write(request(path="/slow"))
        await on.until(lambda: on.kinds() == "q")
        await on.proxy.drain(0.1)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        assert sorted(on.kinds()) == ["c", "q", "s"]
        assert not len(on.ctx.policy_store)


async def test_many_clients_at_once() -> None:
    async with backend(web) as server, stage(server, snapshot(gets())) as on:

        async def visit(number: int) -> None:
            reader, writer = await on.client()
            for _ in range(5):
                writer.write(request(path=f"/{number}"))
                assert await answer(reader) == (200, b"GET /%d HTTP/1.1" % number)
            writer.close()

        async with asyncio.TaskGroup() as tasks:
            for number in range(100):
                tasks.create_task(visit(number), name=f"visit {number}")
        await on.settled()
        assert on.kinds().count("q") == on.kinds().count("s") == 500
