"""The laws of the HTTP/2 gate over any conversation: frames good and bad in any order, splits, ends and failures.

A separate reader (frames by hand, blocks by hpack) reads the output and compares it with what was evaluated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from hpack import Decoder
from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.flows.records import HttpRequest, HttpResponse, Malformed, Record
from l7proxy.gate.actions import (
    Action,
    Close,
    Connect,
    Emit,
    Gate,
    HalfClose,
    Pause,
    Phase,
    Resume,
    SwitchGate,
    ToClient,
    ToServer,
)
from l7proxy.gate.clock import Clock
from l7proxy.gate.detect import gate_for
from l7proxy.gate.http2_peer import CONNECTION_WINDOW
from l7proxy.gate.options import HttpOptions
from l7proxy.model.http import Request
from l7proxy.model.policy_verdict import PolicyVerdict
from l7proxy.model.verdict import Verdict
from l7proxy.policy.l7 import KINDS
from l7proxy.policy.rules import HttpRules
from l7proxy.wire import http2_frames as frames
from tests.unit.gate.talk import CONN, all_but_deny

PATHS = (b"/a", b"/b", b"/deny", b"/x/../deny", b"/a%2Fb", b"/a#b", b"/a/./c")
ACK = frames.frame(frames.SETTINGS, frames.ACK, 0)


def literal(name: bytes, value: bytes) -> bytes:
    """A literal field without indexing (RFC 7541 6.2.2)."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def request(path: bytes, *more: tuple[bytes, bytes]) -> bytes:
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"h"), *more]
    return b"".join(literal(*each) for each in fields)


STREAM = st.sampled_from([1, 1, 1, 3, 3, 5])
MORE = st.sampled_from(
    [(), ((b"content-type", b"application/grpc"),), ((b"content-length", b"4"),), ((b"Bad", b""),), ((b"x", b"\n"),)]
)
BODY = st.sampled_from([b"", b"body", b"GET /deny HTTP/1.1\r\n\r\n", b"d" * 16384])
CODE = st.sampled_from([0, 7, 8])


@st.composite
def client_frame(draw: st.DrawFn) -> bytes:
    stream, end = draw(STREAM), draw(st.booleans())
    match draw(st.integers(0, 11)):
        case 0 | 1 | 2 | 3:
            return frames.headers(stream, request(draw(st.sampled_from(PATHS)), *draw(MORE)), end=end)
        case 4 | 5:
            return frames.frame(frames.DATA, int(end), stream, draw(BODY))
        case 6:
            return frames.frame(frames.DATA, int(end) | frames.PADDED, stream, b"\3" + draw(BODY)[:99] + bytes(3))
        case 7:
            return frames.rst_stream(stream, draw(CODE))
        case 8:
            return frames.headers(stream, literal(b"x-after", b"1"), end=True)
        case 9:
            return frames.window_update(draw(st.sampled_from([0, 1, 3, 5])), draw(st.sampled_from([1, 100, 70_000])))
        case 10:
            return frames.frame(frames.PING, draw(st.sampled_from([0, 1])), 0, b"l7proxy!")
        case _:
            odd = draw(st.binary(max_size=30))
            return draw(st.sampled_from([frames.goaway(0, 0), odd, ACK, frames.settings([(3, 5)])]))


@st.composite
def server_frame(draw: st.DrawFn) -> bytes:
    stream, end = draw(STREAM), draw(st.booleans())
    match draw(st.integers(0, 11)):
        case 0 | 1 | 2:
            length = draw(st.sampled_from([b"", literal(b"content-length", b"4")]))
            return frames.headers(stream, literal(b":status", b"200") + length, end=end)
        case 3:
            status = draw(st.sampled_from([b"100", b"103", b"101"]))
            return frames.headers(stream, literal(b":status", status), end=False)
        case 4 | 5 | 6:
            return frames.frame(frames.DATA, int(end), stream, draw(BODY))
        case 7:
            return frames.headers(stream, literal(b"grpc-status", b"0"), end=True)
        case 8:
            return frames.rst_stream(stream, draw(CODE))
        case 9:
            return frames.window_update(draw(st.sampled_from([0, stream])), draw(st.sampled_from([1, 70_000])))
        case 10:
            return frames.goaway(draw(st.sampled_from([1, 5, frames.MAX_STREAM])), draw(CODE))
        case _:
            return draw(st.sampled_from([draw(st.binary(max_size=30)), ACK, frames.settings([(3, 1)])]))


STEPS = st.one_of(
    st.tuples(st.just("client"), client_frame()),
    st.tuples(st.just("client"), client_frame()),
    st.tuples(st.just("client"), client_frame()),
    st.tuples(st.just("server"), server_frame()),
    st.tuples(st.just("server"), server_frame()),
    st.tuples(st.sampled_from(["speaks", "speaks", "connected"]), st.just(frames.settings([]))),
    st.tuples(
        st.sampled_from(["client_eof", "server_eof", "upstream_failed", "timed_out", "draining", "client_lost"]),
        st.just(b""),
    ),
)


