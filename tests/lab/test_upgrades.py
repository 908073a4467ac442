"""Upgrades and CONNECT through the real worker: WebSockets of real clients and servers, and requests without tunnel."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from asyncio import StreamReader as Reader
from asyncio import StreamWriter as Writer
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from l7proxy.flows.records import Connection
from l7proxy.policy.rules import HttpRule
from l7proxy.wire.path import PathRules
from tests.lab.front import Front, bound, front, serving
from tests.lab.test_worker_packets import REF, SERVER, Net, net  # noqa: F401 -- a fixture

pytestmark = pytest.mark.lab

SOCKETS = HttpRule(REF, method="GET", path="/ws.*")
OTHERS = HttpRule(REF, method="GET", path="/other")
TUNNELS = HttpRule(REF, method="CONNECT", host="inner:443")
AT_ONCE = 5.0
FOO = b"GET /ws HTTP/1.1\r\nHost: server\r\nConnection: Upgrade\r\nUpgrade: foo/2\r\n\r\n"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: foo/2\r\n\r\n"
CONNECT = b"CONNECT inner:443 HTTP/1.1\r\nHost: inner:443\r\n\r\n"


# --- WebSocket -------------------------------------------------------------------------------------------------------


async def echo(request: web.Request) -> web.WebSocketResponse:
    talk = web.WebSocketResponse(max_msg_size=1 << 24)
    await talk.prepare(request)
    async for message in talk:
        if message.data == "bye":
            await talk.close(code=4001, message=b"as asked")
        elif message.type is aiohttp.WSMsgType.TEXT:
            await talk.send_str(message.data)
        else:
            await talk.send_bytes(message.data)
    return talk


@contextlib.asynccontextmanager
async def websockets(net: Net) -> AsyncIterator[None]:  # noqa: F811
    app = web.Application()
    app.router.add_get("/{path:.*}", echo)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.SockSite(runner, bound(net)).start()
    try:
        yield
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def clients(on: Front) -> AsyncIterator[aiohttp.ClientSession]:
    """A client whose connections start in the client's namespace."""

    def made(_info: object) -> socket.socket:
        sock = on.net.client.socket()
        sock.setblocking(False)
        return sock

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(socket_factory=made)) as session:
        yield session


def url(path: str) -> str:
    return f"http://{SERVER[4]}{path}"


async def test_websocket_frames_of_every_kind_and_size_pass_both_ways(net: Net, tmp_path: Path) -> None:  # noqa: F811
    async with websockets(net), front(net, tmp_path, SOCKETS) as on, clients(on) as session:
        async with session.ws_connect(url("/ws/a"), max_msg_size=1 << 24, protocols=["chat"]) as talk:
            for size in (0, 1, 125, 126, 65535, 65536, 3 << 20):
                data = os.urandom(size)
                await talk.send_bytes(data)
                assert await talk.receive_bytes() == data
            await talk.send_str("é" * 1000)
            assert await talk.receive_str() == "é" * 1000
            await talk.ping(b"are you there")
            await talk.send_str("bye")
            assert (await talk.receive()).type is aiohttp.WSMsgType.CLOSE
            assert talk.close_code == 4001
        await on.until_told(f"FORWARDED GET {url('/ws/a')}", "101")


async def test_pings_are_answered_by_the_server_not_by_us(net: Net, tmp_path: Path) -> None:  # noqa: F811
    async with websockets(net), front(net, tmp_path, SOCKETS) as on, clients(on) as session:
        talk = await session.ws_connect(url("/ws"), autoping=False)
        await talk.ping(b"payload")
        message = await talk.receive(AT_ONCE)
        assert (message.type, message.data) == (aiohttp.WSMsgType.PONG, b"payload")
        await talk.close()


async def test_a_handshake_that_is_not_allowed_is_403(net: Net, tmp_path: Path) -> None:  # noqa: F811
    async with websockets(net), front(net, tmp_path, SOCKETS) as on, clients(on) as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(url("/private"))
        assert refused.value.status == 403
        await on.until_told(f"DROPPED GET {url('/private')}", "403")


