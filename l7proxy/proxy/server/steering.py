"""How connections reach us and how we go on in their client's name: the one seam between sessions and the kernel.

`Transparent` is the real thing: TPROXY hands us the client's packets, a socket's own name is where the client wanted
to go, and the upstream socket bears the client's address. `Plain` needs no privilege: it serves one destination.
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
"""Where our own connections take their ports: below Linux's ephemeral range (32768 on), which pods use. With the very
ports of a client's they are tracked apart, but the kernel must then find one of both another port."""
TRIES: Final = 16
"""Ports tried before the kernel chooses one: somebody listens there, or it is taken towards that server."""


class Steering(Protocol):
    """What a session needs of its surroundings."""

    def listen(self) -> Sequence[socket.socket]:
        """Bound, not yet listening. ConfigError when that cannot be."""

    def destination(self, sockname: HostPort) -> HostPort:
        """Where the client of a connection with this local name wanted to go."""

    def dial(self, client: HostPort, server: HostPort, attempt: int = 0) -> socket.socket:
        """A non-blocking socket, not yet connected, that will be `client` to `server`. UpstreamError.

        `attempt` counts those before, whose port was not to be had when they connected.
        """


class Transparent:
    """TPROXY in, the client's own address out."""

    def __init__(
        self, port: int, *, mark_upstream: int, families: tuple[int, ...] = (), ports: Sequence[int] = PORTS
    ) -> None:
        self._port = port
        self._ports = ports
        self._mark = mark_upstream
        self._families = families

    def listen(self) -> Sequence[socket.socket]:
        sockets = listener.transparent(self._port, self._families)
        listener.migrate_queues()
        return sockets

    def destination(self, sockname: HostPort) -> HostPort:
        return sockname

    def dial(self, client: HostPort, server: HostPort, attempt: int = 0) -> socket.socket:
        sock = stream_socket(server)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self._mark)
            if client.address != server.address:
                bind_as(sock, socket_family(server), client.address, self._ports if attempt < TRIES else ())
            # else a pod reaching itself through a Service: it would drop packets from its own address, so the node's
        except OSError as error:
            sock.close()
            raise UpstreamError(f"cannot use the source address {client.address}: {error.strerror or error}") from error
        return sock


class Plain:
    """Everything that reaches `listen_on` goes to `server`, from whatever address the kernel chooses."""

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
    """Non-blocking, TCP_NODELAY. UpstreamError when we are out of descriptors."""
    try:
        sock = socket.socket(socket_family(towards), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # silent streams: find out that a peer is dead
    except OSError as error:
        raise UpstreamError(f"cannot create a socket: {error.strerror or error}") from error
    return sock


def bind_as(sock: socket.socket, family: int, address: str, ports: Sequence[int] = PORTS) -> None:
    """Bind to an address that need not be ours, and to one of `ports` that need be free only towards one server.

    That is what SO_REUSEADDR lets us have: whether it is free the connect tells (EADDRNOTAVAIL). Without any of them
    the kernel chooses, from its own range (ip(7), IP_BIND_ADDRESS_NO_PORT; an IPPROTO_IP option on IPv6 sockets too).
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
