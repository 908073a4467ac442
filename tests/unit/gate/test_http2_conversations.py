"""The HTTP/2 gate in plain conversations: what passes, what is refused, and how each stream ends."""

from __future__ import annotations

import pytest

from l7proxy.flows.records import HttpRequest, HttpResponse
from l7proxy.gate.actions import Phase
from l7proxy.gate.http1 import HttpGate
from l7proxy.gate.http2 import Http2Gate
from l7proxy.gate.options import HttpOptions
from l7proxy.model.http import EditKind, HeaderEdit, Request, Rewrite
from l7proxy.model.policy_verdict import PolicyVerdict
from l7proxy.wire.http2_frames import PREFACE, Code
from tests.unit.gate.http2_talk import OK, Conversation, line
from tests.unit.gate.talk import ALLOWED, DENIED, Talk

GRPC = line("/echo.Echo/Unary", "POST", ("content-type", "application/grpc+proto"), ("te", "trailers"))
GRPC_DENIED = line("/deny.Echo/Unary", "POST", ("content-type", "application/grpc"), ("te", "trailers"))


# --- what passes -----------------------------------------------------------------------------------------------------


def test_a_request_and_its_answer_pass_field_by_field(http2: Conversation) -> None:
    asked = line("/a?b=c", "POST", ("x-two", "2"), ("accept", "*/*"), ("x-one", "1"), ("x-two", "\xff again"))
    http2.get(1, asked, end=False)
    http2.client.h2.send_data(1, b"hello ", end_stream=False)
    http2.client.h2.send_data(1, b"world", end_stream=True)
    http2.run()
    heard = http2.server.messages[1]
    assert (heard.fields, heard.data, heard.ended) == (asked, b"hello world", True)
    http2.answer(1, body=b"answer")
    seen = http2.client.messages[1]
    assert (seen.fields, seen.data, seen.ended) == (OK, b"answer", True)
    assert [record.protocol for record in http2.records if isinstance(record, HttpRequest)] == ["HTTP/2"]
    assert http2.told() == ["FORWARDED POST http://h/a", "200 POST http://h/a"]
    assert http2.gate.waiting_for is Phase.IDLE


def test_the_judge_sees_the_authority_as_host_and_the_crumbs_of_cookie_as_one(http2: Conversation) -> None:
    http2.get(1, line("/a", "GET", ("cookie", "a=1"), ("x", "y"), ("cookie", "b=2")))
    (asked,) = http2.asked
    assert (asked.method, asked.path, asked.host) == (b"GET", b"/a", b"h")
    assert asked.headers == [(b"host", b"h"), (b"cookie", b"a=1; b=2"), (b"x", b"y")]
    assert (b"cookie", b"b=2") in http2.server.messages[1].fields, "forwarded as it came"


def test_trailers_pass_both_ways(http2: Conversation) -> None:
    http2.get(1, GRPC, end=False)
    http2.client.h2.send_data(1, b"ask")
    http2.client.h2.send_headers(1, [(b"x-after", b"1")], end_stream=True)
    http2.run()
    assert http2.server.messages[1].trailers == [(b"x-after", b"1")]
    http2.server.h2.send_headers(1, OK)
    http2.server.h2.send_data(1, b"answer")
    http2.server.h2.send_headers(1, [(b"grpc-status", b"5"), (b"grpc-message", b"no")], end_stream=True)
    http2.run()
    seen = http2.client.messages[1]
    assert (seen.data, seen.ended) == (b"answer", True)
    assert seen.trailers == [(b"grpc-status", b"5"), (b"grpc-message", b"no")]
    assert len(http2.told()) == 2


def test_streams_are_judged_one_by_one(http2: Conversation) -> None:
    for stream, path in ((1, "/a"), (3, "/deny"), (5, "/b"), (7, "/deny/too")):
        http2.client.h2.send_headers(stream, line(path), end_stream=True)
    http2.run()
    assert sorted(http2.server.messages) == [1, 5]
    http2.answer(5)
    http2.answer(1)
    assert [http2.client.messages[stream].status for stream in (1, 3, 5, 7)] == [200, 403, 200, 403]
    assert http2.pairs()
    assert http2.connects == 1


def test_a_changed_policy_judges_the_streams_to_come(http2: Conversation) -> None:
    http2.get(1)
    http2.judge = lambda request: DENIED
    http2.get(3)
    assert http2.client.messages[3].status == 403
    http2.answer(1)
    assert http2.client.messages[1].status == 200


