"""Several protocols on one connection, each meant to be understood by the server but not by the proxy."""

from __future__ import annotations

import pytest

from tests.attacks.labs import AttackLab
from tests.attacks.packets import token

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FIRST = b"GET /public/first HTTP/1.1\r\nHost: a\r\n\r\n"
MIXTURES = {
    "HTTP/1, then the preface of HTTP/2": FIRST + PREFACE + b"\0\0\0\4\0\0\0\0\0" + b"GET /secret/%b",
    "the preface, then HTTP/1": PREFACE + b"GET /secret/%b HTTP/1.1\r\nHost: a\r\n\r\n",
    "half a preface, then HTTP/1": b"PRI * HTTP/2.0\r\n\r\nGET /secret/%b HTTP/1.1\r\nHost: a\r\n\r\n",
    "an upgrade to h2c, then its frames": b"GET /public HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\n"
    b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n" + PREFACE + b"%b",
    "an upgrade that the server does not take, then a request": b"GET /public HTTP/1.1\r\nHost: a\r\n"
    b"Connection: Upgrade\r\nUpgrade: irc\r\n\r\nGET /secret/%b HTTP/1.1\r\nHost: a\r\n\r\n",
    "an upgrade with a body, then a request": b"POST /public HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\n"
    b"Upgrade: irc\r\nContent-Length: 4\r\n\r\nabcdGET /secret/%b HTTP/1.1\r\nHost: a\r\n\r\n",
    "CONNECT, then anything": b"CONNECT /public HTTP/1.1\r\nHost: a\r\n\r\nGET /secret/%b HTTP/1.1\r\nHost: a\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03%b",
}


@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES.keys())
def test_nothing_passes_unjudged_on_a_connection_of_two_protocols(lab: AttackLab, mixture: bytes) -> None:
    friend, victim, sent = lab.pod("friend"), lab.pod("victim"), token()
    address = victim.addresses[lab.families[0]]
    with victim.capture() as seen:
        friend.connect(address, 80, mixture % sent, seconds=0.3)
        assert not seen.arrived(sent)
    assert friend.http(address, "/public/after") == "200"
