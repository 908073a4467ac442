"""Heads of HTTP/1 messages as values, with body framing as one number. No parsing here.

Both readers (http1_fast, http1_strict) make these. `raw` is what is forwarded: the bytes received, except that the
request line is rewritten when its path had to be normalised, and `chunked` is in lower case.

`__init__` is written out, here and elsewhere on the hot path: the one that dataclass generates stays interpreted when
the module is compiled, and takes ten times as long (0.47 µs instead of 0.04).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

CHUNKED: Final = -1
UNTIL_CLOSE: Final = -2
"""Framing is the body's length in bytes (0: no body), CHUNKED or UNTIL_CLOSE."""

MAX_HEAD: Final = 64 << 10
"""Bytes of a head, with its start line and its empty line."""

MAX_HEADERS: Final = 256

Header = tuple[bytes, bytes]
"""(lower-case name, value without surrounding whitespace)."""


class Miss(Enum):
    """Why a reader returns no head: it is incomplete, or not a common case (fast reader only)."""

    NEED_MORE = "need more"
    ODD = "odd"


@dataclass(init=False, slots=True)
class RequestHead:
    """`path` is what is evaluated and forwarded: normalised, with its query. `size` is the bytes taken from the input.

    `host` is the authority: that of an absolute-form target, else the Host header, else empty (HTTP/1.0).
    `upgrade` holds the requested protocols, lower case, only if `Connection: upgrade` is present.
    `traced` is False only if the reader saw that no header can hold a trace id.
    """

    method: bytes
    target: bytes
    path: bytes
    minor: int
    host: bytes
    framing: int
    keep_alive: bool
    expect_continue: bool
    upgrade: tuple[bytes, ...]
    raw: bytes
    size: int
    traced: bool = field(compare=False)
    _headers: list[Header] | None = field(init=False, compare=False, repr=False)

    def __init__(
        self,
        method: bytes,
        target: bytes,
        path: bytes,
        minor: int,
        host: bytes,
        framing: int,
        keep_alive: bool,
        expect_continue: bool,
        upgrade: tuple[bytes, ...],
        raw: bytes,
        size: int,
        traced: bool = True,
    ) -> None:
        self.method = method
        self.target = target
        self.path = path
        self.minor = minor
        self.host = host
        self.framing = framing
        self.keep_alive = keep_alive
        self.expect_continue = expect_continue
        self.upgrade = upgrade
        self.raw = raw
        self.size = size
        self.traced = traced
        self._headers = None

    @property
    def headers(self) -> list[Header]:
        """As they are forwarded. Parsed on first use, because few rules match headers."""
        if self._headers is None:
            self._headers = headers_of(self.raw)
        return self._headers


@dataclass(init=False, slots=True)
class ResponseHead:
    """`framing` takes the request's method into account: 0 for a response to HEAD. `raw` is as long as received."""

    status: int
    minor: int
    framing: int
    keep_alive: bool
    upgrade: tuple[bytes, ...]
    raw: bytes

    def __init__(
        self,
        status: int,
        minor: int,
        framing: int,
        keep_alive: bool,
        upgrade: tuple[bytes, ...],
        raw: bytes,
    ) -> None:
        self.status = status
        self.minor = minor
        self.framing = framing
        self.keep_alive = keep_alive
        self.upgrade = upgrade
        self.raw = raw

    @property
    def headers(self) -> list[Header]:
        """As they are forwarded."""
        return headers_of(self.raw)


def headers_of(raw: bytes) -> list[Header]:
    """The headers of a head that a reader has checked."""
    lines = raw[:-4].split(b"\r\n")[1:]
    return [(name.lower(), value.strip(b" \t")) for name, _, value in (line.partition(b":") for line in lines)]
