"""Streams through the real worker: data and end of one side reach the other side at once.

Every step waits until the other side has seen the previous one: any byte held back would hang the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from asyncio import StreamReader as Reader
from asyncio import StreamWriter as Writer
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from l7proxy.flows.records import HttpResponse
from l7proxy.policy.rules import HttpRule
from tests.lab.front import Front, bound, front, serving
from tests.lab.test_worker_packets import REF, SERVER, Net, net  # noqa: F401 -- a fixture

pytestmark = pytest.mark.lab

GETS = HttpRule(REF, method="GET|POST", path="/a.*")
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
DONE = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone"
AT_ONCE = 5.0
"""Seconds: far less than any deadline, far more than a busy machine needs."""


def ask(method: str, path: str, *fields: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: server", *fields, "", ""]).encode()


async def exactly(reader: Reader, wanted: bytes) -> None:
    async with asyncio.timeout(AT_ONCE):
        assert await reader.readexactly(len(wanted)) == wanted


async def end(reader: Reader) -> bytes:
    """The remaining data and the end, at once."""
    async with asyncio.timeout(AT_ONCE):
        return await reader.read()


async def test_events_arrive_one_by_one(net: Net, tmp_path: Path) -> None:  # noqa: F811
    seen = asyncio.Semaphore(0)

    async def stream(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(20):
            await seen.acquire()
            writer.write(b"8\r\ndata:%2d\n\r\n" % number)
        await seen.acquire()
        writer.write(b"0\r\n\r\n")
        await reader.read()

    async with serving(net, stream), front(net, tmp_path, GETS) as on:
        reader, writer = await on.client()
        writer.write(ask("GET", "/a/events"))
        await reader.readuntil(b"\r\n\r\n")
        for number in range(20):
            seen.release()
            await exactly(reader, b"8\r\ndata:%2d\n\r\n" % number)
        seen.release()
        await exactly(reader, b"0\r\n\r\n")
        writer.write(ask("GET", "/b"))  # and the connection is still evaluated
        assert (await reader.readline()).startswith(b"HTTP/1.1 403 ")
        await on.until_told("FORWARDED GET http://server/a/events", "200", "DROPPED GET http://server/b", "403")


async def test_both_ways_at_once(net: Net, tmp_path: Path) -> None:  # noqa: F811
    """The answer begins before the request ends, and each waits for the other's last piece."""

    async def echo(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(CHUNKED)
        while (line := await reader.readline()) != b"0\r\n":
            writer.write(line + await reader.readline())
        writer.write(line + await reader.readline())
        assert await reader.readline() == b"GET /a/next HTTP/1.1\r\n"
        writer.write(DONE)
        await reader.read()

    async with serving(net, echo), front(net, tmp_path, GETS) as on:
        reader, writer = await on.client()
        writer.write(ask("POST", "/a", "Transfer-Encoding: chunked"))
        await exactly(reader, CHUNKED)
        for number in range(30):
            chunk = b"3\r\n%03d\r\n" % number
            writer.write(chunk)
            await exactly(reader, chunk)
        writer.write(b"0\r\n\r\n" + ask("GET", "/a/next"))
        await exactly(reader, b"0\r\n\r\n" + DONE)
        await on.until_told("FORWARDED POST http://server/a", "200", "FORWARDED GET http://server/a/next", "200")


async def test_100_continue_is_waited_for(net: Net, tmp_path: Path) -> None:  # noqa: F811
    async def patient(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await reader.readexactly(5) == b"hello"
        writer.write(DONE)
        await reader.read()

    async with serving(net, patient), front(net, tmp_path, GETS) as on:
        reader, writer = await on.client()
        writer.write(ask("POST", "/a", "Content-Length: 5", "Expect: 100-continue"))
        await exactly(reader, b"HTTP/1.1 100 Continue\r\n\r\n")
        writer.write(b"hello")
        await exactly(reader, DONE)
        await on.until_told("FORWARDED POST http://server/a", "200")


async def test_an_early_answer_is_told_while_the_upload_goes_on(net: Net, tmp_path: Path) -> None:  # noqa: F811
    too_large = b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

    async def refuse(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(too_large)
        await writer.drain()
        await reader.read()

    async with serving(net, refuse), front(net, tmp_path, GETS) as on:
        reader, writer = await on.client()
        writer.write(ask("POST", "/a", "Content-Length: 100000000") + bytes(100_000))
        await exactly(reader, too_large)
        assert await end(reader) == b""
        await on.until_told("FORWARDED POST http://server/a", "413")


# --- ends ------------------------------------------------------------------------------------------------------------


async def test_the_clients_half_close_reaches_the_server_at_once(net: Net, tmp_path: Path) -> None:  # noqa: F811
    """Before the server has sent anything; its whole answer still arrives."""

    async def wait_for_fin(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        assert await end(reader) == b""
        writer.write(CHUNKED + b"5\r\nafter\r\n")
        await writer.drain()
        writer.write(b"0\r\n\r\n")

    async with serving(net, wait_for_fin), front(net, tmp_path, GETS) as on:
        reader, writer = await on.client()
        writer.write(ask("GET", "/a"))
        writer.write_eof()
        assert await end(reader) == CHUNKED + b"5\r\nafter\r\n0\r\n\r\n"
        await on.until_told("FORWARDED GET http://server/a", "200")


async def test_the_servers_close_reaches_the_client_at_once(net: Net, tmp_path: Path) -> None:  # noqa: F811
    """After an answer that allows keep-alive: a client must not send into a closed connection."""

    async def once(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(DONE)

    async with serving(net, once), front(net, tmp_path, GETS) as on:
        reader, writer = await on.client()
        writer.write(ask("GET", "/a"))
        await exactly(reader, DONE)
        assert await end(reader) == b""
        await on.until_told("FORWARDED GET http://server/a", "200")


async def test_an_answer_that_ends_with_its_connection_ends(net: Net, tmp_path: Path) -> None:  # noqa: F811
    async def old(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nall of it")

    async with serving(net, old), front(net, tmp_path, GETS) as on:
        reader, writer = await on.client()
        writer.write(ask("GET", "/a"))
        assert await end(reader) == b"HTTP/1.0 200 OK\r\n\r\nall of it"
        await on.until_told("FORWARDED GET http://server/a", "200")


async def test_an_answer_that_breaks_off_never_looks_whole(net: Net, tmp_path: Path) -> None:  # noqa: F811
    async def break_off(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(CHUNKED + b"5\r\nhel")
        await writer.drain()

    async with serving(net, break_off), front(net, tmp_path, GETS) as on:
        reader, writer = await on.client()
        writer.write(ask("GET", "/a"))
        with pytest.raises(ConnectionResetError):
            await end(reader)
        await on.until_told("FORWARDED GET http://server/a", "200")
        (response,) = (record for record in on.records if isinstance(record, HttpResponse))
        assert "before the response" in response.policy_verdict.reason


async def test_a_client_that_gives_up_frees_the_server_at_once(net: Net, tmp_path: Path) -> None:  # noqa: F811
    freed = asyncio.Event()

    async def endless(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(CHUNKED)
        try:
            await reader.read()
        finally:
            freed.set()

    async with serving(net, endless), front(net, tmp_path, GETS) as on:
        reader, writer = await on.client()
        writer.write(ask("GET", "/a"))
        await exactly(reader, CHUNKED)
        await reset(on, writer)
        async with asyncio.timeout(AT_ONCE):
            await freed.wait()
        await on.until_told("FORWARDED GET http://server/a", "200")


async def reset(on: Front, writer: Writer) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def test_a_pool_never_uses_a_connection_that_its_server_has_closed(net: Net, tmp_path: Path) -> None:  # noqa: F811
    """A server with a short keep-alive behind a client with a long one: no request fails, and no socket is left."""

    async def ok(request: web.BaseRequest) -> web.Response:
        return web.Response(text=request.path)

    runner = web.ServerRunner(web.Server(ok, keepalive_timeout=0.15))
    await runner.setup()
    await web.SockSite(runner, bound(net)).start()
    async with front(net, tmp_path, GETS) as on, pooled(on) as session:
        for turn in range(15):
            for number in range(3):
                async with session.get(f"http://{SERVER[4]}/a/{turn}/{number}") as answer:
                    assert (answer.status, await answer.text()) == (200, f"/a/{turn}/{number}")
            await asyncio.sleep(0.12 + turn * 0.01)
        await runner.cleanup()
        await asyncio.sleep(0.2)
        left = on.net.node.run("ss -Htan state close-wait state fin-wait-2")
        assert left == ""
        assert on.told().count("200") == 45


@contextlib.asynccontextmanager
async def pooled(on: Front) -> AsyncIterator[aiohttp.ClientSession]:
    """A client whose connections start in the client's namespace."""

    def made(_info: object) -> socket.socket:
        sock = on.net.client.socket()
        sock.setblocking(False)
        return sock

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(socket_factory=made)) as session:
        yield session
