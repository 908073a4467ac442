"""Both ends of a connection: identity, endpoint and policy of each address; workers, kernel events and trace agree."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7proxy.agent.dataplane.pod_interfaces import CniAttachment, HostNetwork, Link, connect
from l7proxy.agent.dataplane.render import render
from l7proxy.agent.flow_recorder import record_of
from l7proxy.cluster.state import ClusterState
from l7proxy.model.http import Request
from l7proxy.model.policy_verdict import PolicyVerdict
from l7proxy.model.ref import RuleRef
from l7proxy.model.resources import Node, Pod, Upsert
from l7proxy.model.verdict import Action, Direction, Protocol, Verdict
from l7proxy.policy import endpoints
from l7proxy.policy.endpoints import ConnectionEnd, EndpointIndex
from l7proxy.policy.l7 import Table
from l7proxy.policy.rules import HttpRule, HttpRules
from l7proxy.policy.tables import DirectionPolicy, EndpointPolicy, Entry, LocalEndpoint, union
from l7proxy.proxy.policy_store import PolicyIndex
from l7proxy.simulate.cluster import Cluster
from l7proxy.simulate.trace import Question, answer
from tproxy_rules import desired as kernel
from tproxy_rules.marks import LogDirection, LogEvent
from tproxy_rules.nflog import NflogEvent

REF = RuleRef("CiliumNetworkPolicy", "default", "web", "spec.ingress[0]")
ANYTHING = union((Entry(Action.ALLOW, REF),), (REF,))
NOTHING = union((), (REF,))
GETS = union((Entry(Action.REDIRECT, REF, None, 6, l7=HttpRules((HttpRule(REF, method="GET"),))),), (REF,))
IDENTITIES = {"10.0.0.1/32": 300, "10.0.0.2/32": 301, "10.0.0.0/8": 1 << 24, "fd00::/8": 9, "0.0.0.0/0": 2}
GET, POST = (Request(method, b"/", b"server", []) for method in (b"GET", b"POST"))
OUTSIDE = "192.0.2.1"


def endpoint(
    number: int, *addresses: str, ingress: DirectionPolicy | None = None, egress: DirectionPolicy | None = None
) -> LocalEndpoint:
    return LocalEndpoint(number, f"default/pod{number}", addresses, EndpointPolicy(number, ingress, egress))


def index(*known: LocalEndpoint, before: EndpointIndex | None = None) -> EndpointIndex:
    return EndpointIndex(known, IDENTITIES, before)


@pytest.mark.parametrize(
    ("address", "identity"),
    [("10.0.0.1", 300), ("10.9.9.9", 1 << 24), (OUTSIDE, 2), ("fd00::1", 9), ("2001:db8::1", 0), ("", 0)],
)
def test_an_identity_is_of_the_longest_prefix_and_zero_without_one(address: str, identity: int) -> None:
    assert index().identity(address) == identity
    assert index(before=index()).end(address) == ConnectionEnd(identity)


@pytest.mark.parametrize(
    ("egress", "ingress", "verdict", "direction"),
    [
        pytest.param(None, None, Verdict.FORWARDED, Direction.INGRESS, id="no policy"),
        pytest.param(ANYTHING, NOTHING, Verdict.DROPPED, Direction.INGRESS, id="ingress refuses"),
        pytest.param(NOTHING, ANYTHING, Verdict.DROPPED, Direction.EGRESS, id="egress refuses"),
        pytest.param(NOTHING, NOTHING, Verdict.DROPPED, Direction.EGRESS, id="both refuse"),
        pytest.param(ANYTHING, GETS, Verdict.REDIRECTED, Direction.INGRESS, id="ingress by request"),
        pytest.param(GETS, None, Verdict.REDIRECTED, Direction.EGRESS, id="egress by request"),
    ],
)
def test_the_policies_of_both_ends_are_evaluated(
    egress: DirectionPolicy | None, ingress: DirectionPolicy | None, verdict: Verdict, direction: Direction
) -> None:
    ends = index(endpoint(1, "10.0.0.1", egress=egress), endpoint(2, "10.0.0.2", ingress=ingress))
    found = ends.lookup("10.0.0.1", "10.0.0.2", 6, 80)
    assert found.l4.verdict is verdict
    assert found.refused is (verdict is Verdict.DROPPED)
    assert (found.kind is not None) is (verdict is Verdict.REDIRECTED)
    assert found.governed is not (egress is None and ingress is None)
    if verdict is not Verdict.FORWARDED:
        assert found.l4.direction is direction
    assert found.judge(POST).verdict is (Verdict.FORWARDED if verdict is Verdict.FORWARDED else Verdict.DROPPED)


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP, Protocol.SCTP, Protocol.ICMP])
def test_any_protocol_is_evaluated(protocol: int) -> None:
    only = union((Entry(Action.ALLOW, REF, None, protocol, 80, 80),), (REF,))
    ends = index(endpoint(1, "10.0.0.1", ingress=only))
    allowed = {other for other in (1, 6, 17, 132) if not ends.lookup(OUTSIDE, "10.0.0.1", other, 80).refused}
    assert allowed == {protocol}
    assert ends.lookup(OUTSIDE, "10.0.0.1", protocol, 81).refused


def test_an_address_that_is_no_endpoint_here_has_an_identity_only() -> None:
    ends = index(endpoint(1, "10.0.0.1", egress=GETS, ingress=NOTHING))
    out = ends.lookup("10.0.0.1", OUTSIDE, 6, 80)
    assert (out.source_identity, out.destination_identity) == (300, 2)
    assert (out.judge(GET).verdict, out.judge(POST).verdict) == (Verdict.FORWARDED, Verdict.DROPPED)
    assert ends.lookup(OUTSIDE, "10.0.0.1", 6, 80).refused
    assert not ends.lookup(OUTSIDE, "192.0.2.2", 6, 80).refused


def test_an_endpoint_may_reach_itself_by_any_of_its_addresses() -> None:
    ends = index(endpoint(1, "10.0.0.1", "10.0.0.7", egress=NOTHING, ingress=NOTHING), endpoint(2, "10.0.0.2"))
    for destination in ("10.0.0.1", "10.0.0.7"):
        found = ends.lookup("10.0.0.1", destination, 17, 53)
        assert not (found.refused or found.governed)
    assert ends.lookup("10.0.0.2", "10.0.0.7", 17, 53).refused
    assert not ends.end(OUTSIDE).is_same_endpoint(ends.end(OUTSIDE))


def test_an_address_of_several_endpoints_is_refused_and_reported() -> None:
    ends = index(endpoint(1, "10.0.0.1", "10.0.0.5"), endpoint(2, "10.0.0.1"), endpoint(3, "10.0.0.1"))
    assert ends.problems == (
        "10.0.0.1 is claimed by default/pod2 and default/pod1: its traffic is refused",
        "10.0.0.1 is claimed by default/pod3 and default/pod1: its traffic is refused",
    )
    for source, destination in (("10.0.0.1", OUTSIDE), (OUTSIDE, "10.0.0.1"), ("10.0.0.1", "10.0.0.1")):
        found = ends.lookup(source, destination, 6, 80)
        assert (found.refused, found.l4.reason) == (True, "10.0.0.1 is claimed by more than one endpoint")
        assert found.judge(GET) == found.l4
    assert not ends.lookup("10.0.0.5", OUTSIDE, 6, 80).refused
    assert ends.endpoint("10.0.0.1") is None


def test_lookups_are_cached_and_the_cache_is_bounded() -> None:
    ends = index(endpoint(1, "10.0.0.1", egress=ANYTHING))
    first = ends.lookup("10.0.0.1", OUTSIDE, 6, 1)
    assert ends.lookup("10.0.0.1", OUTSIDE, 6, 1) is first
    assert ends.lookup("10.0.0.1", OUTSIDE, 17, 1) is not first
    for port in range(1, 2 * endpoints.REMEMBERED):
        ends.lookup("10.0.0.1", OUTSIDE, 6, port)
    assert len(ends._known) <= endpoints.REMEMBERED


def test_http_rules_that_stay_keep_their_table_in_the_next_index() -> None:
    server = endpoint(1, "10.0.0.1", ingress=GETS)
    before = index(server)

    def table_of(ends: EndpointIndex) -> Table:
        policy = ends.lookup(OUTSIDE, "10.0.0.1", 6, 80).ingress
        assert policy is not None
        (table,) = policy.tables
        return table

    table = table_of(before)
    assert table_of(index(server, before=before)) is table
    assert table_of(index(server)) is not table


# --- workers, kernel events and trace ---

_STATE = ClusterState()
_STATE.apply(
    Upsert(one)
    for one in (
        Node("n1", ("192.168.0.1",), pod_cidrs=("10.0.1.0/24",)),
        Node("n2", ("192.168.0.2",), pod_cidrs=("10.0.2.0/24",)),
        Pod("shop", "web", "n1", ("10.0.1.5", "10.0.1.6"), {"app": "web"}),
        Pod("shop", "old", "n1", ("10.0.1.7",), {"app": "old"}),
        Pod("shop", "far", "n2", ("10.0.2.5",), {"app": "far"}),
    )
)
_VIEW = _STATE.view("n1")
_UNKNOWN = "10.0.1.9"
_LINKS = {"cni0": Link("cni0", "02:00:00:00:00:01", "bridge"), "v9": Link("v9", "02:00:00:00:00:02", "veth", "cni0")}
_INTERFACES = connect(
    [CniAttachment(("cni0", "v9"), "0a:58:0a:00:01:09", (_UNKNOWN,), "c9", "")],
    HostNetwork(_LINKS, frozenset({"10.0.1.1"}), {}),
)
_ADDRESSES = ("10.0.1.5", "10.0.1.6", "10.0.1.7", "10.0.2.5", _UNKNOWN, "192.168.0.1", "192.168.0.2", "203.0.113.9")
_NUMBERS = st.sampled_from(sorted({_VIEW.by_prefix[f"{one}/32"] for one in ("10.0.1.5", "10.0.1.7", "10.0.2.5")}))


def _entry(action: Action, peers: tuple[int, ...] | None, what: tuple[int | None, int, int], audit: bool) -> Entry:
    l7 = HttpRules(()) if action is Action.REDIRECT else None
    return Entry(action, REF, peers, what[0], what[1], what[2], l7, audit=audit and action is Action.DENY)


_ENTRIES = st.builds(
    _entry,
    st.sampled_from(Action),
    st.none() | st.lists(_NUMBERS, unique=True).map(lambda numbers: tuple(sorted(numbers))),
    st.sampled_from([(None, 0, 65535), (6, 80, 80), (6, 0, 65535), (17, 53, 80), (1, 8 << 8, 8 << 8), (132, 80, 80)]),
    st.booleans(),
)
_POLICIES = st.none() | st.builds(
    union, st.lists(_ENTRIES, max_size=3, unique=True).map(tuple), st.sampled_from([(), (REF,)])
)
_PORTS = st.sampled_from([("80/TCP", 6, 80), ("53/UDP", 17, 53), ("80/SCTP", 132, 80), ("8/ICMPv4", 1, 8 << 8)])


def _said(verdict: PolicyVerdict) -> tuple[object, ...]:
    return verdict.verdict, verdict.ingress, verdict.egress, verdict.drop_reason, verdict.reason


@given(
    st.lists(_POLICIES, min_size=4, max_size=4),
    st.sampled_from(_ADDRESSES),
    st.sampled_from(_ADDRESSES),
    _PORTS,
)
def test_workers_kernel_events_and_trace_give_one_answer(
    given_policies: list[DirectionPolicy | None], source: str, destination: str, port: tuple[str, int, int]
) -> None:
    numbers = [one.id for one in _VIEW.endpoints]
    policies: dict[int, EndpointPolicy] = {
        number: EndpointPolicy(number, *given_policies[2 * place : 2 * place + 2])
        for place, number in enumerate(numbers)
    }
    snapshot = render(_VIEW, policies, _INTERFACES, settings=kernel.Settings(), resolve_services=False).workers
    text, protocol, number = port

    ends = EndpointIndex(snapshot.endpoints, snapshot.identities)
    found = ends.lookup(source, destination, protocol, number)
    if protocol == Protocol.TCP:
        of_worker = PolicyIndex(snapshot).lookup(source, destination, number)
        assert _said(of_worker.l4) == _said(found.l4)

    told = {Verdict.DROPPED: LogEvent.NONE, Verdict.REDIRECTED: LogEvent.STEER}.get(found.l4.verdict, LogEvent.ALLOW)
    icmp = (8, 0) if protocol == Protocol.ICMP else (-1, -1)
    event = NflogEvent(
        told, LogDirection.INGRESS, 1, source, destination, protocol, 4000, number, icmp_type=icmp[0], icmp_code=icmp[1]
    )
    record = record_of(event, ends, 1)
    assert record is not None
    assert _said(record.policy_verdict) == _said(found.l4)
    assert record.conn.source_identity == found.source_identity
    assert record.conn.destination_identity == found.destination_identity

    traced = answer(Cluster.live(_STATE, _VIEW, snapshot.endpoints), Question(source, destination, text))
    assert _said(traced.policy_verdict) == _said(found.l4)
