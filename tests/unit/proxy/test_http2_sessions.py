"""HTTP/2 through a real session: sockets that are not read, drains, policies that change, and real gRPC peers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator

import grpc.aio
import pytest
from hpack import Decoder

from l7proxy.flows.records import Connection, HttpRequest, HttpResponse, Malformed
from l7proxy.gate.http2_peer import STREAM_WINDOW
from l7proxy.lab import echo
from l7proxy.lab.containers import Listener
from l7proxy.model.net import HostPort
from l7proxy.policy.rules import HttpRule
from l7proxy.proxy.server.session import Session
from l7proxy.proxy.server.socket_stream import HIGH_WATER
from l7proxy.wire import http2_frames as frames
from l7proxy.wire.http2_fields import FieldBlock, FieldWriter
from l7proxy.wire.http2_frames import MAX_STREAM, PREFACE, Code
from tests.support.grpc_loop import ONE_LOOP
from tests.support.ports import reserved_port
from tests.unit.proxy.stage import NOTHING, REF, SERVER, Stage, backend, by_http, gets, snapshot, stage

HELLO = PREFACE + frames.settings([])
CALLS = by_http(HttpRule(REF, method="POST", path="/echo.Echo/.*"))


def get(stream: int, path: bytes = b"/a", method: bytes = b"GET", *, end: bool = True) -> bytes:
    fields = [(b":method", method), (b":scheme", b"http"), (b":path", path), (b":authority", b"server")]
    writer = FieldWriter()
    writer.resize(0)
    writer.write(FieldBlock([]))
    return frames.headers(stream, writer.write(FieldBlock(fields)), end=end)


@contextlib.asynccontextmanager
async def echoing(kind: str) -> AsyncIterator[HostPort]:
    with reserved_port() as port:
        server = await echo.start(Listener(kind, port), "server")
        try:
            yield HostPort(SERVER, port)
        finally:
            server.close()
            await asyncio.sleep(0)


class Client:
    """Hand-made frames on a real connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = Decoder()
        self.statuses: dict[int, int] = {}
        self.goaways: list[tuple[int, int]] = []
        self.bodies: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.pongs = 0
        self.allowed = STREAM_WINDOW  # bytes of DATA on stream 1

    def say(self, data: bytes) -> None:
        self._writer.write(data)

    def leave(self) -> None:
        self._writer.close()

    async def until_ended(self, *streams: int) -> None:
        async with asyncio.timeout(5):
            while not self.ended >= set(streams):
                assert await self.hear(), "the connection ended"

    async def until_closed(self) -> None:
        async with asyncio.timeout(5):
            while await self.hear():
                pass

    async def hear(self) -> bool:
        try:
            head = await self._reader.readexactly(9)
            payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
        except (asyncio.IncompleteReadError, ConnectionError):
            return False
        kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
        if kind == frames.HEADERS:
            fields = dict(self._decoder.decode(payload, raw=True))
            self.statuses.setdefault(stream, int(fields.get(b":status", b"0")))
        elif kind == frames.DATA:
            self.bodies[stream] = self.bodies.get(stream, b"") + payload
        elif kind == frames.GOAWAY:
            self.goaways.append(frames.read_goaway(payload, 0, len(payload)))
        elif kind == frames.WINDOW_UPDATE and stream == 1:
            self.allowed += int.from_bytes(payload, "big")
        elif kind == frames.PING and flags:
            self.pongs += 1
        elif kind == frames.PING:
            self.say(frames.frame(frames.PING, frames.ACK, 0, payload))
        if kind in (frames.HEADERS, frames.DATA) and flags & frames.END_STREAM:
            self.ended.add(stream)
        return True


async def client(on: Stage) -> Client:
    made = Client(*await on.client())
    made.say(HELLO)
    return made


async def test_streams_of_one_connection_share_one_server_connection() -> None:
    async with echoing("h2c") as server, stage(server, snapshot(gets("/a.*"))) as on:
        one = await client(on)
        one.say(get(1, b"/a/one") + get(3, b"/b") + get(5, b"/a/../a/two"))
        await one.until_ended(1, 3, 5)
        assert one.statuses == {1: 200, 3: 403, 5: 200}
        told = [json.loads(one.bodies[stream]) for stream in (1, 5)]
        assert [each["path"] for each in told] == ["/a/one", "/a/two"]
        assert told[0]["peer_port"] == told[1]["peer_port"]
        assert on.kinds().count("q") == on.kinds().count("s") == 3


