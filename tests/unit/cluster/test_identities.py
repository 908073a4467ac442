"""Identities when policies name addresses of pods and nodes: which get their own identity, and which do not."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from l7proxy.cluster.identities import NODE_SCOPE
from l7proxy.cluster.state import ClusterState, NodeView
from l7proxy.model.identity import HOST, LOCAL_SCOPE, REMOTE_NODE, UNMANAGED
from l7proxy.model.net import Networks, PrefixTable, single, within
from l7proxy.model.resources import Node, Pod, PolicyDocument, Resource, Upsert
from l7proxy.sources import objects
from l7proxy.sources.source import SYNCED

N1 = Node("n1", ("192.168.0.1", "fd01::1"), ("10.0.1.0/24",))
N2 = Node("n2", ("192.168.0.2",), ("10.0.2.0/24",))
ONE = Pod("x", "one", "n1", ("10.0.1.5", "fd00::5"), {"app": "web"})
TWO = Pod("x", "two", "n2", ("10.0.2.5", "fd00::6"), {"app": "web"})
THREE = Pod("x", "three", "n2", ("10.0.2.6",), {"app": "web"})


def blocks(*cidrs: str, name: str = "p") -> PolicyDocument:
    spec: dict[str, Any] = {
        "podSelector": {},
        "policyTypes": ["Egress"],
        "egress": [{"to": [{"ipBlock": {"cidr": cidr}} for cidr in cidrs]}],
    }
    metadata = {"name": name, "namespace": "x"}
    document = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}
    return objects.policy(document)


def view(*resources: Resource, node: str = "n1") -> NodeView:
    cluster_state = ClusterState()
    cluster_state.apply([*(Upsert(resource) for resource in resources), *SYNCED])
    return cluster_state.view(node)


def numbers(found: NodeView, *addresses: str) -> list[int | None]:
    table = PrefixTable(found.by_prefix)
    return [table.get(address) for address in addresses]


EVERYBODY = ("10.0.1.5", "fd00::5", "10.0.2.5", "fd00::6", "10.0.2.6")


def test_without_such_a_policy_equal_labels_are_one_identity() -> None:
    found = view(N1, N2, ONE, TWO, THREE)
    assert len(set(numbers(found, *EVERYBODY))) == 1
    assert numbers(found, "192.168.0.1", "192.168.0.2", "10.0.2.99") == [HOST, REMOTE_NODE, UNMANAGED]


def test_pods_in_and_out_of_a_block_are_told_apart_by_address() -> None:
    found = view(N1, N2, ONE, TWO, THREE, blocks("10.0.2.0/24"))
    one, one6, two, two6, three = numbers(found, *EVERYBODY)
    assert one == one6 == two6 != two == three
    assert two is not None and found.identities[two].networks == {ip_network("10.0.2.0/24")}
    assert found.identities[two].labels == found.endpoints[0].labels


def test_each_combination_of_blocks_is_an_identity() -> None:
    found = view(N1, N2, ONE, TWO, THREE, blocks("10.0.2.0/24", "10.0.2.5/32", "10.0.0.0/8"))
    one, _, two, _, three = numbers(found, *EVERYBODY)
    assert len({one, two, three}) == 3
    assert all(number is not None and number < LOCAL_SCOPE for number in (one, two, three))


def test_nodes_and_the_rest_of_pod_cidrs_are_told_apart_too_and_keep_their_labels() -> None:
    found = view(N1, N2, ONE, blocks("192.168.0.0/24", "10.0.2.0/24"))
    mine, mine6, other, rest, own_rest = numbers(found, "192.168.0.1", "fd01::1", "192.168.0.2", "10.0.2.9", "10.0.1.9")
    assert mine6 == HOST and own_rest == UNMANAGED
    for number, name in ((mine, "host"), (other, "remote-node"), (rest, "unmanaged")):
        assert number is not None and NODE_SCOPE <= number < NODE_SCOPE + LOCAL_SCOPE
        assert found.identities[number].labels.text == (f"reserved:{name}",)


def test_a_block_is_not_asked_of_cilium_cidrs() -> None:
    document = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "c", "namespace": "x"},
        "spec": {"endpointSelector": {}, "egress": [{"toCIDR": ["10.0.2.0/24"]}]},
    }
    found = view(N1, N2, ONE, TWO, objects.policy(document))
    assert len(set(numbers(found, *EVERYBODY[:4]))) == 1


def test_numbers_are_those_of_the_policies_there_are_not_of_those_there_were() -> None:
    cluster_state = ClusterState()
    cluster_state.apply([*(Upsert(resource) for resource in (N1, N2, ONE, TWO)), *SYNCED])
    before = cluster_state.view("n1")
    with_block = blocks("10.0.2.0/24")
    cluster_state.apply([Upsert(with_block)])
    during = cluster_state.view("n1")
    assert during.by_prefix == view(with_block, TWO, N2, ONE, N1).by_prefix != before.by_prefix
    cluster_state.apply([Upsert(blocks("10.0.9.0/24"))])
    after = cluster_state.view("n1")
    assert numbers(after, *EVERYBODY) == numbers(before, *EVERYBODY)


NETWORKS = st.builds(
    lambda number, length: ip_network((number & ~((1 << (32 - length)) - 1), length)),
    st.integers(0, 0xFF).map(lambda low: 0x0A000000 | low),
    st.integers(20, 32),
)


@given(st.lists(NETWORKS, max_size=12), NETWORKS)
def test_the_networks_that_hold_a_prefix_are_those_that_do(networks: list[Any], inner: Any) -> None:
    assert Networks(networks).holding(inner) == {one for one in networks if within(inner, one)}
    assert not Networks(networks).holding(single("fd00::1"))
