"""Bulk that moves inside the kernel: the same bytes, exactly counted, and the same ends as without it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import random
import socket
import struct
import termios
from collections.abc import AsyncIterator

import pytest

from l7proxy.flows.records import HttpResponse
from l7proxy.link.fence import stamp
from l7proxy.model.net import HostPort
from l7proxy.proxy.server.pipes import Pipes
from l7proxy.proxy.server.session import Session
from l7proxy.proxy.server.socket_stream import SocketStream
from tests.unit.proxy.bulk import ANY, BODY, download, dying, files, on_stage, upload
from tests.unit.proxy.stage import ANYTHING, NOTHING, SERVER, Stage, answer, echo, gets, request, snapshot, stage

CLOSED = 7
"""TCP_CLOSE, from linux/tcp_states.h."""


async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reads more slowly than any sender writes."""
    while await reader.read(1 << 16):  # noqa: ASYNC110 -- there is no event to wait for
        await asyncio.sleep(0.001)


async def test_a_download_is_spliced_and_the_next_request_is_judged() -> None:
    async with on_stage(files, snapshot(gets())) as (on, pipes):
        reader, writer = await on.client()
        for size in (len(BODY), 3, 1 << 20):
            writer.write(download(size))
            assert await answer(reader) == (200, BODY[:size])
        writer.write(request("POST"))
        assert (await answer(reader))[0] == 403
        assert pipes.runs == 2
        assert on.kinds() == "qs" * 4


async def test_an_upload_is_spliced_and_the_next_request_is_judged() -> None:
    async with on_stage(files, snapshot(ANY)) as (on, pipes):
        reader, writer = await on.client()
        digest = hashlib.sha256(BODY).hexdigest().encode()
        for _ in range(2):
            writer.write(upload() + BODY + download(5))
            assert await answer(reader) == (200, digest)
            assert await answer(reader) == (200, BODY[:5])
        assert pipes.runs == 2
        assert on.statuses() == [200] * 4


@pytest.mark.parametrize("seed", range(4))
async def test_both_directions_of_a_tunnel_at_once_in_any_rhythm(seed: int) -> None:
    dice = random.Random(seed)

    async def send(writer: asyncio.StreamWriter) -> None:
        at = 0
        while at < len(BODY):
            step = dice.choice((1, 1000, 1 << 16, 1 << 20, 3 << 20))
            writer.write(BODY[at : at + step])
            at += step
            if dice.random() < 0.3:
                await writer.drain()
            if dice.random() < 0.1:
                await asyncio.sleep(0.01)
        writer.write_eof()

    async with on_stage(echo, snapshot(ANYTHING)) as (on, pipes):
        reader, writer = await on.client()
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            tasks.create_task(send(writer), name="send")
            received = bytearray()
            while data := await reader.read(dice.choice((1000, 1 << 16, 1 << 20))):
                received += data
                if dice.random() < 0.1:
                    await asyncio.sleep(0.002)
                    on.passes(1.0)  # slow transfers stop in the middle
        assert received == BODY
        assert pipes.runs >= 2
        assert on.kinds() == ""


async def test_a_tunnel_after_101() -> None:
    async def switch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n")
        await echo(reader, writer)

    async with on_stage(switch, snapshot(ANY)) as (on, pipes):
        reader, writer = await on.client()
        writer.write(b"GET /chat HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        writer.write(BODY)
        writer.write_eof()
        async with asyncio.timeout(10):
            assert await reader.read() == BODY
        assert pipes.runs >= 1
        assert on.statuses() == [101]


async def test_a_response_that_ends_with_its_connection() -> None:
    async def until_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + BODY)

    async with on_stage(until_close, snapshot(ANY)) as (on, pipes):
        reader, writer = await on.client()
        writer.write(request())
        async with asyncio.timeout(10):
            assert (await reader.read()).partition(b"\r\n\r\n")[2] == BODY
        writer.close()
        await on.settled()
        assert pipes.runs >= 1
        assert on.statuses() == [200]


