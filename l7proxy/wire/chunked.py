"""Parses the chunked coding incrementally, exactly as RFC 9112 7.1 defines it. Bytes are counted, not copied.

Rejected: sizes that are not 1 to 16 hex digits, line ends other than CRLF, whitespace around extensions, long
extensions, long trailers, and trailers that frame or route the message or repeat a field that policy evaluated:
recipients may merge trailers into the head (RFC 9110 6.5.2), and would see a value that policy did not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import IntEnum
from typing import Final

from l7proxy.errors import PeerError
from l7proxy.model.http import alike
from l7proxy.wire.head import Header
from l7proxy.wire.lines import TOKEN, fault_name, field

MAX_LINE: Final = 256
"""Bytes of a chunk-size line with its extensions."""

MAX_EXTENSIONS: Final = 16 << 10
"""Bytes of extensions in one message."""

MAX_TRAILERS: Final = 8 << 10
MAX_SIZE: Final = (1 << 63) - 1

_SIZE_LINE = re.compile(
    rb"([0-9A-Fa-f]{1,16})((?:;" + TOKEN + rb"(?:=(?:" + TOKEN + rb'|"(?:[\t !#-\[\]-~]|\\[\t !-~])*"))?)*)\r\n'
)
_PLAIN_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})\r\n")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_NOT_IN_TRAILERS: Final = frozenset(
    b"authorization connection content-encoding content-length content-range content-type cookie expect host "
    b"keep-alive max-forwards proxy-authorization proxy-connection range set-cookie te trailer transfer-encoding "
    b"upgrade www-authenticate".split()
)
"""RFC 9110 6.5.1: fields that frame, route or authenticate a message, or change how it is processed."""


class _At(IntEnum):
    SIZE = 0
    DATA = 1
    DATA_END = 2
    TRAILER = 3


SIZE, DATA, DATA_END, TRAILER = _At


class ChunkedBody:
    """Feed it the bytes after the head, in any split; see body.Body."""

    __slots__ = ("_at", "_extensions", "_head", "_judged", "_left", "_line", "_trailers", "done")

    def __init__(self, head: Sequence[Header] = ()) -> None:
        """`head` are the fields that policy evaluated: trailers must not repeat one of them."""
        self.done = False
        self._head = head
        self._judged: frozenset[bytes] | None = None  # names in the head, computed at the first trailer
        self._at = SIZE
        self._left = 0
        self._line = bytearray()  # an incomplete line
        self._extensions = 0
        self._trailers = 0

    def feed(self, data: bytes) -> int:
        at, end = 0, len(data)
        while at < end and not self.done:
            if self._at is SIZE and not self._line and (match := _PLAIN_SIZE.match(data, at)):
                at = self._take_plain(data, match)
            elif self._at is SIZE and not self._line and (match := _SIZE_LINE.match(data, at, at + MAX_LINE)):
                self._take_size(match)
                at = match.end()
            elif self._at is DATA:
                step = min(self._left, end - at)
                self._left -= step
                at += step
                if not self._left:
                    self._at = DATA_END
            else:
                at = self._take_line(data, at)
        return at

    @property
    def plain(self) -> int:
        """The rest of the current chunk."""
        return self._left if self._at is DATA else 0

    def skip(self, count: int) -> None:
        assert count <= self.plain
        self._left -= count
        if not self._left:
            self._at = DATA_END

    def _take_plain(self, data: bytes, match: re.Match[bytes]) -> int:
        """The common case: a complete size line, often with the whole chunk after it."""
        size = int(match[1], 16)
        begin = match.end()
        if size == 0:
            self._at = TRAILER
            return begin
        if data[begin + size : begin + size + 2] == b"\r\n":
            return begin + size + 2
        self._left = size
        self._at = DATA
        return begin

    def _take_line(self, data: bytes, at: int) -> int:
        """Complete the current line from `data` and parse it. Returns where it ends."""
        end = data.find(b"\n", at)
        stop = len(data) if end < 0 else end + 1
        self._demand_room(stop - at)
        self._line += data[at:stop]
        if end >= 0:
            line = bytes(self._line)
            self._line.clear()
            self._read(line)
        elif self._at is DATA_END and not b"\r\n".startswith(self._line):
            raise PeerError("a chunk is longer than its size")
        return stop

    def _demand_room(self, more: int) -> None:
        length = len(self._line) + more
        if self._at is TRAILER:
            if self._trailers + length > MAX_TRAILERS:
                raise PeerError(f"the trailers are longer than {MAX_TRAILERS} bytes", status=431)
        elif self._at is SIZE and length > MAX_LINE:
            raise PeerError(f"a chunk-size line is longer than {MAX_LINE} bytes")
        elif self._at is DATA_END and length > 2:
            raise PeerError("a chunk is longer than its size")

    def _read(self, line: bytes) -> None:
        if self._at is SIZE:
            self._read_size(line)
        elif self._at is TRAILER:
            self._read_trailer(line)
        elif line == b"\r\n":
            self._at = SIZE
        else:
            raise PeerError("a chunk is longer than its size")

    def _read_size(self, line: bytes) -> None:
        match = _SIZE_LINE.fullmatch(line)
        if match is None:
            raise PeerError("invalid chunk-size line: must be hex digits, optional extensions and CRLF")
        self._take_size(match)

    def _take_size(self, match: re.Match[bytes]) -> None:
        self._left = int(match[1], 16)
        if self._left > MAX_SIZE:
            raise PeerError("a chunk size is too large")
        self._extensions += len(match[2])
        if self._extensions > MAX_EXTENSIONS:
            raise PeerError(f"chunk extensions are longer than {MAX_EXTENSIONS} bytes")
        self._at = DATA if self._left else TRAILER

    def _read_trailer(self, line: bytes) -> None:
        if line == b"\r\n":
            self.done = True
            return
        if not line.endswith(b"\r\n"):
            raise PeerError(fault_name(b"\n"))
        content = line[:-2]
        fault = _CONTROL.search(content)
        if fault:
            raise PeerError(fault_name(fault[0]))
        name, _ = field(content)
        if alike(name) in _NOT_IN_TRAILERS:
            raise PeerError(f"field {name.decode()} is not allowed in trailers")
        if self._judged is None:
            self._judged = frozenset(alike(judged) for judged, _ in self._head)
        if alike(name) in self._judged:
            raise PeerError(f"field {name.decode()} is in both the headers and the trailers")
        self._trailers += len(line)
