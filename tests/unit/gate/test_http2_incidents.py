"""HTTP/2's known attacks, by CVE number: what the client and the server receive, and what is recorded."""

from __future__ import annotations

import time

import pytest
from hpack import Encoder

from l7proxy.flows.records import HttpRequest, HttpResponse, Malformed
from l7proxy.gate import http2_budget as budget
from l7proxy.gate.actions import Phase
from l7proxy.gate.http2_stream_table import MAX_STREAMS
from l7proxy.wire import http2_frames as frames
from l7proxy.wire.http2_frames import Code, Setting
from tests.unit.gate.http2_talk import OK, Conversation, line

GET = b"\x82\x86\x84\x41\x01h"
DENY = b"\x82\x86\x04\x05/deny\x41\x01h"
SECOND = 1_000_000_000
MOST_RESETS = budget.CAPACITY // (budget.RESET - budget.DELIVERED) + 1
"""The most resets at one instant, each after our own answer: its DATA lets the client open windows."""


def headers(stream: int, block: bytes = GET, *, end: bool = True) -> bytes:
    return frames.headers(stream, block, end=end)


def flood(http2: Conversation, frame: bytes, *, most: int = 4 * budget.CAPACITY) -> int:
    """Sends the same frame until the budget is spent. Returns how often it was accepted."""
    for count in range(most):
        if http2.end():
            return count
        http2._obey(http2.gate.from_client(frame))
    return most


def expect_calm(http2: Conversation) -> None:
    """GOAWAY with ENHANCE_YOUR_CALM, one Malformed record, one answer to each request."""
    assert http2.end() == "close"
    assert http2.client.goaways[-1][1] == Code.ENHANCE_YOUR_CALM
    assert sum(isinstance(record, Malformed) for record in http2.records) == 1
    assert http2.pairs()


@pytest.fixture
def quick() -> Conversation:
    http2 = Conversation(lambda data: [data])
    http2.run()
    return http2


# --- resets ----------------------------------------------------------------------------------------------------------


def test_cve_2023_44487_rapid_reset_ends_the_connection(quick: Conversation) -> None:
    quick.reachable = False
    for stream in range(1, 100_000, 2):
        quick._obey(quick.gate.from_client(headers(stream) + frames.rst_stream(stream, Code.CANCEL)))
        if quick.end():
            break
    expect_calm(quick)
    requests = sum(isinstance(record, HttpRequest) for record in quick.records)
    assert requests <= budget.CAPACITY // budget.RESET + 1


def test_cve_2023_44487_rapid_reset_in_one_read_is_no_cheaper(quick: Conversation) -> None:
    quick.reachable = False
    burst = b"".join(headers(n) + frames.rst_stream(n, Code.CANCEL) for n in range(1, 20_000, 2))
    quick._obey(quick.gate.from_client(burst))
    expect_calm(quick)
    assert len(quick.asked) <= budget.CAPACITY // budget.RESET + 1


def test_cve_2023_44487_denied_requests_in_one_read_are_streams_at_a_time(quick: Conversation) -> None:
    quick.client.raw = True
    burst = b"".join(headers(n, DENY) for n in range(1, 20_000, 2))
    quick._obey(quick.gate.from_client(burst))
    assert len(quick.asked) <= MAX_STREAMS
    assert quick.end() == "close"
    assert quick.client.goaways[-1][1] == Code.ENHANCE_YOUR_CALM


def test_cve_2023_44487_denied_requests_do_not_pay_for_resets(quick: Conversation) -> None:
    quick.client.raw = True
    for stream in range(1, 40_000, 4):
        cancelled = headers(stream) + frames.rst_stream(stream, Code.CANCEL)
        quick._obey(quick.gate.from_client(cancelled + headers(stream + 2, DENY)))
        if quick.end():
            break
    expect_calm(quick)
    assert len(quick.asked) <= 2 * MOST_RESETS


def test_denied_uploads_that_their_client_cancels_are_borne_for_ever(quick: Conversation) -> None:
    quick.client.raw = True
    for stream in range(1, 20_000, 2):
        quick._obey(quick.gate.from_client(headers(stream, DENY, end=False)))
        quick._obey(quick.gate.from_client(frames.rst_stream(stream, Code.CANCEL)))
        quick.clock += SECOND // 40
    assert not quick.end()
    assert quick.pairs()


