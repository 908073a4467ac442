"""The built-in servers, over loopback."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext

import grpc.aio
import h2.config
import h2.connection
import h2.events
import pytest

from l7proxy.errors import ConfigError
from l7proxy.lab import echo
from l7proxy.lab.containers import Listener
from tests.support.grpc_loop import ONE_LOOP
from tests.support.ports import reserved_port


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("0.0.0.0", 0))
        return int(sock.getsockname()[1])


@asynccontextmanager
async def served(kind: str) -> AsyncIterator[int]:
    with nullcontext(free_udp_port()) if kind == "udp" else reserved_port() as port:
        server = await echo.start(Listener(kind, port), "me")
        try:
            async with asyncio.timeout(10):
                yield port
        finally:
            server.close()
            await asyncio.sleep(0)


async def talk(port: int, data: bytes, *, tls: bool = False) -> bytes:
    context = None
    if tls:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.write(data)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


REQUEST = b"POST /a?b HTTP/1.1\r\nHost: x\r\nX-Two: 2\r\nx-one: 1\r\nContent-Length: 3\r\n\r\nabc"
LAST = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("tls", [False, True])
async def test_http_tells_what_it_received_request_by_request(tls: bool) -> None:
    async with served("https" if tls else "http") as port:
        answer = await talk(port, REQUEST + LAST, tls=tls)
    first, second = [json.loads(line) for line in answer.splitlines() if line.startswith(b"{")]
    assert first["headers"] == [["Host", "x"], ["X-Two", "2"], ["x-one", "1"], ["Content-Length", "3"]]
    assert (first["server"], first["method"], first["path"], first["body"]) == ("me", "POST", "/a?b", 3)
    assert (second["path"], second["peer"]) == ("/last", "127.0.0.1")


async def test_head_has_no_body() -> None:
    async with served("http") as port:
        answer = await talk(port, b"HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.endswith(b"\r\n\r\n")


async def test_a_broken_request_ends_the_connection_only() -> None:
    async with served("http") as port:
        assert await talk(port, b"\x16\x03\x01 nonsense\r\n\r\n") == b""
        assert b'"/last"' in await talk(port, LAST)


async def test_tcp_says_who_it_sees_and_echoes() -> None:
    async with served("tcp") as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.readline() == b"127.0.0.1\n"
        writer.write(b"x" * 100_000)
        assert await reader.readexactly(100_000) == b"x" * 100_000
        writer.close()
        await writer.wait_closed()


async def test_udp_says_who_it_sees_and_echoes() -> None:
    async with served("udp") as port:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
            await asyncio.get_running_loop().sock_sendall(sock, b"ping")
            assert await asyncio.get_running_loop().sock_recv(sock, 100) == b"127.0.0.1\nping"


async def test_websocket_shakes_hands_and_echoes_in_frames() -> None:
    shake = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n"
    shake += b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    text = b"\x81\x82\x01\x01\x01\x01" + bytes([ord("h") ^ 1, ord("i") ^ 1])
    close = b"\x88\x80\x00\x00\x00\x00"
    async with served("ws") as port:
        answer = await talk(port, shake + text + close)
    head, _, frames = answer.partition(b"\r\n\r\n")
    assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head  # the example of RFC 6455 §1.3
    assert frames == b"\x81\x02hi\x88\x00"


async def test_a_taken_port_is_named() -> None:
    async with served("http") as port:
        with pytest.raises(ConfigError, match=f"tcp:{port}: Address already in use"):
            await echo.start(Listener("tcp", port), "me")


async def test_h2c_tells_what_it_received_and_sends_trailers_when_asked() -> None:
    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    connection.initiate_connection()
    line = [(":method", "POST"), (":scheme", "http"), (":path", "/a?b"), (":authority", "x")]
    connection.send_headers(1, [*line, ("x-two", "2"), ("te", "trailers")])
    connection.send_data(1, b"abc")
    connection.send_headers(1, [("x-after", "3")], end_stream=True)
    body = b""
    trailers: list[tuple[object, ...]] = []
    async with served("h2c") as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(connection.data_to_send())
        ended = False
        while not ended:
            for event in connection.receive_data(await reader.read(65536)):
                if isinstance(event, h2.events.DataReceived):
                    body += event.data
                elif isinstance(event, h2.events.TrailersReceived):
                    trailers = [tuple(header) for header in event.headers]
                ended |= isinstance(event, h2.events.StreamEnded)
        writer.close()
        await writer.wait_closed()
    told = json.loads(body)
    assert told["headers"] == [list(header) for header in [*line, ("x-two", "2"), ("te", "trailers")]]
    assert (told["method"], told["path"], told["body"], told["peer"]) == ("POST", "/a?b", 3, "127.0.0.1")
    assert told["trailers"] == [["x-after", "3"]]
    assert trailers == [("x-echo", "me")]


@ONE_LOOP
async def test_grpc_has_a_method_of_each_kind() -> None:
    async with served("grpc") as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/echo.Echo/Unary")(b"one")
        assert await call == b"one"
        assert dict(await call.trailing_metadata()) == {"x-server": "me", "x-peer": "127.0.0.1"}
        streamed = channel.unary_stream("/echo.Echo/ServerStream")(b"two", metadata=(("x-count", "4"),))
        assert [message async for message in streamed] == [b"two"] * 4
        counted = await channel.stream_unary("/echo.Echo/ClientStream")(iter([b"a", b"bcd"]))
        assert json.loads(counted) == {"messages": 2, "bytes": 4}
        echoed = channel.stream_stream("/echo.Echo/Bidi")(iter([b"a", b"b"]))
        assert [message async for message in echoed] == [b"a", b"b"]
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await channel.unary_unary("/echo.Echo/Unary")(b"", metadata=(("x-fail", "NOT_FOUND"),))
        assert failed.value.code() is grpc.StatusCode.NOT_FOUND


@ONE_LOOP
async def test_a_grpc_port_that_is_taken_is_an_error() -> None:
    async with served("grpc") as port:
        with pytest.raises(ConfigError, match=f"grpc:{port}"):
            await echo.start(Listener("grpc", port), "other")