async def test_a_large_chunk_is_spliced_and_its_framing_read() -> None:
    async def chunks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for at in range(0, len(BODY), 4 << 20):
                writer.write(b"%x\r\n%b\r\n" % (4 << 20, BODY[at : at + (4 << 20)]))
            writer.write(b"0\r\n\r\n")

    async with on_stage(chunks, snapshot(ANY)) as (on, pipes):
        reader, writer = await on.client()
        for _ in range(2):
            writer.write(request())
            received = bytearray()
            async with asyncio.timeout(10):
                await reader.readuntil(b"\r\n\r\n")
                while size := int(await reader.readline(), 16):
                    received += await reader.readexactly(size)
                    assert await reader.readline() == b"\r\n"
                assert await reader.readline() == b"\r\n"
            assert received == BODY
        assert pipes.runs >= 2


async def test_nothing_small_is_spliced() -> None:
    async with on_stage(files, snapshot(ANY)) as (on, pipes):
        reader, writer = await on.client()
        writer.write(download(100_000) + upload(1000) + BODY[:1000])
        assert await answer(reader) == (200, BODY[:100_000])
        assert (await answer(reader))[0] == 200
        assert pipes.runs == 0


async def test_beyond_the_limit_bytes_go_the_ordinary_way() -> None:
    async with on_stage(files, snapshot(ANY), limit=1) as (on, pipes):
        slow = await on.client()
        slow[1].write(download())
        await on.until(lambda: pipes.used == 1)
        reader, writer = await on.client()
        writer.write(download())
        assert await answer(reader) == (200, BODY)
        assert await answer(slow[0]) == (200, BODY)


async def test_without_descriptors_bytes_go_the_ordinary_way() -> None:
    async with on_stage(files, snapshot(ANY), limit=0) as (on, pipes):
        reader, writer = await on.client()
        writer.write(upload() + BODY + download())
        assert (await answer(reader))[0] == 200
        assert await answer(reader) == (200, BODY)
        assert pipes.runs == 0


async def test_a_client_that_stops_reading_stops_the_server() -> None:
    """Back-pressure through the kernel: unread bytes stay with the sender."""
    sent = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1 << 40))
        while True:
            writer.write(BODY[: 1 << 20])
            await writer.drain()
            sent += 1 << 20

    async with on_stage(endless, snapshot(ANY)) as (on, pipes):
        client = await on.dial()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        await asyncio.get_running_loop().sock_sendall(client, request())
        await on.until(lambda: pipes.used)
        await asyncio.sleep(0.5)
        held = sent
        await asyncio.sleep(0.3)
        assert sent == held
        assert held < 40 << 20
        client.close()
        await on.settled()
        assert on.statuses() == [200]


async def test_a_run_that_stands_still_gives_its_pipe_back_and_loses_nothing() -> None:
    async with on_stage(files, snapshot(ANY)) as (on, pipes):
        client = await on.dial()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, download())
        await on.until(lambda: pipes.used)
        await asyncio.sleep(0.3)
        on.passes(1.5)
        on.passes(1.5)
        assert pipes.used == 0
        received = bytearray()
        async with asyncio.timeout(10):
            while not received.endswith(BODY[-100:]):
                received += await loop.sock_recv(client, 1 << 20)
        assert received.partition(b"\r\n\r\n")[2] == BODY
        client.close()


async def test_silence_after_bulk_is_timed_out() -> None:
    async def stalls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1 << 40) + BODY)
        await writer.drain()
        await reader.read()

    async with on_stage(stalls, snapshot(ANY)) as (on, pipes):
        reader, writer = await on.client()
        writer.write(request())
        async with asyncio.timeout(5):
            await reader.readexactly(len(BODY))
        on.passes(1)  # bytes had moved
        on.passes(1)  # and no more do
        assert pipes.used == 0
        on.passes(on.ctx.timeouts.stream + 1)
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(5):
                await reader.read()
        await on.settled()
        assert pipes.runs == 1
        (told,) = [record for record in on.records if isinstance(record, HttpResponse)]
        assert "timeout" in told.policy_verdict.reason


