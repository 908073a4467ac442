"""Offers of upgrades to protocols that carry requests are removed from a head; all else stays byte for byte."""

from __future__ import annotations

import pytest

from l7proxy.wire import http1_strict
from l7proxy.wire.head import RequestHead
from l7proxy.wire.upgrades import without_carriers


def head(*lines: bytes) -> bytes:
    return b"\r\n".join([b"GET / HTTP/1.1", b"Host: h", *lines, b"", b""])


CASES = [
    ((b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"), ()),
    ((b"Upgrade: h2c",), ()),
    ((b"connection: upgrade", b"upgrade: H2C,h2,HTTP/2.0,TLS/1.0,h3"), ()),
    ((b"Connection: keep-alive, Upgrade", b"Upgrade: h2c"), (b"Connection: keep-alive",)),
    ((b"Connection: close", b"Connection: upgrade", b"Upgrade: h2c", b"X:  1 "), (b"Connection: close", b"X:  1 ")),
    ((b"Connection: Upgrade", b"Upgrade: h2c,websocket"), (b"Connection: Upgrade", b"Upgrade: websocket")),
    (
        (b"Connection: Upgrade", b"Upgrade: h2c", b"UPGRADE:foo , bar"),
        (b"Connection: Upgrade", b"UPGRADE:foo , bar"),
    ),
    ((b"Connection:  upgrade ,x", b"Upgrade:  websocket"), (b"Connection:  upgrade ,x", b"Upgrade:  websocket")),
]


@pytest.mark.parametrize(("given", "kept"), CASES, ids=lambda lines: b" ".join(lines).decode()[:60] or "nothing")
def test_only_carriers_go(given: tuple[bytes, ...], kept: tuple[bytes, ...]) -> None:
    assert without_carriers(head(*given)) == head(*kept)


@pytest.mark.parametrize(("given", "kept"), CASES, ids=lambda lines: b" ".join(lines).decode()[:60] or "nothing")
def test_what_is_judged_is_what_is_forwarded(given: tuple[bytes, ...], kept: tuple[bytes, ...]) -> None:
    made = http1_strict.request(head(*given) + b"rest")
    assert isinstance(made, RequestHead)
    assert (made.raw, made.size) == (head(*kept), len(head(*given)))
    assert made.headers == [
        (name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in (b"Host: h", *kept))
    ]
    again = http1_strict.request(made.raw)
    assert isinstance(again, RequestHead)
    assert (again.headers, again.upgrade, again.keep_alive) == (made.headers, made.upgrade, made.keep_alive)