@dataclass
class Held:
    """All output of one gate."""

    server: bytes = b""
    client: bytes = b""
    records: list[Record] = field(default_factory=list)
    asked: list[Request] = field(default_factory=list)
    connects: int = 0
    spoken: bool = False
    paused: bool = False
    over: bool = False
    streams: list[int] = field(default_factory=list)
    gate: Gate | None = None

    def obey(self, actions: list[Action]) -> None:
        for action in actions:
            assert not self.over, f"{action} after the end"
            match action:
                case ToServer(data):
                    assert self.connects
                    self.server += data
                case ToClient(data):
                    self.client += data
                case Emit(record):
                    self.records.append(record)
                case Connect():
                    self.connects += 1
                case SwitchGate(gate=gate):
                    self.gate = gate
                case Pause() | Resume():
                    self.paused = isinstance(action, Pause)
                case Close():
                    self.over = True
                case HalfClose():
                    pass
                case _:
                    raise AssertionError(action)


def hold(steps: list[tuple[str, bytes]], cuts: list[int], *, eager: bool = False) -> Held:
    """`eager`: the server is connected and has sent its preface as soon as it is needed."""
    held = Held()
    clock = iter(range(10**9, 10**10, 1000))

    def judge(asked: Request) -> PolicyVerdict:
        held.asked.append(asked)
        return all_but_deny(asked)

    held.gate = gate_for(KINDS[HttpRules], judge, CONN, Clock(lambda: next(clock), lambda: next(clock)), HttpOptions())
    held.obey(held.gate.started())
    for piece in pieces(cuts, frames.PREFACE + frames.settings([])):
        held.obey(held.gate.from_client(piece))
    for what, data in steps:
        step(held, what, data, cuts)
        if eager and held.connects and not held.spoken and not held.over:
            step(held, "connected", b"", cuts)
            step(held, "speaks", frames.settings([]), cuts)
    if not held.over:
        held.obey(held.gate.client_lost())
    return held


def step(held: Held, what: str, data: bytes, cuts: list[int]) -> None:
    gate = held.gate
    assert gate is not None
    if what in ("client", "server"):
        data = placed(held, data)
    if what == "client":
        for piece in pieces(cuts, data):
            held.obey(gate.from_client(piece))
    elif what == "client_eof":
        held.obey(gate.client_eof())
    elif what == "client_lost":
        held.obey(gate.client_lost())
    elif what == "timed_out":
        held.obey(gate.timed_out(gate.waiting_for))
    elif what == "draining":
        held.obey(gate.draining())
    elif not held.connects:
        return
    elif what == "connected":
        held.obey(gate.connected())
    elif what == "speaks" and not held.spoken:
        held.spoken = True
        held.obey(gate.from_server(data))
    elif what == "server":
        held.spoken |= data[3:4] == bytes([frames.SETTINGS])
        for piece in pieces(cuts, data):
            held.obey(gate.from_server(piece))
    elif what == "server_eof":
        held.obey(gate.server_eof())
    elif what == "upstream_failed":
        held.obey(gate.upstream_failed("reset"))


def placed(held: Held, frame: bytes) -> bytes:
    """Requests take the next stream; other frames go to one of the last few: 1 is the newest."""
    if len(frame) < 9 or frame[5:9] == bytes(4):
        return frame
    if frame[3] == frames.HEADERS and frame[9:].startswith(literal(b":method", b"POST")):
        held.streams.append(2 * len(held.streams) + 1)
        number = held.streams[-1]
    elif not held.streams:
        return frame
    else:
        back = min(int.from_bytes(frame[5:9], "big") >> 1, len(held.streams) - 1)
        number = held.streams[-1 - back]
    return frame[:5] + number.to_bytes(4, "big") + frame[9:]


def pieces(cuts: list[int], data: bytes) -> Iterator[bytes]:
    at, turn = 0, 0
    while at < len(data):
        size = cuts[turn % len(cuts)]
        yield data[at : at + size]
        at += size
        turn += 1


# --- an independent reader -------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What one peer saw of a stream."""

    heads: list[dict[bytes, bytes]] = field(default_factory=list)
    data: bytes = b""
    ended: bool = False
    reset: bool = False


