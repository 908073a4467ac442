"""Offers to splice: whichever a session accepts, wholly or in part, both ends and the log see the same."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from l7proxy.flows.records import Record
from l7proxy.gate.actions import Action, Close, Connect, Emit, Gate, HalfClose, Side, Splice, ToClient, ToServer
from l7proxy.gate.bulk import IN_BULK, WORTHWHILE
from l7proxy.gate.clock import Clock
from l7proxy.gate.detect import gate_for
from l7proxy.gate.options import HttpOptions
from l7proxy.model.http import Request
from l7proxy.model.policy_verdict import Conn, PolicyVerdict
from l7proxy.model.verdict import Direction, Verdict
from l7proxy.policy.l7 import KINDS
from l7proxy.policy.rules import HttpRules
from l7proxy.wire.body import ENDLESS, body
from l7proxy.wire.chunked import ChunkedBody
from l7proxy.wire.head import CHUNKED, UNTIL_CLOSE

CLIENT, SERVER = Side.CLIENT, Side.SERVER
CONN = Conn("10.0.0.1", 40000, "10.0.0.2", 80, 1001, 1002)
STOPPED = Clock(lambda: 1, lambda: 1)
BULK = random.Random(7).randbytes(2 * WORTHWHILE)
MORE = WORTHWHILE + 5


def judge(request: Request) -> PolicyVerdict:
    verdict = Verdict.DROPPED if request.path.startswith(b"/deny") else Verdict.FORWARDED
    return PolicyVerdict(verdict, Direction.INGRESS)


def get(path: str = "/a") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode()


def post(size: int, path: str = "/a") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {size}\r\n\r\n".encode() + BULK[:size]


def ok(size: int) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + BULK[:size]


def chunked(*sizes: int) -> bytes:
    chunks = b"".join(b"%x\r\n%b\r\n" % (size, BULK[:size]) for size in sizes)
    return b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


@dataclass
class Relay:
    """A session: bytes wait in order at both ends; `take` decides how much of an offer bypasses the gate."""

    dice: random.Random
    takes: float
    by_request: bool = True
    out: dict[Side, bytearray] = field(default_factory=lambda: {CLIENT: bytearray(), SERVER: bytearray()})
    records: list[Record] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    offered: int = 0
    unseen: int = 0
    over: bool = False

    def __post_init__(self) -> None:
        self.gate: Gate = gate_for(KINDS[HttpRules] if self.by_request else None, judge, CONN, STOPPED, HttpOptions())
        self.waiting = {CLIENT: memoryview(b""), SERVER: memoryview(b"")}
        self.obey(self.gate.started())

    def hears(self, side: Side, data: bytes, *, end: bool = False) -> None:
        self.waiting[side] = memoryview(data)
        while self.waiting[side] and not self.over:
            step = self.dice.choice((1, 100, IN_BULK - 1, IN_BULK, 256_000))
            piece = bytes(self.waiting[side][:step])
            self.waiting[side] = self.waiting[side][len(piece) :]
            self.obey(self.gate.from_client(piece) if side is CLIENT else self.gate.from_server(piece))
        if end and not self.over:
            self.obey(self.gate.client_eof() if side is CLIENT else self.gate.server_eof())

    def obey(self, actions: list[Action]) -> None:
        for action in actions:
            assert not self.over
            match action:
                case ToServer(data):
                    self.out[SERVER] += data
                case ToClient(data):
                    self.out[CLIENT] += data
                case Emit(record):
                    self.records.append(record)
                case HalfClose(side):
                    self.ends.append(f"fin {side.name}")
                case Close(reset):
                    self.ends.append(f"close {reset}")
                    self.over = True
                case Splice(side, length):
                    self.offered += 1
                    self.splice(side, length)
                case Connect():
                    self.obey(self.gate.connected())
                case _:
                    if hasattr(action, "gate"):
                        self.gate = action.gate

    def splice(self, side: Side, length: int) -> None:
        assert length >= WORTHWHILE
        if self.dice.random() > self.takes:
            return
        count = min(length, len(self.waiting[side]))
        if self.dice.random() < 0.5:
            count = self.dice.randint(0, count)
        moved, self.waiting[side] = self.waiting[side][:count], self.waiting[side][count:]
        self.out[SERVER if side is CLIENT else CLIENT] += moved
        self.unseen += count
        self.obey(self.gate.spliced(side, count))


UPGRADE = b"GET /ws HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n"
TALKS: dict[str, list[tuple[Side, bytes, bool]]] = {
    "download and a next request": [
        (CLIENT, get(), False),
        (SERVER, ok(2 * WORTHWHILE), False),
        (CLIENT, get("/deny"), False),
        (CLIENT, get(), False),
        (SERVER, ok(3), False),
    ],
    "download and what answers nothing": [(CLIENT, get(), False), (SERVER, ok(MORE) + b"junk", False)],
    "download cut short": [(CLIENT, get(), False), (SERVER, ok(2 * WORTHWHILE)[:-7], True)],
    "download until the end": [(CLIENT, get(), False), (SERVER, b"HTTP/1.1 200 OK\r\n\r\n" + BULK, True)],
    "download in chunks": [
        (CLIENT, get(), False),
        (SERVER, b"HTTP/1.1 200 OK\r\n" + chunked(3, 2 * WORTHWHILE, 1, MORE), False),
        (CLIENT, get(), False),
        (SERVER, ok(1), False),
    ],
    "upload and pipelined requests": [
        (CLIENT, post(2 * WORTHWHILE) + get("/deny") + post(MORE), False),
        (SERVER, ok(0), False),
        (SERVER, ok(MORE), False),
    ],
    "upload in chunks": [
        (CLIENT, b"POST /a HTTP/1.1\r\nHost: h\r\n" + chunked(2 * WORTHWHILE, MORE) + get(), False),
        (SERVER, ok(2), False),
        (SERVER, ok(2), False),
    ],
    "upload cut short": [(CLIENT, post(2 * WORTHWHILE)[:-3], True)],
    "upload answered early": [
        (CLIENT, post(2 * WORTHWHILE)[: 2 * WORTHWHILE - 10], False),
        (SERVER, ok(4), False),
        (CLIENT, BULK[2 * WORTHWHILE - 10 - len(post(0)) :] + get(), False),
        (SERVER, ok(4), False),
    ],
    "upload refused": [(CLIENT, post(2 * WORTHWHILE, "/deny"), False)],
    "a tunnel": [
        (CLIENT, UPGRADE, False),
        (SERVER, SWITCH + BULK, False),
        (CLIENT, BULK, True),
        (SERVER, BULK[:99], True),
    ],
}


@pytest.mark.parametrize("talk", TALKS.values(), ids=TALKS)
@pytest.mark.parametrize("seed", range(12))
def test_taking_offers_changes_nothing_to_be_seen(talk: list[tuple[Side, bytes, bool]], seed: int) -> None:
    seen = []
    for takes in (0.0, 0.6, 1.0):
        relay = Relay(random.Random(seed), takes)
        for side, data, end in talk:
            if not relay.over:
                relay.hears(side, data, end=end)
        seen.append((relay.out, relay.records, relay.ends))
        assert takes or not relay.unseen
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("takes", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_chunk_that_is_longer_than_it_says_is_found_behind_a_splice(seed: int, takes: float) -> None:
    response = b"HTTP/1.1 200 OK\r\n" + chunked(2 * WORTHWHILE)
    relay = Relay(random.Random(seed), takes)
    relay.hears(CLIENT, get())
    relay.hears(SERVER, response.replace(b"\r\n0\r\n", b"x\r\n0\r\n"))
    assert relay.ends == ["close True"]
    assert response.startswith(relay.out[CLIENT])
    assert bool(relay.unseen) is bool(takes)


@pytest.mark.parametrize("seed", range(6))
def test_plain_tcp(seed: int) -> None:
    relay = Relay(random.Random(seed), 0.5, by_request=False)
    relay.hears(CLIENT, BULK, end=True)
    relay.hears(SERVER, BULK[::-1], end=True)
    assert relay.out == {SERVER: BULK, CLIENT: BULK[::-1]}
    assert relay.ends == ["fin SERVER", "close False"]
    assert not relay.records


def test_nothing_of_a_refused_upload_is_offered() -> None:
    relay = Relay(random.Random(1), 1.0)
    relay.hears(CLIENT, post(2 * WORTHWHILE, "/deny"))
    assert not relay.offered
    assert not relay.out[SERVER]


@pytest.mark.parametrize(("size", "offers"), [(WORTHWHILE - 1, False), (2 * WORTHWHILE, True)])
def test_only_bulk_is_offered(size: int, offers: bool) -> None:
    relay = Relay(random.Random(1), 0.0)
    relay.hears(CLIENT, post(size))
    assert bool(relay.offered) is offers


@pytest.mark.parametrize(("size", "offers"), [(IN_BULK - 1, 0), (IN_BULK, 1)])
def test_a_tunnel_is_offered_when_it_carries_bulk(size: int, offers: int) -> None:
    gate = gate_for(None, judge, CONN, STOPPED, HttpOptions())
    assert gate.started() == [Connect()]
    actions = gate.from_client(BULK[:size])
    assert [action for action in actions if isinstance(action, Splice)] == [Splice(CLIENT, ENDLESS)] * offers


def test_what_is_plain_in_a_body() -> None:
    length, endless, chunks = body(1000), body(UNTIL_CLOSE), body(CHUNKED)
    assert length is not None
    assert endless is not None
    assert isinstance(chunks, ChunkedBody)
    assert (length.plain, endless.plain, chunks.plain) == (1000, ENDLESS, 0)
    length.feed(b"x" * 400)
    length.skip(599)
    assert (length.plain, length.done) == (1, False)
    length.skip(1)
    assert (length.plain, length.done) == (0, True)
    endless.skip(1 << 50)
    assert (endless.plain, endless.done) == (ENDLESS, False)
    for piece, plain in ((b"3e8", 0), (b"\r\n", 1000), (b"x" * 10, 990)):
        chunks.feed(piece)
        assert chunks.plain == plain
    chunks.skip(990)
    assert (chunks.plain, chunks.done) == (0, False)
    chunks.feed(b"\r\n0\r\n\r\n")
    assert (chunks.plain, chunks.done) == (0, True)
