"""Flow control end to end, and every way in which an HTTP/2 connection ends."""

from __future__ import annotations

import h2.settings
import pytest

from l7proxy.gate.actions import Phase
from l7proxy.gate.http2_peer import CONNECTION_WINDOW, STREAM_WINDOW
from l7proxy.gate.http2_stream_table import MAX_STREAMS
from l7proxy.wire import http2_frames as frames
from l7proxy.wire.http2_frames import MAX_STREAM, PREFACE, Code
from tests.unit.gate.http2_talk import OK, Conversation, line

WINDOW = h2.settings.SettingCodes.INITIAL_WINDOW_SIZE
STREAMS = h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS


def whole() -> Conversation:
    return Conversation(lambda data: [data])


def upload(http2: Conversation, stream: int, size: int) -> int:
    """Sends as much of a body as the windows allow. Returns how much was sent."""
    sent = 0
    while sent < size:
        room = min(http2.client.h2.local_flow_control_window(stream), 16384, size - sent)
        if room <= 0:
            break
        http2.client.h2.send_data(stream, b"u" * room)
        sent += room
        http2.run()
    return sent


# --- flow control ----------------------------------------------------------------------------------------------------


def test_a_server_that_does_not_take_a_body_stops_its_client() -> None:
    http2 = whole()
    http2.server.acknowledges = False
    http2.get(1, line("/a", "POST"), end=False)
    first = upload(http2, 1, 1 << 24)
    assert len(http2.server.messages[1].data) == 65535, "what the server's window allows"
    assert first <= 65535 + STREAM_WINDOW, "and what we hold besides"
    http2.get(3, line("/a", "POST"), end=False)
    assert upload(http2, 3, 1 << 24) <= STREAM_WINDOW
    http2.server.acknowledge()
    http2.run()
    assert len(http2.server.messages[1].data) > 65535
    assert upload(http2, 1, 1 << 24) > 0


def test_all_that_stalled_streams_can_make_us_hold_is_the_connections_window() -> None:
    http2 = whole()
    http2.server.h2.update_settings({WINDOW: 0})
    sent = 0
    for stream in range(1, 2 * 20, 2):
        http2.get(stream, line("/a", "POST"), end=False)
        sent += upload(http2, stream, 1 << 24)
    assert sent == CONNECTION_WINDOW
    assert b"uuuu" not in http2.to_server


def test_a_client_that_does_not_take_an_answer_stops_its_server() -> None:
    http2 = whole()
    http2.client.acknowledges = False
    http2.get(1)
    http2.server.h2.send_headers(1, OK)
    sent = 0
    while (room := min(http2.server.h2.local_flow_control_window(1), 16384)) > 0:
        http2.server.h2.send_data(1, b"d" * room)
        sent += room
        http2.run()
    assert len(http2.client.messages[1].data) == 65535
    assert sent <= 65535 + STREAM_WINDOW
    http2.client.acknowledge()
    http2.run()
    assert len(http2.client.messages[1].data) > 65535
    assert http2.server.h2.local_flow_control_window(1) > 0


def test_much_passes_both_ways(http2: Conversation) -> None:
    size = 200_000
    http2.get(1, line("/a", "POST"), end=False)
    assert upload(http2, 1, size) == size
    http2.client.h2.end_stream(1)
    http2.run()
    assert http2.server.messages[1].data == b"u" * size
    http2.server.h2.send_headers(1, OK)
    body, at = bytes(range(256)) * (size >> 8), 0
    while at < len(body):
        room = min(http2.server.h2.local_flow_control_window(1), 16384, len(body) - at)
        assert room > 0, "the window is opened again as the client takes it"
        http2.server.h2.send_data(1, body[at : at + room])
        at += room
        http2.run()
    http2.server.h2.end_stream(1)
    http2.run()
    assert http2.client.messages[1].data == body
    assert http2.client.messages[1].ended
    assert len(http2.told()) == 2


def test_padding_is_counted_given_back_and_not_forwarded(http2: Conversation) -> None:
    http2.get(1, line("/a", "POST"), end=False)
    before = len(http2.to_server)
    for _ in range(900):
        http2.client.h2.send_data(1, b"x", pad_length=255)
        http2.run()
    assert http2.server.messages[1].data == b"x" * 900
    assert len(http2.to_server) - before < 900 * 12


def test_our_own_answer_waits_for_the_clients_window() -> None:
    http2 = whole()
    http2.client.acknowledges = False
    http2.client.h2.update_settings({WINDOW: 5})
    http2.get(1, line("/deny"))
    seen = http2.client.messages[1]
    assert (seen.status, seen.data, seen.ended) == (403, b"Acces", False)
    http2.client.h2.increment_flow_control_window(100, 1)
    http2.run()
    assert (seen.data, seen.ended) == (b"Access denied\r\n", True)
    assert http2.pairs()