async def test_a_changed_policy_judges_the_next_stream_and_a_dropped_connection_is_reset() -> None:
    async with echoing("h2c") as server, stage(server, snapshot(gets("/a.*"))) as on:
        one = await client(on)
        one.say(get(1, b"/a"))
        await one.until_ended(1)
        await on.proxy.publish(snapshot(gets("/b.*")))
        one.say(get(3, b"/a") + get(5, b"/b"))
        await one.until_ended(3, 5)
        assert one.statuses == {1: 200, 3: 403, 5: 200}
        await on.proxy.publish(snapshot(NOTHING))
        await one.until_closed()
        await on.settled()
        assert isinstance(on.records[-1], Connection)


async def test_cve_2019_9512_a_client_that_never_reads_is_not_read_either() -> None:
    """No window bounds answers without a body: without back-pressure only the worker's memory would."""
    at_once = 100
    heads = by_http(HttpRule(REF, method="HEAD", path="/b"))
    async with echoing("h2c") as server, stage(server, snapshot(heads)) as on:
        for listening in on.proxy._bound:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)  # the kernel buffers little
        loop = asyncio.get_running_loop()
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
        await loop.sock_connect(sock, (on.address.address, on.address.port))
        await loop.sock_sendall(sock, HELLO)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 60_000:
                streams = range(2 * sent + 1, 2 * (sent + at_once), 2)
                sent += at_once
                async with asyncio.timeout(1):
                    await loop.sock_sendall(sock, b"".join(get(stream, b"/b", b"HEAD") for stream in streams))
                    await on.until(lambda: len(on.records) >= 2 * sent)  # noqa: B023 -- called at once
        (session,) = on.ctx.policy_store
        assert isinstance(session, Session)
        assert sent < 60_000, "it was stopped"
        assert HIGH_WATER < session.unsent <= HIGH_WATER + (64 << 10)
        sock.close()
        await on.settled()
        asked = sum(isinstance(record, HttpRequest) for record in on.records)
        assert asked == sum(isinstance(record, HttpResponse) for record in on.records)


async def test_drain_says_goodbye_and_waits_for_the_last_stream() -> None:
    go = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(PREFACE) + 9)
        writer.write(frames.settings([]))
        await go.wait()
        writer.write(frames.frame(frames.HEADERS, 5, 1, b"\x88"))
        await reader.read()

    async with backend(slow) as server, stage(server, snapshot(gets())) as on:
        one = await client(on)
        one.say(get(1))
        await on.until(lambda: on.kinds() == "q")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(on.proxy.drain(5), name="drain")
            async with asyncio.timeout(5):
                while len(one.goaways) < 2:
                    assert await one.hear()
            assert one.goaways == [(MAX_STREAM, Code.NO_ERROR), (1, Code.NO_ERROR)]
            go.set()
            await one.until_ended(1)
            await one.until_closed()
        assert on.statuses() == [200]


async def test_who_first_asks_while_we_drain_is_answered_and_told_goodbye() -> None:
    async with echoing("h2c") as server, stage(server, snapshot(gets("/a.*"))) as on:
        one = Client(*await on.client())
        await on.until(lambda: len(on.ctx.policy_store))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(on.proxy.drain(5), name="drain")
            await asyncio.sleep(0)
            one.say(HELLO + get(1))
            await one.until_closed()
            assert one.statuses == {1: 200}
            assert one.goaways[-1] == (1, Code.NO_ERROR)
            one.leave()