async def test_bytes_put_the_timeout_off() -> None:
    async def drips(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (6 << 20))
        for at in range(6):
            writer.write(BODY[at << 20 : (at + 1) << 20])
            await writer.drain()
            await reader.readexactly(1)

    async with on_stage(drips, snapshot(ANY)) as (on, pipes):
        reader, writer = await on.client()
        writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n\r\n")
        async with asyncio.timeout(5):
            await reader.readuntil(b"\r\n\r\n")
            for at in range(6):
                assert await reader.readexactly(1 << 20) == BODY[at << 20 : (at + 1) << 20]
                on.passes(on.ctx.timeouts.stream - 1)
                writer.write(b"x")
        await on.until(lambda: on.statuses() == [200])
        assert pipes.runs >= 1


@pytest.mark.parametrize("kind", ["download", "upload", "tunnel"])
async def test_a_changed_policy_cuts_a_run(kind: str) -> None:
    handler = {"download": files, "upload": swallow, "tunnel": swallow}[kind]
    first = snapshot(ANYTHING if kind == "tunnel" else ANY)
    async with on_stage(handler, first) as (on, pipes):
        client = await on.dial()
        loop = asyncio.get_running_loop()

        async def pour() -> None:
            with contextlib.suppress(OSError):
                while kind != "download":
                    await loop.sock_sendall(client, BODY)

        head = {"download": download(), "upload": upload(1 << 40), "tunnel": b""}[kind]
        await loop.sock_sendall(client, head)
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            tasks.create_task(pour(), name="pour")
            await on.until(lambda: pipes.used)
            await on.proxy.publish(snapshot(NOTHING))
            await on.settled()
        assert pipes.used == 0
        client.close()
        assert on.kinds() == {"download": "qcs", "upload": "qcs", "tunnel": "c"}[kind]


def unacknowledged(stream: SocketStream) -> int:
    """Bytes that the kernel still has to deliver (tcp(7), SIOCOUTQ)."""
    (count,) = struct.unpack("i", fcntl.ioctl(stream.descriptor, termios.TIOCOUTQ, bytes(4)))
    return int(count)


def taken(sock: socket.socket) -> bytes:
    """What this socket has received, without waiting. What comes before a reset is read, too."""
    got = bytearray()
    with contextlib.suppress(BlockingIOError, ConnectionResetError):
        while data := sock.recv(1 << 20):
            got += data
    return bytes(got)


def is_closed(sock: socket.socket) -> bool:
    """Its connection has been reset."""
    state: int = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    return state == CLOSED


@contextlib.asynccontextmanager
async def a_full_target(kind: str) -> AsyncIterator[tuple[Stage, socket.socket, bytearray]]:
    """A splice with bytes in its pipe, whose target has just read all that it was sent; the worker does not know yet,
    since it is fenced. Yields the target and the bytes that it got; the source goes on to send until the end."""
    loop = asyncio.get_running_loop()
    with socket.create_server((SERVER, 0)) as listener:
        listener.setblocking(False)
        async with stage(HostPort(*listener.getsockname()), snapshot(ANYTHING)) as on:
            client = await on.dial()
            server, _ = await loop.sock_accept(listener)
            server.setblocking(False)
            source, target = (client, server) if kind == "upload" else (server, client)

            async def pour() -> None:
                with contextlib.suppress(OSError):
                    while True:
                        await loop.sock_sendall(source, BODY)

            pouring = loop.create_task(pour())
            (session,) = on.ctx.policy_store
            assert isinstance(session, Session)
            await on.until(lambda: session._transfers and session._transfers[0]._waits)
            (run,) = session._transfers
            assert run._inside
            on.ctx.policy_store.fence._words = (1 << 60, 1 << 60)
            got = bytearray()

            def nothing_is_under_way() -> bool:
                got.extend(taken(target))
                return not unacknowledged(run._target)

            await on.until(nothing_is_under_way)
            got.extend(taken(target))
            assert run._inside
            try:
                yield on, target, got
            finally:
                pouring.cancel()
                client.close()
                server.close()
                on.ctx.pipes.close()