async def test_many_websockets_at_once(net: Net, tmp_path: Path) -> None:  # noqa: F811
    async def one(session: aiohttp.ClientSession, number: int) -> None:
        async with session.ws_connect(url(f"/ws/{number}")) as talk:
            for turn in range(20):
                await talk.send_str(f"{number} {turn}")
                assert await talk.receive_str() == f"{number} {turn}"

    async with websockets(net), front(net, tmp_path, SOCKETS) as on, clients(on) as session:
        await asyncio.gather(*[one(session, number) for number in range(50)])


async def test_an_open_websocket_ends_when_its_request_is_no_longer_allowed(
    net: Net,  # noqa: F811
    tmp_path: Path,
) -> None:
    async with websockets(net), front(net, tmp_path, SOCKETS) as on, clients(on) as session:
        talk = await session.ws_connect(url("/ws"))
        await on.publish(SOCKETS, OTHERS)  # a different policy that still allows it
        await talk.send_str("still here")
        assert await talk.receive_str() == "still here"
        await on.publish(OTHERS)
        message = await talk.receive(AT_ONCE)
        assert message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
        await on.until_told(f"FORWARDED GET {url('/ws')}", "101", "connection DROPPED")
        last = on.records[-1]
        assert isinstance(last, Connection)
        assert "default/web" in last.policy_verdict.reason
        await talk.close()


# --- other upgrades --------------------------------------------------------------------------------------------------


async def exactly(reader: Reader, wanted: bytes) -> None:
    async with asyncio.timeout(AT_ONCE):
        assert await reader.readexactly(len(wanted)) == wanted


async def end(reader: Reader) -> bytes:
    async with asyncio.timeout(AT_ONCE):
        return await reader.read()


async def switch(reader: Reader, writer: Writer) -> None:
    """Reports the bytes received before the switch, then echoes, and sends a last message after the client's FIN."""
    await reader.readuntil(b"\r\n\r\n")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.2):
            assert await reader.read(1) == b"", "early bytes came before the switch"
    writer.write(SWITCHED)
    while data := await reader.read(65536):
        writer.write(data)
    writer.write(b"goodbye")


async def test_other_upgrades_are_tunnels_too_and_early_bytes_wait(net: Net, tmp_path: Path) -> None:  # noqa: F811
    async with serving(net, switch), front(net, tmp_path, SOCKETS) as on:
        reader, writer = await on.client()
        writer.write(FOO + b"\x00early")
        await exactly(reader, SWITCHED + b"\x00early")
        data = os.urandom(5 << 20)
        writer.write(data)
        await exactly(reader, data)
        writer.write_eof()
        assert await end(reader) == b"goodbye"
        await on.until_told("FORWARDED GET http://server/ws", "101")


async def test_a_tunnel_full_of_bytes_ends_when_its_request_is_no_longer_allowed(
    net: Net,  # noqa: F811
    tmp_path: Path,
) -> None:
    """With session or kernel moving bytes at full speed both ways: the tunnel is cut, and nothing more arrives."""
    received = 0

    async def flood(reader: Reader, writer: Writer) -> None:
        nonlocal received
        await reader.readuntil(b"\r\n\r\n")
        writer.write(SWITCHED)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(pour(writer), name="pour")
                while data := await reader.read(1 << 16):
                    received += len(data)
        except* ConnectionError:
            pass

    async with serving(net, flood), front(net, tmp_path, SOCKETS) as on:
        reader, writer = await on.client()
        writer.write(FOO)
        await exactly(reader, SWITCHED)
        with pytest.raises(ExceptionGroup) as ended:
            async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
                tasks.create_task(pour(writer), name="pour")
                tasks.create_task(drink(reader), name="drink")
                while received < 20 << 20:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                await on.publish(OTHERS)
        assert ended.group_contains(ConnectionResetError)
        await on.until_told("FORWARDED GET http://server/ws", "101", "connection DROPPED")
        before = received
        await asyncio.sleep(0.3)
        assert received == before


