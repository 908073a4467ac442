"""Input of attacking clients that costs a worker much CPU: each as the endless reads of one connection.

Used by micro_hostile (CPU per received byte, no socket) and by the figure that floods a worker. All inputs are made for
a policy that allows `GET /api/.*` and `POST /api/.*` and refuses everything else (`RULES`).
Protocols: HTTP/1.1 (RFC 9112), HTTP/2 with prior knowledge (RFC 9113), HPACK (RFC 7541).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH

from l7proxy.model.ref import RuleRef
from l7proxy.policy.rules import HeaderMatch, HttpRule
from l7proxy.wire import http2_frames as frames

REF: Final = RuleRef("CiliumNetworkPolicy", "default", "l7-policy", "spec.ingress[0]", "p.yaml", 7)
RULES: Final = (
    HttpRule(REF, method="POST", path="/api/data", headers=(HeaderMatch("x-token", "", "(a|b)*c"),)),
    HttpRule(REF, method="GET|POST", path="/api/.*"),
)
READ: Final = 64 << 10
"""Maximum bytes of one read, as in the worker."""
HOST: Final = b"Host: backend.shop\r\n"


@dataclass(frozen=True, slots=True)
class Attack:
    """`reads` yields what one connection sends, in pieces of at most READ bytes; at its end, connect again."""

    name: str
    reads: Callable[[], Iterator[bytes]]
    ordinary: bool = False
    """Not hostile: the baseline for the others."""


# --- HTTP/1 ----------------------------------------------------------------------------------------------------------


def get(path: bytes = b"/api/", headers: bytes = b"", body: bytes = b"", method: bytes = b"GET") -> bytes:
    return b"%b %b HTTP/1.1\r\n%b%b\r\n%b" % (method, path, HOST, headers, body)


def again(data: bytes) -> Callable[[], Iterator[bytes]]:
    """The same request in every read."""
    return lambda: itertools.repeat(data)


def row(data: bytes) -> Callable[[], Iterator[bytes]]:
    """As many of the same request in one read as fit."""
    return again(data * (READ // len(data)))


def dripping(data: bytes) -> Callable[[], Iterator[bytes]]:
    """Byte by byte."""
    return lambda: itertools.cycle(data[place : place + 1] for place in range(len(data)))


CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"
USUAL: Final = get(
    b"/api/v1/items/17?page=3",
    b"User-Agent: bench/1\r\nAccept: */*\r\nAccept-Encoding: gzip, deflate\r\nX-Request-Id: %032x\r\n" % 0xA5,
)


def posted(body: bytes, headers: bytes = CHUNKED) -> bytes:
    return get(b"/api/data2", headers, body, b"POST")


HTTP1: Final = (
    Attack("h1 usual request", again(USUAL), ordinary=True),
    Attack("h1 smallest request", again(get()), ordinary=True),
    Attack("h1 escapes", again(get(b"/api/" + b"%C3%A9" * 10_000))),
    Attack("h1 needless escapes", again(get(b"/api/" + b"%6a" * 20_000))),
    Attack("h1 dot segments", again(get(b"/api/" + b"a/../" * 12_000))),
    Attack("h1 empty segments", again(get(b"/api/" + b"a//" * 20_000))),
    Attack("h1 long query", again(get(b"/api/?" + b"a=b&" * 15_000))),
    Attack("h1 escapes of 2 KB, in a row", row(get(b"/api/" + b"%C3%A9" * 340))),
    Attack("h1 Upgrade list", again(get(headers=b"Connection: upgrade\r\nUpgrade: " + b"h2c," * 15_000 + b"h2c\r\n"))),
    Attack("h1 Connection list", again(get(headers=b"Connection: " + b"a," * 30_000 + b"a\r\n"))),
    Attack("h1 TE list", again(get(headers=b"Connection: te\r\nTE: " + b"a," * 30_000 + b"a\r\n"))),
    Attack("h1 Transfer-Encoding list", again(posted(b"", b"Transfer-Encoding: " + b"a," * 30_000 + b"chunked\r\n"))),
    Attack("h1 value of blanks", again(get(headers=b"X: a" + b" " * 2_000 + b"\xe9\r\n"))),
    Attack("h1 many small headers", again(get(headers=b"a:\r\n" * 250))),
    Attack("h1 many small headers, read strictly", again(get(headers=b"a:\t\r\n" * 250))),
    Attack("h1 many cookies", again(get(headers=b"Cookie: a=b\r\n" * 250))),
    Attack("h1 header of 60 KB under a pattern", again(get(b"/api/data", b"X-Token: " + b"ab" * 30_000 + b"\r\n"))),
    Attack("h1 header of 60 KB, read strictly", again(get(headers=b"X: " + b"a" * 60_000 + b"\xe9\r\n"))),
    Attack("h1 smallest, read strictly, in a row", row(get(headers=b"a:\t\r\n"))),
    Attack("h1 smallest, in a row", row(get())),
    Attack("h1 denied, in a row", row(get(b"/"))),
    Attack("h1 denied, one by one", again(get(b"/"))),
    Attack("h1 malformed", again(get(b"nothing"))),
    Attack("h1 head, byte by byte", dripping(USUAL)),
    Attack("h1 chunks of a byte", again(posted(b"1\r\na\r\n" * 10_000 + b"0\r\n\r\n"))),
    Attack("h1 chunks with extensions", again(posted(b"1;a\r\na\r\n" * 8_000 + b"0\r\n\r\n"))),
    Attack("h1 trailers", again(posted(b"0\r\n" + b"a:\r\n" * 2_000 + b"\r\n"))),
)


# --- HTTP/2 ----------------------------------------------------------------------------------------------------------


def integer(number: int, bits: int, kind: int) -> bytes:
    """RFC 7541 5.1."""
    most = (1 << bits) - 1
    if number < most:
        return bytes((kind | number,))
    out, number = [kind | most], number - most
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number))


def text(value: bytes) -> bytes:
    return integer(len(value), 7, 0) + value


def huffman(value: bytes) -> bytes:
    """RFC 7541 5.2."""
    bits, size = 0, 0
    for byte in value:
        bits = bits << REQUEST_CODES_LENGTH[byte] | REQUEST_CODES[byte]
        size += REQUEST_CODES_LENGTH[byte]
    padding = -size % 8
    packed = (bits << padding | (1 << padding) - 1).to_bytes((size + padding) // 8)
    return integer(len(packed), 7, 0x80) + packed


METHOD_GET, METHOD_POST, SCHEME = b"\x82", b"\x83", b"\x86"
NEWEST: Final = 62
"""The index of the newest entry of the dynamic table."""


def indexed(index: int) -> bytes:
    return integer(index, 7, 0x80)


def stored(name: bytes | int, value: bytes) -> bytes:
    """A literal that is added to the dynamic table; the name is text or an index."""
    return b"\x40" + text(name) + text(value) if isinstance(name, bytes) else integer(name, 6, 0x40) + text(value)


def literal(name: bytes | int, value: bytes) -> bytes:
    return b"\0" + text(name) + text(value) if isinstance(name, bytes) else integer(name, 4, 0) + text(value)


AUTHORITY, PATH = 1, 4
HOST_FIELD: Final = stored(AUTHORITY, b"backend.shop")
START: Final = frames.PREFACE + frames.settings([(4, 1 << 20)]) + frames.window_update(0, 1 << 30)
LINE: Final = METHOD_GET + SCHEME
Numbered = Callable[[int], bytes]
"""Stream number → its frames."""


def streams(each: Numbered, *, first: bytes = b"", at_once: int = 90) -> Callable[[], Iterator[bytes]]:
    """`first` is the path field of stream 1, if any; each read has the frames of `at_once` streams."""

    def reads() -> Iterator[bytes]:
        numbers = itertools.count(3, 2)
        yield START + frames.headers(1, METHOD_GET + SCHEME + HOST_FIELD + (first or literal(PATH, b"/api/")), end=True)
        while True:
            data = b"".join(each(next(numbers)) for _ in range(at_once))
            for begin in range(0, len(data), READ):
                yield data[begin : begin + READ]

    return reads


def frames_for_ever(data: bytes) -> Callable[[], Iterator[bytes]]:
    """These frames again and again, on a connection with one open stream."""

    def reads() -> Iterator[bytes]:
        yield START + frames.headers(1, METHOD_POST + SCHEME + HOST_FIELD + literal(PATH, b"/api/"), end=False)
        yield from itertools.repeat(data * (READ // len(data)))

    return reads


def whole(block: bytes) -> Numbered:
    return lambda number: frames.headers(number, block, end=True)


def varied(block: bytes) -> Numbered:
    """A header block that differs in every stream."""
    return lambda number: frames.headers(number, block + literal(b"n", b"%d" % number), end=True)


LONG_PATH: Final = b"/api/" + b"%C3%A9" * 660
FIRST_LONG: Final = stored(PATH, LONG_PATH)
"""It evicts the host from the dynamic table."""
HOST_AGAIN: Final = literal(AUTHORITY, b"h")
BIG: Final = literal(PATH, b"/api/") + stored(b"x", b"a" * 3_000)
TINY: Final = LINE + indexed(NEWEST) + literal(PATH, b"/api/")
ODD: Final = LINE + HOST_AGAIN + literal(PATH, b"/api/")
GRPC_CALL: Final = (
    METHOD_POST + SCHEME + indexed(NEWEST) + literal(b"te", b"trailers") + literal(31, b"application/grpc")
    + literal(PATH, b"/api/a")
)  # fmt: skip


def split_block(number: int) -> bytes:
    """A header block in the maximum number of CONTINUATION frames."""
    block = TINY + literal(b"x", b"a" * 15)
    parts = [frames.frame(frames.HEADERS, frames.END_STREAM, number, block[:1])]
    parts += [frames.frame(frames.CONTINUATION, 0, number, block[place : place + 1]) for place in range(1, 16)]
    return b"".join(parts) + frames.frame(frames.CONTINUATION, frames.END_HEADERS, number, block[16:])


def reset(number: int) -> bytes:
    return frames.headers(number, TINY, end=True) + frames.rst_stream(number, 8)


def with_body(frame: bytes, count: int) -> Numbered:
    def each(number: int) -> bytes:
        data = frame[:5] + number.to_bytes(4) + frame[9:]
        head = frames.headers(number, METHOD_POST + SCHEME + indexed(NEWEST) + literal(PATH, b"/api/"), end=False)
        return head + data * count + frames.frame(frames.DATA, frames.END_STREAM, number)

    return each


def with_trailers(number: int) -> bytes:
    head = frames.headers(number, METHOD_POST + SCHEME + indexed(NEWEST) + literal(PATH, b"/api/"), end=False)
    return head + frames.headers(number, literal(b"a", b"") * 200, end=True)


def late_headers(number: int) -> bytes:
    """HEADERS on an old stream number, whose stream was already refused or answered, again and again."""
    return frames.headers(3, TINY, end=True) * 50


def settings_late(number: int) -> bytes:
    """Many streams that stay open, then SETTINGS that open and close all their windows."""
    if number < 190:
        return frames.headers(number, METHOD_POST + TINY[1:], end=False)
    return frames.settings([(4, 1 << 20), (4, 1 << 19)] * 800)


HTTP2: Final = (
    Attack("h2 unary gRPC call", streams(varied(GRPC_CALL)), ordinary=True),
    Attack("h2 smallest request", streams(whole(TINY)), ordinary=True),
    Attack("h2 path of 4 KB from the table", streams(varied(LINE + indexed(NEWEST) + HOST_AGAIN), first=FIRST_LONG)),
    Attack("h2 the same, same block", streams(whole(LINE + indexed(NEWEST) + HOST_AGAIN), first=FIRST_LONG)),
    Attack("h2 60 KB of one entry", streams(varied(ODD + indexed(NEWEST) * 20), first=BIG)),
    Attack("h2 130 KB of one entry", streams(varied(ODD + indexed(NEWEST) * 50), first=BIG)),
    Attack(
        "h2 one entry 200 times",
        streams(varied(ODD + indexed(NEWEST) * 200), first=literal(PATH, b"/api/") + stored(b"a", b"")),
    ),
    Attack("h2 Huffman", streams(whole(TINY + b"\0" + text(b"x") + huffman(b"0" * 15_000)), at_once=4)),
    Attack(
        "h2 escapes", streams(whole(LINE + indexed(NEWEST) + literal(PATH, b"/api/" + b"%C3%A9" * 10_000)), at_once=1)
    ),
    Attack("h2 200 small headers", streams(whole(TINY + literal(b"a", b"") * 200))),
    Attack("h2 200 cookies", streams(whole(TINY + literal(32, b"a=b") * 200))),
    Attack("h2 table churned", streams(whole(TINY + stored(b"a", b"") * 200))),
    Attack(
        "h2 header of 50 KB under a pattern",
        streams(
            whole(LINE + indexed(NEWEST) + literal(PATH, b"/api/data") + literal(b"x-token", b"ab" * 25_000)), at_once=1
        ),
    ),
    Attack("h2 denied", streams(whole(LINE + indexed(NEWEST) + literal(PATH, b"/")))),
    Attack("h2 denied, varied", streams(varied(LINE + indexed(NEWEST) + literal(PATH, b"/")))),
    Attack("h2 malformed", streams(whole(LINE + indexed(NEWEST) + literal(PATH, b"")))),
    Attack("h2 more streams than allowed", streams(whole(TINY), at_once=2_000)),
    Attack("h2 blocks in 16 CONTINUATION", streams(split_block)),
    Attack("h2 rapid reset", streams(reset)),
    Attack("h2 HEADERS on an old stream", streams(late_headers, at_once=40)),
    Attack("h2 trailers", streams(with_trailers, at_once=20)),
    Attack("h2 DATA of one byte", streams(with_body(frames.frame(frames.DATA, 0, 0, b"a"), 60), at_once=90)),
    Attack("h2 empty DATA", frames_for_ever(frames.frame(frames.DATA, 0, 1))),
    Attack("h2 PING", frames_for_ever(frames.frame(frames.PING, 0, 0, bytes(8)))),
    Attack("h2 SETTINGS", frames_for_ever(frames.settings([]))),
    Attack("h2 SETTINGS that move windows", streams(settings_late, at_once=95)),
    Attack("h2 WINDOW_UPDATE", frames_for_ever(frames.window_update(0, 1))),
    Attack("h2 PRIORITY", frames_for_ever(frames.frame(frames.PRIORITY, 0, 1, bytes(5)))),
    Attack("h2 frames of unknown types", frames_for_ever(frames.frame(0xBB, 0, 1))),
)

ATTACKS: Final = {attack.name: attack for attack in (*HTTP1, *HTTP2)}
