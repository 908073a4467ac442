"""The HTTP/1 gate as conversations, each run whole, byte by byte and in random splits (fixture `talk`)."""

from __future__ import annotations

import pytest

from l7proxy.flows.records import HttpRequest, HttpResponse
from l7proxy.gate.access_log import LONGEST
from l7proxy.gate.actions import Phase
from l7proxy.gate.options import MAX_DENIED, MAX_DRAINED, MAX_HELD, MAX_INTERIM, HttpOptions
from l7proxy.model.http import Request
from l7proxy.model.policy_verdict import PolicyVerdict
from l7proxy.model.verdict import Direction, Verdict
from l7proxy.wire.path import PathRules
from tests.unit.gate.talk import ALLOWED, DENY, FORBIDDEN, FORBIDDEN_CLOSE, GET, OK, Talk, all_but_deny

PASSED = "FORWARDED GET http://h/a"
ANSWERED = "200 GET http://h/a"
REFUSED = "DROPPED GET http://h/deny"
ANSWERED_403 = "403 GET http://h/deny"


def test_an_allowed_request_passes_unchanged_and_so_does_its_answer(talk: Talk) -> None:
    talk.client(GET)
    talk.expect(server=GET, records=(PASSED,))
    talk.server(OK)
    talk.expect(client=OK, records=(ANSWERED,))
    assert talk.gate.waiting_for is Phase.IDLE


def test_order_case_and_blanks_of_headers_are_kept(talk: Talk) -> None:
    odd = b"GET /a HTTP/1.1\r\nx-B:  1\r\nHOST: h\r\nX-b:2 \r\nA:\t3\r\ncookie: \xc3\xa9\r\n\r\n"
    answer = b"HTTP/1.1 200 \r\nsERVER:x\r\nB: 1\r\nContent-length:0\r\nb: \xff \r\n\r\n"
    talk.client(odd)
    talk.expect(server=odd, records=(PASSED,))
    assert talk.asked[0].joined(b"x-b") == b"1,2"
    talk.server(answer)
    talk.expect(client=answer, records=(ANSWERED,))


def test_nothing_is_connected_before_a_request_is_allowed(talk: Talk) -> None:
    talk.client(DENY)
    talk.expect(client=FORBIDDEN, records=(REFUSED, ANSWERED_403))
    assert talk.connects == 0
    talk.client(GET)
    talk.expect(server=GET, records=(PASSED,))
    assert talk.connects == 1


def test_a_connection_serves_many_requests_one_upstream(talk: Talk) -> None:
    for _ in range(3):
        talk.client(GET)
        talk.expect(server=GET, records=(PASSED,))
        talk.server(OK)
        talk.expect(client=OK, records=(ANSWERED,))
    assert talk.connects == 1


def test_one_read_full_of_denied_requests_ends_the_connection() -> None:
    """Each costs a worker more than its client, and all other clients wait meanwhile."""
    talk = Talk(lambda data: [data])
    talk.client(DENY * (MAX_DENIED - 1))
    talk.expect(client=FORBIDDEN * (MAX_DENIED - 1), records=(REFUSED, ANSWERED_403) * (MAX_DENIED - 1))
    talk.client(DENY * 10_000)
    last = FORBIDDEN * (MAX_DENIED - 1) + FORBIDDEN_CLOSE
    talk.expect(client=last, records=(REFUSED, ANSWERED_403) * MAX_DENIED, end="close")


# --- denials ---------------------------------------------------------------------------------------------------------


def test_denied_head_request_gets_no_body(talk: Talk) -> None:
    talk.client(DENY.replace(b"GET", b"HEAD"))
    talk.expect(
        client=FORBIDDEN.removesuffix(b"Access denied\r\n"),
        records=("DROPPED HEAD http://h/deny", "403 HEAD http://h/deny"),
    )


