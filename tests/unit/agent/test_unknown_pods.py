"""Pod interfaces without a Pod object: which are isolated, what that means, and that nothing else is affected."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.agent import report
from l7proxy.agent.dataplane.pod_interfaces import CniAttachment, HostNetwork, Link, PodInterfaces, connect
from l7proxy.agent.dataplane.reconciler import Published
from l7proxy.agent.dataplane.render import DesiredState, render
from l7proxy.agent.dataplane.unknown_pods import FIRST_ID, UnknownPod, unknown_pods
from l7proxy.agent.flow_recorder import record_of
from l7proxy.cluster.state import ClusterState
from l7proxy.model.net import HostPort
from l7proxy.model.resources import Node, Pod, Resource, Upsert
from l7proxy.model.verdict import Verdict
from l7proxy.policy.compile import compile_policies
from l7proxy.policy.endpoints import EndpointIndex
from l7proxy.proxy.policy_store import PolicyIndex
from l7proxy.sources.source import SourceHealth
from tproxy_rules import desired as kernel
from tproxy_rules.evaluate import Connection, Evaluator
from tproxy_rules.marks import LogDirection, LogEvent
from tproxy_rules.nflog import NflogEvent
from tproxy_rules.revoke import taken
from tproxy_rules.validate import checked

NODE = Node("n1", ("192.168.0.1",), pod_cidrs=("10.0.1.0/24",))
WEB = Pod("shop", "web", "n1", ("10.0.1.5",))
MACS = {name: f"0a:58:0a:00:01:0{number}" for number, name in enumerate(("veth1", "veth2", "veth3"), 1)}
GROUND = HostNetwork(
    {
        "cni0": Link("cni0", "02:00:00:00:00:01", "bridge"),
        **{name: Link(name, "02:00:00:00:00:02", "veth", "cni0") for name in MACS},
    },
    frozenset({"10.0.1.1"}),
    {"10.0.1.4": "veth3"},
)
REASON = "unknown pod: no Pod object with address 10.0.1.9 on node n1"


def attachment(interface: str, *addresses: str, container: str = "", pod: str = "") -> CniAttachment:
    return CniAttachment(("cni0", interface), MACS[interface], addresses, container or interface, pod)


def plugged(*attachments: CniAttachment) -> PodInterfaces:
    return connect(attachments, GROUND)


def published(*resources: Resource, interfaces: PodInterfaces, audit: bool = False) -> Published:
    cluster_state = ClusterState(audit_all=audit)
    cluster_state.apply([Upsert(resource) for resource in (NODE, *resources)])
    view = cluster_state.view("n1", local_addresses=interfaces.local_addresses)
    policies = compile_policies(view.rules, view.endpoints, view.identities)
    drawn = render(view, policies, interfaces, settings=kernel.Settings(), resolve_services=False, audit=audit)
    checked(drawn.kernel)  # every kernel accepts it
    return Published(1, view, policies, drawn, interfaces, SourceHealth())


def drawn(*resources: Resource, interfaces: PodInterfaces) -> DesiredState:
    return published(*resources, interfaces=interfaces).snapshots


def closed(*resources: Resource, interfaces: PodInterfaces) -> dict[str, UnknownPod]:
    return {one.interface: one for one in drawn(*resources, interfaces=interfaces).unknown}


def test_it_is_bound_to_its_port_and_closed_but_for_the_node() -> None:
    snapshots = drawn(
        WEB, interfaces=plugged(attachment("veth1", "10.0.1.5"), attachment("veth2", "10.0.1.9", "fd00::9"))
    )
    web, unknown = snapshots.kernel.endpoints
    assert (web.addresses, web.ingress, web.egress) == (("10.0.1.5",), None, None)
    assert unknown.id >= FIRST_ID
    assert unknown.addresses == ("10.0.1.9", "fd00::9")
    assert unknown.port == kernel.Port("veth2", MACS["veth2"], "cni0")
    node = kernel.Entry(kernel.Verdict.ALLOW, -1, 0, 65535, any_peer=False, peers=(1,))
    assert unknown.ingress == kernel.union((node,))
    assert unknown.egress == kernel.union(())


def test_workers_refuse_it_both_ways() -> None:
    index = PolicyIndex(
        drawn(WEB, interfaces=plugged(attachment("veth1", "10.0.1.5"), attachment("veth2", "10.0.1.9"))).workers
    )
    for source, destination in (("10.0.1.9", "10.0.1.5"), ("10.0.1.5", "10.0.1.9"), ("8.8.8.8", "10.0.1.9")):
        sides = index.lookup(source, destination, 80)
        assert (sides.refused, sides.l4.reason) == (True, REASON)
    assert not index.lookup("10.0.1.5", "8.8.8.8", 80).refused
    assert index.frontend(HostPort("10.0.1.9", 80)) is None


@pytest.mark.parametrize("told", list(LogEvent))
def test_what_the_kernel_tells_of_it_gets_its_reason(told: LogEvent) -> None:
    snapshot = drawn(WEB, interfaces=plugged(attachment("veth2", "10.0.1.9"))).workers
    ends = EndpointIndex(snapshot.endpoints, snapshot.identities)
    for number in (0, FIRST_ID + 5, 1 << 31):
        for source, destination, way in (
            ("10.0.1.9", "10.0.1.5", LogDirection.EGRESS),
            ("10.0.1.5", "10.0.1.9", LogDirection.INGRESS),
        ):
            record = record_of(NflogEvent(told, way, number, source, destination, 17, 40000, 53), ends, 1)
            assert record is not None
            if told in (LogEvent.DENY, LogEvent.NONE):
                assert (record.policy_verdict.verdict, record.policy_verdict.reason) == (Verdict.DROPPED, REASON)


def test_its_pod_opens_it_and_is_bound_to_the_same_port() -> None:
    interfaces = plugged(attachment("veth2", "10.0.1.9"))
    (before,) = drawn(interfaces=interfaces).kernel.endpoints
    (after,) = drawn(Pod("shop", "new", "n1", ("10.0.1.9",)), interfaces=interfaces).kernel.endpoints
    assert (after.port, after.ingress, after.egress) == (before.port, None, None)
    assert after.id < FIRST_ID


def test_an_object_of_another_node_or_a_finished_pod_opens_nothing() -> None:
    interfaces = plugged(attachment("veth2", "10.0.1.9"))
    there = Pod("shop", "moved", "n2", ("10.0.1.9",))
    done = Pod("shop", "done", "n1", ("10.0.1.9",), phase="Failed")
    for pod in (there, done):
        assert list(closed(pod, interfaces=interfaces)) == ["veth2"]


def test_left_over_results_and_addresses_of_the_node_close_nothing() -> None:
    gone = CniAttachment(("cni0", "veth9"), MACS["veth1"], ("10.0.1.8",), "gone")
    assert closed(interfaces=plugged(gone, attachment("veth1", "10.0.1.1"), attachment("veth2", "192.168.0.1"))) == {}


@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1", "224.0.0.1", "::", "::1", "ff02::1"])
def test_an_address_that_is_no_pods_does_not_spoil_the_snapshot(address: str) -> None:
    found = closed(interfaces=plugged(attachment("veth1", "10.0.1.9", address)))
    assert [one.addresses for one in found.values()] == [("10.0.1.9",)]


def test_another_address_of_a_known_pods_interface_is_closed_without_a_port() -> None:
    found = closed(WEB, interfaces=plugged(attachment("veth1", "10.0.1.5", "10.0.1.9")))
    assert [(one.addresses, one.port) for one in found.values()] == [(("10.0.1.9",), None)]


def test_a_secondary_network_of_a_known_pod_is_left_alone() -> None:
    interfaces = plugged(
        attachment("veth1", "10.0.1.5", container="c"), attachment("veth2", "192.168.7.9", container="c")
    )
    assert closed(WEB, interfaces=interfaces) == {}
    assert list(closed(interfaces=interfaces)) == ["veth1", "veth2"]


def test_an_address_at_two_interfaces_is_closed_once_and_bound_to_neither() -> None:
    found = closed(interfaces=plugged(attachment("veth1", "10.0.1.9"), attachment("veth2", "10.0.1.9")))
    assert [(one.interface, one.port) for one in found.values()] == [("veth1", None)]


def test_of_two_interfaces_with_a_pods_address_the_one_that_was_made_for_it_is_its_port() -> None:
    """The other is left over: what it sends from this address is refused as forged."""
    old, new = (attachment(f"veth{n}", "10.0.1.5", pod=f"shop/{name}") for n, name in ((1, "old"), (2, "web")))
    for given_ in ((old, new), (new, old)):
        found = published(WEB, interfaces=plugged(*given_))
        (web,) = found.snapshots.kernel.endpoints
        assert (web.addresses, web.port) == (("10.0.1.5",), kernel.Port("veth2", MACS["veth2"], "cni0"))
        assert [one["port"]["interface"] for one in report.endpoints(found)] == ["veth2"]
    unnamed = drawn(WEB, interfaces=plugged(old, replace(new, pod="")))
    assert [one for one in unnamed.kernel.endpoints if one.port] == []


def test_an_address_that_the_next_pod_gets_loses_the_connections_of_the_last_one() -> None:
    """Also if the next one has the last one's name, and so its endpoint number and its policy."""
    old, new = attachment("veth1", "10.0.1.5", pod="shop/web"), attachment("veth2", "10.0.1.5", pod="shop/web")
    before = drawn(WEB, interfaces=plugged(old)).kernel
    same_name = drawn(WEB, interfaces=plugged(new)).kernel
    other_name = drawn(Pod("shop", "other", "n1", ("10.0.1.5",)), interfaces=plugged(new)).kernel
    ended = drawn(Pod("shop", "web", "n1", ("10.0.1.5",), phase="Failed"), interfaces=plugged()).kernel
    for after in (same_name, other_name, ended):
        assert taken(before, after).left == {"10.0.1.5"}
    assert not taken(before, drawn(WEB, interfaces=plugged(old)).kernel)