def read(data: bytes, *, window: int) -> dict[int, Seen]:
    """Frames as a strict peer reads them; its windows are opened by `window` bytes in all."""
    decoder = Decoder()
    streams: dict[int, Seen] = {}
    while data:
        size = int.from_bytes(data[:3], "big")
        kind, flags, stream = data[3], data[4], int.from_bytes(data[5:9], "big")
        payload, data = data[9 : 9 + size], data[9 + size :]
        assert len(payload) == size <= frames.MAX_FRAME, "no frame is cut off"
        if kind in (frames.HEADERS, frames.DATA):
            seen = streams.setdefault(stream, Seen())
            assert not seen.ended and not seen.reset, "nothing after the end of a stream"
            seen.ended = bool(flags & frames.END_STREAM)
            if kind == frames.HEADERS:
                assert flags & frames.END_HEADERS
                seen.heads.append(dict(decoder.decode(payload, raw=True)))
            else:
                assert seen.heads, "no DATA before a head"
                seen.data += payload
        elif kind == frames.RST_STREAM:
            assert stream in streams or stream
            seen = streams.setdefault(stream, Seen())
            assert not seen.reset, "reset once"
            seen.reset = True
    assert sum(len(seen.data) for seen in streams.values()) <= window
    return streams


def opened(steps: list[tuple[str, bytes]], who: str) -> int:
    """The most by which that side has opened the connection's window."""
    updates = [data for what, data in steps if what == who and data[3:4] == bytes([frames.WINDOW_UPDATE])]
    return 65535 + sum(int.from_bytes(data[9:13], "big") for data in updates if data[5:9] == bytes(4))


@settings(max_examples=800, deadline=None)
@given(
    st.lists(STEPS, min_size=1, max_size=14),
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
    st.sampled_from([True, True, False]),
)
def test_laws(steps: list[tuple[str, bytes]], cuts: list[int], eager: bool) -> None:
    held = hold(steps, cuts, eager=eager)
    assert held.gate is not None and held.gate.waiting_for is Phase.CLOSED
    requests = [record for record in held.records if isinstance(record, HttpRequest)]
    responses = [record for record in held.records if isinstance(record, HttpResponse)]

    # law 1: each request is evaluated once
    assert len(requests) == len(held.asked)
    # law 2: the server sees exactly the allowed requests, as they were evaluated, and none before its preface
    server = read(held.server.removeprefix(frames.PREFACE), window=opened(steps, "server"))
    allowed = Counter(
        asked.path
        for asked, record in zip(held.asked, requests, strict=True)
        if record.policy_verdict.verdict is Verdict.FORWARDED
    )
    forwarded = Counter(seen.heads[0][b":path"] for seen in server.values() if seen.heads)
    assert forwarded <= allowed
    assert held.spoken or not server
    assert held.connects <= 1
    # law 3: each request has one answer, after it, with the same name
    waiting: Counter[tuple[str, str]] = Counter()
    for record in held.records:
        if isinstance(record, HttpRequest):
            waiting[record.method, record.url] += 1
        elif isinstance(record, HttpResponse):
            waiting[record.method, record.url] -= 1
            assert waiting[record.method, record.url] >= 0
    assert len(responses) == len(requests)
    assert not +waiting
    # and the client saw at most one final head of each stream, and nothing that was denied
    client = read(held.client, window=opened(steps, "client"))
    for seen in client.values():
        final = [head for head in seen.heads if head.get(b":status", b"100") >= b"200"]
        assert len(final) <= 1
        assert not final or b":status" in seen.heads[-1] or b"grpc-status" in seen.heads[-1]
        if final and final[0][b":status"] == b"403":
            assert b"Access denied\r\n".startswith(seen.data)
    answered = {200, 403, 499, 502, 503, 504, 408, 400}
    assert {record.status for record in responses} <= answered
    assert all(isinstance(record, HttpRequest | HttpResponse | Malformed) for record in held.records)


@settings(max_examples=150, deadline=None)
@given(st.lists(client_frame(), min_size=1, max_size=40), st.binary(min_size=1, max_size=200), st.integers(0, 1 << 20))
def test_mutated_bytes_end_in_records_not_in_faults(parts: list[bytes], noise: bytes, place: int) -> None:
    data = bytearray(b"".join(parts))
    at = place % (len(data) + 1)
    data[at : at + len(noise)] = noise
    held = hold([("client", bytes(data)), ("speaks", frames.settings([]))], [len(data) + 1])
    requests = sum(isinstance(record, HttpRequest) for record in held.records)
    assert requests == sum(isinstance(record, HttpResponse) for record in held.records) == len(held.asked)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(STREAM, st.integers(1, 16384)), min_size=1, max_size=60))
def test_what_one_client_makes_us_hold_is_bounded(uploads: list[tuple[int, int]]) -> None:
    """The server reads nothing: whatever the client sends, within its windows or not."""
    steps = [("client", frames.headers(1, request(b"/a"), end=False))] * 5
    steps += [("client", frames.frame(frames.DATA, 0, stream, bytes(size))) for stream, size in uploads]
    held = hold(steps, [1 << 20])
    sent = sum(size for _, size in uploads)
    overrun = any("window allows" in record.policy_verdict.reason for record in held.records)
    assert overrun or sent <= CONNECTION_WINDOW
