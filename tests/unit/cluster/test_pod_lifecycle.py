"""What becomes of a pod's address while the pod starts, ends, and is made again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7proxy.cluster.state import ClusterState, NodeView
from l7proxy.model.endpoint import Assignment
from l7proxy.model.identity import HOST, UNMANAGED
from l7proxy.model.net import PrefixTable
from l7proxy.model.resources import Delete, Node, Pod, Resource, Upsert
from l7proxy.policy.compile import compile_policies
from l7proxy.sources import objects
from l7proxy.sources.fields import Fields
from l7proxy.sources.source import SYNCED

N1 = Node("n1", ("192.168.0.1",), ("10.0.1.0/24",))
OLD = Pod("shop", "old", "n1", ("10.0.1.5",), {"app": "old"}, phase="Running")
NEW = Pod("shop", "new", "n1", ("10.0.1.5",), {"app": "new"}, phase="Running")
STARTING = Pod("shop", "new", "n1", (), {"app": "new"}, phase="Pending", uid="u2")
TO_NEW = Assignment("shop", "new", "u2", ("10.0.1.5",))
POLICY = objects.policy(
    {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "p", "namespace": "shop"},
        "spec": {
            "endpointSelector": {"matchLabels": {"app": "new"}},
            "ingress": [{"toPorts": [{"ports": [{"port": "web", "protocol": "TCP"}]}]}],
        },
    }
)


def state(*resources: Resource) -> ClusterState:
    made = ClusterState()
    made.apply([*map(Upsert, (N1, *resources)), *SYNCED])
    return made


def view(*resources: Resource, assignments: tuple[Assignment, ...] = ()) -> NodeView:
    return state(*resources).view("n1", assignments=assignments)


def owners(found: NodeView) -> dict[str, str]:
    return {address: str(one) for one in found.endpoints for address in one.addresses}


def labels(found: NodeView, address: str) -> tuple[str, ...]:
    number = PrefixTable(found.by_prefix).get(address)
    return found.identities[number or 0].labels.text


# Ending


def test_a_pod_that_is_being_deleted_is_enforced_until_its_object_is_gone() -> None:
    ending = replace(NEW, terminating=True)
    found = view(ending, POLICY)
    assert owners(found) == {"10.0.1.5": "shop/new"}
    (endpoint,) = found.endpoints
    assert compile_policies(found.rules, found.endpoints, found.identities)[endpoint.id].ingress is not None


def test_its_address_belongs_to_the_pod_that_got_it_next() -> None:
    found = view(replace(OLD, terminating=True), NEW)
    assert (owners(found), found.problems) == ({"10.0.1.5": "shop/new"}, ())
    assert "k8s:app=new" in labels(found, "10.0.1.5")


def test_two_that_are_being_deleted_or_two_that_stay_are_a_conflict() -> None:
    for terminating in (False, True):
        found = view(replace(OLD, terminating=terminating), replace(NEW, terminating=terminating))
        assert owners(found) == {"10.0.1.5": "/conflicting address 10.0.1.5"}
        assert len(found.problems) == 2


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_completed_pod_leaves_its_address_to_the_next_at_once(phase: str) -> None:
    cluster = state(OLD)
    cluster.view("n1")
    cluster.apply([Upsert(replace(OLD, phase=phase))])
    assert owners(cluster.view("n1")) == {}
    cluster.apply([Upsert(NEW)])
    found = cluster.view("n1")
    assert (owners(found), found.problems) == ({"10.0.1.5": "shop/new"}, ())
    assert "k8s:app=new" in labels(found, "10.0.1.5")


# Starting


def test_a_pod_has_the_address_that_the_cni_assigned_before_its_object_says_so() -> None:
    before, early = view(STARTING, POLICY), view(STARTING, POLICY, assignments=(TO_NEW,))
    assert (owners(before), owners(early)) == ({}, {"10.0.1.5": "shop/new"})
    assert PrefixTable(before.by_prefix).get("10.0.1.5") == UNMANAGED
    told = view(replace(STARTING, addresses=("10.0.1.5",), phase="Running", uid=""), POLICY, assignments=(TO_NEW,))
    assert (told.endpoints, told.by_prefix) == (early.endpoints, early.by_prefix), "nothing changes when it says so"


@pytest.mark.parametrize(
    ("pod", "assignment"),
    [
        (STARTING, replace(TO_NEW, uid="u1")),
        (STARTING, replace(TO_NEW, uid="")),
        (replace(STARTING, uid=""), replace(TO_NEW, uid="")),
        (replace(STARTING, node="n2"), TO_NEW),
        (replace(STARTING, node=""), TO_NEW),
        (replace(STARTING, phase="Failed"), TO_NEW),
        (replace(STARTING, host_network=True), TO_NEW),
        (STARTING, replace(TO_NEW, namespace="other")),
    ],
    ids=["former UID", "no UID", "neither", "other node", "not scheduled", "failed", "hostNetwork", "other namespace"],
)
def test_an_assignment_that_may_be_anothers_gives_no_address(pod: Pod, assignment: Assignment) -> None:
    assert owners(view(pod, assignments=(assignment,))) == {}


def test_the_address_is_the_new_pods_although_the_last_one_still_claims_it() -> None:
    """A job's pod has ended, its address is assigned again, and the kubelet has reported neither."""
    found = view(OLD, STARTING, assignments=(TO_NEW,))
    assert (owners(found), found.problems) == ({"10.0.1.5": "shop/new"}, ())
    assert owners(view(OLD, NEW, assignments=(TO_NEW,))) == {"10.0.1.5": "shop/new"}
    assert owners(view(OLD, NEW)) == {"10.0.1.5": "/conflicting address 10.0.1.5"}