def test_interim_answers_pass(http2: Conversation) -> None:
    http2.get(1, line("/a", "POST", ("expect", "100-continue")), end=False)
    http2.server.h2.send_headers(1, [(b":status", b"100")])
    http2.server.h2.send_headers(1, [(b":status", b"103"), (b"link", b"</x>")])
    http2.run()
    assert http2.client.messages[1].interim == [[(b":status", b"100")], [(b":status", b"103"), (b"link", b"</x>")]]
    http2.client.h2.send_data(1, b"body", end_stream=True)
    http2.run()
    http2.answer(1)
    assert http2.client.messages[1].status == 200


@pytest.mark.parametrize(
    "fields",
    [
        [(b":status", b"200"), (b"content-length", b"10")],
        [(b":status", b"304"), (b"content-length", b"10")],
        [(b":status", b"204")],
    ],
)
def test_answers_without_a_body_may_say_how_long_it_would_be(
    http2: Conversation, fields: list[tuple[bytes, bytes]]
) -> None:
    http2.get(1, line("/a", "HEAD" if b"200" in fields[0] else "GET"))
    http2.answer(1, fields)
    assert http2.client.messages[1].fields == fields
    assert http2.client.messages[1].ended


@pytest.mark.parametrize(("sent", "seen"), [("/x/../a//b", "/a/b"), ("/%61?q=/../", "/a?q=/../"), ("/x\\a", "/x/a")])
def test_a_path_is_judged_and_forwarded_in_its_normal_form(http2: Conversation, sent: str, seen: str) -> None:
    for stream in (1, 3):  # the second time it comes from the cache
        http2.get(stream, line(sent))
        assert http2.asked[-1].path == seen.encode()
        assert dict(http2.server.messages[stream].fields)[b":path"] == seen.encode()


def test_header_rules_change_what_is_forwarded_and_secrets_are_never_indexed(http2: Conversation) -> None:
    edits = (
        HeaderEdit(EditKind.SET, b"Authorization", b"Bearer s3cret", secret=True),
        HeaderEdit(EditKind.REMOVE, b"X-Bad"),
    )

    def judge(request: Request) -> PolicyVerdict:
        request.rewrite = Rewrite(edits)
        return ALLOWED

    http2.judge = judge
    for stream in (1, 3):
        http2.get(stream, line("/a", "GET", ("x-bad", "1"), ("x-good", "2")))
        wanted = line("/a", "GET", ("x-good", "2"), ("authorization", "Bearer s3cret"))
        assert http2.server.messages[stream].fields == wanted
    assert http2.to_server.count(b"s3cret") == 2, "spelled out each time: it was never put into a table"


# --- what is denied --------------------------------------------------------------------------------------------------


def test_denied(http2: Conversation) -> None:
    http2.get(1, line("/deny?secret=1"))
    seen = http2.client.messages[1]
    assert seen.fields == [(b":status", b"403"), (b"content-length", b"15"), (b"content-type", b"text/plain")]
    assert (seen.data, seen.ended, seen.reset) == (b"Access denied\r\n", True, None)
    assert http2.connects == 0
    assert http2.told() == ["DROPPED GET http://h/deny", "403 GET http://h/deny"]


def test_denied_head_has_no_body(http2: Conversation) -> None:
    http2.get(1, line("/deny", "HEAD"))
    assert (http2.client.messages[1].data, http2.client.messages[1].ended) == (b"", True)


def test_the_reason_is_told_when_options_say_so() -> None:
    http2 = Conversation(lambda data: [data], options=HttpOptions(deny_header=True))
    http2.get(1, line("/deny"))
    assert (b"x-l7proxy-denied", b"no rule matched") in http2.client.messages[1].fields


def test_denied_grpc_is_trailers_only_with_status_7(http2: Conversation) -> None:
    http2.get(1, GRPC_DENIED, end=False)
    seen = http2.client.messages[1]
    assert seen.fields == [
        (b":status", b"200"),
        (b"content-type", b"application/grpc"),
        (b"grpc-status", b"7"),
        (b"grpc-message", b"Access denied"),
    ]
    assert seen.ended
    assert http2.told() == ["DROPPED POST http://h/deny.Echo/Unary", "403 POST http://h/deny.Echo/Unary"]


def test_what_follows_of_a_denied_request_is_thrown_away_and_the_connection_goes_on(http2: Conversation) -> None:
    http2.client.h2.send_headers(1, line("/deny", "POST"))
    for _ in range(3):
        http2.client.h2.send_data(1, b"x" * 10_000)
    data = http2.client.h2.data_to_send()
    http2.say(data)
    seen = http2.client.messages[1]
    assert (seen.status, seen.ended) == (403, True)
    assert seen.reset == Code.NO_ERROR, "RFC 9113 8.1: after the whole answer"
    http2.get(3)
    assert list(http2.server.messages) == [3]
    assert b"xxx" not in http2.to_server
    http2.answer(3)
    assert http2.pairs()