def test_addresses_of_this_nodes_pods_that_no_pod_is_known_to_have_are_held() -> None:
    """A pod that starts is not open until the next round, nor while no agent runs."""
    interfaces = plugged(attachment("veth1", "10.0.1.5"))
    state = drawn(WEB, Node("n2", ("192.168.0.2",), ("10.0.2.0/24",)), interfaces=interfaces).kernel
    assert state.held == ("10.0.1.0/24",)
    judge = Evaluator(state, local=("192.168.0.1", "10.0.1.1"))
    verdicts = {
        (source, destination): judge.of(Connection(source, destination, 6, 80))
        for source, destination in (
            ("10.0.1.9", "8.8.8.8"), ("8.8.8.8", "10.0.1.9"), ("10.0.1.9", "10.0.1.5"), ("192.168.0.1", "10.0.1.9"),
            ("10.0.1.5", "10.0.2.9"), ("10.0.1.5", "10.0.1.1"),
        )
    }  # fmt: skip
    assert list(verdicts.values()) == [kernel.Verdict.DENY] * 3 + [kernel.Verdict.ALLOW] * 3
    assert published(WEB, interfaces=interfaces, audit=True).snapshots.kernel.held == ()
    ends = EndpointIndex((), {})
    for way in LogDirection:
        record = record_of(NflogEvent(LogEvent.NONE, way, 0, "10.0.1.9", "8.8.8.8", 6, 40000, 80), ends, 1)
        assert record is not None
        assert (record.policy_verdict.verdict, record.policy_verdict.reason[:11]) == (Verdict.DROPPED, "unknown pod")


