"""One connection of each kind of traffic. A kind opens a connection, sends its requests, records each result in the
Book, and ends; `traffic` calls it again and again.

A connection that is closed unexpectedly raises, and its requests in progress are recorded as wrong.
"""

from __future__ import annotations

import asyncio
import base64
import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

import h2.config
import h2.connection
import h2.events

from bench.soak.flows import MALFORMED, MALFORMED_PORT, MALFORMED_PORTS
from bench.soak.ledger import ANSWERED, GIVEN_UP, WRONG

HTTP, BULK, GRPC, WS, H2C = 80, 81, 82, 83, 84
PATIENCE: Final = 30.0
NOT_HTTP: Final = (
    b"GARBAGE\r\n\r\n",
    b"GET /soak HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"GET /soak HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET /soak HTTP/1.1\r\n\r\n",
    b"GET /so\x00ak HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET  /soak HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /soak HTTP/9.1\r\nHost: a\r\n\r\n",
    b"GET /soak HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n",
    b"GET /soak HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    b"GET /soak HTTP/1.1\r\nHost: a\r\n folded: x\r\n\r\n",
)


@dataclass
class Book:
    """The result of each request: kind → one byte each. `examples` describes the first wrong ones."""

    burst: int
    host: str
    seed: int = 0
    outcomes: dict[str, bytearray] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def new(self, kind: str) -> int:
        result = self.outcomes.setdefault(kind, bytearray())
        result.append(GIVEN_UP)
        return len(result) - 1

    def answered(self, kind: str, number: int) -> None:
        self.outcomes[kind][number] = ANSWERED

    def wrong(self, kind: str, number: int, what: str) -> None:
        self.outcomes[kind][number] = WRONG
        if len(self.examples) < 20:
            self.examples.append(f"{kind} {self.burst}-{number}: {what[:200]}")

    def judge(self, kind: str, number: int, status: int, *good: int) -> None:
        if status in good:
            self.answered(kind, number)
        else:
            self.wrong(kind, number, f"answered {status}")

    def path(self, kind: str, number: int) -> str:
        return f"/soak/{kind}/{self.burst}-{number}"

    def head(self, kind: str, number: int, method: str = "GET", rest: str = "", tail: str = "") -> bytes:
        target = self.path(kind, number) + tail
        return f"{method} {target} HTTP/1.1\r\nHost: {self.host}\r\nUser-Agent: soak\r\n{rest}\r\n".encode()


@dataclass(frozen=True, slots=True)
class Line:
    """An open connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def answer(self) -> int:
        """Read one whole response with a Content-Length and return its status."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        fields = head.lower().split(b"\r\n")
        length = next((int(one.partition(b":")[2]) for one in fields if one.startswith(b"content-length:")), 0)
        while length:
            length -= len(await self._some(min(length, 1 << 16)))
        return int(head.split(b" ", 2)[1])

    async def _some(self, most: int) -> bytes:
        data = await self.reader.read(most)
        if not data:
            raise ConnectionError("the connection ended in a body")
        return data

    def abort(self) -> None:
        """Close at once, with a reset (unless the other end was faster)."""
        if (sock := self.writer.get_extra_info("socket")) is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@asynccontextmanager