def test_denied_requests_one_by_one_spend_the_budget(quick: Conversation) -> None:
    """Evaluating, recording and answering each costs more than sending it; a policy must not amplify this."""
    quick.client.raw = True
    for stream in range(1, 20_000, 2):
        quick._obey(quick.gate.from_client(headers(stream, DENY)))
        if quick.end():
            break
    expect_calm(quick)
    assert len(quick.asked) <= budget.CAPACITY // (budget.DENIED - budget.DELIVERED) + 1
    assert "a denied request" in quick.records[-1].policy_verdict.reason
    assert quick.pairs()


def test_headers_on_a_stream_that_we_reset_spend_the_budget(quick: Conversation) -> None:
    """They are read only to keep HPACK's state; nothing uses them."""
    quick.client.raw = True
    quick._obey(quick.gate.from_client(headers(1, DENY, end=False)))
    assert flood(quick, headers(1)) <= budget.CAPACITY
    expect_calm(quick)


def test_of_one_settings_frame_a_window_is_set_once(quick: Conversation) -> None:
    """If each setting in it moved the windows of all streams, 12 KB could move 100 windows 2000 times."""
    quick.client.acknowledges = False
    quick.get(1)
    quick.server.h2.send_headers(1, OK)
    for _ in range(4):
        quick.server.h2.send_data(1, b"x" * 16_000)
    quick.run()
    quick.client.raw = True
    told = len(quick.to_client)
    quick.reply(frames.frame(frames.DATA, 0, 1, b"x" * 2_000))
    quick._obey(quick.gate.from_client(frames.window_update(0, 1 << 20)))
    waits = 66_000 - 65_535
    assert len(quick.to_client) - told == 2_000 - waits + 9
    told = len(quick.to_client)
    pairs = [(Setting.INITIAL_WINDOW_SIZE, 1 << 20), (Setting.INITIAL_WINDOW_SIZE, 65_535)]
    quick._obey(quick.gate.from_client(frames.settings(pairs)))
    assert quick.to_client[told:] == frames.frame(frames.SETTINGS, frames.ACK, 0)


def test_cancelling_every_second_request_is_borne_for_ever(quick: Conversation) -> None:
    for stream in range(1, 4000, 4):
        quick.get(stream)
        quick.get(stream + 2)
        quick.client.h2.reset_stream(stream + 2, Code.CANCEL)
        quick.answer(stream)
    assert not quick.end()
    assert quick.pairs()


def test_a_burst_of_cancellations_now_and_then_is_borne(quick: Conversation) -> None:
    stream = -1
    for _ in range(20):
        for _ in range(50):
            stream += 2
            quick.get(stream)
            quick.client.h2.reset_stream(stream, Code.CANCEL)
            quick.run()
        quick.clock += 3 * SECOND
    assert not quick.end()


def test_a_wall_clock_that_is_set_back_costs_nobody_a_connection(quick: Conversation) -> None:
    """And no exchange has a negative duration."""
    stream = -1
    for _ in range(20):
        for _ in range(50):
            stream += 2
            quick.get(stream)
            quick.wall -= SECOND
            quick.client.h2.reset_stream(stream, Code.CANCEL)
            quick.run()
        quick.clock += 3 * SECOND
        quick.wall -= 3600 * SECOND
    assert not quick.end()
    quick.get(stream + 2)
    quick.wall -= SECOND
    quick.answer(stream + 2)
    (answer,) = [record for record in quick.records if isinstance(record, HttpResponse) and record.status == 200]
    assert answer.latency_ns == 0


MADE_YOU_RESET = {
    "a window opened by nothing": frames.window_update(1, 0),
    "a window opened too far": frames.window_update(1, (1 << 31) - 1),
    "DATA after the end": frames.frame(frames.DATA, 0, 1, b"x"),
    "HEADERS after the end": headers(1),
    "PRIORITY of a wrong size": frames.frame(frames.PRIORITY, 0, 1, b"1234"),
    "RST_STREAM of a wrong size": frames.frame(frames.RST_STREAM, 0, 1, b"123"),
    "WINDOW_UPDATE of a wrong size": frames.frame(frames.WINDOW_UPDATE, 0, 1, b"12345"),
}


