"""Requests and responses for fuzzing: mostly plain, some odd, some mutated. For hypothesis and for the long run."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

Pick = Callable[[int], int]
"""A source of choices: a number below its argument."""


def _lines(text: str) -> tuple[bytes, ...]:
    return tuple(line.encode("latin-1").decode("unicode-escape").encode("latin-1") for line in text.split("\n")[1:-1])


PLAIN_TARGETS: Final = _lines(r"""
/
/a
/a/b?c=d
/a//b
/a/./b
/a/../b
/.a
/..a
/a?//../
/a?b;c
/a?
""")
ODD_TARGETS: Final = _lines(r"""
/a/..
/a%2fb
/%61
/a;b
/a#b
/a?b#c
*
http://h/a
http://x/a
a
/a b
/a\\b
/\xe9
/a%
/%00
/a/%2e%2e/b
//
?

""")
PLAIN_FIELDS: Final = _lines(r"""
Content-Length: 5
content-length: 0
Transfer-Encoding: chunked
Connection: close
Connection: keep-alive
connection: Keep-Alive
TE: trailers
Accept: */*
User-Agent: a (b; c) d/1
X: a
X: b
X-Y:
Cookie: a=b; c=d
X: chunked, Content-Length: 7
""")
ODD_FIELDS: Final = _lines(r"""
Host: h
host:x
Host: a,b
Host: [::1]:80
Content-Length: +5
Content-Length: 05
Content-Length: 5, 5
Content-Length:
Content_Length: 5
Content.Length: 5
Content-Length : 5
Content-Length: 9999999999999999999
transfer-encoding: Chunked
Transfer-Encoding: CHUNKED\x20
Transfer-Encoding: chunked, Chunked
Transfer-Encoding: gzip, chunked
Transfer_Encoding: chunked
Transfer!Encoding: chunked
Transfer-Encoding: chunked\x20
Transfer-Encoding:\tchunked
Connection: Upgrade
Connection: host
Connection: CLOSE
Connection:
Upgrade: websocket
Upgrade: h2c, websocket
Upgrade: h2c
HTTP2-Settings: AA
Connection: upgrade, HTTP2-Settings
Expect: 100-continue
Expect: x
X:\ta
X: a\x20
X: \xe9
X_Y: a
X.Y: a
 X: a
X : a
: a
X
X: a\x00
X: a\rb
X: a\nY: b
X: a\x7f

\xe9: a
""")
HOSTS: Final = (b"Host: h", b"host: h", b"HOST:h", b"Host: h:80", b"Host:  h")
ODD_HOSTS: Final = (b"", b"Host: ", b"Host: h ", b"Host: a@b", b"X: a")
METHODS: Final = (b"GET", b"POST", b"HEAD", b"OPTIONS")
ODD_METHODS: Final = (b"CONNECT", b"get", b"G T", b"")
ODD_VERSIONS: Final = (b"HTTP/1.0", b"HTTP/2.0", b"http/1.1", b"HTTP/1.2", b"HTTP/1.1 ", b"")
STATUSES: Final = (b"200 OK", b"204 No Content", b"304 x", b"404 ")
ODD_STATUSES: Final = (b"100 Continue", b"101 S", b"99 x", b"600 x", b"200", b"2000 x", b"404 \xc3")
ODD_ENDS: Final = (b"\n", b"\r", b"\r\r\n", b" \r\n", b"\r\n ", b"\x0b\r\n", b"\r\n\r\n")
BEHIND: Final = (b"", b"", b"hello", b"GET / ")
NOISE: Final = b"\r\n\t :/#%;\\?.,\x00\x7f\x80\xffAa0-_"


def request(pick: Pick) -> bytes:
    mostly = _mostly(pick)
    line = b" ".join(
        (mostly(METHODS, ODD_METHODS), mostly(PLAIN_TARGETS, ODD_TARGETS), mostly((b"HTTP/1.1",), ODD_VERSIONS))
    )
    return _message(pick, line, [mostly(HOSTS, ODD_HOSTS)])


def response(pick: Pick) -> bytes:
    mostly = _mostly(pick)
    return _message(pick, mostly((b"HTTP/1.1",), ODD_VERSIONS) + b" " + mostly(STATUSES, ODD_STATUSES), [])


def dice(seed: int) -> Pick:
    return random.Random(seed).randrange


def _mostly(pick: Pick) -> Callable[[tuple[bytes, ...], tuple[bytes, ...]], bytes]:
    def choose(plain: tuple[bytes, ...], odd: tuple[bytes, ...]) -> bytes:
        options = plain if pick(14) else odd
        return options[pick(len(options))]

    return choose


def _message(pick: Pick, line: bytes, fields: list[bytes]) -> bytes:
    mostly = _mostly(pick)
    for _ in range(pick(5)):
        fields.insert(pick(len(fields) + 1), mostly(PLAIN_FIELDS, ODD_FIELDS))
    ends = (mostly((b"\r\n", b"\r\n", b"\r\n"), ODD_ENDS) if not pick(4) else b"\r\n" for _ in range(len(fields) + 2))
    data = b"".join(text + end for text, end in zip((line, *fields, b""), ends, strict=True))
    data = (b"" if pick(30) else b"\r\n") + data + BEHIND[pick(len(BEHIND))]
    if not pick(4):
        data = _bent(pick, data)
    return data if pick(16) else data[: pick(len(data) + 1)]


def _bent(pick: Pick, data: bytes) -> bytes:
    """One or two bytes set, inserted or removed."""
    bent = bytearray(data)
    for _ in range(1 + pick(2)):
        at = pick(len(bent) + 1)
        noise = bytes((NOISE[pick(len(NOISE))],))
        bent[at : at + pick(2)] = noise if pick(3) else b""
    return bytes(bent)