async def test_a_server_of_http_1_is_sent_no_byte_of_the_request() -> None:
    heard = b""

    async def old(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal heard
        heard = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 505 HTTP Version Not Supported\r\nContent-Length: 0\r\n\r\n")
        heard += await reader.read()

    async with backend(old) as server, stage(server, snapshot(gets())) as on:
        one = await client(on)
        one.say(get(1, b"/a-secret"))
        await one.until_ended(1)
        await one.until_closed()
        await on.until(lambda: b"SM" in heard)
        assert one.statuses == {1: 502}
        assert b"a-secret" not in heard
        assert on.statuses() == [502]


async def test_an_unfinished_head_is_timed_out() -> None:
    async with echoing("h2c") as server, stage(server, snapshot(gets())) as on:
        one = await client(on)
        one.say(frames.frame(frames.PING, 0, 0, bytes(8)) + frames.frame(frames.HEADERS, 0, 1, b"\x82"))
        async with asyncio.timeout(5):
            while not one.pongs:
                assert await one.hear()
        on.passes(31)
        await one.until_closed()
        assert one.goaways == [(0, Code.ENHANCE_YOUR_CALM)]
        assert [type(record) for record in on.records] == [Malformed]


@ONE_LOOP
async def test_grpc_calls_of_all_kinds_and_a_denied_one() -> None:
    big = bytes(range(256)) * 8192
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    async with echoing("grpc") as server, stage(server, snapshot(CALLS)) as on:
        target = f"127.0.0.1:{on.address.port}"
        async with grpc.aio.insecure_channel(target, options=options) as channel:
            unary = channel.unary_unary("/echo.Echo/Unary")
            assert await unary(big, timeout=10) == big
            with pytest.raises(grpc.aio.AioRpcError) as denied:
                await channel.unary_unary("/other.Echo/Unary")(big, timeout=5)
            assert denied.value.code() is grpc.StatusCode.PERMISSION_DENIED
            streamed = channel.unary_stream("/echo.Echo/ServerStream")(b"s", metadata=(("x-count", "100"),), timeout=5)
            assert len([message async for message in streamed]) == 100
            counted = await channel.stream_unary("/echo.Echo/ClientStream")(iter([big, big]), timeout=10)
            assert json.loads(counted) == {"messages": 2, "bytes": 2 * len(big)}
            echoed = channel.stream_stream("/echo.Echo/Bidi")(iter([b"a", big, b"b"]), timeout=10)
            assert [message async for message in echoed] == [b"a", big, b"b"]
            answers = await asyncio.gather(*(unary(b"%d" % number, timeout=10) for number in range(300)))
            assert answers == [b"%d" % number for number in range(300)]
        await on.until(lambda: on.kinds().count("q") == on.kinds().count("s") == 305)


@ONE_LOOP
async def test_a_cancelled_call_is_499_and_the_server_hears_of_it() -> None:
    async with echoing("grpc") as server, stage(server, snapshot(CALLS)) as on:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{on.address.port}") as channel:
            call = channel.stream_stream("/echo.Echo/Bidi")()
            await call.write(b"first")
            assert await call.read() == b"first"
            call.cancel()
            await on.until(lambda: "s" in on.kinds())
        (answer,) = [record for record in on.records if isinstance(record, HttpResponse)]
        assert answer.status == 200, "its head had been shown"
        assert "CANCEL" in answer.policy_verdict.reason


async def test_clients_that_leave_while_their_server_is_being_reached_leave_nothing() -> None:
    """A loop needs a few turns from the connection to its transport; a client that leaves in any of them is freed."""

    async def leave_after(turns: int, on: Stage) -> None:
        _, writer = await on.client()
        writer.write(HELLO + get(1) + frames.rst_stream(1, Code.CANCEL) * (turns & 1))
        for _ in range(turns):
            await asyncio.sleep(0)
        writer.transport.abort() if turns & 2 else writer.close()

    async with echoing("h2c") as server, stage(server, snapshot(gets("/a.*"))) as on:
        for _ in range(20):
            await asyncio.gather(*(leave_after(turns, on) for turns in range(40)))
        await on.until(
            lambda: all(session._gate is None for session in on.ctx.policy_store if isinstance(session, Session))
        )
        on.passes(3)
        await on.settled()
        assert on.ctx.counts.errors == 0
        asked = sum(isinstance(record, HttpRequest) for record in on.records)
        assert asked == sum(isinstance(record, HttpResponse) for record in on.records)


async def test_a_server_that_dies_full_does_not_leave_its_client_unread() -> None:
    """Stream 1 fills the server, which then dies; the answer to stream 3 is there, and waits for its window."""
    loop = asyncio.get_running_loop()
    answer = b"d" * 1000
    full = asyncio.Event()

    async def swallowed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wide = (1 << 31) - 1 - 65535
        writer.write(frames.settings([(4, 1 << 30)]) + frames.window_update(0, wide))
        await reader.readuntil(b"\0\0\0\3")  # HEADERS of stream 3
        head = FieldWriter().write(FieldBlock([(b":status", b"200")]))
        writer.write(frames.headers(3, head, end=False) + frames.frame(frames.DATA, frames.END_STREAM, 3, answer))
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await full.wait()
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with backend(swallowed) as server, stage(server, snapshot(by_http(HttpRule(REF)))) as on:
        one = Client(*await on.client())
        one.say(PREFACE + frames.settings([(4, 0)]) + get(1, b"/up", b"POST", end=False) + get(3))
        hearing = loop.create_task(one.until_closed())
        await on.until(lambda: 3 in one.statuses)
        (session,) = on.ctx.policy_store
        assert isinstance(session, Session)
        frame = frames.frame(frames.DATA, 0, 1, b"u" * 16384)
        while not session._server.unsent > HIGH_WATER:
            sent = one.allowed // 16384
            one.allowed -= sent * 16384
            one.say(frame * sent)
            await asyncio.sleep(0.005)
        full.set()
        await on.until(lambda: 1 in one.statuses)
        one.say(frames.window_update(3, 1000) + frames.window_update(1, 1000))
        await hearing
        assert one.bodies[3] == answer
        assert one.statuses == {1: 502, 3: 200}
        one.leave()
        await on.settled()
        assert sorted(on.statuses()) == [200, 502]
