"""Listening sockets: bound here; their owner calls listen() once there is a policy snapshot to enforce.

TPROXY listeners are on loopback: pods cannot connect to them, only redirected connections reach them. SO_REUSEPORT lets
workers share the port, and lets a new worker listen before the old one stops.
"""

from __future__ import annotations

import errno
import logging
import resource
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

from l7proxy.errors import ConfigError

log = logging.getLogger(__name__)

BACKLOG: Final = 4096
LOOPBACK: Final = {4: "127.0.0.1", 6: "::1"}
IP_TRANSPARENT: Final = 19  # linux/in.h, linux/in6.h; not in Python's socket module
IPV6_TRANSPARENT: Final = 75
MIGRATE: Final = Path("/proc/sys/net/ipv4/tcp_migrate_req")


def transparent(port: int) -> list[socket.socket]:
    """One TPROXY listener for each address family that this kernel has."""
    sockets: list[socket.socket] = []
    try:
        for family in filter(has_family, LOOPBACK):
            sockets += [bound(LOOPBACK[family], port, see_through=True)]
    except ConfigError:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def bound(address: str, port: int, *, see_through: bool = False) -> socket.socket:
    """A bound TCP socket. ConfigError says why it cannot be bound."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = None
    try:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # accepted sockets inherit it, and the next option
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if see_through:
            make_transparent(sock, family)
        sock.bind((address, port))
    except OSError as error:
        if sock is not None:
            sock.close()
        raise ConfigError(_explain(error, address, port)) from error
    return sock


def has_family(family: int) -> bool:
    """Whether the loopback address of this family can be bound (not with ipv6.disable=1 or disable_ipv6=1)."""
    try:
        with socket.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((LOOPBACK[family], 0))
    except OSError:
        return False
    return True


def take_descriptors() -> int:
    """Raise the limit of open files to the hard limit. Returns the new limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def warn_if_queues_are_lost() -> None:
    """Log it if the kernel will not move the queue of a closed listener to its siblings (ip-sysctl: tcp_migrate_req).

    To be asked when the listener is about to be closed: the agent sets it, and may start after its workers.
    """
    try:
        moved = MIGRATE.read_text().strip() != "0"
    except OSError:  # before Linux 5.14
        moved = False
    if not moved:
        log.info("%s is not 1: connections that this worker has not accepted yet are reset", MIGRATE)


def make_transparent(sock: socket.socket, family: int) -> None:
    """Let this socket use addresses that are not local. `family` is the socket's: reading it from the socket is slow.
    EPERM without CAP_NET_ADMIN."""
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)


def _explain(error: OSError, address: str, port: int) -> str:
    where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} is in use on {address}: stop the other program, or set another proxy-port"
        case errno.EPERM:
            return f"cannot listen transparently on {where}: CAP_NET_ADMIN is required (run as root)"
        case errno.EACCES:
            return f"cannot listen on {where}: CAP_NET_BIND_SERVICE is required, or a port of 1024 or higher"
        case errno.EAFNOSUPPORT | errno.EADDRNOTAVAIL if ":" in address:
            return f"cannot listen on {where}: IPv6 is disabled in this network namespace: enable it"
        case _:
            return f"cannot listen on {where}: {error.strerror or error}"
