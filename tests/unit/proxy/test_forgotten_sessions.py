"""A finished session is freed at once: no reference cycle keeps it until the garbage collector runs.

The collector rarely checks old objects. If sessions waited for it, a worker under steady traffic would grow with
the number of sessions served.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

import pytest

from l7proxy.model.net import HostPort
from l7proxy.policy.tables import DirectionPolicy
from l7proxy.wire import http2_frames as frames
from l7proxy.wire.http2_fields import FieldBlock, FieldWriter
from l7proxy.wire.http2_frames import PREFACE
from tests.unit.proxy.stage import (
    ANYTHING,
    CLIENT,
    NOTHING,
    Handler,
    Stage,
    answer,
    backend,
    echo,
    gets,
    request,
    snapshot,
    stage,
    web,
)

OF_A_SESSION = (
    "l7proxy.gate.http",
    "l7proxy.gate.detect.",
    "l7proxy.gate.tcp.",
    "l7proxy.proxy.server.socket_stream.",
    "l7proxy.proxy.server.session.",
    "l7proxy.wire.head.",
    "l7proxy.wire.http",
)
HEAD = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/%7Ea"), (b":authority", b"server")]


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    gc.collect()


def cyclic() -> Counter[str]:
    """The objects of a session that only the collector can free."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    names = (f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.garbage)
    found = Counter(name for name in names if name.startswith(OF_A_SESSION))
    gc.garbage.clear()
    return found


async def keep_alive(on: Stage) -> None:
    reader, writer = await on.client()
    for path in ("/a", "/forbidden"):
        writer.write(request(path=path))
        await answer(reader)
    writer.close()


async def leaves_early(on: Stage) -> None:
    sock = await on.dial()
    with sock:
        await asyncio.get_running_loop().sock_sendall(sock, request(path="/a"))
        await on.until(lambda: on.records)


async def malformed(on: Stage) -> None:
    reader, writer = await on.client()
    writer.write(b"GET / HTTP/1.1\r\nHost : server\r\n\r\n")
    await reader.read()
    writer.close()


async def changes_policy(on: Stage) -> None:
    reader, writer = await on.client()
    writer.write(request(path="/a"))
    await answer(reader)
    await on.proxy.publish(snapshot(NOTHING))
    with pytest.raises(ConnectionResetError):
        await reader.read()


async def streams(on: Stage) -> None:
    """HTTP/2, reset with two open streams; one path is normalised, the other is not."""
    sock = await on.dial()
    fields = FieldWriter()
    sent = PREFACE + frames.settings([])
    for stream, path in ((1, b"/a"), (3, b"/%61"), (5, b"/forbidden")):
        head = [(name, path if name == b":path" else value) for name, value in HEAD]
        sent += frames.headers(stream, fields.write(FieldBlock(head)), end=True)
    with sock:
        await asyncio.get_running_loop().sock_sendall(sock, sent)
        await on.until(lambda: on.kinds().count("q") == 3)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def refused(on: Stage) -> None:
    reader, _ = await on.client()
    with pytest.raises(ConnectionResetError):
        await reader.read()


async def plain(on: Stage) -> None:
    reader, writer = await on.client()
    writer.write(b"hello")
    await reader.readexactly(5)
    writer.close()


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


ALLOWED = gets("/(a|%61)")
CASES: dict[str, tuple[Callable[[Stage], Awaitable[None]], DirectionPolicy, Handler]] = {
    "keep-alive": (keep_alive, ALLOWED, web),
    "the client leaves": (leaves_early, ALLOWED, silent),
    "malformed": (malformed, ALLOWED, web),
    "cut off by policy": (changes_policy, ALLOWED, web),
    "HTTP/2": (streams, ALLOWED, silent),
    "refused": (refused, NOTHING, web),
    "plain TCP": (plain, ANYTHING, echo),
}


@pytest.mark.parametrize("case", CASES)
async def test_nothing_of_a_session_waits_for_the_collector(case: str) -> None:
    talk, ingress, handler = CASES[case]
    async with backend(handler) as server, stage(server, snapshot(ingress)) as on:
        await talk(on)
        await on.settled()
        on.records.clear()
        await asyncio.sleep(0.01)  # the loop releases its last callbacks
        assert not cyclic()


async def test_nor_where_the_server_cannot_be_reached() -> None:
    async with stage(HostPort("127.0.0.3", 1), snapshot(ALLOWED)) as on:
        reader, writer = await on.client(CLIENT)
        writer.write(request(path="/a"))
        assert (await answer(reader))[0] == 503
        writer.close()
        await on.settled()
        await asyncio.sleep(0.01)
        assert not cyclic()
