"""Splits HTTP/1 heads and trailers into lines and checks their bytes before they are interpreted.

RFC 9112 allows leniency about bare LF, folded lines and whitespace before a colon; each has been a smuggling hole
between two recipients, so all are rejected here. Control bytes are rejected too.
Work is linear in the bytes fed, in any split. The first fault in the stream is the one reported.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from l7proxy.errors import PeerError
from l7proxy.model.http import alike
from l7proxy.wire.head import MAX_HEAD, MAX_HEADERS, Header

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"

_FAULT = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?=[^\n])|(?<!\r)\n")
_NAME = re.compile(rb"(" + TOKEN + rb"):")
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})
_TABLESS = _FRAMING | {b"host"}


def field(line: bytes) -> Header:
    """One field line, already free of control bytes, as (lower-case name, value)."""
    match = _NAME.match(line)
    if match is None:
        raise PeerError(_what_is_wrong(line))
    name = match[1].lower()
    if passes_for_framing(name):
        raise PeerError(f"header {name.decode()} is read as a framing header by some servers")
    if name in _TABLESS and b"\t" in line:  # RFC 9110 allows it around a value; for nginx it is part of the value
        raise PeerError(f"tab in header {name.decode()}")
    return name, line[match.end() :].strip(b" \t")


def passes_for_framing(name: bytes) -> bool:
    """Whether some servers treat this lower-case name, which is not a framing header, as one."""
    return alike(name) in _FRAMING and name not in _FRAMING


def _what_is_wrong(line: bytes) -> str:
    name, colon, _ = line.partition(b":")
    if line[:1] in (b" ", b"\t"):
        return "folded header line (it starts with whitespace)"
    if not colon:
        return "a header line has no colon"
    if not name:
        return "a header name is empty"
    if name.rstrip(b" \t") != name:
        return "whitespace between a header name and its colon"
    return f"header name {name[:40].decode('latin-1')!a} contains an invalid byte"


def fault_name(byte: bytes) -> str:
    match byte:
        case b"\n":
            return "a line ends in a bare LF"
        case b"\r":
            return "bare CR in a line"
        case b"\0":
            return "NUL byte in a line"
    return f"control byte 0x{byte.hex()} in a line"


class HeadLines:
    """Finds the end of a head, in any split, and keeps its checked lines.

    `check_start` checks the start line as soon as it is complete. `skip_empty` allows one empty line before it
    (RFC 9112 2.2: requests only).
    """

    __slots__ = ("_check_start", "_may_skip", "_next", "_seen", "begin", "headers", "start")

    def __init__(self, check_start: Callable[[bytes], None], *, skip_empty: bool) -> None:
        self._check_start = check_start
        self._may_skip = skip_empty
        self._next = 0  # where the first unread line begins
        self._seen = 0  # there is no fault before this
        self.begin = 0
        self.start = b""
        self.headers: list[Header] = []

    def feed(self, data: bytes | bytearray) -> int:
        """`data` is always all bytes from the start of the head. Returns where the head ends; 0 if incomplete."""
        end_of_head = data.find(b"\r\n\r\n", max(self._seen - 3, 0), MAX_HEAD)
        limit = MAX_HEAD if end_of_head < 0 else end_of_head + 4  # later bytes belong to the next reader
        fault = _FAULT.search(data, self._seen, limit)
        stop = fault.start() if fault else min(len(data), limit)
        end = data.find(b"\r\n", self._seen, stop)
        self._seen = max(stop - 1, 0)  # a CR at the end is checked with the next byte
        while end >= 0:
            line = bytes(data[self._next : end])
            self._next = end + 2
            end = data.find(b"\r\n", self._next, stop)
            if self._take(line):
                return self._next
        if fault:
            raise PeerError(fault_name(fault[0]))
        if len(data) > MAX_HEAD:
            raise PeerError(
                f"the {'head' if self.start else 'start line'} is longer than {MAX_HEAD} bytes",
                status=431 if self.start else 414,
            )
        return 0

    def _take(self, line: bytes) -> bool:
        """Process one line. True when it ends the head."""
        if self.start:
            if not line:
                return True
            if len(self.headers) == MAX_HEADERS:
                raise PeerError(f"more than {MAX_HEADERS} headers", status=431)
            self.headers.append(field(line))
        elif line:
            self._check_start(line)
            self.start = line
        elif self._may_skip:
            self._may_skip = False
            self.begin = self._next
        else:
            raise PeerError("empty line before the message")
        return False
