"""Netlink to netfilter: its socket and requests, messages in a datagram, attributes in a message.

RFC 3549, section 2.2; <linux/netlink.h>, <linux/netfilter/nfnetlink.h>. Blocking and non-blocking readers are in
conntrack, nflog and nft/watch.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Final

_NETLINK_NETFILTER: Final = 12
_SO_RCVBUFFORCE: Final = 33  # socket(7); not in Python's socket module
DATAGRAM: Final = 1 << 17
"""Bytes of the largest datagram."""
ERROR, DONE = 2, 3
"""Message types: an acknowledgement, whose first four bytes are -errno or 0; the end of a dump."""
ACK, DUMP = 4, 0x300
"""Flags of a request."""
_REQUEST: Final = 1
NESTED: Final = 0x8000
_HEADER: Final = struct.Struct("=IHHII")
_NETFILTER: Final = struct.Struct(">BBH")
_ATTRIBUTE: Final = struct.Struct("=HH")


def netfilter_socket(receive_buffer: int) -> socket.socket:
    """A blocking socket in the network namespace of the calling thread. Without CAP_NET_ADMIN its buffer is smaller."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    for option in (socket.SO_RCVBUF, _SO_RCVBUFFORCE):
        with contextlib.suppress(OSError):
            made.setsockopt(socket.SOL_SOCKET, option, receive_buffer)
    return made


def request(kind: int, flags: int = 0, attributes: bytes = b"", *, family: int = 0, resource: int = 0) -> bytes:
    """A request to netfilter; `resource` is the number of a group or queue, where the subsystem has them."""
    body = _NETFILTER.pack(family, 0, resource) + attributes
    return _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | flags, 1, 0) + body


def error_code(body: bytes) -> int:
    """The errno in the body of an ERROR message, 0 for success."""
    return -int.from_bytes(body[:4], sys.byteorder, signed=True)


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and body of each message. Accepts any bytes; truncated messages are skipped."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind = _HEADER.unpack_from(data, at)[:2]
        if length < _HEADER.size or at + length > len(data):
            return
        yield kind, data[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type, without the flag bits, and value of each attribute. Accepts any bytes."""
    at = 0
    while at + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4 or at + length > len(data):
            return
        yield kind & 0x3FFF, data[at + 4 : at + length]
        at += (length + 3) & ~3


def attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + b"\0" * (-len(value) % 4)