def test_a_changed_initial_window_moves_open_streams_even_below_zero(http2: Conversation) -> None:
    http2.client.acknowledges = False
    http2.say(frames.settings([(4, 10)]))
    http2.get(1)
    http2.answer(1, body=b"d" * 30)
    got = [len(http2.client.messages[1].data)]
    for size in (0, 5, 9, 12, 30):
        http2.say(frames.settings([(4, size)]))
        got.append(len(http2.client.messages[1].data))
    assert got == [10, 10, 10, 10, 12, 30]
    assert http2.client.messages[1].ended


def test_trailers_wait_for_the_data_before_them() -> None:
    http2 = whole()
    http2.client.acknowledges = False
    http2.client.h2.update_settings({WINDOW: 3})
    http2.get(1)
    http2.server.h2.send_headers(1, OK)
    http2.server.h2.send_data(1, b"12345")
    http2.server.h2.send_headers(1, [(b"x-after", b"1")], end_stream=True)
    http2.run()
    assert (http2.client.messages[1].data, http2.client.messages[1].trailers) == (b"123", [])
    http2.client.h2.increment_flow_control_window(10, 1)
    http2.run()
    assert (http2.client.messages[1].data, http2.client.messages[1].trailers) == (b"12345", [(b"x-after", b"1")])


def test_streams_share_a_small_window_in_turn() -> None:
    http2 = whole()
    http2.client.acknowledges = False
    for stream in (1, 3):
        http2.client.h2.send_headers(stream, line(), end_stream=True)
    http2.run()
    for stream in (1, 3):
        http2.server.h2.send_headers(stream, OK)
        http2.server.h2.send_data(stream, b"d" * 16384)
        http2.server.h2.send_data(stream, b"d" * 16384)
    http2.run()
    http2.client.h2.increment_flow_control_window(16384)
    http2.run()
    first, second = (len(http2.client.messages[stream].data) for stream in (1, 3))
    assert min(first, second) > 16384, "neither starves"


# --- concurrent streams ----------------------------------------------------------------------------------------------


def test_a_stream_too_many_is_refused_with_a_record_and_may_be_tried_again(http2: Conversation) -> None:
    http2.client.h2.remote_settings[STREAMS] = 1000
    http2.client.h2.initiate_connection  # noqa: B018 -- the peer's limit is not known yet
    for stream in range(1, 2 * MAX_STREAMS, 2):
        http2.get(stream)
    extra = frames.headers(2 * MAX_STREAMS + 1, b"\x82\x86\x84\x41\x01h", end=True)
    http2.say(extra)
    assert len(http2.server.messages) == MAX_STREAMS
    assert http2.told()[-1] == "malformed 503"
    assert frames.rst_stream(2 * MAX_STREAMS + 1, Code.REFUSED_STREAM) in http2.to_client
    assert not http2.end()


def test_streams_wait_for_a_server_that_takes_few_at_a_time(http2: Conversation) -> None:
    http2.server.h2.update_settings({STREAMS: 2})
    http2.get(1)
    http2.client.h2.remote_settings[STREAMS] = MAX_STREAMS  # sent before the client receives the new limit
    http2.client.h2.remote_settings.acknowledge()
    for stream in (3, 5, 7):
        http2.client.h2.send_headers(stream, line(), end_stream=True)
    http2.run()
    assert sorted(http2.server.messages) == [1, 3]
    http2.answer(1)
    assert sorted(http2.server.messages) == [1, 3, 5]
    http2.client.h2.reset_stream(3, Code.CANCEL)
    http2.run()
    assert sorted(http2.server.messages) == [1, 3, 5, 7]
    for stream in (5, 7):
        http2.answer(stream)
    assert http2.pairs()


def test_heads_that_wait_for_the_server_stop_the_client() -> None:
    http2 = whole()
    http2.reachable = False
    for stream in range(1, 9, 2):
        http2.get(stream, line("/a", "GET", ("x", "y" * 30_000)))
    assert http2.is_paused()
    http2.reachable = True
    http2.run()
    assert not http2.is_paused()
    assert sorted(http2.server.messages) == [1, 3, 5, 7]


# --- the server and its end ------------------------------------------------------------------------------------------