@pytest.mark.parametrize("name", MADE_YOU_RESET)
def test_cve_2025_8671_what_would_make_us_reset_a_stream_ends_the_connection(http2: Conversation, name: str) -> None:
    http2.get(1)
    http2.get(3)
    http2.say(MADE_YOU_RESET[name])
    assert http2.end() == "close"
    assert len(http2.client.goaways) == 1
    assert http2.told() == ["FORWARDED GET http://h/a"] * 2 + ["malformed 400"] + ["499 GET http://h/a"] * 2


UNFIT = {
    "a body that is too long": (b"\x0f\x0d\x011", frames.frame(frames.DATA, 0, 1, b"ab")),
    "a body that is too short": (b"\x0f\x0d\x013", frames.frame(frames.DATA, frames.END_STREAM, 1, b"ab")),
    "HEADERS in the middle": (b"", headers(1, b"\x00\x01x\x01y", end=False)),
    "trailers that frame": (b"", headers(1, b"\x0f\x0d\x013")),
    "trailers that say the head again": (b"\x00\x01x\x01y", headers(1, b"\x00\x01x\x01z")),
}
"""More of a head, and an unexpected continuation: the request, already at the server, is cancelled."""


@pytest.mark.parametrize("name", UNFIT)
def test_cve_2025_8671_requests_that_we_must_cancel_cost_as_those_that_the_client_does(
    quick: Conversation, name: str
) -> None:
    more, then = UNFIT[name]
    quick.server.raw = quick.client.raw = True
    for stream in range(1, 10_000, 2):
        rest = then[:5] + stream.to_bytes(4, "big") + then[9:]
        quick._obey(quick.gate.from_client(headers(stream, GET + more, end=False) + rest))
        if quick.end():
            break
    expect_calm(quick)
    assert len(quick.asked) <= MOST_RESETS


def test_cve_2025_8671_malformed_requests_cannot_be_sent_for_ever(quick: Conversation) -> None:
    quick.client.raw = True
    for stream in range(1, 10_000, 2):
        quick._obey(quick.gate.from_client(headers(stream, GET + b"\x00\x01X\x01y")))
        if quick.end():
            break
    assert quick.client.goaways[-1][1] == Code.ENHANCE_YOUR_CALM
    assert quick.connects == 0


# --- header blocks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [b"", b"\0", b"x" * 16384])
def test_cve_2024_27316_endless_continuation_ends_the_connection(http2: Conversation, payload: bytes) -> None:
    """Also CVE-2023-45288, CVE-2024-28182, CVE-2024-30255, CVE-2024-31309."""
    http2.say(frames.frame(frames.HEADERS, 0, 1, GET))
    assert flood(http2, frames.frame(frames.CONTINUATION, 0, 1, payload)) <= 17
    assert http2.told() == ["malformed 431"]
    assert http2.client.goaways == [(0, Code.ENHANCE_YOUR_CALM)]


def test_cve_2024_27316_a_block_that_never_ends_is_ended_by_the_deadline(http2: Conversation) -> None:
    http2.say(frames.frame(frames.HEADERS, 0, 1, GET))
    assert http2.gate.waiting_for is Phase.HEAD
    http2.timed_out()
    assert http2.told() == ["malformed 408"]


@pytest.mark.parametrize(
    "between",
    [
        frames.frame(frames.PING, 0, 0, bytes(8)),
        frames.frame(frames.CONTINUATION, frames.END_HEADERS, 3, b""),
        headers(3),
        frames.frame(0x21, 0, 1),
    ],
)
def test_a_header_block_is_not_interrupted(http2: Conversation, between: bytes) -> None:
    http2.say(frames.frame(frames.HEADERS, 1, 1, GET) + between)
    assert http2.told() == ["malformed 400"]


def test_a_block_in_pieces_is_one_request(http2: Conversation) -> None:
    parts = [frames.frame(frames.HEADERS, frames.END_STREAM, 1, GET[:3])]
    parts += [frames.frame(frames.CONTINUATION, 0, 1, GET[3:5]), frames.frame(frames.CONTINUATION, 4, 1, GET[5:])]
    http2.say(b"".join(parts))
    assert http2.asked[0].host == b"h"


def test_cve_2016_6581_a_bomb_of_indices_is_stopped_while_it_is_read(http2: Conversation) -> None:
    """Each byte of the block stands for 4000 of the list."""
    block = GET + b"\x40\x01x" + b"\x7f\xa1\x1e" + b"y" * 4000 + b"\xbe" * 10_000
    http2.say(headers(1, block))
    assert http2.told() == ["malformed 431"]
    assert http2.client.goaways == [(1, Code.ENHANCE_YOUR_CALM)] or http2.client.goaways == [
        (0, Code.ENHANCE_YOUR_CALM)
    ]


