"""The built-in servers of pods: they answer with what they received and from which address.

http, https   JSON: method, path, headers in order, body length, peer address
h2c           the same JSON over HTTP/2 with prior knowledge (echo_http2.py)
grpc          the service echo.Echo (echo_grpc.py)
ws            the WebSocket handshake (RFC 6455), then every message is echoed; anything else is answered as by http
tcp, udp      one line with the peer's address, then the received data
They are test equipment, not real servers: sizes are limited, but slow clients are not.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import shutil
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, Protocol, cast

import h11

from l7proxy.errors import ConfigError
from l7proxy.lab.containers import Listener
from l7proxy.model.net import HostPort, canonical

MAX_MESSAGE: Final = 1 << 20
_WS_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_WS_LONG: Final = {126: 2, 127: 8}


def host_port(address: Any) -> HostPort:
    """A socket address as text; an IPv4 client of a dual-stack socket is shown as IPv4."""
    return HostPort(canonical(str(address[0]).partition("%")[0]), int(address[1]))


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server(Protocol):
    """A started server; it ends with its process at the latest."""

    def close(self) -> None: ...


async def start(listener: Listener, server_name: str) -> Server:
    """Open one listener on every address of the namespace. ConfigError when the port is in use."""
    try:
        if listener.kind == "udp":
            return await _start_udp(listener.port)
        if listener.kind == "grpc":
            from l7proxy.lab.echo_grpc import GrpcEcho

            return GrpcEcho(listener.port, server_name)
        context = _self_made_certificate(server_name) if listener.kind == "https" else None
        handler = _handler(listener.kind, server_name)
        return await asyncio.start_server(
            handler, sock=_socket(listener.port, socket.SOCK_STREAM), ssl=context, backlog=512
        )
    except OSError as error:
        raise ConfigError(f"{listener.kind}:{listener.port}: {error.strerror or error}") from error


def _socket(port: int, kind: socket.SocketKind) -> socket.socket:
    """Dual-stack, or IPv4 only if the kernel has no IPv6."""
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
    except OSError:
        sock.close()
        raise
    return sock


# HTTP and WebSocket


class _Http:
    """One echo server; `server_name` identifies the pod behind a Service."""

    def __init__(self, server_name: str) -> None:
        self.server_name = server_name

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_MESSAGE)
        with contextlib.suppress(ConnectionError, ssl.SSLError, h11.RemoteProtocolError, h11.LocalProtocolError):
            while await self._exchange(connection, reader, writer):
                connection.start_next_cycle()
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()

    async def _exchange(self, connection: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False when the connection ends."""
        request, length = None, 0
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                if connection.they_are_waiting_for_100_continue:
                    writer.write(connection.send(h11.InformationalResponse(status_code=100, headers=[])))
                connection.receive_data(await reader.read(65536))
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                length += len(event.data)
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return False
        if _wants_websocket(request):
            await _websocket(request, connection.trailing_data[0], reader, writer)
            return False
        body = json.dumps(self._description(request, length, writer)).encode() + b"\n"
        self._answer(connection, writer, body)
        await writer.drain()
        return connection.our_state is h11.DONE

    def _description(self, request: Any, length: int, writer: asyncio.StreamWriter) -> dict[str, Any]:
        peer = host_port(writer.get_extra_info("peername"))
        return {
            "server": self.server_name,
            "method": request.method.decode("latin-1"),
            "path": request.target.decode("latin-1"),
            "headers": [[n.decode("latin-1"), v.decode("latin-1")] for n, v in request.headers.raw_items()],
            "body": length,
            "peer": peer.address,
            "peer_port": peer.port,
        }

    def _answer(self, connection: Any, writer: asyncio.StreamWriter, body: bytes) -> None:
        headers = [("content-type", "application/json"), ("content-length", str(len(body)))]
        writer.write(connection.send(h11.Response(status_code=200, headers=headers)))
        writer.write(connection.send(h11.Data(data=body)) or b"")  # empty for HEAD
        writer.write(connection.send(h11.EndOfMessage()))


def _wants_websocket(request: Any) -> bool:
    return (b"upgrade", b"websocket") in [(name, value.lower()) for name, value in request.headers]


async def _websocket(request: Any, ahead: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Do the handshake and echo every frame unmasked; control frames as in RFC 6455 §5.5."""
    key = dict(request.headers).get(b"sec-websocket-key", b"")
    accept = base64.b64encode(hashlib.sha1(key + _WS_GUID, usedforsecurity=False).digest())
    writer.write(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )
    source = _Ahead(ahead, reader)
    with contextlib.suppress(asyncio.IncompleteReadError):
        while True:
            first, second = await source.exactly(2)
            length = second & 0x7F
            if length in _WS_LONG:
                length = int.from_bytes(await source.exactly(_WS_LONG[length]), "big")
            mask = await source.exactly(4)
            if length > MAX_MESSAGE or not second & 0x80:
                return
            data = bytes(byte ^ mask[i % 4] for i, byte in enumerate(await source.exactly(length)))
            opcode = first & 0x0F
            if opcode != 0xA:  # a pong needs no answer
                writer.write(bytes([first & 0xF0 | (0xA if opcode == 0x9 else opcode)]) + _ws_length(length) + data)
                await writer.drain()
            if opcode == 0x8:
                return


class _Ahead:
    """A reader that first returns bytes that were already read from the stream."""

    def __init__(self, ahead: bytes, reader: asyncio.StreamReader) -> None:
        self.ahead = ahead
        self.reader = reader

    async def exactly(self, count: int) -> bytes:
        taken, self.ahead = self.ahead[:count], self.ahead[count:]
        return taken + (await self.reader.readexactly(count - len(taken)) if len(taken) < count else b"")


def _ws_length(length: int) -> bytes:
    if length < 126:
        return bytes([length])
    return b"\x7e" + length.to_bytes(2, "big") if length < 65536 else b"\x7f" + length.to_bytes(8, "big")


def _self_made_certificate(name: str) -> ssl.SSLContext:
    """A new self-signed certificate for `name`: clients must not verify it."""
    if not shutil.which("openssl"):
        raise ConfigError("https: openssl is not installed, it is required for the certificate: install openssl")
    with tempfile.TemporaryDirectory() as directory:
        certificate, key = Path(directory, "cert.pem"), Path(directory, "key.pem")
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-days", "30", "-subj", f"/CN={name[:60]}", "-keyout", str(key), "-out", str(certificate)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ConfigError(f"https: openssl cannot create a certificate: {done.stderr.strip()}")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
    return context


def _handler(kind: str, server_name: str) -> Handler:
    if kind == "tcp":
        return _tcp
    return _http2(server_name) if kind == "h2c" else _Http(server_name).serve


# HTTP/2


def _http2(server_name: str) -> Handler:
    from l7proxy.lab.echo_http2 import Http2Echo  # h2, of the extra `lab`, only in pods that serve it

    echo = Http2Echo(server_name)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await echo.serve(reader, writer, host_port(writer.get_extra_info("peername")))

    return serve


# TCP and UDP


async def _tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        writer.write(f"{host_port(writer.get_extra_info('peername')).address}\n".encode())
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()
        await writer.wait_closed()


async def _start_udp(port: int) -> asyncio.DatagramTransport:
    """One socket for all addresses: a pod has one per family, so the response comes from the address that was used."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(_Udp, sock=_socket(port, socket.SOCK_DGRAM))
    return transport


class _Udp(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)  # in 3.11 the actual type is another class

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        self.transport.sendto(f"{host_port(addr).address}\n".encode() + data, addr)
