"""How HTTP/1 conversations end: FIN and reset from either side, in every state, and timeouts."""

from __future__ import annotations

import pytest

from l7proxy.flows.records import HttpResponse
from l7proxy.gate.actions import Phase
from tests.unit.gate.talk import DENY, FORBIDDEN, GET, OK, Talk

PASSED = "FORWARDED GET http://h/a"
ANSWERED = "200 GET http://h/a"
REFUSED = "DROPPED GET http://h/deny"
ANSWERED_403 = "403 GET http://h/deny"


# --- half-closes and ends --------------------------------------------------------------------------------------------


def test_fin_between_requests_ends_quietly(talk: Talk) -> None:
    talk.client(GET)
    talk.server(OK)
    talk.take()
    talk.client_eof()
    talk.expect(end="close")


def test_fin_after_a_request_is_passed_on_and_the_answer_still_comes(talk: Talk) -> None:
    talk.client(GET)
    talk.client_eof()
    talk.expect(server=GET, records=(PASSED,), fin=("server",))
    talk.server(OK)
    talk.expect(client=OK, records=(ANSWERED,), end="close")


def test_fin_behind_pipelined_requests_waits_for_the_last(talk: Talk) -> None:
    talk.client(GET + DENY + GET)
    talk.client_eof()
    talk.expect(server=GET, records=(PASSED,))
    talk.server(OK)
    talk.expect(
        client=OK + FORBIDDEN,
        server=GET,
        records=(ANSWERED, REFUSED, ANSWERED_403, PASSED),
        fin=("server",),
    )
    talk.server(OK)
    talk.expect(client=OK, records=(ANSWERED,), end="close")


def test_fin_inside_a_head_is_malformed(talk: Talk) -> None:
    talk.client(GET[:-2])
    talk.client_eof()
    talk.expect_refusal(400, "incomplete request head")


def test_fin_after_an_empty_line_is_no_fault(talk: Talk) -> None:
    talk.client(b"\r\n")
    talk.client_eof()
    talk.expect(end="close")