def test_pod_cidrs_that_the_ipam_does_not_follow_are_not_held() -> None:
    """They may be used by other nodes, whose tunnels have addresses that no object names."""
    interfaces = plugged(attachment("veth1", "10.0.1.5"))
    elsewhere = Pod("shop", "calico", "n1", ("10.9.1.5",))
    dual = Node("n1", ("192.168.0.1",), pod_cidrs=("10.0.1.0/24", "fd00:1::/64"))
    far = Pod("shop", "far", "n2", ("10.9.1.6",))
    for pods, held in (((WEB,), ("10.0.1.0/24",)), ((WEB, elsewhere), ()), ((), ()), ((WEB, far), ("10.0.1.0/24",))):
        assert drawn(dual, *pods, interfaces=interfaces).kernel.held == held
    both = replace(WEB, addresses=("10.0.1.5", "fd00:1::5"))
    assert drawn(dual, both, interfaces=interfaces).kernel.held == ("10.0.1.0/24", "fd00:1::/64")


def test_in_audit_mode_it_passes_and_is_told() -> None:
    found = published(WEB, interfaces=plugged(attachment("veth2", "10.0.1.9")), audit=True)
    (endpoint,) = (one for one in found.snapshots.kernel.endpoints if one.id >= FIRST_ID)
    for table in (endpoint.ingress, endpoint.egress):
        assert table is not None
        assert all(entry.verdict is kernel.Verdict.ALLOW for entry in table.entries)
        assert not any(tier.closed for tier in table.tiers)
    sides = PolicyIndex(found.snapshots.workers).lookup("10.0.1.9", "10.0.1.5", 80)
    assert (sides.l4.verdict, sides.l4.reason) == (Verdict.AUDIT, REASON)


ADDRESSES = [f"10.0.1.{number}" for number in range(4, 10)]


@st.composite
def situations(render: Any) -> tuple[list[Pod], list[CniAttachment]]:
    attachments = render(
        st.lists(
            st.builds(
                lambda interface, addresses, container: attachment(interface, *addresses, container=container),
                st.sampled_from(sorted(MACS)),
                st.lists(st.sampled_from(ADDRESSES), max_size=3, unique=True),
                st.sampled_from(["a", "b", ""]),
            ),
            max_size=5,
        )
    )
    owners = render(st.lists(st.sampled_from(ADDRESSES), max_size=3, unique=True))
    return [Pod("shop", f"p{address[-1]}", "n1", (address,)) for address in owners], attachments


@settings(deadline=None)
@given(situations())
def test_any_interfaces_and_pods_make_a_snapshot_that_kernels_take(
    situation: tuple[list[Pod], list[CniAttachment]],
) -> None:
    """Every address of an interface is a pod's, isolated, or of a secondary network, in any order of results."""
    pods, attachments = situation
    owners = {address for pod in pods for address in pod.addresses}
    found = published(*pods, interfaces=plugged(*attachments))
    kept = {one.container for one in found.interfaces.live if not owners.isdisjoint(one.addresses)}
    shut = {address for one in found.snapshots.unknown for address in one.addresses}
    assert not shut & owners
    for one in found.interfaces.live:
        assert one.container in kept or shut | owners >= {*one.addresses}
    again = published(*pods, interfaces=plugged(*reversed(attachments)))
    assert again.snapshots == found.snapshots


def test_it_is_the_same_value_as_long_as_nothing_changes() -> None:
    """The kernel tables are cached by object identity."""
    interfaces = plugged(attachment("veth2", "10.0.1.9"))
    one, other = (
        unknown_pods((), each, node="n1", node_addresses=(), audit=False) for each in (interfaces, replace(interfaces))
    )
    assert one[0].policy is other[0].policy