async def line(host: str, port: int, local_port: int = 0) -> AsyncIterator[Line]:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setblocking(False)
    if local_port:
        sock.bind(("", local_port))
    try:
        async with asyncio.timeout(PATIENCE):
            await asyncio.get_running_loop().sock_connect(sock, (host, port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=1 << 20)
    except BaseException:
        sock.close()
        raise
    try:
        async with asyncio.timeout(PATIENCE):
            yield Line(reader, writer)
    finally:
        writer.close()


# well-behaved


async def keep(book: Book) -> None:
    """Request after request on one connection."""
    async with line(book.host, HTTP) as one:
        for _ in range(book.rng.randrange(1, 400)):
            number = book.new("keep")
            one.writer.write(book.head("keep", number))
            book.judge("keep", number, await one.answer(), 200)


async def deny(book: Book) -> None:
    """Refused requests, one after the other, on a connection that stays open."""
    async with line(book.host, HTTP) as one:
        for _ in range(book.rng.randrange(1, 20)):
            number = book.new("deny")
            one.writer.write(book.head("deny", number))
            book.judge("deny", number, await one.answer(), 403)


async def flip(book: Book) -> None:
    """Requests that the policy edits allow and refuse in turn: either is right. A refusal cuts requests in progress."""
    async with line(book.host, HTTP) as one:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await _flip_on(book, one)


async def _flip_on(book: Book, one: Line) -> None:
    for _ in range(book.rng.randrange(1, 40)):
        number = book.new("flip")
        one.writer.write(book.head("flip", number))
        book.judge("flip", number, await one.answer(), 200, 403)
        await asyncio.sleep(0.02)


async def pipe(book: Book) -> None:
    """Many requests in one write, responses in order; some are refused."""
    async with line(book.host, HTTP) as one:
        for _ in range(book.rng.randrange(1, 10)):
            kinds = [book.rng.choice(("pipe", "pipe", "pipe", "deny")) for _ in range(book.rng.randrange(2, 17))]
            asked = [(kind, book.new(kind)) for kind in kinds]
            one.writer.write(b"".join(book.head(kind, number) for kind, number in asked))
            for kind, number in asked:
                book.judge(kind, number, await one.answer(), 403 if kind == "deny" else 200)


async def down(book: Book) -> None:
    """Response bodies from zero bytes to megabytes."""
    async with line(book.host, BULK) as one:
        for _ in range(book.rng.randrange(1, 5)):
            number = book.new("down")
            one.writer.write(book.head("down", number, tail=f"/{_size(book)}"))
            book.judge("down", number, await one.answer(), 200)


async def up(book: Book) -> None:
    async with line(book.host, BULK) as one:
        for _ in range(book.rng.randrange(1, 5)):
            number, size = book.new("up"), _size(book)
            one.writer.write(book.head("up", number, "POST", f"Content-Length: {size}\r\n"))
            while size:
                part = min(size, 1 << 16)
                one.writer.write(bytes(part))
                await one.writer.drain()
                size -= part
            book.judge("up", number, await one.answer(), 200)


def _size(book: Book) -> int:
    return int(book.rng.choice((0, 1, 1000, 100_000, 3_000_000)) * book.rng.random())


async def chunked(book: Book) -> None:
    """Bodies without a length, with chunks split at any byte."""
    async with line(book.host, WS) as one:
        for _ in range(book.rng.randrange(1, 4)):
            number = book.new("chunked")
            one.writer.write(book.head("chunked", number, "POST", "Transfer-Encoding: chunked\r\n"))
            body = b"".join(
                b"%x\r\n%b\r\n" % (size, bytes(size))
                for size in (book.rng.randrange(1, 3000) for _ in range(book.rng.randrange(10)))
            )
            for piece in _pieces(book, body + b"0\r\n\r\n", 6):
                one.writer.write(piece)
                await asyncio.sleep(0)
            book.judge("chunked", number, await one.answer(), 200)


async def ws(book: Book) -> None:
    """A WebSocket: some messages in both directions, and a clean close (RFC 6455)."""
    async with line(book.host, WS) as one:
        number = book.new("ws")
        key = base64.b64encode(book.rng.randbytes(16)).decode()
        upgrade = (
            f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
        )
        one.writer.write(book.head("ws", number, rest=upgrade))
        head = await one.reader.readuntil(b"\r\n\r\n")
        for _ in range(book.rng.randrange(1, 20)):
            message = bytes(book.rng.randrange(1, 120))
            one.writer.write(b"\x82" + bytes([0x80 | len(message)]) + bytes(4) + message)  # masked with zeros
            back = await one.reader.readexactly(2 + len(message))
            if back[2:] != message:
                book.wrong("ws", number, "another message came back")
                return
        one.writer.write(b"\x88\x80" + bytes(4))
        await one.reader.readexactly(2)
        book.judge("ws", number, int(head.split(b" ", 2)[1]), 101)


async def slow(book: Book) -> None:
    """A head in small pieces, then a body in small pieces."""
    async with line(book.host, BULK) as one:
        number = book.new("slow")
        text = book.head("slow", number, "POST", "Content-Length: 40\r\n") + bytes(40)
        for piece in _pieces(book, text, 20):
            one.writer.write(piece)
            await asyncio.sleep(book.rng.random() * 0.1)
        book.judge("slow", number, await one.answer(), 200)


def _pieces(book: Book, data: bytes, most: int) -> list[bytes]:
    cuts = sorted(book.rng.randrange(len(data) + 1) for _ in range(book.rng.randrange(most)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


async def http2(book: Book) -> None:
    """Concurrent streams on one connection with prior knowledge (RFC 9113), one in five refused."""
    async with line(book.host, H2C) as one:
        wire = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        wire.initiate_connection()
        asked: dict[int, tuple[str, int]] = {}
        for stream in range(1, 2 * book.rng.randrange(1, 12), 2):
            kind = "deny" if book.rng.random() < 0.2 else "h2"
            asked[stream] = kind, book.new(kind)
            pseudo = {":method": "GET", ":scheme": "http", ":authority": book.host, ":path": book.path(*asked[stream])}
            wire.send_headers(stream, list(pseudo.items()), end_stream=True)
        one.writer.write(wire.data_to_send())
        statuses: dict[int, int] = {}
        while asked:
            data = await one.reader.read(1 << 16)
            if not data:
                raise ConnectionError("the connection ended with streams open")
            for event in wire.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    statuses[event.stream_id] = int(dict(event.headers)[b":status"])
                elif isinstance(event, h2.events.DataReceived):
                    wire.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.StreamEnded):
                    kind, number = asked.pop(event.stream_id)
                    book.judge(kind, number, statuses[event.stream_id], 403 if kind == "deny" else 200)
                elif isinstance(event, h2.events.StreamReset):
                    book.wrong(*asked.pop(event.stream_id), f"reset, error {event.error_code}")
            one.writer.write(wire.data_to_send())


# ill-behaved


async def abort(book: Book) -> None:
    """Closes at a random point: in the head, before the response, in a body up or down; with FIN or with a reset."""
    async with line(book.host, BULK) as one:
        number = book.new("abort")
        point = book.rng.randrange(4)
        if point == 0:
            text = book.head("abort", number)
            one.writer.write(text[: book.rng.randrange(len(text))])
        elif point == 1:
            one.writer.write(book.head("abort", number, tail="/1000"))
        elif point == 2:
            one.writer.write(book.head("abort", number, "POST", "Content-Length: 1000000\r\n"))
            one.writer.write(bytes(book.rng.randrange(200_000)))
        else:
            one.writer.write(book.head("abort", number, tail="/5000000"))
            await one.reader.read(1 << 14)
        await asyncio.sleep(book.rng.choice((0, 0, 0.001, 0.02)))
        if book.rng.random() < 0.5:
            one.abort()


async def malformed(book: Book) -> None:
    """Invalid requests: an error response, then the end. Identified by their source port."""
    if len(book.outcomes.get(MALFORMED, b"")) >= MALFORMED_PORTS:
        await asyncio.sleep(1)
        return
    number = book.new(MALFORMED)
    async with line(book.host, HTTP, MALFORMED_PORT + number) as one:
        one.writer.write(book.rng.choice(NOT_HTTP))
        answer = await one.reader.read()
        if answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 505")) and answer.count(b"HTTP/1.1 ") == 1:
            book.answered(MALFORMED, number)
        else:
            book.wrong(MALFORMED, number, f"answered {answer[:80]!r}")
