"""Tunnels of the HTTP/1 gate: upgrades and CONNECT, what opens them, what they may carry, and when they end.

Each conversation runs whole, byte by byte and in random splits (fixture `talk`).
"""

from __future__ import annotations

import pytest

from l7proxy.flows.records import Connection
from l7proxy.gate.actions import Phase
from l7proxy.gate.options import HttpOptions
from l7proxy.model.verdict import Verdict
from l7proxy.policy.combine import revoked
from l7proxy.wire.path import PathRules
from tests.unit.gate.talk import ALLOWED, DENIED, DENY, FORBIDDEN, FORBIDDEN_CLOSE, GET, OK, Talk

PASSED = "FORWARDED GET http://h/a"
ANSWERED = "200 GET http://h/a"
REFUSED = "DROPPED GET http://h/deny"
ANSWERED_403 = "403 GET http://h/deny"

# --- upgrades --------------------------------------------------------------------------------------------------------

UPGRADE = b"GET /a HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"


def test_101_opens_the_tunnel_and_early_bytes_wait_for_it(talk: Talk) -> None:
    talk.client(UPGRADE + b"\x81\x00" + DENY)
    talk.expect(server=UPGRADE, records=(PASSED,))
    talk.server(SWITCHED + b"\x82\x00")
    talk.expect(server=b"\x81\x00" + DENY, client=SWITCHED + b"\x82\x00", records=("101 GET http://h/a",))
    assert talk.gate.waiting_for is Phase.TUNNEL
    talk.client(b"\x00raw\n")
    talk.server(b"\x00also raw")
    talk.expect(server=b"\x00raw\n", client=b"\x00also raw")
    talk.client_eof()
    talk.expect(fin=("server",))
    talk.server(b"last")
    talk.server_eof()
    talk.expect(client=b"last", end="close")


def test_the_server_may_finish_a_tunnel_first(talk: Talk) -> None:
    talk.client(UPGRADE)
    talk.server(SWITCHED)
    talk.take()
    talk.server_eof()
    talk.expect(fin=("client",))
    talk.client(b"rest")
    talk.client_eof()
    talk.expect(server=b"rest", end="close")


def test_a_denied_upgrade_opens_nothing(talk: Talk) -> None:
    talk.client(UPGRADE.replace(b"/a", b"/deny") + DENY)
    talk.expect(client=FORBIDDEN * 2, records=(REFUSED, ANSWERED_403) * 2)


def test_a_refused_upgrade_leaves_requests_judged(talk: Talk) -> None:
    talk.client(UPGRADE + DENY)
    talk.server(OK)
    talk.expect(server=UPGRADE, client=OK + FORBIDDEN, records=(PASSED, ANSWERED, REFUSED, ANSWERED_403))


def test_an_unasked_101_is_a_bad_response(talk: Talk) -> None:
    for asked in (GET, UPGRADE.replace(b"Connection: Upgrade", b"Connection: keep-alive")):
        other = Talk(lambda data: [data])
        other.client(asked)
        other.take()
        other.server(SWITCHED)
        other.expect_refusal(502, "not requested", records=("502 GET http://h/a",))


def test_101_to_another_protocol_is_a_bad_response(talk: Talk) -> None:
    talk.client(UPGRADE)
    talk.take()
    talk.server(SWITCHED.replace(b"websocket", b"spdy/3.1"))
    talk.expect_refusal(502, "not requested", records=("502 GET http://h/a",))


