"""Kernel events get their rule from the one verdict function, and one connection gives one flow."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.agent.flow_recorder import Recorder, record_of
from l7proxy.agent.flow_recorder import judged as judged_by_policy
from l7proxy.flows.event import Lost
from l7proxy.flows.flow import Flow, NetworkInterface
from l7proxy.flows.hubble_constants import EventType
from l7proxy.flows.pack import pack
from l7proxy.flows.records import HttpRequest
from l7proxy.flows.ring import Ring
from l7proxy.flows.template import TemplatedFlow
from l7proxy.hubble import mask
from l7proxy.hubble.api.observer import observer_pb2
from l7proxy.hubble.encode import Encoder
from l7proxy.metrics import options
from l7proxy.metrics.sink import FlowMetrics
from l7proxy.model.policy_verdict import Conn, PolicyVerdict
from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import Action, Direction, DropReason, Verdict
from l7proxy.policy.endpoints import EndpointIndex
from l7proxy.policy.rules import HttpRules
from l7proxy.policy.tables import EndpointPolicy, Entry, LocalEndpoint, union
from tproxy_rules.backend import Suppressed
from tproxy_rules.marks import LogDirection, LogEvent
from tproxy_rules.nflog import NflogEvent, parse_packet

ALLOW, DENY, L7, OUT = (RuleRef("P", "ns", name) for name in ("allow", "deny", "l7", "out"))
CLIENT, WEB, OTHER = "10.0.0.6", "10.0.0.5", "10.0.0.7"
IDENTITIES = {"0.0.0.0/0": 2, f"{CLIENT}/32": 300, f"{WEB}/32": 301, f"{OTHER}/32": 302}
INGRESS = union(
    (
        Entry(Action.DENY, DENY, (300,), 6, 22, 22),
        Entry(Action.REDIRECT, L7, (300,), 6, 80, 80, l7=HttpRules(())),
        Entry(Action.ALLOW, ALLOW, (300,), 6, 81, 81),
    ),
    (ALLOW,),
)
EGRESS = union((Entry(Action.ALLOW, OUT, (301, 302)),), (OUT,))


def index(**policies: EndpointPolicy) -> EndpointIndex:
    addresses = {"web": WEB, "client": CLIENT}
    endpoints = (LocalEndpoint(one.endpoint, name, (addresses[name],), one) for name, one in policies.items())
    return EndpointIndex(endpoints, IDENTITIES)


HEADS = (
    bytes((0x45, 0, 0, 60, 0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 6, 10, 0, 0, 5)),
    bytes((0x60, 0, 0, 0, 0, 20, 17, 64)) + bytes(15) + b"\1",
    b"\x45",
    b"\x60",
)
"""Starts of IPv4 and IPv6 packets."""
ENDS = index(web=EndpointPolicy(1, INGRESS), client=EndpointPolicy(2, None, EGRESS))


def event(
    told: LogEvent, way: LogDirection, port: int, *, source: str = CLIENT, destination: str = WEB, **more: Any
) -> NflogEvent:
    return NflogEvent(told, way, 1, source, destination, 6, 40000, port, **more)


def judged(*args: Any, **more: Any) -> PolicyVerdict | None:
    record = record_of(event(*args, **more), ENDS, 1)
    return record.policy_verdict if record else None


def said(policy_verdict: PolicyVerdict) -> tuple[Verdict, Direction, RuleRef | None, RuleRef | None]:
    return policy_verdict.verdict, policy_verdict.direction, policy_verdict.ingress, policy_verdict.egress


def test_an_allowed_connection_names_both_directions_rules() -> None:
    record = record_of(event(LogEvent.ALLOW, LogDirection.INGRESS, 81, tcp_flags=2), ENDS, 7)
    assert record is not None
    assert (record.time_ns, record.flags) == (7, 2)
    assert record.conn == Conn(CLIENT, 40000, WEB, 81, 300, 301, 6)
    assert said(record.policy_verdict) == (Verdict.FORWARDED, Direction.INGRESS, ALLOW, OUT)


def test_of_icmp_the_type_and_code_are_asked() -> None:
    echo = Entry(Action.ALLOW, ALLOW, None, 1, 8 << 8, 8 << 8)
    ends = index(web=EndpointPolicy(1, union((echo,), (DENY,))))

    def rule(told: LogEvent, kind: int, code: int) -> tuple[Verdict, RuleRef | None]:
        ping = NflogEvent(told, LogDirection.INGRESS, 1, CLIENT, WEB, 1, icmp_type=kind, icmp_code=code)
        record = record_of(ping, ends, 1)
        assert record is not None and (record.icmp_type, record.icmp_code) == (kind, code)
        return record.policy_verdict.verdict, record.policy_verdict.ingress

    assert rule(LogEvent.ALLOW, 8, 0) == (Verdict.FORWARDED, ALLOW)
    assert rule(LogEvent.NONE, 13, 0) == (Verdict.DROPPED, DENY)
    assert rule(LogEvent.NONE, 8, 1) == (Verdict.DROPPED, DENY)


def test_when_both_directions_are_asked_here_ingress_tells_it() -> None:
    assert judged(LogEvent.ALLOW, LogDirection.EGRESS, 81) is None
    assert judged(LogEvent.STEER, LogDirection.EGRESS, 80) is None
    there = judged(LogEvent.ALLOW, LogDirection.EGRESS, 81, destination=OTHER)
    assert there is not None
    assert said(there) == (Verdict.FORWARDED, Direction.EGRESS, None, OUT)


def test_a_steered_connection_is_redirected_whichever_direction_tells() -> None:
    for told in (LogEvent.ALLOW, LogEvent.STEER):
        found = judged(told, LogDirection.INGRESS, 80)
        assert found is not None
        assert (found.verdict, found.ingress, found.egress) == (Verdict.REDIRECTED, L7, OUT)


@pytest.mark.parametrize(
    ("told", "port", "rule", "drop_reason", "reason"),
    [
        (LogEvent.DENY, 22, DENY, DropReason.POLICY_DENY, "denied by policy ns/deny"),
        (
            LogEvent.NONE,
            99,
            ALLOW,
            DropReason.POLICY_DENIED,
            "no rule of policy ns/allow allows identity 300 to 99/TCP",
        ),
    ],
)
def test_a_refusal_names_who_refused_and_why(
    told: LogEvent, port: int, rule: RuleRef, drop_reason: DropReason, reason: str
) -> None:
    found = judged(told, LogDirection.INGRESS, port)
    assert found is not None
    assert (found.verdict, found.direction, found.ingress) == (Verdict.DROPPED, Direction.INGRESS, rule)
    assert found.drop_reason is drop_reason
    assert found.reason == reason


@pytest.mark.parametrize(
    ("told", "port", "verdict"),
    [
        (LogEvent.ALLOW, 22, Verdict.FORWARDED),
        (LogEvent.STEER, 22, Verdict.REDIRECTED),
        (LogEvent.STEER, 81, Verdict.REDIRECTED),
        (LogEvent.DENY, 81, Verdict.DROPPED),
        (LogEvent.NONE, 80, Verdict.DROPPED),
    ],
)
def test_where_the_snapshot_has_moved_on_the_kernels_word_is_the_verdict(
    told: LogEvent, port: int, verdict: Verdict
) -> None:
    found = judged(told, LogDirection.INGRESS, port)
    assert found is not None
    assert found.verdict is verdict
    assert bool(found.reason) is (verdict is Verdict.DROPPED)
    assert DENY not in (found.ingress, found.egress)


@pytest.mark.parametrize("told", [LogEvent.SPOOF, LogEvent.GROUP, LogEvent.UNSERVED])
def test_what_is_refused_before_any_policy_says_so(told: LogEvent) -> None:
    found = judged(told, LogDirection.EGRESS, 81)
    assert found is not None
    assert (found.verdict, found.direction) == (Verdict.DROPPED, Direction.EGRESS)
    assert found.reason


def test_a_packet_that_could_not_be_parsed_is_told_all_the_same() -> None:
    record = record_of(NflogEvent(LogEvent.SPOOF, LogDirection.EGRESS, 1), ENDS, 1)
    assert record is not None
    assert (record.conn.source, record.conn.source_identity, record.conn.protocol) == ("", 0, 0)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(LogEvent),
    st.sampled_from(LogDirection),
    st.lists(st.binary(max_size=64) | st.builds(bytes.__add__, st.sampled_from(HEADS), st.binary(max_size=64))),
)
def test_any_packet_that_a_pod_can_send_is_recorded(told: LogEvent, way: LogDirection, packets: list[bytes]) -> None:
    ring, events = Ring(511), [NflogEvent(told, way, 1) for _ in packets]
    for packet, one in zip(packets, events, strict=True):
        parse_packet(packet, one)
    Recorder(ring, node="n1").packets(events)
    assert ring.lost == 0
    assert ring.seen == sum(1 + judged_by_policy(one) for one in events)
    with Encoder(mask.read(()), "n1") as encoder:
        for number in range(ring.end):
            assert json.loads(ring.at(number).line())["flow"]["verdict"]
            observer_pb2.GetFlowsResponse.FromString(encoder.response(ring.at(number)))


def test_an_event_that_cannot_be_recorded_does_not_lose_the_others(caplog: pytest.LogCaptureFixture) -> None:
    ring = Ring(15, clock=itertools.count().__next__)
    good = event(LogEvent.SPOOF, LogDirection.EGRESS, 99)
    bad = event(LogEvent.SPOOF, LogDirection.EGRESS, 99, source="no address")
    Recorder(ring, node="n1").packets([good, bad, good])
    assert (ring.seen, ring.lost) == (2, 1)
    assert "no address" in caplog.text


def test_records_and_losses_reach_the_ring() -> None:
    ring = Ring(15, clock=itertools.count().__next__)
    recorder = Recorder(ring, node="n1")
    request = HttpRequest(
        1,
        Conn(CLIENT, 1, WEB, 80, 300, 301),
        PolicyVerdict(Verdict.FORWARDED, Direction.INGRESS),
        "GET",
        "http://a/",
        "HTTP/1.1",
    )
    recorder.ingest(pack((request,), 3))
    recorder.packets([event(LogEvent.NONE, LogDirection.INGRESS, 99)], lost_so_far=5)
    recorder.packets([event(LogEvent.ALLOW, LogDirection.EGRESS, 81)], lost_so_far=5)
    items = [ring.at(number) for number in range(ring.oldest, ring.end)]
    assert [type(item) for item in items] == [Lost, TemplatedFlow, Lost, *[Flow] * 4]
    assert (ring.seen, ring.lost) == (5, 8)


POLICY_VERDICT, DROP, TRACE = EventType.POLICY_VERDICT, EventType.DROP, EventType.TRACE


@pytest.mark.parametrize(
    ("told", "endpoint", "kinds"),
    [
        (LogEvent.ALLOW, 1, [POLICY_VERDICT, TRACE]),
        (LogEvent.STEER, 1, [POLICY_VERDICT, TRACE]),
        (LogEvent.DENY, 1, [POLICY_VERDICT, DROP]),
        (LogEvent.NONE, 1, [POLICY_VERDICT, DROP]),
        (LogEvent.NONE, 0, [DROP]),
        (LogEvent.SPOOF, 1, [DROP]),
        (LogEvent.GROUP, 1, [DROP]),
        (LogEvent.STRAY, 1, [DROP]),
        (LogEvent.UNSERVED, 1, [DROP]),
    ],
)
def test_only_what_policy_judged_has_a_policy_verdict(told: LogEvent, endpoint: int, kinds: list[EventType]) -> None:
    ring = Ring(15)
    found = event(told, LogDirection.INGRESS, 99)
    found.endpoint = endpoint
    Recorder(ring, node="n1").packets([found])
    flows = [flow for number in range(ring.end) if (flow := ring.at(number).flow())]
    assert [flow.event_type.type for flow in flows if flow.event_type] == kinds
    assert len({flow.uuid for flow in flows}) == len(flows)


def read_next(ring: Ring) -> list[int]:
    return [ring.at(number).time_ns for number in range(ring.oldest, ring.end)]


def test_a_packet_has_the_time_of_the_kernel_if_it_is_plausible() -> None:
    now = time.time_ns()
    given = [now - 5_000_000, 0, now - 3600 * 10**9, now + 3600 * 10**9]
    ring = Ring(15)
    Recorder(ring, node="n1").packets(event(LogEvent.SPOOF, LogDirection.EGRESS, 1, time_ns=one) for one in given)
    first, *others = read_next(ring)
    assert first == now - 5_000_000
    assert all(now <= one <= time.time_ns() for one in others)


def test_the_interface_of_a_packet_has_a_name() -> None:
    ring = Ring(15)
    loopback, gone = (event(LogEvent.SPOOF, LogDirection.EGRESS, 99, interface=index) for index in (1, 2**30))
    Recorder(ring, node="n1").packets([loopback, gone])
    flows = [ring.at(number).flow() for number in range(ring.end)]
    assert [flow.interface for flow in flows if flow] == [
        NetworkInterface(index=1, name="lo"),
        NetworkInterface(index=2**30),
    ]


def test_what_the_kernel_did_not_tell_is_lost_once() -> None:
    ring = Ring(15, clock=itertools.count().__next__)
    recorder = Recorder(ring, node="n1")
    flood, other = (Suppressed(source, LogEvent.NONE, LogDirection.INGRESS, 1) for source in (CLIENT, OTHER))
    for counts in ({}, {flood: 10}, {flood: 10}, {flood: 9}, {flood: 12, other: 1}):
        recorder.suppressed(counts)
    assert ring.lost == 13
    assert recorder.not_reported == {flood: 12, other: 1}
    assert [event.lost for event in map(ring.at, range(ring.end)) if event.lost] == [10, 3]


def test_metrics_count_what_the_kernel_did_not_tell_exactly() -> None:
    recorder = Recorder(Ring(15, clock=itertools.count().__next__), node="n1")
    metrics = FlowMetrics(options.parse("drop flow"), limit=100)
    recorder.on_suppressed = metrics.add
    flood = Suppressed(CLIENT, LogEvent.NONE, LogDirection.INGRESS, 1)
    passed = Suppressed(OTHER, LogEvent.ALLOW, LogDirection.EGRESS, 1)
    for counts in ({flood: 90_000}, {flood: 89_000, passed: 4}, {flood: 100_000, passed: 5}):
        recorder.suppressed(counts)
    families = {family.name: family.samples for family in metrics.collect()}
    (dropped,) = families["hubble_drop"]
    assert dropped.value == 100_000 and dropped.labels["reason"] == "POLICY_DENIED"
    found = {sample.labels["verdict"]: sample.value for sample in families["hubble_flows_processed"]}
    assert found == {"DROPPED": 100_000, "FORWARDED": 5}