def test_cve_2016_6581_a_small_bomb_is_refused_and_not_forwarded(http2: Conversation) -> None:
    """60 KB of one entry, repeated for 20 bytes, fit the limit of a head."""
    http2.client.raw = True
    http2.say(headers(1, GET + b"\x40\x01x" + b"\x7f\xb9\x16" + b"y" * 3000))
    http2.say(headers(3, b"\x82\x86\x84\xbf" + b"\xbe" * 20))
    assert http2.told() == ["FORWARDED GET http://h/", "malformed 431"]
    assert len(http2.asked) == 1
    assert not http2.end()


def test_what_the_table_holds_may_be_said_once_by_each_request(http2: Conversation) -> None:
    http2.client.raw = True
    http2.say(headers(1, GET + b"\x40\x01x" + b"\x7f\xb9\x16" + b"y" * 3000))
    for stream in range(3, 40, 2):
        http2.say(headers(stream, b"\x82\x86\x84\xbf\xbe"))
    assert len(http2.asked) == 20
    assert http2.asked[-1].headers[-1] == (b"x", b"y" * 3000)


def cpu_of_paths(path: bytes) -> float:
    """CPU seconds for 80 requests whose path is in HPACK's table."""
    http2 = Conversation(lambda data: [data])
    http2.run()
    http2.reachable = False
    size = len(path) - 127
    stored = b"\x82\x86\x44\x7f" + bytes((size & 0x7F | 0x80, size >> 7)) + path
    http2._obey(http2.gate.from_client(headers(1, stored + b"\x01\x01h")))
    block = b"\x82\x86\xbe\x01\x01h"
    rest = b"".join(headers(n, block + b"\x00\x01n\x03%03d" % n) for n in range(3, 160, 2))
    begin = time.process_time()
    http2._obey(http2.gate.from_client(rest))
    assert {asked.path for asked in http2.asked} == {path.upper()}
    return time.process_time() - begin


def test_a_path_in_the_table_is_normalised_once_not_by_each_request(quick: Conversation) -> None:
    """Otherwise 25 bytes would cost 2 ms each."""
    escaped, plain = b"/" + b"%c3%A9" * 660, b"/" + b"A" * 3960
    assert min(cpu_of_paths(escaped) for _ in range(3)) < 5 * min(cpu_of_paths(plain) for _ in range(3))


@pytest.mark.parametrize(
    "block",
    [
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\xbe",
        b"\x80",
        b"\x40\x05ab",
        b"\x82\x20",
        b"\x3f\xff\xff\x03",
        b"\x40\x81\xff\x01a",
        b"\xff" * 60_000,
    ],
    ids=[
        "a number too long",
        "no such entry",
        "entry 0",
        "cut off",
        "resized late",
        "too large",
        "no Huffman",
        "endless",
    ],
)
def test_blocks_that_cannot_be_decoded_end_the_connection(http2: Conversation, block: bytes) -> None:
    http2.say(headers(1, block))
    assert http2.told() == ["malformed 400"]
    assert http2.client.goaways[0][1] == Code.COMPRESSION_ERROR


def test_cve_2019_9516_nameless_headers_are_refused(http2: Conversation) -> None:
    http2.get(1, [*line(), *[(b"", b"")] * 50])
    assert http2.told() == ["malformed 400"]


@pytest.mark.parametrize("value", [b"a\r\nx-injected: 1", b"a\nGET /deny HTTP/1.1", b"a\rb", b"a\0b"])
def test_cve_2025_57804_line_ends_in_values_never_pass(http2: Conversation, value: bytes) -> None:
    http2.get(1, [*line(), (b"x", value)])
    assert http2.client.messages[1].status == 400
    assert not http2.connects


@pytest.mark.parametrize("path", [b"/a HTTP/1.1\r\nx: y", b"/a b", b"/a\tb", b"/\xff", b"/a\0"])
def test_cve_2023_27491_request_lines_that_are_none_never_pass(http2: Conversation, path: bytes) -> None:
    http2.get(1, [*line()[:2], (b":path", path), line()[3]])
    assert http2.client.messages[1].status == 400
    assert not http2.connects