def test_nothing_of_a_request_goes_to_a_server_that_has_not_said_it_speaks_http_2(http2: Conversation) -> None:
    """Like CVE-2021-39214: an HTTP/1 server might find a request in a body."""
    http2.reachable = False
    hidden = b"GET /deny HTTP/1.1\r\nHost: h\r\n\r\n"
    http2.get(1, line("/a", "POST"), end=False)
    http2.client.h2.send_data(1, hidden, end_stream=True)
    http2.run()
    assert http2.to_server.startswith(PREFACE)
    assert hidden not in http2.to_server
    assert len(http2.to_server) < len(PREFACE) + 80, "our own SETTINGS, and nothing of the client's"
    http2.reply(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    assert hidden not in http2.to_server
    assert http2.client.messages[1].status == 502
    assert http2.told() == ["FORWARDED POST http://h/a", "502 POST http://h/a"]
    assert http2.end() == "close"
    assert http2.client.goaways


@pytest.mark.parametrize("said", [b"", b"\0\0", b"220 smtp ready\r\n", frames.frame(frames.PING, 0, 0, bytes(8))])
def test_other_servers_that_do_not_speak_http_2_are_502(http2: Conversation, said: bytes) -> None:
    http2.reachable = False
    http2.get(1)
    http2.reply(said)
    if not http2.end():
        http2.server_eof()
    assert http2.client.messages[1].status == 502
    assert http2.end() == "close"


def test_no_connection_is_503_and_grpc_unavailable(http2: Conversation) -> None:
    http2.reachable = False
    http2.get(1)
    http2.get(3, line("/x.Y/Z", "POST", ("content-type", "application/grpc")), end=False)
    http2.upstream_failed("connection refused")
    assert http2.client.messages[1].status == 503
    assert dict(http2.client.messages[3].fields)[b"grpc-status"] == b"14"
    assert b"connection refused" in dict(http2.client.messages[3].fields)[b"grpc-message"]
    assert http2.told()[2:] == ["503 GET http://h/a", "503 POST http://h/x.Y/Z"]
    assert http2.end() == "close"


def test_the_server_closes_in_the_middle(http2: Conversation) -> None:
    for stream in (1, 3, 5):
        http2.get(stream)
    http2.server.h2.send_headers(1, OK)
    http2.server.h2.send_data(1, b"half")
    http2.run()
    http2.answer(3, body=b"whole")
    http2.server_eof()
    assert http2.client.messages[1].reset == Code.INTERNAL_ERROR
    assert http2.client.messages[3].ended
    assert http2.client.messages[5].status == 502
    assert http2.pairs()
    assert http2.end() == "close"
    assert http2.client.goaways == [(5, Code.NO_ERROR)]


def test_an_answer_that_is_whole_is_delivered_though_its_server_is_gone() -> None:
    http2 = whole()
    http2.client.acknowledges = False
    http2.client.h2.update_settings({WINDOW: 3})
    http2.get(1)
    http2.answer(1, body=b"12345")
    http2.server_eof()
    assert not http2.end()
    http2.client.h2.increment_flow_control_window(10, 1)
    http2.run()
    assert (http2.client.messages[1].data, http2.client.messages[1].ended) == (b"12345", True)
    assert http2.end() == "close"
    assert http2.told() == ["FORWARDED GET http://h/a", "200 GET http://h/a"]


def test_a_server_that_breaks_http_2_fails_its_streams(http2: Conversation) -> None:
    http2.get(1)
    http2.reply(frames.frame(frames.DATA, 0, 0, b"x"))
    assert http2.client.messages[1].status == 502
    assert "DATA on stream 0" in http2.reasons()[-1]
    assert http2.half_closed == ["server"]
    assert http2.end() == "close"


def test_the_server_says_goodbye_and_streams_past_its_last_may_be_tried_again(http2: Conversation) -> None:
    for stream in (1, 3, 5):
        http2.get(stream)
    http2.reply(frames.goaway(1, Code.NO_ERROR))
    assert [http2.client.messages[stream].reset for stream in (3, 5)] == [Code.REFUSED_STREAM] * 2
    assert http2.client.goaways == [(1, Code.NO_ERROR)]
    assert not http2.end()
    http2.server.h2.send_headers(1, OK, end_stream=True)
    http2.reply(http2.server.h2.data_to_send())
    assert http2.client.messages[1].status == 200
    assert http2.pairs()
    assert http2.end() == "close"


def test_a_warning_before_the_goodbye_is_passed_on_and_what_is_on_its_way_still_goes(http2: Conversation) -> None:
    http2.get(1)
    http2.client.h2.send_headers(3, line(), end_stream=True)
    late = http2.client.h2.data_to_send()
    http2.reply(frames.goaway(MAX_STREAM, Code.NO_ERROR))
    assert http2.client.goaways == [(MAX_STREAM, Code.NO_ERROR)]
    http2.say(late)
    assert sorted(http2.server.messages) == [1, 3]
    http2.reply(frames.goaway(3, Code.NO_ERROR))
    for stream in (1, 3):
        http2.server.h2.send_headers(stream, OK, end_stream=True)
    http2.reply(http2.server.h2.data_to_send())
    assert http2.pairs()
    assert http2.end() == "close"


def test_after_the_goodbye_later_streams_are_not_looked_at(http2: Conversation) -> None:
    http2.get(1)
    http2.client.h2.send_headers(3, line("/a", "POST"))
    http2.client.h2.send_data(3, b"more")
    late = http2.client.h2.data_to_send()
    http2.reply(frames.goaway(1, Code.ENHANCE_YOUR_CALM))
    http2.say(late)
    assert len(http2.asked) == 1
    assert http2.client.goaways == [(1, Code.ENHANCE_YOUR_CALM)]
    assert not http2.end()


# --- the client and its end ------------------------------------------------------------------------------------------


def test_a_client_that_says_goodbye_gets_its_answers(http2: Conversation) -> None:
    http2.get(1)
    http2.say(frames.goaway(0, Code.NO_ERROR))
    assert http2.server.goaways == [(0, Code.NO_ERROR)]
    assert not http2.end()
    http2.server.h2.send_headers(1, OK, end_stream=True)  # h2 refuses to send this after a GOAWAY; real servers do
    assert http2.pairs() is False


def test_a_client_that_half_closes_gets_its_answers(http2: Conversation) -> None:
    http2.get(1)
    http2.get(3, line("/a", "POST"), end=False)
    http2.client_eof()
    assert http2.server.messages[3].reset == Code.CANCEL
    assert not http2.end()
    http2.answer(1)
    assert http2.client.messages[1].status == 200
    assert http2.pairs()
    assert http2.end() == "close"


def test_a_client_that_leaves_between_requests_ends_it(http2: Conversation) -> None:
    http2.get(1)
    http2.answer(1)
    http2.client_eof()
    assert http2.end() == "close"


def test_a_lost_client_leaves_a_record_for_each_stream(http2: Conversation) -> None:
    http2.get(1)
    http2.get(3, line("/a", "POST"), end=False)
    http2.server.h2.send_headers(1, OK)
    http2.run()
    http2.client_lost()
    assert http2.told()[2:] == ["200 GET http://h/a", "499 POST http://h/a"]
    assert http2.end() == "close"


def test_a_lost_client_in_the_middle_of_a_head_is_malformed(http2: Conversation) -> None:
    http2.say(frames.frame(frames.HEADERS, 0, 1, b"\x82"))
    assert http2.gate.waiting_for is Phase.HEAD
    http2.client_lost()
    assert http2.told() == ["malformed 400"]


def test_a_drain_says_goodbye_twice_and_ends_with_the_last_stream(http2: Conversation) -> None:
    http2.get(1)
    http2.drain()
    assert http2.client.goaways == [(MAX_STREAM, 0), (1, 0)], "the second once the first had been heard"
    assert not http2.end()
    http2.server.h2.send_headers(1, OK, end_stream=True)
    http2.reply(http2.server.h2.data_to_send())
    assert http2.client.messages[1].status == 200
    assert http2.end() == "close"


def test_a_drain_of_an_idle_connection_ends_it(http2: Conversation) -> None:
    http2.get(1)
    http2.answer(1)
    http2.drain()
    assert http2.end() == "close"


# --- deadlines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [b"", b"\0\0", frames.frame(frames.HEADERS, 0, 1, b"\x82\x86")])
def test_a_head_that_does_not_end_is_408(http2: Conversation, begun: bytes) -> None:
    if begun:
        http2.say(begun)
    else:
        http2._obey(http2.gate.from_client(PREFACE))  # without SETTINGS
    assert http2.gate.waiting_for is Phase.HEAD
    http2.timed_out()
    assert http2.told() == ["malformed 408"]
    assert http2.end() == "close"


def test_silence_ends_each_stream_with_its_record(http2: Conversation) -> None:
    http2.get(1)
    http2.get(3, line("/a", "POST"), end=False)
    http2.get(5)
    http2.server.h2.send_headers(5, OK)
    http2.run()
    assert http2.gate.waiting_for is Phase.TRANSFER
    http2.timed_out()
    assert [http2.client.messages[stream].status for stream in (1, 3)] == [504, 408]
    assert http2.client.messages[5].reset == Code.INTERNAL_ERROR
    assert http2.pairs()
    assert http2.end() == "close"


def test_an_idle_connection_is_ended_with_a_goodbye(http2: Conversation) -> None:
    http2.run()
    assert http2.gate.waiting_for is Phase.IDLE
    http2.timed_out()
    assert http2.client.goaways == [(0, 0)]
    assert http2.end() == "close"
    assert http2.told() == []