@pytest.mark.parametrize("protocol", [b"h2c", b"HTTP/2.0", b"TLS/1.2", b"H2C", b"h3"])
def test_no_tunnel_for_protocols_that_carry_requests(talk: Talk, protocol: bytes) -> None:
    """It is not offered to the server; a server that switches anyway is cut off."""
    talk.client(UPGRADE.replace(b"WebSocket", protocol) + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    talk.expect(server=GET, records=(PASSED,))
    talk.server(SWITCHED.replace(b"websocket", protocol))
    talk.expect_refusal(502, "not requested", records=("502 GET http://h/a",))


def test_an_upgrade_to_h2c_is_answered_in_http_1(talk: Talk) -> None:
    h2c = UPGRADE.replace(b"WebSocket\r\n", b"h2c\r\nHTTP2-Settings: AAMA\r\n").replace(
        b": Upgrade", b": Upgrade, HTTP2-Settings"
    )
    talk.client(h2c + h2c.replace(b"/a", b"/deny"))
    talk.server(OK)
    talk.expect(server=GET, client=OK + FORBIDDEN, records=(PASSED, ANSWERED, REFUSED, ANSWERED_403))


def test_other_upgrades_beside_h2c_are_still_offered(talk: Talk) -> None:
    talk.client(
        UPGRADE.replace(b"WebSocket", b"h2c, WebSocket,TLS/1.3").replace(b": Upgrade", b": HTTP2-Settings,Upgrade")
    )
    talk.expect(server=UPGRADE, records=(PASSED,))
    talk.server(SWITCHED)
    talk.expect(client=SWITCHED, records=("101 GET http://h/a",))


# --- tunnels under another policy ------------------------------------------------------------------------------------


def test_a_tunnel_whose_request_is_no_longer_allowed_is_reset(talk: Talk) -> None:
    talk.client(UPGRADE)
    talk.server(SWITCHED)
    talk.take()
    talk.policy_changed()
    talk.expect()
    talk.judge = lambda request: DENIED
    talk.policy_changed()
    talk.expect(records=("connection",), end="reset")
    last = talk.records[-1]
    assert isinstance(last, Connection)
    assert last.policy_verdict == revoked(DENIED)
    assert [request.path for request in talk.asked] == [b"/a"] * 3


# --- requests in progress when policy changes ------------------------------------------------------------------------


def revoke(talk: Talk) -> None:
    talk.judge = lambda request: DENIED
    talk.policy_changed()


def test_a_request_that_is_allowed_still_goes_on_untouched(talk: Talk) -> None:
    talk.client(GET)
    talk.take()
    talk.policy_changed()
    talk.expect()
    talk.server(OK)
    talk.expect(client=OK, records=(ANSWERED,))


def test_a_request_without_an_answer_yet_is_answered_403_when_it_is_refused_now(talk: Talk) -> None:
    talk.client(GET)
    talk.take()
    revoke(talk)
    talk.expect(client=FORBIDDEN_CLOSE, records=("403 GET http://h/a", "connection"), end="close")
    assert talk.revoked
    assert {record.policy_verdict.reason for record in talk.records[-2:]} == {"policy changed: no rule matched"}
    assert talk.records[-1].policy_verdict.verdict is Verdict.DROPPED


def test_a_download_that_is_refused_now_is_cut_and_does_not_look_complete(talk: Talk) -> None:
    head = b"HTTP/1.1 200 OK\r\n\r\nuntil the end"
    talk.client(GET)
    talk.server(head)
    talk.expect(server=GET, client=head, records=(PASSED,))
    revoke(talk)
    talk.expect(records=(ANSWERED, "connection"), end="reset")


def test_an_upload_that_is_refused_now_ends_at_the_server_too(talk: Talk) -> None:
    talk.client(b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nhalf")
    talk.take()
    revoke(talk)
    talk.expect(client=FORBIDDEN_CLOSE, records=("403 POST http://h/a", "connection"), end="close")
    assert talk.revoked
    talk.client(b"more")
    talk.expect()


def test_an_upload_that_was_answered_early_is_cut_too(talk: Talk) -> None:
    talk.client(b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nhalf")
    talk.server(OK)
    talk.take()
    revoke(talk)
    talk.expect(records=("connection",), end="reset")


def test_what_was_denied_is_not_judged_again(talk: Talk) -> None:
    talk.client(b"POST /deny HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nhalf")
    talk.take()
    revoke(talk)
    talk.expect()
    assert len(talk.asked) == 1


# --- CONNECT ---------------------------------------------------------------------------------------------------------

CONNECT = b"CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n"
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


@pytest.fixture
def connecting(talk: Talk) -> Talk:
    talk.options = HttpOptions(paths=PathRules(allow_connect=True))
    return talk


def test_connect_is_judged_by_its_authority_and_opens_a_tunnel_with_2xx(connecting: Talk) -> None:
    connecting.client(CONNECT + b"early" + DENY)
    assert [(one.method, one.host, one.path) for one in connecting.asked] == [(b"CONNECT", b"h:443", b"")]
    connecting.expect(server=CONNECT, records=("FORWARDED CONNECT http://h:443",))
    connecting.server(ESTABLISHED + b"hello")
    connecting.expect(server=b"early" + DENY, client=ESTABLISHED + b"hello", records=("200 CONNECT http://h:443",))
    assert connecting.gate.waiting_for is Phase.TUNNEL
    connecting.client_eof()
    connecting.expect(fin=("server",))
    connecting.server_eof()
    connecting.expect(end="close")


def test_a_denied_connect_reaches_nobody(connecting: Talk) -> None:
    connecting.judge = lambda request: DENIED if request.method == b"CONNECT" else ALLOWED
    connecting.client(CONNECT + GET)
    connecting.expect(
        server=GET,
        client=FORBIDDEN,
        records=("DROPPED CONNECT http://h:443", "403 CONNECT http://h:443", PASSED),
    )


def test_a_refused_connect_leaves_requests_judged(connecting: Talk) -> None:
    no = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 2\r\n\r\nno"
    connecting.client(CONNECT + DENY)
    connecting.server(no)
    connecting.expect(
        server=CONNECT,
        client=no + FORBIDDEN,
        records=("FORWARDED CONNECT http://h:443", "407 CONNECT http://h:443", REFUSED, ANSWERED_403),
    )


@pytest.mark.parametrize("field", [b"Content-Length: 5", b"Transfer-Encoding: chunked"])
def test_an_answer_that_opens_a_tunnel_and_declares_a_body_is_a_bad_one(connecting: Talk, field: bytes) -> None:
    connecting.client(CONNECT)
    connecting.take()
    connecting.server(b"HTTP/1.1 200 OK\r\n" + field + b"\r\n\r\nhello")
    connecting.expect_refusal(502, "must not have a body", records=("502 CONNECT http://h:443",))


@pytest.mark.parametrize(
    "target", [b"h", b"h:", b"h:0", b"/a", b"*", b"http://h:443/", b"h:443/a", b"user@h:443", b"[::1]", b"h:443:80"]
)
def test_connect_to_what_is_no_authority_with_a_port_is_refused(connecting: Talk, target: bytes) -> None:
    connecting.client(CONNECT.replace(b"CONNECT h:443", b"CONNECT " + target))
    connecting.expect_refusal(400, "CONNECT")


def test_connect_with_another_host_or_with_a_body_is_refused() -> None:
    for message, why in (
        (CONNECT.replace(b"Host: h:443", b"Host: other:443"), "Host differ"),
        (CONNECT.replace(b"Host: h:443", b"Host: h"), "Host differ"),
        (CONNECT.replace(b"\r\n\r\n", b"\r\nContent-Length: 4\r\n\r\nbody"), "body"),
        (CONNECT.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), "body"),
    ):
        talk = Talk(lambda data: [data])
        talk.options = HttpOptions(paths=PathRules(allow_connect=True))
        talk.client(message)
        talk.expect_refusal(400, why)


def test_101_before_the_whole_request_is_a_bad_response(talk: Talk) -> None:
    talk.client(UPGRADE.replace(b"\r\n\r\n", b"\r\nContent-Length: 9\r\n\r\n") + b"half")
    talk.take()
    talk.server(SWITCHED)
    talk.expect_refusal(502, "before the request", records=("502 GET http://h/a",))


def test_an_http_10_upgrade_is_ignored(talk: Talk) -> None:
    talk.client(UPGRADE.replace(b"HTTP/1.1", b"HTTP/1.0"))
    talk.take()
    talk.server(SWITCHED)
    talk.expect_refusal(502, "HTTP/1.0", records=("502 GET http://h/a",))
