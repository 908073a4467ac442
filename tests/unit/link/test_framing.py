"""Frames survive any split; an invalid frame raises a LinkError that says so."""

from __future__ import annotations

import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7proxy.errors import LinkError
from l7proxy.flows.pack import pack
from l7proxy.flows.records import Connection, HttpResponse
from l7proxy.link import framing
from l7proxy.link.delta import EMPTY, SnapshotDecoder, delta
from l7proxy.link.messages import (
    AddressesLearned,
    Applied,
    FromWorker,
    Hello,
    PolicySnapshot,
    Request,
    SnapshotDelta,
    WorkerStats,
)
from l7proxy.model.policy_verdict import Conn, PolicyVerdict
from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import Action, Direction, DropReason, Verdict
from l7proxy.policy.rules import HeaderMatch, HttpRule, HttpRules
from l7proxy.policy.tables import DirectionPolicy, EndpointPolicy, Entry, LocalEndpoint, union

REF = RuleRef("CiliumNetworkPolicy", "default", "web", "spec.ingress[0]", "web.yaml", 7)
CONN = Conn("10.0.0.1", 40000, "10.0.0.2", 80, 300, 301)
POLICY_VERDICT = PolicyVerdict(
    Verdict.DROPPED, Direction.INGRESS, REF, None, DropReason.POLICY_DENIED, "no rule matched"
)
SAID: list[FromWorker] = [
    Hello(version=2, pid=7, worker=0),
    Applied(revision=3, problems=("a rule",)),
    pack(
        (
            Connection(1, CONN, POLICY_VERDICT),
            HttpResponse(2, CONN, POLICY_VERDICT, "GET", "http://a/é", "HTTP/1.1", 403, 9, (("a", "b"),)),
        ),
        lost=4,
    ),
    WorkerStats(connections=1, requests=2, denied=3),
    Request(1, AddressesLearned(5, "a.example", ("192.0.2.1",), 30)),
]
SNAPSHOT = PolicySnapshot(
    revision=9,
    endpoints=(
        LocalEndpoint(
            id=5,
            name="default/web",
            addresses=("10.0.0.2", "fd00::2"),
            policy=EndpointPolicy(
                5,
                ingress=union(
                    entries=(
                        Entry(
                            Action.REDIRECT,
                            REF,
                            peers=(300,),
                            protocol=6,
                            first=80,
                            last=80,
                            l7=HttpRules(
                                (HttpRule(REF, method="GET", path="/api/.*", headers=(HeaderMatch("x-token"),)),)
                            ),
                        ),
                    ),
                    denied_by=(REF,),
                ),
            ),
        ),
    ),
    identities={"10.0.0.1/32": 300, "0.0.0.0/0": 9},
    node_addresses=("192.168.0.1",),
)


@given(st.lists(st.integers(1, 60), max_size=80))
def test_messages_survive_every_split(cuts: list[int]) -> None:
    stream = b"".join(framing.encode(message) for message in SAID)
    decoder = framing.from_worker()
    heard: list[FromWorker] = []
    for cut in cuts:
        heard += decoder.feed(stream[:cut])
        stream = stream[cut:]
    heard += decoder.feed(stream)
    decoder.eof()
    assert heard == SAID


def test_byte_by_byte_a_snapshot_arrives_whole() -> None:
    decoder = framing.from_agent()
    sent = framing.encode(delta(EMPTY, SNAPSHOT))
    (message,) = [message for byte in sent for message in decoder.feed(bytes([byte]))]
    assert isinstance(message, SnapshotDelta)
    heard = SnapshotDecoder().open(message)
    assert heard == SNAPSHOT
    assert isinstance(heard.endpoints[0].policy.ingress, DirectionPolicy)


COLUMNS = ("parties", "policy_verdicts", "times", "party", "urls", "statuses", "latencies")
UNEVEN: dict[str, object] = {"type": "flows", **{column: [] for column in COLUMNS}, "times": [1]}
BEHIND = {"parties": [[msgspec.to_builtins(CONN), -1, "GET", "HTTP/1.1"]]}


def frame(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


@pytest.mark.parametrize(
    ("garbage", "named"),
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "not the link protocol", id="http"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00", "exceeds the limit", id="tls"),
        pytest.param(frame(b""), "not a valid message", id="empty frame"),
        pytest.param(frame(b"\xc1\xc1"), "not a valid message", id="invalid msgpack"),
        pytest.param(frame(msgspec.msgpack.encode({"type": "bye"})), "bye", id="unknown tag"),
        pytest.param(frame(msgspec.msgpack.encode({"type": "request"})), "id", id="missing field"),
        pytest.param(frame(msgspec.msgpack.encode(Hello(1, 2, 3)) + b"x"), "trailing", id="trailing bytes"),
        pytest.param(
            frame(msgspec.msgpack.encode({"type": "hello", "version": "1", "pid": 1, "worker": 0})),
            "version",
            id="wrong type",
        ),
        pytest.param(frame(msgspec.msgpack.encode(UNEVEN)), "differ in length", id="columns of different length"),
        pytest.param(frame(msgspec.msgpack.encode(UNEVEN | BEHIND)), ">= 0", id="a place before the first"),
        pytest.param(frame(b"\x91" * 100_000), "not a valid message", id="deeply nested"),
        pytest.param(frame(b"\x84\xa4type\xa5hello\xa7version\xa1\xff"), "not a valid message", id="broken text"),
    ],
)
def test_garbage_is_named_and_ends_the_stream(garbage: bytes, named: str) -> None:
    decoder = framing.from_worker(max_frame=1 << 20)
    heard = []
    with pytest.raises(LinkError, match=f"(?i){named}"):
        for message in decoder.feed(framing.encode(SAID[0]) + garbage):
            heard.append(message)  # noqa: PERF402 -- what came before the garbage counts
    assert heard == SAID[:1]
    with pytest.raises(LinkError):
        list(decoder.feed(framing.encode(SAID[0])))


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_a_link_error(data: bytes) -> None:
    decoder = framing.from_worker(max_frame=200)
    try:
        list(decoder.feed(data))
        decoder.eof()
    except LinkError as error:
        assert str(error)


def test_a_frame_over_the_limit_is_refused_before_it_is_buffered_and_before_it_is_sent() -> None:
    decoder = framing.from_worker(max_frame=100)
    with pytest.raises(LinkError, match="101 bytes"):
        list(decoder.feed(struct.pack(">I", 101)))
    with pytest.raises(LinkError, match="SnapshotDelta of"):
        framing.encode(delta(EMPTY, SNAPSHOT), max_frame=50)


def test_an_end_inside_a_frame_is_named() -> None:
    decoder = framing.from_worker()
    assert not list(decoder.feed(framing.encode(SAID[0])[:-1]))
    with pytest.raises(LinkError, match="inside a frame"):
        decoder.eof()
