"""Lists and deletes conntrack entries over raw netlink.

pyroute2 (NFCTSocket) needs a third of a millisecond per entry: half a minute for a node with 100 000 entries. This
module searches the raw dump for the bytes of the addresses and parses only the messages that contain one.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from itertools import groupby
from typing import Final

from tproxy_rules.backend import KernelError
from tproxy_rules.evaluate import Connection
from tproxy_rules.netlink import (
    ACK,
    DATAGRAM,
    DONE,
    DUMP,
    ERROR,
    NESTED,
    attribute,
    attributes,
    error_code,
    messages,
    netfilter_socket,
    request,
)

# <linux/netfilter/nfnetlink_conntrack.h>
_NEW, _GET, _DELETE = 1 << 8, 1 << 8 | 1, 1 << 8 | 2
_ORIGINAL, _REPLY, _MARK, _ID, _ZONE = 1, 2, 8, 12, 18
_IP, _PROTOCOL = 1, 2
_SOURCES, _DESTINATIONS = (1, 3), (2, 4)
_NUMBER, _DESTINATION_PORT = 1, 3
_TYPES, _CODES = (5, 8), (6, 9)
_RECEIVE_BUFFER: Final = 4 << 20
_PATIENCE: Final = 5.0
"""Seconds to wait for the kernel's next datagram."""
_MOST_GROUPS: Final = 256
"""Maximum number of address groups (equal except for the last byte); above it, parsing every entry is faster."""


@dataclass(frozen=True, slots=True)
class Tracked:
    """A conntrack entry. `connection` is its original direction after Service DNAT and before masquerading."""

    connection: Connection
    addresses: frozenset[str]
    """All addresses of both directions, in canonical text."""
    mark: int
    family: int
    """AF_INET or AF_INET6."""
    key: bytes
    """The attributes that identify this entry, and no later entry with the same addresses and ports."""


class Conntrack:
    """A netlink socket in the network namespace of the calling thread. KernelError if the kernel refuses."""

    def __init__(self) -> None:
        try:
            self._socket = netfilter_socket(_RECEIVE_BUFFER)
        except OSError as error:
            raise KernelError(f"conntrack: cannot open a netlink socket: {error.strerror or error}") from error
        self._socket.settimeout(_PATIENCE)

    def __enter__(self) -> Conntrack:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def entries(self, addresses: Collection[str] | None = None) -> Iterator[Tracked]:
        """The entries that contain one of the addresses (canonical text), or all. Exhaust it before the next request.

        The table changes during the dump: an entry may appear twice, a new one may be missing.
        """
        wanted = None if addresses is None else _pattern(addresses)
        for data in self._asked(_GET, DUMP, socket.AF_UNSPEC, b""):
            skip = wanted is not None and not wanted.search(data)
            for kind, message in messages(data):
                if kind == DONE:
                    return
                if kind == ERROR:
                    raise KernelError(f"conntrack: cannot list entries: {_reason(message)}")
                if kind == _NEW and not skip and (wanted is None or wanted.search(message)):
                    yield _read(message)

    def delete(self, entry: Tracked) -> bool:
        """True if the entry still existed."""
        answer = next(self._asked(_DELETE, ACK, entry.family, entry.key))
        ((_, message),) = messages(answer)
        code = error_code(message)
        if code not in (0, errno.ENOENT):
            raise KernelError(f"conntrack: cannot delete an entry: {_reason(message)}")
        return code == 0

    def _asked(self, kind: int, flags: int, family: int, attributes: bytes) -> Iterator[bytes]:
        """The datagrams of the response, endlessly: the caller must recognise the last one."""
        try:
            self._socket.send(request(kind, flags, attributes, family=family))
            while True:
                yield self._socket.recv(DATAGRAM)
        except TimeoutError as error:
            raise KernelError(f"conntrack: the kernel did not answer within {_PATIENCE:g} s") from error
        except OSError as error:
            raise KernelError(f"conntrack: {error.strerror or error}") from error


def _reason(message: bytes) -> str:
    code = error_code(message)
    return _WHY.get(code, os.strerror(code))


_WHY: Final = {
    errno.EPERM: "permission denied: run as root, or with CAP_NET_ADMIN in this network namespace",
    errno.EINVAL: "the kernel module nf_conntrack_netlink (CONFIG_NF_CT_NETLINK) is required: load it",
    errno.EOPNOTSUPP: "the kernel module nf_conntrack_netlink (CONFIG_NF_CT_NETLINK) is required: load it",
}


def _pattern(addresses: Collection[str]) -> re.Pattern[bytes] | None:
    """A pattern that matches any address in network byte order; None if there are too many groups."""
    if not addresses:
        return re.compile(b"(?!)")
    packed = sorted(ip_address(address).packed for address in addresses)
    groups = [(start, b"".join(one[-1:] for one in ones)) for start, ones in groupby(packed, lambda one: one[:-1])]
    if len(groups) > _MOST_GROUPS:
        return None
    return re.compile(b"|".join(re.escape(start) + b"[" + re.escape(last) + b"]" for start, last in groups), re.DOTALL)


def _read(message: bytes) -> Tracked:
    try:
        return _tracked(message)
    except (LookupError, ValueError) as error:
        raise KernelError(f"conntrack: cannot parse an entry: {error!r}") from error


def _tracked(message: bytes) -> Tracked:
    found = dict(attributes(message[4:]))
    source, first, protocol, port = _tuple(found[_ORIGINAL])
    behind, last, _, behind_port = _tuple(found[_REPLY], reverse=True)
    key = attribute(NESTED | _ORIGINAL, found[_ORIGINAL]) + attribute(_ID, found[_ID])
    if _ZONE in found:
        key += attribute(_ZONE, found[_ZONE])
    return Tracked(
        Connection(source, behind, protocol, port if protocol in (1, 58) else behind_port),
        frozenset((source, first, behind, last)),
        int.from_bytes(found.get(_MARK, b""), "big"),
        message[0],
        key,
    )


def _tuple(data: bytes, *, reverse: bool = False) -> tuple[str, str, int, int]:
    """Source, destination, protocol and destination port; for a reply tuple (`reverse`) the source port."""
    parts = dict(attributes(data))
    addresses = dict(attributes(parts[_IP]))
    transport = dict(attributes(parts[_PROTOCOL]))
    source, destination = _address(addresses, _SOURCES), _address(addresses, _DESTINATIONS)
    protocol = transport[_NUMBER][0]
    types = [transport[kind][0] for kinds in (_TYPES, _CODES) for kind in kinds if kind in transport]
    port = (
        types[0] << 8 | types[1] if types else int.from_bytes(transport.get(_DESTINATION_PORT - reverse, b"\0"), "big")
    )
    return source, destination, protocol, port


def _address(found: dict[int, bytes], kinds: tuple[int, int]) -> str:
    ipv4, ipv6 = kinds
    return _text(found[ipv4] if ipv4 in found else found[ipv6])


@lru_cache(maxsize=1 << 14)
def _text(packed: bytes) -> str:
    return str(ip_address(packed))