@pytest.mark.parametrize("stale", [OLD, replace(OLD, node="n2")], ids=["of this node", "of another node"])
def test_a_pod_that_was_deleted_unseen_has_no_address_that_the_cni_gave_to_another(stale: Pod) -> None:
    """The API server does not tell of either: the address is nobody's, so its interface is that of an unknown pod."""
    found = view(stale, assignments=(replace(TO_NEW, name="unseen"),))
    assert owners(found) == {}
    assert PrefixTable(found.by_prefix).get("10.0.1.5") == UNMANAGED
    cluster = state(stale, POLICY)
    assert owners(cluster.view("n1")) == ({"10.0.1.5": "shop/old"} if stale is OLD else {})
    assert owners(cluster.view("n1", assignments=(replace(TO_NEW, name="unseen"),))) == {}
    cluster.apply([Upsert(STARTING)])
    assert owners(cluster.view("n1", assignments=(TO_NEW,))) == {"10.0.1.5": "shop/new"}


def test_a_claim_from_another_node_does_not_take_a_pods_address_away() -> None:
    far = replace(OLD, node="n2")
    assert owners(view(far, NEW, assignments=(TO_NEW,))) == {"10.0.1.5": "shop/new"}
    assert owners(view(far, NEW)) == {"10.0.1.5": "/conflicting address 10.0.1.5"}


def test_an_assignment_is_no_claim_of_a_pod_that_says_otherwise() -> None:
    elsewhere = replace(NEW, addresses=("10.0.1.6",))
    assert owners(view(OLD, elsewhere, assignments=(TO_NEW,))) == {"10.0.1.6": "shop/new"}


def test_a_nodes_address_stays_the_nodes() -> None:
    found = view(STARTING, assignments=(replace(TO_NEW, addresses=("192.168.0.1",)),))
    assert (owners(found), PrefixTable(found.by_prefix).get("192.168.0.1")) == ({}, HOST)


# The same name again


def test_a_pod_made_again_under_its_name_is_another_pod() -> None:
    cluster = state(NEW, POLICY)
    first = cluster.view("n1", assignments=(replace(TO_NEW, uid="u1"),))
    cluster.apply([Delete(NEW.key), Upsert(replace(STARTING, labels={"app": "changed"}))])
    leftover = cluster.view("n1", assignments=(replace(TO_NEW, uid="u1"),))
    assert (len(first.endpoints), owners(leftover)) == (1, {}), "the last one's interface is not the new one's"
    moved = cluster.view("n1", assignments=(replace(TO_NEW, addresses=("10.0.1.7",)),))
    assert owners(moved) == {"10.0.1.7": "shop/new"}
    assert "k8s:app=changed" in labels(moved, "10.0.1.7")
    assert PrefixTable(moved.by_prefix).get("10.0.1.5") == UNMANAGED