async def pour(writer: Writer) -> None:
    while True:
        writer.write(bytes(1 << 16))
        await writer.drain()


async def drink(reader: Reader) -> None:
    while await reader.read(1 << 16):
        pass


async def test_the_servers_fin_in_a_tunnel_leaves_the_other_way_open(net: Net, tmp_path: Path) -> None:  # noqa: F811
    got: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def finish_first(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(SWITCHED + b"last")
        writer.write_eof()
        got.set_result(await reader.read())

    async with serving(net, finish_first), front(net, tmp_path, SOCKETS) as on:
        reader, writer = await on.client()
        writer.write(FOO)
        assert await end(reader) == SWITCHED + b"last"
        writer.write(b"much later")
        writer.write_eof()
        async with asyncio.timeout(AT_ONCE):
            assert await got == b"much later"


async def test_cve_2024_23326_a_200_to_an_upgrade_is_no_tunnel(net: Net, tmp_path: Path) -> None:  # noqa: F811
    async def no(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(SWITCHED.replace(b"101 Switching Protocols", b"200 OK\r\nContent-Length: 0"))
        assert await reader.read() == b""

    async with serving(net, no), front(net, tmp_path, SOCKETS) as on:
        reader, writer = await on.client()
        writer.write(FOO + b"GET /private HTTP/1.1\r\nHost: server\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 403 ")
        await on.until_told("FORWARDED GET http://server/ws", "200", "DROPPED GET http://server/private", "403")


async def test_h2c_is_not_offered_to_the_server(net: Net, tmp_path: Path) -> None:  # noqa: F811
    seen: list[bytes] = []

    async def plain(reader: Reader, writer: Writer) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            seen.append(head)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with serving(net, plain), front(net, tmp_path, SOCKETS) as on:
        words = on.net.client.command(
            f"curl -s --http2 -o /dev/null -w '%{{http_code}} %{{http_version}}' {url('/ws')}"
        )
        curl = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
        said, _ = await curl.communicate()
    assert said == b"200 1.1"
    assert len(seen) == 1
    assert not {b"upgrade", b"http2-settings", b"connection"} & {
        line.split(b":")[0].lower() for line in seen[0].split(b"\r\n")
    }


# --- CONNECT ---------------------------------------------------------------------------------------------------------


async def test_cve_2025_64763_connect_is_refused_unless_chosen(net: Net, tmp_path: Path) -> None:  # noqa: F811
    async def never(reader: Reader, writer: Writer) -> None:
        raise AssertionError("the server was called")

    async with serving(net, never), front(net, tmp_path, TUNNELS) as on:
        reader, writer = await on.client()
        writer.write(CONNECT + b"early")
        assert (await end(reader)).startswith(b"HTTP/1.1 405 ")
        await on.until_told("405")


async def test_connect_is_judged_and_its_early_data_waits_for_2xx(net: Net, tmp_path: Path) -> None:  # noqa: F811
    established = b"HTTP/1.1 200 Connection established\r\n\r\n"

    async def proxy(reader: Reader, writer: Writer) -> None:
        assert await reader.readuntil(b"\r\n\r\n") == CONNECT
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                assert await reader.read(1) == b"", "early bytes came before the tunnel"
        writer.write(established)
        while data := await reader.read(65536):
            writer.write(data)

    async with serving(net, proxy), front(net, tmp_path, TUNNELS) as on:
        await on.publish(TUNNELS, paths=PathRules(allow_connect=True))
        reader, writer = await on.client()
        writer.write(CONNECT.replace(b"inner", b"other") + CONNECT + b"\x16\x03early")
        assert (await reader.readuntil(b"\r\n\r\nAccess denied\r\n")).startswith(b"HTTP/1.1 403 ")
        await exactly(reader, established + b"\x16\x03early")
        await on.publish(SOCKETS, paths=PathRules(allow_connect=True))
        with pytest.raises(ConnectionResetError):
            await end(reader)
        await on.until_told(
            "DROPPED CONNECT http://other:443",
            "403",
            "FORWARDED CONNECT http://inner:443",
            "200",
            "connection DROPPED",
        )