@pytest.mark.parametrize("kind", ["download", "upload"])
async def test_what_a_revoked_connection_has_in_its_pipe_does_not_leave(kind: str) -> None:
    async with a_full_target(kind) as (on, target, _):
        revoking = snapshot(NOTHING)
        on.ctx.policy_store.fence._words = (stamp(revoking), stamp(revoking))
        await on.proxy.publish(revoking)
        await on.settled()
        await on.until(lambda: is_closed(target))
        assert taken(target) == b""
        assert on.kinds() == "c"


async def test_a_slow_run_does_not_end_behind_the_fence() -> None:
    async with a_full_target("upload") as (on, target, got):
        on.passes(1)
        on.passes(1)
        await asyncio.sleep(0.1)
        assert taken(target) == b""
        assert on.ctx.pipes.used == 1
        agreeing = snapshot(ANYTHING)
        on.ctx.policy_store.fence._words = (stamp(agreeing), stamp(agreeing))
        await on.proxy.publish(agreeing)
        before = len(got)
        async with asyncio.timeout(5):
            while len(got) < before + len(BODY):
                got += await asyncio.get_running_loop().sock_recv(target, 1 << 20)
        assert bytes(got) == (BODY * (len(got) // len(BODY) + 1))[: len(got)]


def rst(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize("kind", ["download", "upload"])
async def test_a_client_that_leaves_in_a_run_is_told_of(kind: str, reset: bool) -> None:
    async with on_stage(files if kind == "download" else swallow, snapshot(ANY)) as (on, pipes):
        client = await on.dial()
        loop = asyncio.get_running_loop()
        if kind == "download":
            await loop.sock_sendall(client, download())
        else:
            await loop.sock_sendall(client, upload(1 << 40) + BODY[: 4 << 20])
        await on.until(lambda: pipes.used)
        rst(client) if reset else client.close()
        await on.settled()
        assert on.kinds() == "qs"
        assert on.statuses() == [200 if kind == "download" else 499]


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
async def test_a_server_that_dies_in_a_run_resets_the_client(reset: bool) -> None:
    """A response shorter than its announced length must not look complete."""

    async with on_stage(dying(reset=reset), snapshot(ANY)) as (on, pipes):
        reader, writer = await on.client()
        writer.write(request())
        received = bytearray()
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(5):
                while True:
                    received += await reader.readexactly(1 << 16)
        await on.settled()
        assert pipes.runs >= 1
        (told,) = [record for record in on.records if isinstance(record, HttpResponse)]
        assert told.status == 200
        assert told.policy_verdict.reason


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
async def test_a_response_without_length_cut_off_in_a_run(reset: bool) -> None:
    """A FIN is its end; a RST is not, and must not look like it (splice(2) takes the error off the socket)."""

    async def dies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + BODY)
        await writer.drain()
        await asyncio.sleep(0.05)
        if reset:
            sock: socket.socket = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async with on_stage(dies, snapshot(ANY)) as (on, pipes):
        reader, writer = await on.client()
        writer.write(request())
        async with asyncio.timeout(5):
            if reset:
                with pytest.raises(ConnectionResetError):
                    await reader.read()
            else:
                assert (await reader.read()).endswith(BODY[-1000:])
        writer.close()
        await on.settled()
        assert pipes.runs >= 1
        (told,) = [record for record in on.records if isinstance(record, HttpResponse)]
        assert bool(told.policy_verdict.reason) is reset


async def test_draining_lets_a_run_end() -> None:
    async with on_stage(files, snapshot(ANY)) as (on, pipes):
        reader, writer = await on.client()
        writer.write(download())
        await on.until(lambda: pipes.used)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(on.proxy.drain(5), name="drain")
            assert await answer(reader) == (200, BODY)
            writer.close()
        await on.settled()
        assert on.statuses() == [200]


async def test_a_cut_ends_a_run_at_once() -> None:
    async with on_stage(files, snapshot(ANY)) as (on, pipes):
        client = await on.dial()
        await asyncio.get_running_loop().sock_sendall(client, download())
        await on.until(lambda: pipes.used)
        await on.proxy.drain(0)
        await on.settled()
        client.close()


async def test_a_pipe_with_leftovers_is_not_used_again() -> None:
    pipes = Pipes()
    first = pipes.take()
    assert first is not None
    os.write(first.write, b"another's")
    pipes.give(first, empty=False)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(first.read)
    second = pipes.take()
    assert second is not None
    with pytest.raises(BlockingIOError):
        os.read(second.read, 1)
    pipes.give(second, empty=True)
    assert pipes.take() is second
    pipes.give(second, empty=True)
    pipes.close()
    assert pipes.used == 0


@pytest.mark.parametrize("seed", range(2))
async def test_whatever_happens_no_byte_is_anothers_and_nothing_stays(seed: int) -> None:
    """Clients and servers that leave at any moment, few pipes, a jumping clock: each sees its own bytes only."""
    dice = random.Random(seed)

    async def moody(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine, left = await reader.readexactly(1), dice.randint(1 << 18, 6 << 20)
        while left > 0:
            writer.write(mine * (1 << 18))
            left -= 1 << 18
            data = await reader.read(1 << 18)
            assert not data.strip(mine)
            if not data:
                return
            await writer.drain()
        if dice.random() < 0.5:
            writer.transport.abort()

    async def client(number: int, on: Stage) -> None:
        mine = bytes([number + 1])
        reader, writer = await on.client()
        seen, left = 0, dice.randint(0, 6 << 20)
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(0.8):
                writer.write(mine)
                while seen < left and not writer.is_closing():
                    writer.write(mine * dice.choice((1, 1 << 16, 1 << 20)))
                    data = await reader.read(dice.choice((1 << 10, 1 << 18)))
                    assert not data.strip(mine), "bytes of another connection"
                    if not data:
                        break
                    seen += len(data)
                    if dice.random() < 0.02:
                        await asyncio.sleep(0.05)
        on.writers.remove(writer)
        writer.transport.abort() if dice.random() < 0.5 else writer.close()

    async def clock(on: Stage) -> None:
        while True:
            await asyncio.sleep(0.02)
            on.passes(0.3)

    async with on_stage(moody, snapshot(ANYTHING), limit=5) as (on, pipes):
        async with asyncio.TaskGroup() as tasks:
            ticking = tasks.create_task(clock(on), name="clock")
            async with asyncio.TaskGroup() as clients:
                for number in range(24):
                    clients.create_task(client(number, on), name=f"client {number}")
            ticking.cancel()
        assert pipes.runs > 5
        assert on.ctx.counts.errors == 0


async def test_splices_in_both_directions_use_the_workers_epoll() -> None:
    def epolls() -> int:
        names = (os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH118, PTH208
        return sum(os.readlink(name).endswith("[eventpoll]") for name in names if os.path.islink(name))  # noqa: PTH114, PTH115

    async with on_stage(echo, snapshot(ANYTHING)) as (on, pipes):
        reader, writer = await on.client()
        before = epolls()
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            tasks.create_task(_pour(writer), name="pour")
            await on.until(lambda: pipes.used == 2)
            assert epolls() == before
            assert await reader.read(-1) == BODY
        assert on.ctx.counts.errors == 0


async def _pour(writer: asyncio.StreamWriter) -> None:
    writer.write(BODY)
    await writer.drain()
    writer.write_eof()
