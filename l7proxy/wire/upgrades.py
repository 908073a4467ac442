"""Removes from a request head the upgrades that are never allowed: to protocols that carry further requests.

After an upgrade to HTTP/2, HTTP/3, another HTTP version or TLS, requests on the connection would not be evaluated.
Upgrade is hop-by-hop (RFC 9110 7.8), and this hop does not support these protocols: the server never sees the offer and
answers in HTTP/1. All other bytes of the head stay the same. (RFC 9113 deprecates the upgrade to h2c.)
"""

from __future__ import annotations

import re

from l7proxy.wire.head import Header

_NEVER = re.compile(rb"(?:h2|h3|http|tls)", re.IGNORECASE)


def offers_carrier(headers: list[Header]) -> bool:
    """True when `without_carriers` would change the head."""
    return any(name == b"upgrade" and any(map(_NEVER.match, _items(value))) for name, value in headers)


def without_carriers(raw: bytes) -> bytes:
    """A checked head without these upgrades, and without their Connection options."""
    start, *lines = raw[:-4].split(b"\r\n")
    stays = any(not _NEVER.match(item) for line in lines if _name(line) == b"upgrade" for item in _items(_value(line)))
    kept = (_reduced(line, stays) for line in lines)
    return b"\r\n".join([start, *(line for line in kept if line), b"", b""])


def _reduced(line: bytes, stays: bool) -> bytes:
    """One line as it is forwarded; empty when it is dropped. `stays`: another upgrade is still offered."""
    match _name(line):
        case b"upgrade":
            return _filtered(line, [item for item in _items(_value(line)) if not _NEVER.match(item)])
        case b"connection":
            gone = {b"http2-settings"} if stays else {b"http2-settings", b"upgrade"}
            return _filtered(line, [item for item in _items(_value(line)) if item.lower() not in gone])
        case b"http2-settings":
            return b""
    return line


def _filtered(line: bytes, items: list[bytes]) -> bytes:
    if len(items) == len(_items(_value(line))):
        return line
    return line.partition(b":")[0] + b": " + b", ".join(items) if items else b""


def _items(value: bytes) -> list[bytes]:
    return [item for part in value.split(b",") if (item := part.strip(b" \t"))]


def _name(line: bytes) -> bytes:
    return line.partition(b":")[0].lower()


def _value(line: bytes) -> bytes:
    return line.partition(b":")[2]