def test_no_reset_when_the_request_ended_with_the_read_that_began_it() -> None:
    http2 = Conversation(lambda data: [data])
    http2.client.h2.send_headers(1, line("/deny", "POST"))
    http2.client.h2.send_data(1, b"x", end_stream=True)
    http2.run()
    assert (http2.client.messages[1].ended, http2.client.messages[1].reset) == (True, None)


# --- malformed requests ----------------------------------------------------------------------------------------------

BROKEN = {
    "upper case": ([*line(), (b"X-Up", b"1")], 400, "lower-case"),
    "no token": ([*line(), (b"x y", b"1")], 400, "token"),
    "empty name": ([*line(), (b"", b"1")], 400, "token"),
    "connection": ([*line(), (b"connection", b"close")], 400, "connection"),
    "transfer-encoding": ([*line(), (b"transfer-encoding", b"chunked")], 400, "transfer-encoding"),
    "upgrade": ([*line(), (b"upgrade", b"websocket")], 400, "upgrade"),
    "proxy-connection": ([*line(), (b"proxy-connection", b"keep-alive")], 400, "proxy-connection"),
    "keep-alive": ([*line(), (b"keep-alive", b"1")], 400, "keep-alive"),
    "te": ([*line(), (b"te", b"gzip")], 400, "TE"),
    "confusable": ([*line(), (b"content_length", b"1")], 400, "content_length"),
    "confusable mark": ([*line(), (b"transfer.encoding", b"chunked")], 400, "transfer.encoding"),
    "LF in a value": ([*line(), (b"x", b"a\nb")], 400, "invalid byte"),
    "CR in a value": ([*line(), (b"x", b"a\rb")], 400, "invalid byte"),
    "NUL in a value": ([*line(), (b"x", b"a\0b")], 400, "invalid byte"),
    "control byte": ([*line(), (b"x", b"a\x1bb")], 400, "invalid byte"),
    "blank before a value": ([*line(), (b"x", b" a")], 400, "whitespace"),
    "blank after a value": ([*line(), (b"x", b"a\t")], 400, "whitespace"),
    "pseudo after a header": ([*line()[:3], (b"x", b"a"), *line()[3:]], 400, "follows a regular header"),
    "method twice": ([line()[0], *line()], 400, "duplicate"),
    "path twice": ([*line()[:3], (b":path", b"/deny"), line()[3]], 400, "duplicate"),
    "unknown pseudo": ([*line(), (b":hello", b"1")], 400, "pseudo-header"),
    "status": ([*line(), (b":status", b"200")], 400, "pseudo-header"),
    "no method": (line()[1:], 400, ":method"),
    "no scheme": ([*line()[:1], *line()[2:]], 400, ":scheme"),
    "odd scheme": ([line()[0], (b":scheme", b"ftp"), *line()[2:]], 400, ":scheme"),
    "no path": ([*line()[:2], line()[3]], 400, ":path"),
    "empty path": (line(""), 400, ":path"),
    "absolute path": (line("http://h/a"), 400, ":path"),
    "no authority": (line()[:3], 400, ":authority"),
    "empty authority": ([*line()[:3], (b":authority", b"")], 400, ":authority"),
    "odd authority": ([*line()[:3], (b":authority", b"user@h")], 400, ":authority"),
    "two hosts": ([*line(), (b"host", b"h"), (b"host", b"h")], 400, "Host"),
    "another host": ([*line(), (b"host", b"other")], 400, "Host differ"),
    "CONNECT": ([(b":method", b"CONNECT"), (b":authority", b"h:1")], 405, "CONNECT"),
    "extended CONNECT": ([*line("/a", "CONNECT"), (b":protocol", b"websocket")], 405, "extended CONNECT"),
    "fragment": (line("/a#b"), 400, "#"),
    "matrix": (line("/a;b"), 400, ";"),
    "blank in the path": (line("/a b"), 400, "visible"),
    "asterisk": (line("*"), 400, ":path"),
    "blank in the method": (line("/a", "GET /b"), 400, ":method"),
    "two lengths": ([*line(), (b"content-length", b"0"), (b"content-length", b"0")], 400, "Content-Length"),
    "odd length": ([*line(), (b"content-length", b"+1")], 400, "Content-Length"),
    "length without a body": ([*line(), (b"content-length", b"1")], 400, "shorter"),
    "expectation": ([*line(), (b"expect", b"the unexpected")], 417, "Expect"),
    "many headers": ([*line(), *[(b"x", b"")] * 256], 431, "256"),
    "long headers": ([*line(), (b"x", b"y" * 65500)], 431, "65536"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_request_is_refused_by_name_and_the_other_streams_go_on(http2: Conversation, name: str) -> None:
    fields, status, why = BROKEN[name]
    http2.get(1)
    http2.get(3, fields)
    assert list(http2.server.messages) == [1], "nothing of it was forwarded"
    seen = http2.client.messages[3]
    assert (seen.status, seen.ended) == (status, True)
    assert why in seen.data.decode()
    assert len(http2.asked) == 1
    assert why in http2.records[-1].policy_verdict.reason
    assert http2.told() == ["FORWARDED GET http://h/a", f"malformed {status}"]
    http2.answer(1)
    assert http2.client.messages[1].status == 200


def test_an_escaped_slash_is_redirected(http2: Conversation) -> None:
    http2.get(1, line("/x%2F../deny?q"))
    seen = http2.client.messages[1]
    assert (seen.status, dict(seen.fields)[b"location"]) == (307, b"/deny?q")
    assert http2.told() == ["malformed 307"]


def test_grpc_that_is_no_request_is_internal(http2: Conversation) -> None:
    http2.get(1, [*GRPC, (b"connection", b"close")])
    assert dict(http2.client.messages[1].fields)[b"grpc-status"] == b"13"


def test_an_authority_only_in_host_is_one(http2: Conversation) -> None:
    http2.get(1, [*line()[:3], (b"host", b"h")])
    assert http2.asked[0].host == b"h"


@pytest.mark.parametrize(("length", "body"), [(b"3", b"four"), (b"5", b"four")])
def test_a_body_of_another_length_than_said_ends_the_request(http2: Conversation, length: bytes, body: bytes) -> None:
    http2.get(1, [*line("/a", "POST"), (b"content-length", length)], end=False)
    http2.client.h2.send_data(1, body, end_stream=True)
    http2.run()
    assert http2.server.messages[1].reset == Code.CANCEL
    assert not http2.server.messages[1].ended
    assert http2.client.messages[1].status == 400
    assert http2.told() == ["FORWARDED POST http://h/a", "400 POST http://h/a"]


def test_trailers_must_end_the_request_and_frame_nothing(http2: Conversation) -> None:
    http2.get(1, GRPC, end=False)
    http2.client.h2.send_headers(1, [(b"content-length", b"7")], end_stream=True)
    http2.run()
    assert http2.server.messages[1].reset == Code.CANCEL
    assert dict(http2.client.messages[1].fields)[b"grpc-status"] == b"13"


# --- streams that end early ------------------------------------------------------------------------------------------


def test_the_client_resets_before_the_answer(http2: Conversation) -> None:
    http2.get(1)
    http2.client.h2.reset_stream(1, Code.CANCEL)
    http2.run()
    assert http2.server.messages[1].reset == Code.CANCEL
    assert http2.told() == ["FORWARDED GET http://h/a", "499 GET http://h/a"]
    assert http2.gate.waiting_for is Phase.IDLE


def test_the_client_resets_in_the_middle_of_the_answer(http2: Conversation) -> None:
    http2.get(1)
    http2.server.h2.send_headers(1, OK)
    http2.server.h2.send_data(1, b"beginning")
    http2.run()
    http2.client.h2.reset_stream(1, Code.CANCEL)
    http2.run()
    assert http2.server.messages[1].reset == Code.CANCEL
    assert "CANCEL" in http2.reasons()[-1]
    assert http2.told() == ["FORWARDED GET http://h/a", "200 GET http://h/a"]


def test_what_the_server_sends_after_the_clients_reset_is_thrown_away(http2: Conversation) -> None:
    http2.get(1)
    http2.server.h2.send_headers(1, OK)
    http2.server.h2.send_data(1, b"late")
    late = http2.server.h2.data_to_send()
    http2.client.h2.reset_stream(1, Code.CANCEL)
    http2.run()
    http2.reply(late)
    http2.get(3)
    http2.answer(3)
    assert b"late" not in http2.to_client
    assert http2.client.messages[3].status == 200
    assert http2.pairs()


def test_the_server_resets_before_its_answer(http2: Conversation) -> None:
    http2.get(1)
    http2.server.h2.reset_stream(1, Code.REFUSED_STREAM)
    http2.run()
    assert http2.client.messages[1].reset == Code.REFUSED_STREAM
    assert "REFUSED_STREAM" in http2.reasons()[-1]
    assert http2.told() == ["FORWARDED GET http://h/a", "502 GET http://h/a"]


def test_the_server_answers_early_and_wants_no_more(http2: Conversation) -> None:
    http2.get(1, line("/a", "POST"), end=False)
    http2.server.h2.send_headers(1, OK, end_stream=True)
    http2.server.h2.reset_stream(1, Code.NO_ERROR)
    http2.run()
    seen = http2.client.messages[1]
    assert (seen.status, seen.ended, seen.reset) == (200, True, Code.NO_ERROR)
    assert http2.told() == ["FORWARDED POST http://h/a", "200 POST http://h/a"]
    assert http2.gate.waiting_for is Phase.IDLE


def test_the_server_answers_early_and_takes_the_rest(http2: Conversation) -> None:
    http2.get(1, line("/a", "POST"), end=False)
    http2.answer(1)
    http2.client.h2.send_data(1, b"rest", end_stream=True)
    http2.run()
    assert (http2.server.messages[1].data, http2.server.messages[1].ended) == (b"rest", True)
    assert len(http2.told()) == 2
    assert http2.gate.waiting_for is Phase.IDLE


BAD_ANSWERS = {
    "no status": [(b"x", b"y")],
    "odd status": [(b":status", b"2000")],
    "two statuses": [(b":status", b"200"), (b":status", b"403")],
    "connection": [*OK, (b"connection", b"close")],
    "LF": [*OK, (b"x", b"a\r\nb")],
    "two lengths": [*OK, (b"content-length", b"1"), (b"content-length", b"2")],
    "length without a body": [*OK, (b"content-length", b"1")],
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_a_bad_answer_becomes_502(http2: Conversation, name: str) -> None:
    http2.get(1)
    http2.answer(1, BAD_ANSWERS[name])
    assert http2.client.messages[1].status == 502
    assert http2.told() == ["FORWARDED GET http://h/a", "502 GET http://h/a"]
    assert "invalid response" in http2.client.messages[1].data.decode()
    http2.get(3)
    assert 3 in http2.server.messages, "the other streams go on"


def test_there_is_no_switching_of_protocols(http2: Conversation) -> None:
    http2.get(1)
    http2.server.h2.send_headers(1, [(b":status", b"101")])
    http2.run()
    assert http2.client.messages[1].status == 502


def test_an_answer_that_is_shorter_than_it_said_is_cut(http2: Conversation) -> None:
    http2.get(1)
    http2.answer(1, [*OK, (b"content-length", b"9")], b"short")
    seen = http2.client.messages[1]
    assert (seen.ended, seen.reset) == (False, Code.INTERNAL_ERROR)
    assert http2.told() == ["FORWARDED GET http://h/a", "200 GET http://h/a"]


def test_data_for_a_head_request_is_no_answer(http2: Conversation) -> None:
    http2.get(1, line("/a", "HEAD"))
    http2.answer(1, OK, b"body")
    assert http2.client.messages[1].reset == Code.INTERNAL_ERROR
    assert b"body" not in http2.to_client


# --- which protocol --------------------------------------------------------------------------------------------------


def test_the_preface_makes_http_2_and_everything_else_http_1(http2: Conversation) -> None:
    assert http2.gate.waiting_for is Phase.IDLE
    http2.run()
    assert isinstance(http2.gate, Http2Gate)


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSX", b"PUT", b"\r\n"])
@pytest.mark.parametrize("size", [1, 5, 100])
def test_other_beginnings_are_http_1(sent: bytes, size: int) -> None:
    talk = Talk(lambda data: (data[at : at + size] for at in range(0, len(data), size)))
    talk.client(sent)
    assert isinstance(talk.gate, HttpGate)


def test_half_a_preface_is_a_request_head_that_takes_too_long() -> None:
    talk = Talk(lambda data: [data])
    talk.client(PREFACE[:15])
    assert talk.gate.waiting_for is Phase.HEAD
    talk.timed_out()
    talk.expect_refusal(408, "timed out waiting for the request head")


def test_the_trace_of_a_request_is_in_both_records(http2: Conversation) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    http2.get(1, line("/a", "GET", ("traceparent", f"00-{trace_id}-00f067aa0ba902b7-01")))
    http2.answer(1)
    records = [record for record in http2.records if isinstance(record, HttpRequest | HttpResponse)]
    assert [record.trace_id for record in records] == [trace_id, trace_id]