def test_cve_2021_39214_a_body_that_looks_like_frames_is_a_body(http2: Conversation) -> None:
    inner = headers(3, DENY.replace(b"/deny", b"/evil"))
    http2.get(1, line("/a", "POST"), end=False)
    http2.client.h2.send_data(1, inner, end_stream=True)
    http2.run()
    assert len(http2.asked) == 1
    assert http2.server.messages[1].data == inner
    assert sorted(http2.server.messages) == [1]


def test_a_denied_block_still_counts_for_the_tables(http2: Conversation) -> None:
    """A refused request's headers enter the client's table: without them later indices would mean other headers."""
    encoder = Encoder()
    http2.run()
    http2.client.raw = True
    http2.say(headers(1, encoder.encode([*line("/deny"), (b"x-role", b"guest")])))
    http2.say(headers(3, encoder.encode([*line("/a"), (b"x-role", b"guest")])))
    assert (b"x-role", b"guest") in http2.server.messages[3].fields


# --- floods without progress -----------------------------------------------------------------------------------------

FLOODS = {
    "CVE-2019-9512 PING": frames.frame(frames.PING, 0, 0, bytes(8)),
    "CVE-2019-9515 SETTINGS": frames.settings([(3, 1)]),
    "CVE-2019-9515 empty SETTINGS": frames.settings([]),
    "CVE-2019-9518 empty DATA": frames.frame(frames.DATA, 0, 1),
    "CVE-2019-9518 padded empty DATA": frames.frame(frames.DATA, frames.PADDED, 1, b"\0"),
    "CVE-2019-9513 PRIORITY": frames.frame(frames.PRIORITY, 0, 1, bytes(5)),
    "WINDOW_UPDATE": frames.window_update(0, 1),
    "PING acknowledgements": frames.frame(frames.PING, frames.ACK, 0, bytes(8)),
    "SETTINGS acknowledgements": frames.frame(frames.SETTINGS, frames.ACK, 0),
    "frames of no known type": frames.frame(0xFA, 0, 0, b"grease"),
    "GOAWAY": frames.goaway(0, 0),
}


@pytest.mark.parametrize("name", FLOODS)
def test_floods_end_the_connection(quick: Conversation, name: str) -> None:
    quick.get(1, line("/a", "POST"), end=False)
    borne = flood(quick, FLOODS[name])
    assert budget.CAPACITY // 3 <= borne <= budget.CAPACITY + 10
    expect_calm(quick)


@pytest.mark.parametrize("name", FLOODS)
def test_the_same_at_a_modest_rate_is_borne(quick: Conversation, name: str) -> None:
    quick.get(1, line("/a", "POST"), end=False)
    for _ in range(6000):
        quick._obey(quick.gate.from_client(FLOODS[name]))
        quick.clock += SECOND // 100
    assert not quick.end()


def test_cve_2019_9511_windows_opened_by_the_byte_end_the_connection(quick: Conversation) -> None:
    quick.client.acknowledges = False
    quick.say(frames.settings([(4, 0)]))
    quick.get(1)
    quick.answer(1, OK, b"d" * 16_000)
    assert flood(quick, frames.window_update(1, 1)) <= budget.CAPACITY + 10
    expect_calm(quick)


def test_a_reader_that_opens_both_windows_for_each_frame_is_borne(quick: Conversation) -> None:
    quick.get(1)
    quick.server.h2.send_headers(1, OK)
    for _ in range(5000):
        quick.server.h2.send_data(1, b"tick")
        quick.run()
        quick.say(frames.window_update(0, 4) + frames.window_update(1, 4))
    assert not quick.end()


def test_cve_2019_9517_answers_nobody_reads_are_bounded_by_the_windows(quick: Conversation) -> None:
    quick.say(frames.settings([(4, 0)]))
    held = 0
    for stream in range(1, 2 * MAX_STREAMS, 2):
        quick.get(stream)
        quick.server.h2.send_headers(stream, OK)
        while (room := min(quick.server.h2.local_flow_control_window(stream), 16384)) > 0:
            quick.server.h2.send_data(stream, b"d" * room)
            held += room
            quick.run()
    assert held <= 512 << 10
    assert not quick.end()


