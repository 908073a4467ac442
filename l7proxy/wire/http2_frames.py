"""Parses and writes HTTP/2 frames (RFC 9113 4 and 6), in any split. The only state is an incomplete frame.

An Http2Error ends the connection: GOAWAY with its code. Where RFC 9113 allows a stream error or a connection error, a
malformed frame is a connection error: a peer that can make us reset streams while the server works on them can
overload it (CVE-2025-8671).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import IntEnum
from struct import Struct
from typing import Final

from l7proxy.errors import PeerError

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_SIZE: Final = 9
MAX_FRAME: Final = 16384
"""Bytes of a payload: the default of SETTINGS_MAX_FRAME_SIZE, which all peers must accept and we do not raise."""

MAX_WINDOW: Final = (1 << 31) - 1
MAX_STREAM: Final = (1 << 31) - 1

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
WITH_PRIORITY: Final = 0x20


class Setting(IntEnum):
    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6
    NO_RFC7540_PRIORITIES = 9


class Code(IntEnum):
    """RFC 9113 7."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


def code_name(code: int) -> str:
    return Code(code).name if code in Code._value2member_map_ else f"error {code}"


class Http2Error(PeerError):
    """A connection error: the rest of the connection cannot be parsed, or exceeds a limit."""

    def __init__(self, message: str, code: Code = Code.PROTOCOL_ERROR, *, status: int = 400) -> None:
        super().__init__(message, status=status)
        self.code = code


Frame = tuple[int, int, int, bytes, int, int]
"""(type, flags, stream, data, begin, end): the payload is `data[begin:end]`, the frame header the 9 bytes before it."""

_HEAD = Struct(">HBBBL")
_SETTING = Struct(">HL")
_LONG = Struct(">L")
_GOAWAY = Struct(">LL")


class FrameReader:
    """Splits input into frames and keeps an incomplete frame until more bytes are fed."""

    __slots__ = ("rest",)

    def __init__(self) -> None:
        self.rest = b""

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Frames that end in `data`. Exhaust the iterator before feeding more."""
        if self.rest:
            data = self.rest + data
        at, size = 0, len(data)
        while size - at >= HEAD_SIZE:
            high, low, kind, flags, stream = _HEAD.unpack_from(data, at)
            length = high << 8 | low
            if length > MAX_FRAME:
                raise Http2Error(f"a frame is longer than {MAX_FRAME} bytes", Code.FRAME_SIZE_ERROR)
            begin = at + HEAD_SIZE
            end = begin + length
            if end > size:
                break
            yield kind, flags, stream & MAX_STREAM, data, begin, end
            at = end
        self.rest = data[at:]

    @property
    def begun(self) -> int:
        """The type of the incomplete frame; -1 when not known."""
        return self.rest[3] if len(self.rest) > 3 else -1


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    size = len(payload)
    return _HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def headers(stream: int, block: bytes, *, end: bool) -> bytes:
    """HEADERS, and as many CONTINUATION frames as the block needs."""
    flags = END_STREAM if end else 0
    if len(block) <= MAX_FRAME:
        return frame(HEADERS, flags | END_HEADERS, stream, block)
    parts = [frame(HEADERS, flags, stream, block[:MAX_FRAME])]
    for at in range(MAX_FRAME, len(block), MAX_FRAME):
        last = at + MAX_FRAME >= len(block)
        parts.append(frame(CONTINUATION, END_HEADERS if last else 0, stream, block[at : at + MAX_FRAME]))
    return b"".join(parts)


def settings(pairs: Iterable[tuple[int, int]]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*pair) for pair in pairs))


def rst_stream(stream: int, code: int) -> bytes:
    return frame(RST_STREAM, 0, stream, _LONG.pack(code))


def window_update(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, _LONG.pack(increment))


def goaway(last: int, code: int, why: bytes = b"") -> bytes:
    return frame(GOAWAY, 0, 0, _GOAWAY.pack(last, code) + why)


# --- payloads --------------------------------------------------------------------------------------------------------


def unpadded(flags: int, data: bytes, begin: int, end: int) -> tuple[int, int]:
    """Where the content of a DATA or HEADERS payload begins and ends (RFC 9113 6.1)."""
    if flags & PADDED:
        if begin == end:
            raise Http2Error("a padded frame is empty", Code.FRAME_SIZE_ERROR)
        padding = data[begin]
        begin += 1
        end -= padding
        if end < begin:
            raise Http2Error("the padding is longer than its frame")
    return begin, end


def long_at(what: str, data: bytes, begin: int, end: int) -> int:
    """The 32-bit payload of a RST_STREAM or WINDOW_UPDATE frame."""
    if end - begin != 4:
        raise Http2Error(f"a {what} frame is not 4 bytes long", Code.FRAME_SIZE_ERROR)
    number: int = _LONG.unpack_from(data, begin)[0]
    return number


def read_settings(data: bytes, begin: int, end: int) -> list[tuple[int, int]]:
    if (end - begin) % _SETTING.size:
        raise Http2Error("the length of a SETTINGS frame is not a multiple of 6", Code.FRAME_SIZE_ERROR)
    return list(_SETTING.iter_unpack(data[begin:end]))


def read_goaway(data: bytes, begin: int, end: int) -> tuple[int, int]:
    """(last stream, code)."""
    if end - begin < _GOAWAY.size:
        raise Http2Error("a GOAWAY frame is shorter than 8 bytes", Code.FRAME_SIZE_ERROR)
    last, code = _GOAWAY.unpack_from(data, begin)
    return last & MAX_STREAM, code
