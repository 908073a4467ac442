"""Parses netlink: messages in a datagram, attributes in a message (RFC 3549, section 2.2; <linux/netlink.h>)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

NETLINK_NETFILTER: Final = 12
ERROR, DONE = 2, 3
"""Message types: an acknowledgement, whose first four bytes are -errno or 0; the end of a dump."""
REQUEST, ACK, DUMP = 1, 4, 0x300
NESTED: Final = 0x8000
_MESSAGE: Final = struct.Struct("=IH")
_HEADER: Final = 16
_ATTRIBUTE: Final = struct.Struct("=HH")


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and body of each message. Accepts any bytes; truncated messages are skipped."""
    at = 0
    while at + _HEADER <= len(data):
        length, kind = _MESSAGE.unpack_from(data, at)
        if length < _HEADER or at + length > len(data):
            return
        yield kind, data[at + _HEADER : at + length]
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
