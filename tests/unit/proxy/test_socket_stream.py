"""A socket stream: written bytes arrive whole and in order, ends come after them, and nothing spins."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import resource
import socket
import struct
from collections.abc import Iterator

import pytest

from l7proxy.errors import UpstreamError
from l7proxy.model.net import HostPort
from l7proxy.proxy.server.poller import BROKEN, IN, Poller
from l7proxy.proxy.server.session import Session, named
from l7proxy.proxy.server.socket_stream import HIGH_WATER, ReadPause, SocketStream
from l7proxy.proxy.server.steering import Plain
from l7proxy.proxy.server.upstream import UpstreamConnector
from tests.unit.proxy.stage import answer, backend, descriptors, gets, request, snapshot, stage, web

MUCH = random.Random(1).randbytes(8 << 20)


class Party:
    """Records the callbacks of a stream."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.error: Exception | None = None
        self.over = asyncio.Event()

    def finished(self, stream: SocketStream) -> None:
        self.told.append("finished")

    def lost(self, stream: SocketStream, error: Exception | None) -> None:
        os.fstat(stream.descriptor)  # still open: its number is not another's yet
        self.told.append("lost")
        self.error = error
        self.over.set()

    def congested(self, stream: SocketStream, *, full: bool) -> None:
        self.told.append("full" if full else "room")

    def holding(self) -> None: ...


class Ends:
    """A socket stream and, at the other end of its connection, a socket of the test."""

    def __init__(self, *, held: int = 0) -> None:
        self.party, self.poller, self.read = Party(), Poller(), b""
        self.stream = SocketStream(self.party, self._received)
        with socket.create_server(("127.0.0.1", 0)) as server:
            ours = socket.create_connection(server.getsockname())
            self.theirs, _ = server.accept()
        ours.setblocking(False)
        self.theirs.setblocking(False)
        if held:
            self.stream.hold(held)
        self.stream.open(ours, self.poller)

    def _received(self, data: bytes) -> None:
        self.read += data

    def they_reset(self) -> None:
        self.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.theirs.close()

    async def they_read(self) -> bytes:
        """All bytes, to the end."""
        loop, got = asyncio.get_running_loop(), bytearray()
        async with asyncio.timeout(10):
            while data := await loop.sock_recv(self.theirs, 1 << 20):
                got += data
        return bytes(got)

    async def lost(self) -> Exception | None:
        async with asyncio.timeout(5):
            await self.party.over.wait()
        await asyncio.sleep(0)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(self.stream.descriptor)
        assert self.stream.gone
        assert self.party.told.count("lost") == 1
        return self.party.error


@pytest.fixture
async def ends() -> Iterator[Ends]:  # type: ignore[misc]
    made = Ends()
    yield made
    made.theirs.close()
    made.poller.close()


@pytest.mark.parametrize("end", ["finish", "close"])
async def test_what_was_written_goes_out_whole_and_then_the_end(ends: Ends, end: str) -> None:
    for start in range(0, len(MUCH), 1 << 18):
        ends.stream.write(MUCH[start : start + (1 << 18)])
    assert ends.stream.unsent > HIGH_WATER
    assert ends.party.told == ["full"]
    getattr(ends.stream, end)()
    assert await ends.they_read() == MUCH
    if end == "finish":
        assert ends.party.told == ["full", "room"]
        ends.theirs.sendall(b"still heard")
        ends.theirs.close()
        async with asyncio.timeout(5):
            while "finished" not in ends.party.told:  # noqa: ASYNC110 -- the leg's only sign
                await asyncio.sleep(0.001)
        assert ends.read == b"still heard"
        ends.stream.close()
    assert await ends.lost() is None


async def test_a_write_after_the_end_is_a_fault() -> None:
    ends = Ends()
    ends.stream.finish()
    with pytest.raises(RuntimeError, match="after its end"):
        ends.stream.write(b"more")
    ends.stream.close()
    await ends.lost()
    ends.theirs.close()
    ends.poller.close()


async def test_a_reset_loses_what_was_not_sent(ends: Ends) -> None:
    ends.stream.write(MUCH)
    ends.stream.reset()
    assert ends.stream.unsent == 0
    await ends.lost()
    with pytest.raises(ConnectionResetError):
        await ends.they_read()


async def test_a_reset_by_the_other_end_is_told_while_reading_and_while_only_writing(ends: Ends) -> None:
    reading, writing = ends, Ends(held=ReadPause.GATE)
    writing.stream.write(MUCH)
    for one in (reading, writing):
        one.they_reset()
        assert isinstance(await one.lost(), ConnectionResetError | BrokenPipeError)
    writing.poller.close()


@pytest.mark.parametrize("when", ["before it is open", "after"])
async def test_a_leg_that_waits_for_nothing_is_not_woken_by_a_reset(when: str) -> None:
    """epoll reports a reset even when not asked, again and again: the worker would spin."""
    ends = Ends(held=ReadPause.GATE if when == "before it is open" else 0)
    ends.stream.hold(ReadPause.GATE)
    await asyncio.sleep(0.01)
    ends.they_reset()
    await asyncio.sleep(0.05)
    assert ends.poller._epoll is None or ends.poller._epoll.poll(0) == []
    assert ends.party.told == []
    ends.stream.release(ReadPause.GATE)
    assert isinstance(await ends.lost(), ConnectionResetError)
    ends.poller.close()


