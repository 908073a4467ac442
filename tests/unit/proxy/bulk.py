"""Helpers of the bulk tests: a stage that counts splice transfers, a body, and servers of it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import random
import socket
import struct
from collections.abc import AsyncIterator

from l7proxy.link.messages import PolicySnapshot
from l7proxy.policy.rules import HttpRule
from l7proxy.proxy.server.pipes import Pipe, Pipes
from tests.unit.proxy.stage import REF, Handler, Stage, backend, by_http, descriptors, stage

BODY = random.Random(1).randbytes(12 << 20)
ANY = by_http(HttpRule(REF))


class Watched(Pipes):
    """Counts the transfers."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.runs = 0

    def take(self) -> Pipe | None:
        pipe = super().take()
        self.runs += pipe is not None
        return pipe


@contextlib.asynccontextmanager
async def on_stage(handler: Handler, first: PolicySnapshot, *, limit: int = 64) -> AsyncIterator[tuple[Stage, Watched]]:
    """A stage that must be clean when the test is done: no transfer, no pipe, no file descriptor left."""
    gc.collect()
    async with backend(handler) as server, stage(server, first) as on:
        pipes = on.ctx.pipes = Watched(limit)
        before = descriptors()
        yield on, pipes
        for writer in on.writers:
            writer.transport.abort()
        await on.settled()
        assert pipes.used == 0
        pipes.close()
        await on.until(lambda: descriptors() <= before)


def download(size: int = len(BODY)) -> bytes:
    return f"GET /{size} HTTP/1.1\r\nHost: h\r\n\r\n".encode()


def upload(size: int = len(BODY)) -> bytes:
    return f"POST /up HTTP/1.1\r\nHost: h\r\nContent-Length: {size}\r\n\r\n".encode()


async def files(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """GET /N answers the first N bytes of BODY, POST with the digest of the received body."""
    while head := await reader.readuntil(b"\r\n\r\n"):
        method, target = head.split()[:2]
        if method == b"GET":
            body = BODY[: int(target[1:])]
        else:
            length = int(head.partition(b"Content-Length: ")[2].split()[0])
            body = hashlib.sha256(await reader.readexactly(length)).hexdigest().encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        writer.write(body)
        await writer.drain()


def dying(*, reset: bool) -> Handler:
    """A server that announces a length, sends BODY and ends, with a RST or with a FIN."""

    async def dies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1 << 40) + BODY)
        await writer.drain()
        await asyncio.sleep(0.05)
        if reset:
            sock: socket.socket = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    return dies
