"""The connection to the server: made once per session, in the client's name, and every failure told in words."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Callable
from typing import Final

from l7proxy.errors import UpstreamError
from l7proxy.model.net import HostPort
from l7proxy.proxy.server.steering import TRIES, Steering

WORDS: Final = {
    errno.ECONNREFUSED: "it refuses connections",
    errno.ETIMEDOUT: "it does not answer",
    errno.EHOSTUNREACH: "there is no host at that address",
    errno.ENETUNREACH: "there is no route to it",
    errno.EADDRNOTAVAIL: "no local port is left towards it",
    errno.ECONNRESET: "it reset the connection",
    errno.EACCES: "the node's firewall forbids it",
    errno.EPERM: "the node's firewall forbids it",
}
_NO_LINGER: Final = struct.pack("ii", 1, 0)


async def connect(
    steering: Steering,
    client: HostPort,
    server: HostPort,
    protocol: asyncio.Protocol,
    connected: Callable[[], None] = lambda: None,
) -> None:
    """Connect and hand the transport to `protocol`. UpstreamError; a cancelled attempt leaves no descriptor.

    Once `connected` has been called it must neither be cancelled nor its transport be closed before it returns: uvloop
    would then never tell the protocol that the connection is lost, or close the descriptor twice, the second time
    perhaps another connection's.
    """
    loop = asyncio.get_running_loop()
    sock = await _dialled(loop, steering, client, server)
    try:
        connected()
        await loop.create_connection(lambda: protocol, sock=sock)
    except OSError as error:
        sock.close()
        raise UpstreamError(f"cannot reach {server}: {explain(error)}") from error
    except BaseException:
        sock.close()
        raise


async def _dialled(
    loop: asyncio.AbstractEventLoop, steering: Steering, client: HostPort, server: HostPort
) -> socket.socket:
    """A connected socket. Where its port is taken towards this server, another one is tried."""
    for attempt in range(TRIES + 1):
        sock = steering.dial(client, server, attempt)
        try:
            await _reach(loop, sock, server)
        except OSError as error:
            sock.close()
            if error.errno != errno.EADDRNOTAVAIL or attempt == TRIES:
                raise UpstreamError(f"cannot reach {server}: {explain(error)}") from error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise AssertionError("the last attempt returns or raises")


async def _reach(loop: asyncio.AbstractEventLoop, sock: socket.socket, server: HostPort) -> None:
    """connect(2), and its outcome. Not the loop's own `sock_connect`: uvloop's has a thread resolve the name of every
    server, and ours are addresses already."""
    failed = sock.connect_ex((server.address, server.port))
    if failed == errno.EINPROGRESS:
        settled: asyncio.Future[None] = loop.create_future()
        loop.add_writer(sock, _settle, settled)
        try:
            await settled
        finally:
            loop.remove_writer(sock)
        failed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if failed:
        raise OSError(failed, os.strerror(failed))


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def explain(error: OSError) -> str:
    return WORDS.get(error.errno or 0, error.strerror or str(error))


def reset_on_close(transport: asyncio.BaseTransport) -> None:
    """Make the coming close of this transport a RST (socket(7), SO_LINGER with no time)."""
    sock = transport.get_extra_info("socket")
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    except (OSError, ValueError):
        return  # it is gone already; until the loss is told, uvloop calls its descriptor negative (ValueError)