async def test_an_end_that_was_heard_does_not_wake_us_again(ends: Ends) -> None:
    ends.theirs.shutdown(socket.SHUT_WR)
    await asyncio.sleep(0.05)
    assert ends.party.told == ["finished"]
    assert ends.poller._epoll is not None
    assert ends.poller._epoll.poll(0) == []
    ends.stream.write(b"and yet")
    ends.stream.close()
    assert await ends.they_read() == b"and yet"
    await ends.lost()


class Caller:
    """Records the result of a connect."""

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self.told: list[str] = []

    def reached(self, sock: socket.socket) -> None:
        self.told.append("reached")
        self._poller.forget(sock.fileno())
        sock.close()

    def unreachable(self, reason: str) -> None:
        self.told.append(reason)


class NoSocket(Plain):
    """As when no file descriptor is left."""

    def dial(self, client: HostPort, server: HostPort, attempt: int = 0) -> socket.socket:
        raise UpstreamError(f"no socket: {os.strerror(errno.EMFILE)}")


async def test_a_dial_tells_once_and_later_or_nothing_when_cancelled() -> None:
    nobody = HostPort("127.0.0.1", 1)
    poller = Poller()
    poller.watch((other := socket.socket()).fileno(), 0, SocketStream(Party(), lambda data: None))  # opens the poller
    before = descriptors()
    with socket.create_server(("127.0.0.1", 0)) as server:
        there = HostPort(*server.getsockname())
        for way, to, word in (
            (Plain(nobody, there), there, "reached"),
            (Plain(nobody, nobody), nobody, "cannot reach 127.0.0.1:1: connection refused"),
            (NoSocket(nobody, nobody), nobody, "no socket: Too many open files"),
            (
                Plain(nobody, there),
                HostPort("255.255.255.255", 1),
                "cannot reach 255.255.255.255:1: network unreachable",
            ),
        ):
            told, cancelled = Caller(poller), Caller(poller)
            UpstreamConnector(told, poller, way, nobody, to)
            UpstreamConnector(cancelled, poller, way, nobody, to).cancel()
            assert told.told == []
            await asyncio.sleep(0.05)
            (said,) = told.told
            assert said.startswith(word)
            assert cancelled.told == []
    assert descriptors() <= before
    other.close()
    poller.close()


async def test_without_descriptors_clients_wait_and_are_served_when_there_are_some(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with backend(web) as server, stage(server, snapshot(gets())) as on:
        sock = socket.socket()
        sock.setblocking(False)
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        held: list[int] = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors() + 32, before[1]))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                while True:
                    held.append(os.open("/dev/null", os.O_RDONLY))
            await asyncio.get_running_loop().sock_connect(sock, (on.address.address, on.address.port))
            await on.until(lambda: "cannot accept: Too many open files" in caplog.text)
            said = len(caplog.records)
            await asyncio.sleep(0.1)
            assert len(caplog.records) == said, "it tries again and again"
            assert len(on.ctx.policy_store) == 0
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            for number in held:
                os.close(number)
        reader, writer = await asyncio.open_connection(sock=sock)
        writer.write(request())
        assert (await answer(reader))[0] == 200
        writer.close()


async def test_busy_connections_do_not_shut_new_ones_out() -> None:
    async with backend(web) as server, stage(server, snapshot(gets())) as on:
        loop = asyncio.get_running_loop()
        busy = [await on.dial() for _ in range(64)]
        await on.until(lambda: len(on.ctx.policy_store) == 64)
        for sock in busy:
            await loop.sock_sendall(sock, request())
            assert await loop.sock_recv(sock, 4096)
        for sock in busy:
            sock.send(request())
        new = [socket.create_connection((on.address.address, on.address.port)) for _ in range(64)]
        poller = on.ctx.poller
        poller.turn = 0  # one call in each turn
        for _ in range(200):
            poller._poll()
            taken = len(on.ctx.policy_store) + sum(map(len, poller._waiting.values()))
            if taken == 128:
                break
        assert taken == 128, "all have left the kernel's queue"
        await on.until(lambda: len(on.ctx.policy_store) == 128)
        for sock in (*busy, *new):
            sock.close()


async def test_a_reset_that_a_leg_hears_before_the_splice_into_it_leaves_nothing() -> None:
    big = bytes(64 << 20)

    async def pours(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(big) + big)
        await writer.drain()

    async with backend(pours) as server, stage(server, snapshot(gets())) as on:
        sock = await on.dial()
        await asyncio.get_running_loop().sock_sendall(sock, request())
        await on.until(lambda: on.ctx.pipes.used)
        (session,) = on.ctx.policy_store
        assert isinstance(session, Session)
        (run,) = session._transfers
        await on.until(lambda: run._waits)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        session._client.ready(IN | BROKEN)
        await on.settled()
        assert on.ctx.pipes.used == 0
        assert on.kinds() == "qs"
        on.ctx.pipes.close()


def test_ends_are_named_as_everywhere_whatever_the_kernel_calls_them() -> None:
    for sockaddr in (("10.0.0.1", 80), ("::ffff:10.0.0.1", 80, 0, 0)):
        assert named(sockaddr) == HostPort("10.0.0.1", 80)
    assert named(("fd00:0::1", 80, 0, 0)) == HostPort("fd00::1", 80)


async def test_what_is_accepted_has_the_options_of_its_listener() -> None:
    async with backend(web) as server, stage(server, snapshot(gets())) as on:
        reader, writer = await on.client()
        writer.write(request())
        await answer(reader)
        (session,) = on.ctx.policy_store
        sock = session._client._sock  # type: ignore[attr-defined]
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        writer.close()
