"""Derives message framing from headers: the length of the body, connection persistence, upgrades.

RFC 9112 6.3 without its leniencies: two lengths, both a length and a coding, a coding other than `chunked`
alone, and a coding in HTTP/1.0 are rejected, never repaired. Only the case of `chunked` may vary (RFC 9112 7).
"""

from __future__ import annotations

import re
from typing import Final

from l7proxy.errors import PeerError
from l7proxy.wire.head import CHUNKED, UNTIL_CLOSE, Header
from l7proxy.wire.lines import TOKEN

LENGTH: Final = rb"(?:0|[1-9][0-9]{0,17})"
"""Digits only, no leading zeros (some servers parse octal), and less than 2**63."""

_LENGTH = re.compile(LENGTH)
_TOKEN = re.compile(TOKEN)
_PROTOCOL = re.compile(TOKEN + rb"(?:/" + TOKEN + rb")?")
_CODING = re.compile(rb"(\r\n(?i:transfer-encoding): *+)(?i:chunked)(?= *+\r\n)")
MAX_ITEMS: Final = 64
"""Items in all Connection headers of a message, and in all Upgrade headers. Real messages have one to five."""

_NEVER_NOMINATED = frozenset({b"host", b"content-length", b"transfer-encoding"})


def values(headers: list[Header], name: bytes) -> list[bytes]:
    return [value for key, value in headers if key == name]


def declared(headers: list[Header], minor: int) -> int | None:
    """The length or CHUNKED that the headers declare; None if neither."""
    lengths = values(headers, b"content-length")
    codings = values(headers, b"transfer-encoding")
    if codings:
        if lengths:
            raise PeerError("both Content-Length and Transfer-Encoding are present")
        if len(codings) > 1:
            raise PeerError("duplicate Transfer-Encoding")
        if codings[0].lower() != b"chunked":
            raise PeerError("Transfer-Encoding must be exactly `chunked`")
        if minor == 0:
            raise PeerError("Transfer-Encoding is not allowed in HTTP/1.0")
        return CHUNKED
    return content_length(lengths)


def content_length(lengths: list[bytes]) -> int | None:
    """The length in the values of all Content-Length headers; None if there are none."""
    if not lengths:
        return None
    if len(lengths) > 1:
        raise PeerError("duplicate Content-Length")
    if not _LENGTH.fullmatch(lengths[0]):
        raise PeerError("Content-Length must be a decimal number")
    return int(lengths[0])


def canonical(raw: bytes) -> bytes:
    """A checked head with its coding spelled `chunked`, which every recipient accepts. The length does not change."""
    return _CODING.sub(rb"\1chunked", raw, count=1)


def response_framing(headers: list[Header], minor: int, status: int, method: bytes) -> int:
    """RFC 9112 6.3, items 1 to 8, for a response to `method`."""
    said = declared(headers, minor)
    if status < 200 or status == 204:
        if said:
            raise PeerError(f"a {status} response must not have a body")
        return 0
    if method == b"CONNECT" and status < 300:  # RFC 9110 9.3.6: a tunnel; a length here is ambiguous
        if said:
            raise PeerError("a response that opens a tunnel must not have a body")
        return 0
    if method == b"HEAD" or status == 304:
        return 0
    return UNTIL_CLOSE if said is None else said


def connection_options(headers: list[Header]) -> frozenset[bytes]:
    """The tokens of all Connection headers, lower case."""
    options = _listed(headers, b"connection", _TOKEN)
    if not _NEVER_NOMINATED.isdisjoint(options):
        raise PeerError("Connection lists a header that is used for framing or routing")
    return frozenset(options)


def keep_alive(options: frozenset[bytes], minor: int) -> bool:
    return b"close" not in options and (minor == 1 or b"keep-alive" in options)


def upgrade(headers: list[Header], options: frozenset[bytes], minor: int) -> tuple[bytes, ...]:
    """The protocols of Upgrade, lower case, if Connection lists `upgrade` (RFC 9110 7.8: else ignored, as in 1.0)."""
    if b"upgrade" not in options or minor == 0:
        return ()
    return tuple(_listed(headers, b"upgrade", _PROTOCOL))


def _listed(headers: list[Header], name: bytes, item: re.Pattern[bytes]) -> list[bytes]:
    found: list[bytes] = []
    listed = values(headers, name)
    if sum(value.count(b",") for value in listed) + len(listed) > MAX_ITEMS:
        raise PeerError(f"{name.decode().capitalize()} lists more than {MAX_ITEMS} items", status=431)
    for value in listed:
        for part in value.lower().split(b","):
            text = part.strip(b" \t")
            if text and not item.fullmatch(text):
                raise PeerError(f"{name.decode().capitalize()} contains an invalid token")
            if text:
                found.append(text)
    return found
