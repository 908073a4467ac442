"""Opens the upstream connection: once per session, with the client's address, each failure with a readable reason."""

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
    """The owner of the connection: exactly one of these is called, once, after `UpstreamConnector()` has returned.
    They must not raise."""

    def reached(self, sock: socket.socket) -> None:
        """Connected. The owner takes the socket; the connector stays its watcher until another one is registered."""

    def unreachable(self, reason: str) -> None: ...


class UpstreamConnector:
    """A connection being established. If its port is in use towards this server, another port is tried."""

    def __init__(
        self,
        caller: ConnectListener,
        poller: Poller,
        steering: Steering,
        client: HostPort,
        server: HostPort,
        share: Share | None = None,
    ) -> None:
        """`share` is the client's."""
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
            reason = str(error)
            poller.soon(lambda: self._fail(reason))

    def cancel(self) -> None:
        """Close the descriptor; the owner is not called."""
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
        """Close the socket in the loop's next turn: see `poller`."""
        sock, self._sock = self._sock, None
        if sock is not None:
            self._poller.forget(sock.fileno())
            self._poller.loop.call_soon(sock.close)


def _begun(steering: Steering, client: HostPort, server: HostPort) -> socket.socket:
    """A socket that is connecting. UpstreamError when it cannot connect."""
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
