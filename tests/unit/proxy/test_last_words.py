"""A server may answer and close before it has read all: its answer reaches the client, in any order of events."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest

from l7proxy.model.net import HostPort
from l7proxy.policy.rules import HttpRule
from tests.unit.proxy.bulk import BODY
from tests.unit.proxy.stage import ANYTHING, REF, SERVER, Stage, by_http, snapshot, stage

TOO_LARGE = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno\n"
HEAD = b"POST / HTTP/1.1\r\nHost: server\r\nContent-Length: %d\r\n\r\n"
WHOLE = b"POST / HTTP/1.1\r\nHost: server\r\nContent-Length: 0\r\n\r\n"
BULK = 32 << 20
ANY_REQUEST = by_http(HttpRule(REF, path="/.*"))


def says_and_resets(server: socket.socket, answer: bytes = TOO_LARGE) -> None:
    server.sendall(answer)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.close()


async def connected(on: Stage, listener: socket.socket, sent: bytes) -> tuple[socket.socket, socket.socket]:
    """A client and the server it is connected to, which has read `sent`."""
    loop = asyncio.get_running_loop()
    client = await on.dial()
    await loop.sock_sendall(client, sent)
    server, _ = await loop.sock_accept(listener)
    server.setblocking(False)
    got = b""
    while len(got) < len(sent):
        got += await loop.sock_recv(server, 1 << 16)
    return client, server


async def heard(client: socket.socket) -> bytes:
    """Everything received, until any kind of end."""
    got = b""
    async with asyncio.timeout(5):
        try:
            while data := await asyncio.get_running_loop().sock_recv(client, 1 << 16):
                got += data
        except ConnectionResetError:
            got += b" reset"
    return got


@pytest.fixture
def listener() -> socket.socket:  # type: ignore[misc]
    with socket.create_server((SERVER, 0)) as made:
        made.setblocking(False)
        yield made


@pytest.mark.parametrize("then", ["more body", "half-close"])
async def test_an_answer_is_heard_though_the_next_bytes_to_the_server_fail(listener: socket.socket, then: str) -> None:
    sent = HEAD % 100_000 + bytes(1000) if then == "more body" else WHOLE
    async with stage(HostPort(*listener.getsockname()), snapshot(ANY_REQUEST)) as on:
        client, server = await connected(on, listener, sent)
        if then == "more body":  # both are there when the worker polls, the client's first
            client.send(bytes(1000))
        else:
            client.shutdown(socket.SHUT_WR)
        says_and_resets(server)
        assert await heard(client) == TOO_LARGE
        client.close()
        await on.settled()
        assert on.kinds() == "qs"
        assert on.statuses() == [413]


async def test_an_answer_that_broke_off_stays_broken_off(listener: socket.socket) -> None:
    answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhalf of it"
    async with stage(HostPort(*listener.getsockname()), snapshot(ANY_REQUEST)) as on:
        client, server = await connected(on, listener, HEAD % 100_000 + bytes(1000))
        client.send(bytes(1000))
        says_and_resets(server, answer)
        assert await heard(client) == answer + b" reset"
        client.close()
        await on.settled()
        assert on.statuses() == [200]


async def test_an_answer_is_heard_though_the_body_is_being_spliced(listener: socket.socket) -> None:
    async with stage(HostPort(*listener.getsockname()), snapshot(ANY_REQUEST)) as on:
        client, server = await connected(on, listener, HEAD % BULK)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, bytes(1 << 16))
        await on.until(lambda: on.ctx.pipes.used)
        got = 0
        while got < 1 << 16:
            got += len(await loop.sock_recv(server, 1 << 16))
        await asyncio.sleep(0.01)
        client.send(bytes(1 << 16))
        says_and_resets(server)
        assert await heard(client) == TOO_LARGE
        client.close()
        await on.settled()
        assert on.statuses() == [413]
        assert on.ctx.pipes.used == 0
        on.ctx.pipes.close()


@pytest.mark.parametrize("reads", [True, False], ids=["reading", "slow"])
async def test_a_reset_while_bytes_go_both_ways_in_a_splice_leaves_them_in_order(
    listener: socket.socket, reads: bool
) -> None:
    """The write to the server fails first, while its answer is spliced: what is in the pipe comes before the rest."""
    async with stage(HostPort(*listener.getsockname()), snapshot(ANYTHING)) as on:
        client, server = await connected(on, listener, b"hello")
        loop = asyncio.get_running_loop()
        sending = loop.create_task(loop.sock_sendall(server, BODY))
        if reads:
            async with asyncio.timeout(5):
                got = await loop.sock_recv(client, 1 << 20)
        else:
            got = b""
        await on.until(lambda: on.ctx.pipes.used)
        client.send(bytes(1000))
        sending.cancel()
        says_and_resets(server, b"")
        got += (await heard(client)).removesuffix(b" reset")
        assert BODY.startswith(got)
        client.close()
        await on.settled()
        assert on.ctx.counts.errors == 0
