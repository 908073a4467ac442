"""The connection to the server: made once per session, in the client's name, and every failure told in words."""

from __future__ import annotations

import errno
import os
import socket
from typing import Final, Protocol

from l7proxy.errors import UpstreamError
from l7proxy.model.net import HostPort
from l7proxy.proxy.server.poller import BROKEN, OUT, Poller
from l7proxy.proxy.server.shares import Share
from l7proxy.proxy.server.steering import TRIES, Steering

WORDS: Final = {
    errno.ECONNREFUSED: "connection refused",
    errno.ETIMEDOUT: "connection timed out",
    errno.EHOSTUNREACH: "host unreachable",
    errno.ENETUNREACH: "network unreachable",
    errno.EADDRNOTAVAIL: "no free local port for this destination",
    errno.ECONNRESET: "connection reset",
    errno.EACCES: "forbidden by the node's firewall",
    errno.EPERM: "forbidden by the node's firewall",
}


class ConnectListener(Protocol):
    """Who wants the connection: told one of these, once, and never before `UpstreamConnector` has returned. None may
    raise."""

    def reached(self, sock: socket.socket) -> None:
        """Connected; the socket is the caller's, and watched in the name of the dial until somebody else watches it."""

    def unreachable(self, reason: str) -> None: ...


class UpstreamConnector:
    """One connection in the making. Where its port is taken towards this server, another one is tried."""

    def __init__(
        self,
        caller: ConnectListener,
        poller: Poller,
        steering: Steering,
        client: HostPort,
        server: HostPort,
        share: Share | None = None,
    ) -> None:
        """`share` is that of who wants it."""
        self.share = share or Share()
        self._caller = caller
        self._poller = poller
        self._server = server
        self._sock: socket.socket | None = None
        self._cancelled = False
        try:
            self._sock = sock = _begun(steering, client, server)
            self._watch(sock)
        except UpstreamError as error:
            poller.loop.call_soon(self._fail, str(error))

    def cancel(self) -> None:
        """The caller is told nothing, and no descriptor is left."""
        self._cancelled = True
        self._let_go()

    def ready(self, events: int) -> None:
        sock = self._sock
        if sock is None:
            return
        failed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if events & BROKEN else 0
        if failed:
            self._let_go()
            self._fail(unreachable(self._server, failed))
        else:
            self._sock = None
            self._caller.reached(sock)

    def _watch(self, sock: socket.socket) -> None:
        try:
            self._poller.watch(sock.fileno(), OUT, self)
        except OSError as error:  # no more can be watched (epoll(7), max_user_watches)
            self._let_go()
            raise UpstreamError(f"cannot create a socket: {error.strerror or error}") from error

    def _fail(self, reason: str) -> None:
        if not self._cancelled:
            self._caller.unreachable(reason)

    def _let_go(self) -> None:
        """Its close is for the loop's next turn: see poller."""
        sock, self._sock = self._sock, None
        if sock is not None:
            self._poller.forget(sock.fileno())
            self._poller.loop.call_soon(sock.close)


def _begun(steering: Steering, client: HostPort, server: HostPort) -> socket.socket:
    """A socket that is connecting. UpstreamError."""
    for attempt in range(TRIES + 1):
        sock = steering.dial(client, server, attempt)
        failed = sock.connect_ex((server.address, server.port))
        if failed in (0, errno.EINPROGRESS):
            return sock
        sock.close()
        if failed != errno.EADDRNOTAVAIL:
            break
    raise UpstreamError(unreachable(server, failed))


def unreachable(server: HostPort, error: int) -> str:
    return f"cannot reach {server}: {WORDS.get(error, os.strerror(error))}"