def test_fin_inside_a_body_gives_up_the_request(talk: Talk) -> None:
    talk.client(b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n123")
    talk.client_eof()
    seen = talk.take()
    assert (seen.records, seen.end) == (["FORWARDED POST http://h/a", "499 POST http://h/a"], "close")


def test_the_client_leaves_before_the_answer(talk: Talk) -> None:
    talk.client(GET)
    talk.client_lost()
    talk.expect(server=GET, records=(PASSED, "499 GET http://h/a"), end="close")
    talk.client_lost()
    talk.expect()


def test_the_client_leaves_during_the_answer(talk: Talk) -> None:
    talk.client(GET)
    talk.server(OK[:-1])
    talk.client_lost()
    seen = talk.take()
    assert (seen.records, seen.end) == ([PASSED, ANSWERED], "close")


def test_the_client_leaves_inside_a_head(talk: Talk) -> None:
    talk.client(GET[:9])
    talk.client_lost()
    talk.expect(records=("malformed 400",), end="close")


def test_the_server_closes_between_requests(talk: Talk) -> None:
    talk.client(GET)
    talk.server(OK)
    talk.take()
    talk.server_eof()
    talk.expect(end="close")


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 20", OK.partition(b"\r\n\r\n")[0]])
def test_the_server_dies_before_its_answer(talk: Talk, begun: bytes) -> None:
    talk.client(GET)
    talk.take()
    talk.connected()
    if begun:
        talk.server(begun)
    talk.server_eof()
    talk.expect_refusal(502, "before the response", records=("502 GET http://h/a",))


@pytest.mark.parametrize(
    "begun", [OK[:-1], b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", OK[:-2]]
)
def test_the_server_dies_in_the_middle_of_its_answer(talk: Talk, begun: bytes) -> None:
    talk.client(GET)
    talk.server(begun)
    talk.expect(server=GET, client=begun, records=(PASSED,))
    talk.server_eof()
    talk.expect(records=(ANSWERED,), end="reset")


def test_an_unreachable_server_is_503(talk: Talk) -> None:
    talk.client(GET)
    talk.take()
    assert talk.gate.waiting_for is Phase.CONNECT
    talk.upstream_failed("connection refused")
    talk.expect_refusal(503, "connection refused", records=("503 GET http://h/a",))


def test_a_server_that_resets_before_its_answer_is_502(talk: Talk) -> None:
    talk.client(GET)
    talk.take()
    talk.connected()
    talk.upstream_failed("reset")
    talk.expect_refusal(502, "reset", records=("502 GET http://h/a",))


def test_a_server_that_resets_in_the_middle_resets_the_client(talk: Talk) -> None:
    talk.client(GET)
    talk.server(OK[:-1])
    talk.take()
    talk.upstream_failed("reset")
    talk.expect(records=(ANSWERED,), end="reset")


# --- timeouts --------------------------------------------------------------------------------------------------------


def test_a_slow_head_is_408(talk: Talk) -> None:
    talk.client(GET[:5])
    assert talk.gate.waiting_for is Phase.HEAD
    talk.timed_out()
    talk.expect_refusal(408, "timed out waiting for the request head")


def test_an_idle_connection_ends_quietly(talk: Talk) -> None:
    talk.client(GET)
    talk.server(OK)
    talk.take()
    talk.timed_out()
    talk.expect(end="close")


def test_a_slow_body_is_408(talk: Talk) -> None:
    talk.client(b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n123")
    talk.connected()
    talk.take()
    assert talk.gate.waiting_for is Phase.BODY
    talk.timed_out()
    talk.expect_refusal(408, "body", records=("408 POST http://h/a",))


def test_a_slow_server_is_504(talk: Talk) -> None:
    talk.client(GET)
    talk.connected()
    talk.take()
    assert talk.gate.waiting_for is Phase.RESPONSE
    talk.timed_out()
    talk.expect_refusal(504, "response", records=("504 GET http://h/a",))


def test_a_stalled_answer_is_cut(talk: Talk) -> None:
    talk.client(GET)
    talk.server(OK[:-1])
    talk.take()
    assert talk.gate.waiting_for is Phase.TRANSFER
    talk.timed_out()
    talk.expect(records=(ANSWERED,), end="reset")


def test_a_timer_of_the_past_changes_nothing(talk: Talk) -> None:
    talk.client(GET)
    talk.connected()
    talk.take()
    assert talk.gate.timed_out(Phase.IDLE) == []
    assert talk.gate.timed_out(Phase.HEAD) == []


# --- servers that end a connection in use ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["fin", "reset"])
def test_a_server_that_leaves_as_the_next_request_comes_is_left_to_the_client(talk: Talk, how: str) -> None:
    """As without the proxy: the client sees its connection end without a response, and may retry on another."""
    talk.client(GET)
    talk.server(OK)
    talk.client(GET)
    talk.take()
    if how == "fin":
        talk.server_eof()
    else:
        talk.upstream_failed("reset by the server")
    talk.expect(records=("502 GET http://h/a",), end="close" if how == "fin" else "reset")
    last = talk.records[-1]
    assert isinstance(last, HttpResponse)
    assert "can retry" in last.policy_verdict.reason


@pytest.mark.parametrize("said", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 2", b"HTTP/1.1 103 Early\r\n\r\nHTTP"])
def test_a_server_that_has_begun_to_answer_is_502_on_any_connection(said: bytes) -> None:
    talk = Talk(lambda data: [data])
    talk.client(GET)
    talk.server(OK)
    talk.client(GET)
    talk.server(said)
    shown = talk.take().client.removeprefix(OK)
    talk.server_eof()
    seen = talk.take()
    assert seen.client.startswith(b"HTTP/1.1 502 ")
    assert shown in (b"", said[: said.rfind(b"\r\n") + 2])
    assert seen.records == ["502 GET http://h/a"]


def test_a_server_that_leaves_at_the_first_request_is_502(talk: Talk) -> None:
    talk.client(DENY + GET)
    talk.take()
    talk.connected()
    talk.server_eof()
    talk.expect_refusal(502, "closed the connection", records=("502 GET http://h/a",))


LAST = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)


def test_the_next_answer_of_a_proxy_that_stops_says_that_it_is_the_last(talk: Talk) -> None:
    talk.client(GET)
    talk.server(OK)
    talk.take()
    talk.drain()
    talk.expect()
    talk.client(GET)
    talk.expect(server=GET, records=(PASSED,))
    talk.server(OK)
    talk.expect(client=LAST, records=(ANSWERED,), end="close")


def test_an_answer_that_is_awaited_when_the_proxy_stops_is_the_last(talk: Talk) -> None:
    talk.client(GET)
    talk.take()
    talk.drain()
    talk.server(OK)
    talk.expect(client=LAST, records=(ANSWERED,), end="close")


def test_a_refusal_of_a_proxy_that_stops_is_the_last_answer(talk: Talk) -> None:
    talk.client(GET)
    talk.server(OK)
    talk.take()
    talk.drain()
    talk.client(DENY)
    talk.expect_refusal(403, "Access denied", records=(REFUSED, ANSWERED_403))


def test_an_answer_that_had_begun_is_not_changed(talk: Talk) -> None:
    """The next one says it."""
    half = len(OK) - 1
    talk.client(GET)
    talk.server(OK[:half])
    talk.drain()
    talk.server(OK[half:])
    assert talk.take().client == OK
    talk.client(GET)
    talk.take()
    talk.server(OK)
    talk.expect(client=LAST, records=(ANSWERED,), end="close")


@pytest.mark.parametrize(
    "spelled", [b"Connection: keep-alive", b"connection:Keep-Alive \t", b"CONNECTION:  keep-alive"]
)
def test_the_last_answer_does_not_say_keep_alive_too(talk: Talk, spelled: bytes) -> None:
    """As nginx does in each answer. Clients that read the first of two fields would reuse the connection."""
    talk.client(GET)
    talk.take()
    talk.drain()
    talk.server(OK.replace(b"\r\n\r\n", b"\r\n" + spelled + b"\r\nX-After: 1\r\n\r\n", 1))
    last = OK.replace(b"\r\n\r\n", b"\r\nX-After: 1\r\nConnection: close\r\n\r\n", 1)
    talk.expect(client=last, records=(ANSWERED,), end="close")
