"""Stalled HTTP/2 streams: none of them blocks the others or buffers more than its window, whichever end is slow."""

from __future__ import annotations

import tracemalloc

import pytest
from h2.connection import H2Connection
from h2.settings import SettingCodes

from l7proxy.gate import http2_budget as budget
from l7proxy.gate.http2_peer import CONNECTION_WINDOW, STREAM_WINDOW
from l7proxy.gate.http2_pending import MAX_WAITING
from l7proxy.gate.http2_stream_table import MAX_STREAMS
from l7proxy.wire import http2_frames as frames
from l7proxy.wire.http2_frames import Code
from tests.unit.gate.http2_talk import OK, Conversation, line


def few(streams: int) -> Conversation:
    """The server will allow this many streams at a time; it is not connected yet."""
    http2 = Conversation(lambda data: [data], takes=streams)
    http2.reachable = False
    return http2


def send(http2: Conversation, end: H2Connection, stream: int, size: int) -> int:
    """Sends as much of a body as the windows allow, and ends it if that is all. Returns how much was sent."""
    sent = 0
    while room := min(end.local_flow_control_window(stream), 16384, size - sent):
        sent += room
        end.send_data(stream, b"u" * room, end_stream=sent == size)
        http2.run()
        if sent == size:
            break
    return sent


def test_heads_that_wait_for_a_place_do_not_stop_the_request_that_has_it() -> None:
    http2 = few(1)
    http2.get(1, line("/upload", "POST"), end=False)
    for stream in range(3, 61, 2):
        http2.get(stream, line("/a", "GET", ("x-bulk", "b" * 4000)))
    assert http2.is_paused(), "while there is no server"
    http2.reachable = True
    http2.client.h2.send_data(1, b"the rest", end_stream=True)
    http2.run()
    assert not http2.is_paused()
    assert http2.server.of(1).data == b"the rest"
    for stream in range(1, 61, 2):
        http2.answer(stream)
    assert all(http2.client.of(stream).status == 200 for stream in range(1, 61, 2))
    assert http2.pairs()


def test_what_waits_for_too_much_may_be_tried_again() -> None:
    http2 = few(1)
    http2.get(1)
    http2.reachable = True
    for stream in range(3, 2 * MAX_STREAMS, 2):
        http2.client.h2.send_headers(stream, line("/a", "GET", ("x-bulk", "b" * 8000)), end_stream=True)
    http2.run()
    waiting = MAX_WAITING // 8200
    first, last = 3 + 2 * waiting - 2, 2 * MAX_STREAMS - 1
    assert http2.client.of(first).reset is None
    assert http2.client.of(last).reset == Code.REFUSED_STREAM
    refused = [stream for stream, message in http2.client.messages.items() if message.reset is not None]
    assert sorted(refused) == list(range(min(refused), last + 2, 2)), "those that came last"
    for stream in range(1, first + 2, 2):
        http2.answer(stream)
    assert not http2.end()
    assert http2.told().count("503 GET http://h/a") == len(refused)


def test_bodies_that_wait_for_a_place_leave_room_for_the_one_that_has_it() -> None:
    http2 = few(1)
    for stream in range(1, 11, 2):
        http2.get(stream, line("/upload", "POST"), end=False)
    for stream in range(9, 1, -2):
        send(http2, http2.client.h2, stream, 200_000)
    http2.reachable = True
    http2.run()
    send(http2, http2.client.h2, 1, 1_000_000)
    assert http2.server.of(1).data == b"u" * 1_000_000
    http2.answer(1)
    assert 3 in http2.server.messages
    assert http2.client.of(9).reset == Code.REFUSED_STREAM


def test_an_answer_that_its_client_does_not_take_holds_no_place_at_the_server() -> None:
    http2 = few(1)
    http2.client.acknowledges = False
    http2.client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 10})
    http2.get(1)
    http2.get(3)
    http2.reachable = True
    http2.run()
    http2.answer(1, OK, b"x" * 100)
    assert http2.client.of(1).data == b"x" * 10
    assert 3 in http2.server.messages


@pytest.mark.parametrize("streams", [0, 7, MAX_STREAMS, 1000])
def test_a_client_may_have_as_many_streams_as_its_server_takes(streams: int) -> None:
    http2 = few(streams)
    http2.get(1)
    http2.reachable = True
    http2.run()
    assert http2.client.h2.remote_settings.max_concurrent_streams == min(streams, MAX_STREAMS)
    http2.server.h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 50})
    http2.run()
    assert http2.client.h2.remote_settings.max_concurrent_streams == 50


def test_small_frames_are_held_at_the_price_of_their_bytes() -> None:
    http2 = few(1)
    http2.get(1, line("/upload", "POST"), end=False)
    piece = frames.frame(frames.DATA, 0, 1, b"four") * 2048
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(STREAM_WINDOW // 8192):
            http2.gate.from_client(piece)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert not http2.end()
    assert STREAM_WINDOW <= after - before < 2 * STREAM_WINDOW


def test_a_reader_that_opens_both_windows_for_every_4_kib_is_borne() -> None:
    """As Go's library (net/http2, inflowMinRefresh), when the body is read with a small buffer."""
    http2 = Conversation(lambda data: [data])
    http2.get(1)
    http2.server.h2.send_headers(1, OK)
    http2.run()
    http2.client.raw = http2.server.raw = True
    body = frames.frame(frames.DATA, 0, 1, bytes(16384))
    opened = (frames.window_update(0, 4096) + frames.window_update(1, 4096)) * 4
    for _ in range(budget.CAPACITY // 2):
        http2.to_client = b""  # not needed, and would be copied again and again
        http2._obey(http2.gate.from_server(body))
        http2._obey(http2.gate.from_client(opened))
        assert not http2.end()


STALLED = range(1, 2 * (CONNECTION_WINDOW // STREAM_WINDOW) - 1, 2)
"""As many streams as have room, minus one."""


def test_answers_that_nobody_takes_leave_the_next_one_its_way() -> None:
    http2 = Conversation(lambda data: [data])
    http2.client.acknowledges = False
    http2.client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
    http2.run()
    http2.client.h2.increment_flow_control_window(1 << 20)
    for stream in STALLED:
        http2.get(stream)
        http2.server.h2.send_headers(stream, OK)
        assert send(http2, http2.server.h2, stream, 1 << 20) == STREAM_WINDOW
    last = STALLED[-1] + 2
    http2.get(last)
    http2.client.h2.increment_flow_control_window(1 << 20, last)
    http2.server.h2.send_headers(last, OK)
    assert send(http2, http2.server.h2, last, 1 << 20) == 1 << 20
    assert len(http2.client.of(last).data) == 1 << 20


def test_bodies_that_the_server_does_not_take_leave_the_next_one_its_way() -> None:
    http2 = Conversation(lambda data: [data])
    http2.server.acknowledges = False
    http2.server.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
    http2.run()
    http2.server.h2.increment_flow_control_window(1 << 20)
    for stream in STALLED:
        http2.get(stream, line("/upload", "POST"), end=False)
        assert send(http2, http2.client.h2, stream, 1 << 20) == STREAM_WINDOW
    last = STALLED[-1] + 2
    http2.get(last, line("/upload", "POST"), end=False)
    http2.server.h2.increment_flow_control_window(1 << 20, last)
    assert send(http2, http2.client.h2, last, 1 << 20) == 1 << 20
    assert len(http2.server.of(last).data) == 1 << 20