def test_the_servers_floods_end_its_streams_with_502(quick: Conversation) -> None:
    quick.get(1)
    for _ in range(3 * budget.CAPACITY):
        quick.reply(frames.frame(frames.PING, 0, 0, bytes(8)))
        if quick.end():
            break
    assert quick.client.messages[1].status == 502
    assert quick.pairs()


# --- invalid frames --------------------------------------------------------------------------------------------------

BROKEN = {
    "too long": b"\x00\x40\x01\x00\x00\x00\x00\x00\x01",
    "DATA on stream 0": frames.frame(frames.DATA, 0, 0, b"x"),
    "DATA on an idle stream": frames.frame(frames.DATA, 0, 9, b"x"),
    "HEADERS on stream 0": headers(0),
    "an even stream": headers(2),
    "RST_STREAM on stream 0": frames.rst_stream(0, 0),
    "RST_STREAM on an idle stream": frames.rst_stream(9, 0),
    "WINDOW_UPDATE on an idle stream": frames.window_update(9, 1),
    "the connection's window too far": frames.window_update(0, (1 << 31) - 1),
    "SETTINGS on a stream": frames.frame(frames.SETTINGS, 0, 1),
    "SETTINGS of a wrong size": frames.frame(frames.SETTINGS, 0, 0, b"12345"),
    "an acknowledgement with settings": frames.frame(frames.SETTINGS, 1, 0, bytes(6)),
    "a window of 2^31": frames.settings([(4, 1 << 31)]),
    "a frame size too small": frames.settings([(5, 16383)]),
    "a push setting of 2": frames.settings([(2, 2)]),
    "PING on a stream": frames.frame(frames.PING, 0, 1, bytes(8)),
    "PING of a wrong size": frames.frame(frames.PING, 0, 0, bytes(7)),
    "GOAWAY on a stream": frames.frame(frames.GOAWAY, 0, 1, bytes(8)),
    "GOAWAY of a wrong size": frames.frame(frames.GOAWAY, 0, 0, bytes(7)),
    "PUSH_PROMISE": frames.frame(frames.PUSH_PROMISE, 4, 1, bytes(8)),
    "CONTINUATION alone": frames.frame(frames.CONTINUATION, 4, 1, GET),
    "padding longer than its frame": frames.frame(frames.DATA, frames.PADDED, 1, b"\x05abc"),
    "padded and empty": frames.frame(frames.HEADERS, frames.PADDED | 4, 3, b""),
    "priority cut off": frames.frame(frames.HEADERS, frames.WITH_PRIORITY | 4, 3, b"1234"),
    "PRIORITY on stream 0": frames.frame(frames.PRIORITY, 0, 0, bytes(5)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_frames_that_break_the_rules_end_the_connection_with_records(http2: Conversation, name: str) -> None:
    http2.get(1, line("/a", "POST"), end=False)
    http2.say(BROKEN[name])
    assert http2.end() == "close"
    assert http2.told() == ["FORWARDED POST http://h/a", "malformed 400", "499 POST http://h/a"]
    assert len(http2.client.goaways) == 1


def test_the_first_frame_must_be_settings(http2: Conversation) -> None:
    http2.client.h2.clear_outbound_data_buffer()
    for piece in http2._split(frames.PREFACE + headers(1)):
        http2._obey([] if http2.end() else http2.gate.from_client(piece))
    assert http2.told() == ["malformed 400"]


def test_more_data_than_the_windows_allow_ends_the_connection(quick: Conversation) -> None:
    quick.reachable = False
    quick.get(1, line("/a", "POST"), end=False)
    quick.say(frames.frame(frames.DATA, 0, 1, bytes(16384)) * 9)
    assert quick.client.goaways[0][1] == Code.FLOW_CONTROL_ERROR
    assert [type(record) for record in quick.records] == [HttpRequest, Malformed, HttpResponse]


@pytest.mark.parametrize(
    "frame",
    [
        frames.frame(frames.PUSH_PROMISE, frames.END_HEADERS, 1, bytes(4) + GET),
        headers(3),
        frames.rst_stream(3, 0),
        frames.frame(frames.DATA, 0, 3, b"x"),
        frames.window_update(3, 1),
        frames.settings([(2, 1), (4, 1 << 31)]),
    ],
)
def test_a_server_that_breaks_the_rules_is_502(http2: Conversation, frame: bytes) -> None:
    http2.get(1)
    http2.reply(frame)
    assert http2.client.messages[1].status == 502
    assert http2.end() == "close"
    assert http2.pairs()
