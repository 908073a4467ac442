"""Clients and servers end, half-close, reset and stall at random: each request has exactly one response record, and
afterwards nothing of them is left."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from contextlib import suppress

import pytest

from l7proxy.model.net import HostPort
from tests.unit.proxy.stage import ANYTHING, SERVER, TIMES, Stage, descriptors, gets, request, snapshot, stage

SIZES = (0, 5, 70_000, 600_000, 2_000_000)
CLIENTS = 150


def ends(sock: socket.socket, dice: random.Random) -> None:
    if dice.random() < 0.5:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def tries(sock: socket.socket, dice: random.Random, said: list[bytes]) -> None:
    """Sends the pieces, reads a little in between, and ends in a random way."""
    loop = asyncio.get_running_loop()
    if dice.random() < 0.3:
        sock.setsockopt(socket.SOL_SOCKET, dice.choice((socket.SO_RCVBUF, socket.SO_SNDBUF)), 8192)
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(1):
            for words in said:
                await loop.sock_sendall(sock, words)
                if dice.random() < 0.2:
                    sock.shutdown(socket.SHUT_WR)
                with suppress(TimeoutError):
                    async with asyncio.timeout(dice.choice((0.001, 0.02, 0.1))):
                        while await loop.sock_recv(sock, 1 << 16):
                            pass
    ends(sock, dice)


def questions(dice: random.Random) -> bytes:
    size = dice.choice(SIZES)
    body = b"Host: server\r\nContent-Length: %d\r\n\r\n" % size + bytes(size)
    whole = dice.choice((request() * 3, b"GET / HTTP/1.1\r\n" + body, b"POST / HTTP/1.1\r\n" + body, b"\0\r\n\r\n"))
    return whole if dice.random() < 0.9 else whole[: dice.randrange(len(whole))]


def answers(dice: random.Random) -> bytes:
    size = dice.choice(SIZES)
    length = b"Content-Length: %d\r\n" % (size + dice.choice((0, 0, 0, 1)))
    head = dice.choice((length, length, length + b"Connection: close\r\n", b""))
    return dice.choice((b"", b"HTTP/1.1 100 Continue\r\n\r\n")) + b"HTTP/1.1 200 OK\r\n%b\r\n" % head + bytes(size)


async def crowd(on: Stage, listener: socket.socket, dice: random.Random, *, http: bool) -> None:
    loop, limit = asyncio.get_running_loop(), asyncio.Semaphore(20)
    serving: set[asyncio.Task[None]] = set()

    async def serve() -> None:
        while True:
            sock, _ = await loop.sock_accept(listener)
            said = [answers(dice) if http else bytes(dice.choice(SIZES)) for _ in range(dice.randrange(4))]
            serving.add(loop.create_task(tries(sock, dice, said)))

    async def ask() -> None:
        async with limit:
            said = [questions(dice) if http else bytes(dice.choice(SIZES)) for _ in range(dice.randrange(4))]
            await tries(await on.dial(), dice, said)

    accepting = loop.create_task(serve())
    asking = asyncio.gather(*(ask() for _ in range(CLIENTS)))
    while not asking.done() or len(on.ctx.policy_store):
        await asyncio.sleep(0.05)
        on.passes(0.25)  # lingering and stalled connections end in time
    await asyncio.gather(*serving, asking)
    accepting.cancel()


@pytest.mark.parametrize("http", [True, False])
async def test_ends_of_all_kinds_leave_nothing(http: bool) -> None:
    with socket.create_server((SERVER, 0), backlog=CLIENTS) as listener:
        listener.setblocking(False)
        policy = snapshot(gets() if http else ANYTHING)
        async with stage(HostPort(*listener.getsockname()), policy, timeouts=TIMES) as on, asyncio.timeout(30):
            before = descriptors()
            await crowd(on, listener, random.Random(), http=http)
            on.ctx.pipes.close()
            assert on.ctx.counts.errors == 0
            assert on.kinds().count("q") == on.kinds().count("s")
            assert bool(on.records) is http
            assert len(on.ctx.timers) == on.ctx.pipes.used == on.ctx.shares.sessions == 0
            assert len(on.ctx.poller._watched) == 1, "the door's"
            assert descriptors() <= before