def test_denied_request_with_a_small_body_keeps_the_connection(talk: Talk) -> None:
    talk.client(b"POST /deny HTTP/1.1\r\nHost: h\r\nContent-Length: 28\r\n\r\n" + GET)
    talk.expect(client=FORBIDDEN, records=("DROPPED POST http://h/deny", "403 POST http://h/deny"))
    assert len(GET) == 28  # the body that looks like a request
    talk.client(GET)
    talk.expect(server=GET, records=(PASSED,))


def test_denied_request_with_a_chunked_body_keeps_the_connection(talk: Talk) -> None:
    talk.client(b"POST /deny HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" + GET)
    talk.expect(server=GET, client=FORBIDDEN, records=("DROPPED POST http://h/deny", "403 POST http://h/deny", PASSED))


def test_denied_request_with_a_large_body_closes(talk: Talk) -> None:
    talk.client(b"POST /deny HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (MAX_DRAINED + 1))
    talk.expect(client=FORBIDDEN_CLOSE, records=("DROPPED POST http://h/deny", "403 POST http://h/deny"), end="close")


def test_denied_request_whose_chunks_never_end_closes(talk: Talk) -> None:
    talk.client(b"POST /deny HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
    talk.expect(client=FORBIDDEN, records=("DROPPED POST http://h/deny", "403 POST http://h/deny"))
    talk.client(b"11000\r\n" + b"x" * (MAX_DRAINED + 1))
    talk.expect(end="close")


def test_denied_request_that_expects_100_closes_at_once(talk: Talk) -> None:
    talk.client(b"POST /deny HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
    talk.expect(client=FORBIDDEN_CLOSE, records=("DROPPED POST http://h/deny", "403 POST http://h/deny"), end="close")


def test_denied_request_that_wants_to_close_is_closed(talk: Talk) -> None:
    talk.client(b"GET /deny HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n" + GET)
    talk.expect(client=FORBIDDEN_CLOSE, records=(REFUSED, ANSWERED_403), end="close")


def test_the_reason_of_a_denial_is_told_when_options_say_so(talk: Talk) -> None:
    talk.options = HttpOptions(deny_header=True)
    talk.client(DENY)
    told = FORBIDDEN.replace(b"\r\n\r\n", b"\r\nx-l7proxy-denied: no rule matched\r\n\r\n", 1)
    talk.expect(client=told, records=(REFUSED, ANSWERED_403))


def test_a_verdict_that_is_no_verdict_refuses(talk: Talk) -> None:
    verdicts = [Verdict.UNKNOWN, Verdict.ERROR, Verdict.REDIRECTED]
    talk.judge = lambda request: PolicyVerdict(verdicts[len(talk.asked) - 1], Direction.INGRESS)
    for verdict in verdicts:
        talk.client(GET)
        talk.expect(client=FORBIDDEN, records=(f"{verdict.name} GET http://h/a", "403 GET http://h/a"))


def test_audited_requests_pass(talk: Talk) -> None:
    talk.judge = lambda request: PolicyVerdict(Verdict.AUDIT, Direction.INGRESS)
    talk.client(GET)
    talk.expect(server=GET, records=("AUDIT GET http://h/a",))


# --- pipelining: each request gets its own verdict -------------------------------------------------------------------


def test_pipelined_requests_are_judged_one_by_one_allowed_first(talk: Talk) -> None:
    talk.client(GET + DENY + GET)
    talk.expect(server=GET, records=(PASSED,))
    assert len(talk.asked) == 1  # the others are evaluated when their turn comes
    talk.server(OK)
    talk.expect(client=OK + FORBIDDEN, server=GET, records=(ANSWERED, REFUSED, ANSWERED_403, PASSED))
    talk.server(OK)
    talk.expect(client=OK, records=(ANSWERED,))


def test_pipelined_requests_are_judged_one_by_one_denied_first(talk: Talk) -> None:
    talk.client(DENY + GET + DENY)
    talk.expect(client=FORBIDDEN, server=GET, records=(REFUSED, ANSWERED_403, PASSED))
    talk.server(OK)
    talk.expect(client=OK + FORBIDDEN, records=(ANSWERED, REFUSED, ANSWERED_403))


def test_a_held_request_is_judged_by_the_policy_of_its_moment(talk: Talk) -> None:
    talk.client(GET + GET)
    talk.expect(server=GET, records=(PASSED,))
    talk.judge = lambda request: all_but_deny(Request(b"GET", b"/deny", b"h", []))
    talk.server(OK)
    talk.expect(client=OK + FORBIDDEN, records=(ANSWERED, "DROPPED GET http://h/a", "403 GET http://h/a"))


def test_pipelined_bytes_are_bounded_and_reading_goes_on_later(talk: Talk) -> None:
    many = MAX_HELD // len(GET) + 200
    talk.client(GET * many)
    assert talk.is_paused()
    for left in range(many, 0, -1):
        seen = talk.take()
        assert (seen.server, seen.records[-1:]) == (GET, [PASSED]), left
        talk.server(OK)
    assert not talk.is_paused()
    assert talk.take().records == [ANSWERED]


def test_nothing_is_taken_up_after_connection_close(talk: Talk) -> None:
    last = b"GET /a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    talk.client(last + GET)
    talk.expect(server=last, records=(PASSED,))
    talk.server(OK)
    talk.expect(client=OK, records=(ANSWERED,), end="close")


# --- bodies ----------------------------------------------------------------------------------------------------------


def test_a_body_of_known_length_passes(talk: Talk) -> None:
    post = b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 28\r\n\r\n" + GET
    talk.client(post + GET)
    talk.expect(server=post, records=("FORWARDED POST http://h/a",))
    talk.server(OK)
    talk.expect(client=OK, server=GET, records=("200 POST http://h/a", PASSED))


CHUNKS = b'5\r\nhello\r\n1A;a=b;c="d e"\r\nabcdefghijklmnopqrstuvwxyz\r\n000\r\nX-Sum: 1\r\n\r\n'


def test_a_chunked_body_passes_as_it_was_written(talk: Talk) -> None:
    post = b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS
    talk.client(post + GET)
    talk.expect(server=post, records=("FORWARDED POST http://h/a",))
    talk.server(OK)
    talk.expect(client=OK, server=GET, records=("200 POST http://h/a", PASSED))


def test_a_chunked_response_passes_as_it_was_written(talk: Talk) -> None:
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS
    talk.client(GET + DENY)
    talk.expect(server=GET, records=(PASSED,))
    talk.server(answer)
    talk.expect(client=answer + FORBIDDEN, records=(ANSWERED, REFUSED, ANSWERED_403))


def test_a_response_without_length_ends_with_its_connection(talk: Talk) -> None:
    answer = b"HTTP/1.1 200 OK\r\n\r\nsome" + OK
    talk.client(GET)
    talk.server(answer)
    talk.expect(server=GET, client=answer, records=(PASSED,))
    assert talk.gate.waiting_for is Phase.TRANSFER
    talk.server_eof()
    talk.expect(records=(ANSWERED,), end="close")


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_responses_that_never_have_a_body(talk: Talk, status: bytes) -> None:
    answer = b"HTTP/1.1 " + status + b"\r\nETag: x\r\n\r\n"
    talk.client(GET + GET)
    talk.server(answer)
    code = status[:3].decode()
    talk.expect(server=GET + GET, client=answer, records=(PASSED, f"{code} GET http://h/a", PASSED))


def test_the_answer_to_head_has_no_body_whatever_it_says(talk: Talk) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
    head = GET.replace(b"GET", b"HEAD")
    talk.client(head + GET)
    talk.server(answer)
    talk.expect(
        server=head + GET,
        client=answer,
        records=("FORWARDED HEAD http://h/a", "200 HEAD http://h/a", PASSED),
    )


def test_an_early_answer_lets_the_body_go_on(talk: Talk) -> None:
    talk.client(b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n12345")
    talk.server(OK)
    talk.take()
    assert talk.gate.waiting_for is Phase.BODY
    talk.client(b"67890" + GET)
    talk.expect(server=b"67890" + GET, records=(PASSED,))


def test_smuggling_by_100_continue_an_early_answer_without_the_expected_100_ends_the_connection(talk: Talk) -> None:
    """The client may now send the body or a next request: server and proxy could read it differently."""
    talk.client(b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 28\r\nExpect: 100-continue\r\n\r\n")
    assert talk.gate.waiting_for in (Phase.CONNECT, Phase.RESPONSE)
    talk.take()
    talk.server(OK)
    talk.expect(client=OK, records=("200 POST http://h/a",), end="close")


def test_a_broken_chunk_of_a_request_is_answered_once(talk: Talk) -> None:
    talk.client(b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
    talk.take()
    talk.client(b"5\r\nhelloXX")
    seen = talk.take()
    assert seen.client.startswith(b"HTTP/1.1 400 ")
    assert (seen.records, seen.end) == (["400 POST http://h/a"], "close")


# --- interim responses -----------------------------------------------------------------------------------------------


def test_100_continue_passes(talk: Talk) -> None:
    head = b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
    go_on = b"HTTP/1.1 100 Continue\r\n\r\n"
    talk.client(head)
    talk.server(go_on)
    talk.expect(server=head, client=go_on, records=("FORWARDED POST http://h/a",))
    talk.client(b"body" + GET)
    talk.server(OK)
    talk.expect(server=b"body" + GET, client=OK, records=("200 POST http://h/a", PASSED))


def test_interim_responses_pass_and_one_read_may_hold_them_all(talk: Talk) -> None:
    answer = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 3 + OK
    talk.client(GET + GET)
    talk.server(answer)
    talk.expect(server=GET + GET, client=answer, records=(PASSED, ANSWERED, PASSED))


def test_smuggling_by_1xx_a_flood_of_interim_responses_is_a_bad_response(talk: Talk) -> None:
    talk.client(GET)
    talk.take()
    talk.server(b"HTTP/1.1 102 Processing\r\n\r\n" * (MAX_INTERIM + 1))
    seen = talk.take()
    assert seen.client.count(b"HTTP/1.1 102") == MAX_INTERIM
    assert b"HTTP/1.1 502 " in seen.client
    assert (seen.records, seen.end) == (["502 GET http://h/a"], "close")


def test_interim_responses_never_reach_an_http_10_client(talk: Talk) -> None:
    talk.client(b"GET /a HTTP/1.0\r\n\r\n")
    talk.take()
    talk.server(b"HTTP/1.1 100 Continue\r\n\r\n")
    talk.expect_refusal(502, "HTTP/1.0", records=("502 GET http:///a",))


# --- HTTP/1.0 --------------------------------------------------------------------------------------------------------


def test_http_10_ends_after_one_exchange(talk: Talk) -> None:
    old = b"GET /a HTTP/1.0\r\nHost: h\r\n\r\n"
    talk.client(old + GET)
    talk.server(OK)
    talk.expect(server=old, client=OK, records=(PASSED, ANSWERED), end="close")
    assert isinstance(talk.records[-1], HttpResponse)
    assert talk.records[-1].protocol == "HTTP/1.0"


def test_http_10_keep_alive_goes_on_when_both_want_it(talk: Talk) -> None:
    old = b"GET /a HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\n\r\n"
    answer = b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\nok"
    talk.client(old)
    talk.server(answer)
    talk.expect(server=old, client=answer, records=(PASSED, ANSWERED))
    talk.client(old)
    talk.expect(server=old, records=(PASSED,))


def test_http_10_response_without_keep_alive_ends(talk: Talk) -> None:
    answer = b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"
    talk.client(GET)
    talk.server(answer)
    talk.expect(server=GET, client=answer, records=(PASSED, ANSWERED), end="close")


# --- invalid responses ------------------------------------------------------------------------------------------------


def test_bytes_behind_a_response_answer_nothing() -> None:
    """Response splitting: bytes that look like a second response must not answer the next request."""
    talk = Talk(lambda data: [data])
    talk.client(GET + GET)
    talk.take()
    talk.server(OK + OK)
    talk.expect(client=OK, records=(ANSWERED,), end="close")


def test_bytes_of_a_server_that_nobody_asked_end_the_connection(talk: Talk) -> None:
    talk.client(GET)
    talk.server(OK)
    talk.take()
    talk.server(b"H")
    talk.expect(end="close")


BAD_RESPONSES = {
    "a bare LF": b"HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n",
    "both": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
    "duplicate": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n",
    "exactly `chunked`": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "folded": b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n",
    "status line": b"ICY 200 OK\r\n\r\n",
    "neither 1.0 nor 1.1": b"HTTP/2.0 200 OK\r\n\r\n",
    "must not have a body": b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
    "a decimal number": b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\n",
    "longer than": b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("why", BAD_RESPONSES)
def test_a_bad_response_is_502_and_not_shown(talk: Talk, why: str) -> None:
    talk.client(GET)
    talk.take()
    talk.server(BAD_RESPONSES[why])
    talk.expect_refusal(502, why, records=("502 GET http://h/a",))


def test_a_broken_chunk_of_a_response_cuts_the_client_off(talk: Talk) -> None:
    begun = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
    talk.client(GET)
    talk.server(begun)
    talk.expect(server=GET, client=begun, records=(PASSED,))
    talk.server(b"zz\r\n")
    seen = talk.take()
    assert (seen.records, seen.end) == ([ANSWERED], "reset")


# --- paths: what is evaluated is what is forwarded -------------------------------------------------------------------


def test_a_normalised_path_changes_the_request_line_and_nothing_else(talk: Talk) -> None:
    talk.client(b"GET /x/./%61//b%2e?q=/../%2f HTTP/1.1\r\nhOST: h\r\nA:  b\r\n\r\n")
    talk.expect(
        server=b"GET /x/a/b.?q=/../%2f HTTP/1.1\r\nhOST: h\r\nA:  b\r\n\r\n",
        records=("FORWARDED GET http://h/x/a/b.",),
    )
    assert talk.asked[0].path == b"/x/a/b.?q=/../%2f"


@pytest.mark.parametrize("path", [b"//deny", b"/./deny", b"/x/../deny", b"/x/%2e%2E/deny", b"/%64eny", b"/x\\..\\deny"])
def test_hidden_paths_are_judged_as_what_they_are(talk: Talk, path: bytes) -> None:
    talk.client(b"GET " + path + b" HTTP/1.1\r\nHost: h\r\n\r\n")
    talk.expect(client=FORBIDDEN, records=(REFUSED, ANSWERED_403))


def test_an_escaped_slash_is_redirected_to_where_it_leads(talk: Talk) -> None:
    talk.client(b"GET /x%2F..%5cdeny?a=%2F HTTP/1.1\r\nHost: h\r\n\r\n")
    seen = talk.take()
    assert seen.client.startswith(b"HTTP/1.1 307 Temporary Redirect\r\n")
    assert b"\r\nlocation: /deny?a=%2F\r\n" in seen.client
    assert (seen.records, seen.server, seen.end) == (["malformed 307"], b"", "close")


@pytest.mark.parametrize("path", [b"/x%2Fy", b"/x;y", b"/x#y"])
def test_a_refused_head_request_gets_no_body(talk: Talk, path: bytes) -> None:
    talk.client(b"HEAD " + path + b" HTTP/1.1\r\nHost: h\r\n\r\n")
    seen = talk.take()
    assert seen.client.endswith(b"\r\nconnection: close\r\n\r\n")
    assert seen.end == "close"


def test_an_escaped_slash_is_refused_by_option(talk: Talk) -> None:
    talk.options = HttpOptions(paths=PathRules(redirect_escaped_slashes=False))
    talk.client(b"GET /x%2Fy HTTP/1.1\r\nHost: h\r\n\r\n")
    talk.expect_refusal(400, "escaped slash")


def test_matrix_parameters_pass_only_by_option(talk: Talk) -> None:
    talk.options = HttpOptions(paths=PathRules(allow_matrix=True))
    sent = b"GET /x;a=b HTTP/1.1\r\nHost: h\r\n\r\n"
    talk.client(sent)
    talk.expect(server=sent, records=("FORWARDED GET http://h/x;a=b",))


# --- records ---------------------------------------------------------------------------------------------------------


def test_queries_and_headers_are_in_records_only_by_option(talk: Talk) -> None:
    asked = b"GET /a?token=1 HTTP/1.1\r\nHost: h\r\nX-Id: 7\r\nCookie: c\r\n\r\n"
    talk.client(asked)
    talk.server(OK)
    talk.expect(server=asked, client=OK, records=(PASSED, ANSWERED))
    assert shown(talk) == [(), ()]

    open_talk = Talk(lambda data: [data])
    open_talk.options = HttpOptions(flow_query=True, flow_headers=frozenset({b"x-id", b"content-length"}))
    open_talk.client(asked)
    open_talk.server(OK)
    open_talk.expect(
        server=asked, client=OK, records=("FORWARDED GET http://h/a?token=1", "200 GET http://h/a?token=1")
    )
    assert shown(open_talk) == [(("x-id", "7"),), (("content-length", "2"),)]


def test_what_is_long_is_forwarded_whole_and_told_short() -> None:
    talk = Talk(lambda data: [data])
    talk.options = HttpOptions(flow_headers=frozenset({b"x-id"}))
    path, value = "/" + "a" * 8_000, "b" * 20_000
    asked = f"GET {path} HTTP/1.1\r\nHost: h\r\nX-Id: {value}\r\n\r\n".encode()
    talk.client(asked)
    talk.server(OK)
    assert talk.take().server == asked
    assert talk.asked[0].path == path.encode()
    request, response = talk.records
    assert isinstance(request, HttpRequest)
    assert isinstance(response, HttpResponse)
    assert request.url == response.url == f"http://h{path}"[: LONGEST - 1] + "…"
    assert request.headers == (("x-id", "b" * (LONGEST - 1) + "…"),)


def shown(talk: Talk) -> list[tuple[tuple[str, str], ...]]:
    return [record.headers for record in talk.records if isinstance(record, HttpRequest | HttpResponse)]


def test_a_response_record_tells_how_long_it_took(talk: Talk) -> None:
    talk.client(GET)
    talk.server(OK)
    request, response = talk.records
    assert isinstance(response, HttpResponse)
    assert (response.latency_ns, response.time_ns - request.time_ns) == (1000, 1000)
    assert response.policy_verdict is ALLOWED


TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize(
    ("line", "trace_id"),
    [
        (f"traceparent: 00-{TRACE_ID}-00f067aa0ba902b7-01", TRACE_ID),
        (f"b3: {TRACE_ID}-00f067aa0ba902b7-1", TRACE_ID),
        ("traceparent: 00-nonsense-01", ""),
        ("x: y", ""),
    ],
)
def test_the_trace_of_a_request_is_in_both_records_and_its_header_is_forwarded(
    talk: Talk, line: str, trace_id: str
) -> None:
    asked = f"GET /a HTTP/1.1\r\nHost: h\r\n{line}\r\n\r\n".encode()
    talk.client(asked)
    talk.server(OK)
    talk.expect(server=asked, client=OK, records=(PASSED, ANSWERED))
    assert [record.trace_id for record in talk.records if isinstance(record, HttpRequest | HttpResponse)] == [
        trace_id,
        trace_id,
    ]