# Further kinds


def test_static_and_mirror_pods_are_pods() -> None:
    """A static pod is known by its mirror, which the kubelet writes into the API server."""
    document = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "web-n1",
            "namespace": "shop",
            "labels": {"app": "new"},
            "annotations": {"kubernetes.io/config.mirror": "0f", "kubernetes.io/config.source": "file"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n1", "controller": True}],
        },
        "spec": {"nodeName": "n1", "containers": [{"ports": [{"name": "web", "containerPort": 8080}]}]},
        "status": {"podIP": "10.0.1.5", "phase": "Running"},
    }
    pod = objects.pod(Fields(document), objects.NOWHERE)
    found = view(pod, POLICY)
    (endpoint,) = found.endpoints
    ingress = compile_policies(found.rules, found.endpoints, found.identities)[endpoint.id].ingress
    assert ingress is not None
    assert [(entry.protocol, entry.first) for entry in ingress.entries if entry.protocol] == [(6, 8080)]


def test_a_static_pods_uid_is_not_its_mirrors_so_its_address_comes_from_its_object() -> None:
    """The container runtime gets the UID of the static pod, which the mirror has in its annotation."""
    assert owners(view(STARTING, assignments=(replace(TO_NEW, uid="0f"),))) == {}


def test_one_port_name_is_each_pods_own_number() -> None:
    def named(pod: Pod, port: int, address: str) -> Pod:
        return replace(pod, name=f"p{port}", addresses=(address,), named_ports=frozenset({("web", 6, port)}))

    found = view(named(NEW, 80, "10.0.1.5"), named(NEW, 8080, "10.0.1.6"), POLICY)
    policies = compile_policies(found.rules, found.endpoints, found.identities)
    ports = {
        endpoint.name: [entry.first for entry in ingress.entries if entry.protocol]
        for endpoint in found.endpoints
        if (ingress := policies[endpoint.id].ingress) is not None
    }
    assert ports == {"p80": [80], "p8080": [8080]}


def test_a_renamed_node_keeps_its_own_addresses_and_says_that_it_has_no_object() -> None:
    renamed = Node("n1-new", ("192.168.0.1",), ("10.0.1.0/24",))
    made = ClusterState()
    made.apply([Upsert(renamed), Upsert(replace(NEW, node="n1-new")), *SYNCED])
    found = made.view("n1", local_addresses=("192.168.0.1",), assignments=(TO_NEW,))
    assert owners(found) == {}, "its pods are another node's: their interfaces are closed as unknown"
    assert PrefixTable(found.by_prefix).get("192.168.0.1") == HOST
    assert "node n1: no Node object has this name" in str(found.problems)
    assert owners(made.view("n1-new", assignments=(TO_NEW,))) == {"10.0.1.5": "shop/new"}


# The law: only what there is counts

PODS = [
    replace(pod, name=name, addresses=addresses, terminating=terminating, uid="" if addresses else name)
    for name in ("a", "b")
    for pod in (OLD, replace(OLD, phase="Failed"))
    for addresses in ((), ("10.0.1.5",), ("10.0.1.6",))
    for terminating in (False, True)
]
ASSIGNMENTS = [
    Assignment("shop", name, name, (address,)) for name in ("a", "b") for address in ("10.0.1.5", "10.0.1.6")
]
STEPS = st.lists(st.tuples(st.sampled_from(PODS), st.booleans(), st.lists(st.sampled_from(ASSIGNMENTS), max_size=2)))


@given(STEPS)
def test_step_by_step_is_all_at_once(steps: list[tuple[Pod, bool, list[Assignment]]]) -> None:
    cluster, known = state(POLICY), dict[Any, Pod]()
    for pod, stays, assignments in steps:
        cluster.apply([Upsert(pod) if stays else Delete(pod.key)])
        known.pop(pod.key, None)
        known |= {pod.key: pod} if stays else {}
        unique = tuple({one.name: one for one in assignments}.values())
        if len({one.addresses for one in unique}) < len(unique):
            unique = ()  # never: an address of two containers is nobody's
        found = cluster.view("n1", assignments=unique)
        assert found == view(*known.values(), POLICY, assignments=unique)
