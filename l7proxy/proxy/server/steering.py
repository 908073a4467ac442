"""How connections arrive and which source address upstream connections use: the interface of sessions to the kernel.

`Transparent` is for production: TPROXY delivers the client's packets, a socket's local address is the client's original
destination, and the upstream socket uses the client's address. `Plain` needs no privilege: it serves one destination.
"""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Sequence
from typing import Final, Protocol

from l7proxy.errors import UpstreamError
from l7proxy.model.net import HostPort, family_of
from l7proxy.proxy.server import listener

IP_BIND_ADDRESS_NO_PORT: Final = 24  # linux/in.h; not in Python's socket module
PORTS: Final = range(10240, 30000)
"""Source ports of upstream connections: below Linux's ephemeral range (32768 and up), which pods use. With the client's
own port, conntrack would have to give one of the two connections another port."""
TRIES: Final = 16
"""Ports tried before the kernel chooses one: a port may have a listener, or be in use towards that server."""


class Steering(Protocol):
    """What sessions need from the kernel setup."""

    def listen(self) -> Sequence[socket.socket]:
        """Sockets bound, not yet listening. ConfigError when binding fails."""

    def destination(self, sockname: HostPort) -> HostPort:
        """The original destination of a connection with this local address."""

    def dial(self, client: HostPort, server: HostPort, attempt: int = 0) -> socket.socket:
        """A non-blocking, unconnected socket that appears to `server` as `client`. UpstreamError.

        `attempt` is the number of earlier attempts, whose port was not available at connect.
        """


class Transparent:
    """TPROXY listeners; upstream connections use the client's own address."""

    def __init__(self, port: int, *, mark_upstream: int, ports: Sequence[int] = PORTS) -> None:
        self._port = port
        self._ports = ports
        self._mark = mark_upstream

    def listen(self) -> Sequence[socket.socket]:
        return listener.transparent(self._port)

    def destination(self, sockname: HostPort) -> HostPort:
        return sockname

    def dial(self, client: HostPort, server: HostPort, attempt: int = 0) -> socket.socket:
        sock = stream_socket(server)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self._mark)
            if client.address != server.address:
                bind_as(sock, socket_family(server), client.address, self._ports if attempt < TRIES else ())
            # else a pod reaches itself through a Service; it drops packets from its own address: use the node's
        except OSError as error:
            sock.close()
            raise UpstreamError(f"cannot use the source address {client.address}: {error.strerror or error}") from error
        return sock


class Plain:
    """Connections to `listen_on` go to `server`, from an address that the kernel chooses."""

    def __init__(self, listen_on: HostPort, server: HostPort) -> None:
        self._listen_on = listen_on
        self._server = server

    def listen(self) -> Sequence[socket.socket]:
        return [listener.bound(self._listen_on.address, self._listen_on.port)]

    def destination(self, sockname: HostPort) -> HostPort:
        return self._server

    def dial(self, client: HostPort, server: HostPort, attempt: int = 0) -> socket.socket:
        return stream_socket(server)


def socket_family(towards: HostPort) -> int:
    return socket.AF_INET6 if family_of(towards.address) == 6 else socket.AF_INET


def stream_socket(towards: HostPort) -> socket.socket:
    """A non-blocking socket with TCP_NODELAY. UpstreamError when the process is out of descriptors."""
    try:
        sock = socket.socket(socket_family(towards), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # detects a dead peer of a silent stream
    except OSError as error:
        raise UpstreamError(f"cannot create a socket: {error.strerror or error}") from error
    return sock


def bind_as(sock: socket.socket, family: int, address: str, ports: Sequence[int] = PORTS) -> None:
    """Bind to an address that need not be local, and to one of `ports`, which need be free only towards one server.

    SO_REUSEADDR permits that; connect reports a port that is in use (EADDRNOTAVAIL). If none of them can be bound, the
    kernel chooses one of its own range (ip(7), IP_BIND_ADDRESS_NO_PORT; an IPPROTO_IP option on IPv6 sockets too).
    """
    listener.make_transparent(sock, family)
    if ports:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for _ in range(TRIES):
            try:
                sock.bind((address, ports[int(random.random() * len(ports))]))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    sock.bind((address, 0))
