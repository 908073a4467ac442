"""The cluster state: identities, unidentified addresses, and that only the objects count, never their order."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.cluster.policy_status import PolicyPhase
from l7proxy.cluster.state import ClusterState, NodeView
from l7proxy.errors import SourceError
from l7proxy.model.endpoint import Backend
from l7proxy.model.identity import CONTESTED, HOST, KUBE_APISERVER, LOCAL_SCOPE, REMOTE_NODE, UNMANAGED, WORLD
from l7proxy.model.net import PrefixTable
from l7proxy.model.resources import (
    Change,
    Delete,
    EndpointSlice,
    Namespace,
    Node,
    Pod,
    PolicyDocument,
    Resource,
    ResourceKey,
    Service,
    ServiceAccount,
    ServicePort,
    SlicePort,
    SourceLocation,
    Upsert,
)
from l7proxy.model.verdict import Action, Direction
from l7proxy.policy import decide
from l7proxy.policy.compile import compile_policies
from l7proxy.sources import objects
from l7proxy.sources.source import SYNCED

N1 = Node("n1", ("192.168.0.1",), ("10.0.1.0/24",))
N2 = Node("n2", ("192.168.0.2",), ("10.0.2.0/24",))
WEB = Pod("shop", "web", "n1", ("10.0.1.5",), {"app": "web"}, frozenset({("http", 6, 8080)}), phase="Running")
CLIENT = Pod("shop", "client", "n2", ("10.0.2.5",), {"app": "client"})
PROXY = Pod("kube-system", "kube-proxy", "n1", ("192.168.0.1",), host_network=True)


def cluster_state(*resources: Resource, **options: Any) -> ClusterState:
    made = ClusterState(**options)
    made.apply([Upsert(resource) for resource in resources])
    made.apply(SYNCED)
    return made


def test_it_is_synced_when_every_kind_is() -> None:
    made = ClusterState()
    for synced in SYNCED:
        assert not made.synced
        made.apply([synced])
    assert made.synced
    assert made.copy().synced


def view(*resources: Resource, node: str | None = "n1") -> NodeView:
    return cluster_state(*resources).view(node)


def policy(name: str = "p", *, namespace: str = "shop", **spec: Any) -> PolicyDocument:
    document = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"endpointSelector": {"matchLabels": {"app": "web"}}, **spec},
    }
    return objects.policy(document, SourceLocation("p.yaml", 1), {"spec": 4})


FROM_CLIENT = policy(ingress=[{"fromEndpoints": [{"matchLabels": {"app": "client"}}]}])


def identity_of(found: NodeView, address: str) -> int | None:
    return PrefixTable(found.by_prefix).get(address)


def text(found: NodeView, address: str) -> tuple[str, ...]:
    number = identity_of(found, address)
    assert number is not None
    return found.identities[number].labels.text


# Identities


def test_pods_nodes_and_the_outside() -> None:
    found = view(N1, N2, WEB, CLIENT, PROXY)
    assert [str(one) for one in found.endpoints] == ["shop/web"]
    assert identity_of(found, "10.0.1.5") == found.endpoints[0].identity
    assert "k8s:app=client" in text(found, "10.0.2.5")
    assert identity_of(found, "192.168.0.1") == HOST
    assert identity_of(found, "192.168.0.2") == REMOTE_NODE
    assert identity_of(found, "1.1.1.1") == WORLD
    assert identity_of(found, "2001:db8::1") == WORLD
    assert found.node_addresses == ("192.168.0.1",)


def test_the_same_cluster_from_the_other_node() -> None:
    found = view(N1, N2, WEB, CLIENT, PROXY, node="n2")
    assert [str(one) for one in found.endpoints] == ["shop/client"]
    assert identity_of(found, "192.168.0.1") == REMOTE_NODE
    assert identity_of(found, "192.168.0.2") == HOST
    here, there = view(N1, N2, WEB, CLIENT), found
    assert identity_of(here, "10.0.1.5") == identity_of(there, "10.0.1.5"), "numbers are the cluster's, not a node's"


def test_without_a_node_all_pods_are_endpoints_and_no_node_is_the_host() -> None:
    found = view(N1, N2, WEB, CLIENT, node=None)
    assert [str(one) for one in found.endpoints] == ["shop/client", "shop/web"]
    assert HOST not in found.by_prefix.values()


def test_addresses_of_this_nodes_own_interfaces_are_the_host() -> None:
    found = cluster_state(N1, WEB).view("n1", local_addresses=["10.0.1.1", "fe80::1"])
    assert identity_of(found, "10.0.1.1") == HOST
    assert found.node_addresses == ("10.0.1.1", "192.168.0.1", "fe80::1")
    assert identity_of(found, "1.1.1.1") == WORLD, "a link-local address makes no dual stack"


def test_a_pod_we_have_not_heard_of_is_not_the_outside() -> None:
    found = view(N1, N2, WEB, policy(egress=[{"toCIDR": ["10.0.0.0/8"]}]))
    assert identity_of(found, "10.0.2.77") == UNMANAGED
    assert identity_of(found, "10.9.9.9") not in (UNMANAGED, WORLD)


def test_nor_does_it_become_so_by_a_policy_that_names_its_address() -> None:
    """One namespace's policy must not make other policies treat it as outside the cluster."""
    narrow = [{"toCIDRSet": [{"cidr": "10.0.2.64/26", "except": ["10.0.2.77/32"]}]}]
    found = view(N1, N2, WEB, policy(egress=narrow))
    assert identity_of(found, "10.0.2.77") == identity_of(found, "10.0.2.78") == UNMANAGED


def test_a_named_cidr_has_an_identity_in_local_scope_but_never_a_pods_address() -> None:
    found = view(N1, WEB, policy(egress=[{"toCIDRSet": [{"cidr": "203.0.113.0/24", "except": ["203.0.113.7/32"]}]}]))
    numbers = {identity_of(found, address) for address in ("203.0.113.1", "203.0.113.7")}
    assert len(numbers) == 2
    assert all(number is not None and number >= LOCAL_SCOPE for number in numbers)
    assert text(found, "203.0.113.7") == ("cidr:203.0.113.7/32", "reserved:world")
    found = view(N1, WEB, policy(egress=[{"toCIDR": ["10.0.1.5/32"]}]))
    assert identity_of(found, "10.0.1.5") == found.endpoints[0].identity


def test_in_dual_stack_each_family_has_its_own_outside() -> None:
    six = Pod("shop", "six", "n1", ("10.0.1.6", "fd00::6"))
    found = view(N1, six, policy(egress=[{"toCIDR": ["2001:db8::/32"]}]))
    assert text(found, "1.1.1.1") == ("reserved:world-ipv4",)
    assert text(found, "2001:db9::1") == ("reserved:world-ipv6",)
    assert text(found, "2001:db8::1") == ("cidr:2001-db8--/32", "reserved:world-ipv6")


def test_the_api_server_has_its_label_wherever_it_runs() -> None:
    def behind(address: str) -> NodeView:
        return view(N1, N2, EndpointSlice("default", "kubernetes", "kubernetes", (address,)))

    assert text(behind("192.168.0.1"), "192.168.0.1") == ("reserved:host", "reserved:kube-apiserver")
    assert identity_of(behind("192.168.0.2"), "192.168.0.2") == KUBE_APISERVER
    outside = ("cidr:203.0.113.9/32", "reserved:kube-apiserver", "reserved:world")
    assert text(behind("203.0.113.9"), "203.0.113.9") == outside


def test_labels_say_where_a_pod_is() -> None:
    found = view(N1, WEB, Namespace("shop", {"team": "x"}))
    assert text(found, "10.0.1.5") == (
        "k8s:app=web",
        "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop",
        "k8s:io.cilium.k8s.namespace.labels.team=x",
        "k8s:io.cilium.k8s.policy.cluster=default",
        "k8s:io.cilium.k8s.policy.serviceaccount=default",
        "k8s:io.kubernetes.pod.namespace=shop",
    )


def test_replicas_share_an_identity_but_other_port_names_make_another() -> None:
    twin = Pod("shop", "twin", "n2", ("10.0.2.9",), {"app": "web"}, WEB.named_ports)
    odd = Pod("shop", "odd", "n2", ("10.0.2.8",), {"app": "web"}, frozenset({("http", 6, 9090)}))
    found = view(N1, N2, WEB, twin, odd)
    assert identity_of(found, "10.0.1.5") == identity_of(found, "10.0.2.9")
    assert identity_of(found, "10.0.1.5") != identity_of(found, "10.0.2.8")


def test_a_finished_pod_has_given_its_address_back() -> None:
    done = Pod("shop", "job", "n1", ("10.0.1.5",), phase="Succeeded")
    found = view(N1, WEB, done)
    assert [str(one) for one in found.endpoints] == ["shop/web"]
    assert found.problems == ()


# Addresses without an owner


def test_an_address_that_two_pods_claim_is_nobodys_and_refused_where_a_policy_governs() -> None:
    thief = Pod("evil", "thief", "n1", ("10.0.1.5", "10.0.1.66"), {"app": "client"}, origin=SourceLocation("t.yaml", 3))
    found = view(N1, WEB, thief, CLIENT, FROM_CLIENT)
    assert identity_of(found, "10.0.1.5") == CONTESTED
    assert {str(one): one.addresses for one in found.endpoints} == {
        "evil/thief": ("10.0.1.66",),
        "/conflicting address 10.0.1.5": ("10.0.1.5",),
    }
    policies = compile_policies(found.rules, found.endpoints, found.identities)
    (nobody,) = (one for one in found.endpoints if one.addresses == ("10.0.1.5",))
    assert policies[nobody.id].egress is None, "no policy governs egress of either"
    for identity in (HOST, WORLD, identity_of(found, "10.0.2.5") or 0):
        decision = decide.port(policies[nobody.id].ingress, identity, 6, 80).l4
        assert not decision.allowed
        assert "10.0.1.5 is claimed by evil/thief and shop/web" in decision.reason
    assert [(one.file, one.line) for one in found.problems] == [("", 0), ("t.yaml", 3)]
    assert found.names.pod("10.0.1.5") is None


def test_an_address_claimed_twice_without_any_policy_passes() -> None:
    found = view(N1, WEB, Pod("shop", "b", "n1", ("10.0.1.5",)))
    policies = compile_policies(found.rules, found.endpoints, found.identities)
    assert all(one.ingress is None and one.egress is None for one in policies.values())


def test_a_pod_with_a_nodes_address_is_the_node_and_told() -> None:
    found = view(N1, Pod("shop", "odd", "n1", ("192.168.0.1",)))
    assert identity_of(found, "192.168.0.1") == HOST
    assert found.endpoints == ()
    assert "192.168.0.1 is the address of node n1" in found.problems[0].message


def test_a_pod_cannot_write_its_own_namespace_or_account() -> None:
    forged = {
        "io.kubernetes.pod.namespace": "kube-system",
        "io.cilium.k8s.namespace.labels.team": "admin",
        "io.cilium.k8s.policy.serviceaccount": "root",
        "io.cilium.k8s.policy.cluster": "other",
    }
    pod = Pod("shop", "web", "n1", ("10.0.1.5",), forged)
    assert text(view(pod), "10.0.1.5") == text(view(Pod("shop", "web", "n1", ("10.0.1.5",))), "10.0.1.5")


# Policies


def test_each_document_says_what_became_of_it() -> None:
    good, unsupported = FROM_CLIENT, policy("u", ingress=[{"fromNodes": [{}]}])
    wrong = policy("w", ingress=[{"fromEndpoint": [{}]}])
    unread = {**good.document, "metadata": {"name": "f", "namespace": "shop"}}
    faulty = objects.placeholder(unread, SourceLocation("f", 9), {}, SourceError("torn"))
    found = view(N1, WEB, CLIENT, good, unsupported, wrong, faulty)
    assert [(one.name, one.state, found.selected(one), one.file, one.line) for one in found.policies] == [
        ("f", PolicyPhase.INVALID, 1, "f", 9),
        ("p", PolicyPhase.ACCEPTED, 1, "p.yaml", 1),
        ("u", PolicyPhase.REFUSED, 1, "p.yaml", 4),
        ("w", PolicyPhase.INVALID, 1, "p.yaml", 4),
    ]
    assert "fromNodes" in found.policies[2].reason
    assert "fromEndpoint" in found.policies[3].reason


def test_a_document_that_cannot_be_honoured_closes_what_it_selects() -> None:
    found = view(N1, N2, WEB, CLIENT, policy("w", ingress=[{"fromEndpoint": [{}]}]))
    policies = compile_policies(found.rules, found.endpoints, found.identities)
    ingress = policies[found.endpoints[0].id].ingress
    assert not decide.port(ingress, identity_of(found, "10.0.2.5") or 0, 6, 80).l4.allowed
    assert decide.port(ingress, HOST, 6, 80).l4.allowed, "kubelet's probes"


def test_a_policy_that_selects_nobody_is_in_force_for_nobody() -> None:
    found = view(N1, WEB, policy(namespace="empty", ingress=[{}]))
    assert [(one.state, found.selected(one)) for one in found.policies] == [(PolicyPhase.ACCEPTED, 0)]


def test_rules_are_compiled_into_verdicts() -> None:
    found = view(N1, N2, WEB, CLIENT, FROM_CLIENT)
    policies = compile_policies(found.rules, found.endpoints, found.identities)
    ingress = policies[found.endpoints[0].id].ingress
    assert decide.port(ingress, identity_of(found, "10.0.2.5") or 0, 6, 80).l4.allowed
    assert not decide.port(ingress, WORLD, 6, 80).l4.allowed
    assert {rule.action for rule in found.rules} == {Action.ALLOW}
    assert {rule.direction for rule in found.rules} == {Direction.INGRESS}


# Services and names


def test_frontends_and_names() -> None:
    service = Service("shop", "web", ("10.96.0.1",), (ServicePort(80, 6, "http"),), {"app": "web"})
    found = view(N1, N2, WEB, CLIENT, service)
    (frontend,) = found.frontends
    assert frontend.backends == (Backend("10.0.1.5", 8080),)
    assert found.names.service("10.96.0.1", 80, 6) == ("shop", "web")
    here, there = found.names.pod("10.0.1.5"), found.names.pod("10.0.2.5")
    assert here is not None
    assert there is not None
    assert (here.id, here.namespace, here.name) == (found.endpoints[0].id, "shop", "web")
    assert (there.id, there.name) == (0, "client")
    assert found.names.identity_labels(1) == ("reserved:host",)
    assert found.names.identity_labels(999) == ()


# No dependence on history

addresses = st.sampled_from(["10.0.1.5", "10.0.1.6", "10.0.2.5", "192.168.0.1", "fd00::5"])
names_ = st.sampled_from(["a", "b", "c"])
pods = st.builds(
    Pod,
    namespace=st.sampled_from(["shop", "evil"]),
    name=names_,
    node=st.sampled_from(["n1", "n2"]),
    addresses=st.lists(addresses, max_size=2, unique=True).map(tuple),
    labels=st.sampled_from([{"app": "web"}, {"app": "client"}, {}]),
    named_ports=st.sampled_from([frozenset(), frozenset({("http", 6, 80)})]),
    host_network=st.booleans(),
    phase=st.sampled_from(["Running", "Failed"]),
)
others: st.SearchStrategy[Resource] = st.sampled_from(
    [
        N1,
        N2,
        Node("n1", ("192.168.0.9",)),
        Namespace("shop", {"team": "x"}),
        Namespace("shop"),
        FROM_CLIENT,
        policy(ingress=[{"fromCIDR": ["10.0.0.0/8"]}]),
        policy("other", ingress=[{"fromEntities": ["world"]}]),
        policy("wrong", ingres=[]),
        Service("shop", "web", ("10.96.0.1",), (ServicePort(80, 6, "http"),), {"app": "web"}),
        EndpointSlice("shop", "web-1", "web", ("10.0.1.5",), (SlicePort("", 80, 6),)),
        EndpointSlice("default", "kubernetes", "kubernetes", ("10.0.2.5", "192.0.2.1"), (SlicePort("", 443, 6),)),
        ServiceAccount("shop", "default", {"role": "x"}),
        objects.policy(
            {
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "metadata": {"name": "blocks", "namespace": "shop"},
                "spec": {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.1.5/32"}}]}]},
            },
        ),
    ]
)
facts_ = st.lists(pods | others, max_size=12)


def latest(resources: Iterable[Resource]) -> list[Resource]:
    return list({resource.key: resource for resource in resources}.values())


@settings(deadline=None)
@given(facts_, st.randoms(use_true_random=False))
def test_any_order_of_the_same_facts_gives_an_equal_view(resources: list[Resource], random: Any) -> None:
    resources = latest(resources)
    shuffled = list(resources)
    random.shuffle(shuffled)
    for node in ("n1", None):
        assert cluster_state(*resources).view(node) == cluster_state(*shuffled).view(node)


@settings(deadline=None)
@given(facts_, facts_)
def test_what_came_and_went_leaves_no_trace(stay: list[Resource], go: list[Resource]) -> None:
    stay = latest(stay)
    kept = {resource.key for resource in stay}
    passing = [resource for resource in latest(go) if resource.key not in kept]
    made = ClusterState()
    changes: list[Change] = [Upsert(resource) for resource in (*go, *stay)]
    made.apply(changes)
    made.view("n1")
    made.apply([Delete(resource.key) for resource in passing])
    assert made.view("n1") == unsynced(stay).view("n1")


steps = st.lists(st.tuples(st.lists(pods | others, max_size=3), st.lists(pods | others, max_size=2)), max_size=6)


@settings(deadline=None)
@given(steps, st.sampled_from(["n1", "n2", None]), st.sampled_from([(), ("10.0.1.6", "192.168.0.7")]))
def test_step_by_step_is_all_at_once(
    done: list[tuple[list[Resource], list[Resource]]], node: str | None, local: tuple[str, ...]
) -> None:
    """Caches between views never show, whichever node's views were rendered in between."""
    made, known = ClusterState(), dict[ResourceKey, Resource]()
    for place, (come, go) in enumerate(done):
        made.apply([*(Upsert(resource) for resource in come), *(Delete(resource.key) for resource in go)])
        known |= {resource.key: resource for resource in come}
        for resource in go:
            known.pop(resource.key, None)
        asked = ("n1", "n2", None)[place % 3]
        assert made.view(asked) == unsynced(known.values()).view(asked)
    assert made.view(node, local_addresses=local) == unsynced(known.values()).view(node, local_addresses=local)
    assert made.copy().view(node) == made.view(node)


def unsynced(resources: Iterable[Resource]) -> ClusterState:
    made = ClusterState()
    made.apply([Upsert(resource) for resource in resources])
    return made


@given(facts_)
def test_every_view_is_sound(resources: list[Resource]) -> None:
    """Unique numbers, canonical prefixes, each address at one endpoint, and everything compiles."""
    found = cluster_state(*resources).view("n1")
    ids = [one.id for one in found.endpoints]
    assert len(set(ids)) == len(ids)
    assert all(1 <= number < 65536 for number in ids)
    here = [address for one in found.endpoints for address in one.addresses]
    assert len(set(here)) == len(here)
    assert all(str(ip_network(prefix)) == prefix for prefix in found.by_prefix)
    assert set(found.by_prefix.values()) <= set(found.identities)
    assert set(compile_policies(found.rules, found.endpoints, found.identities)) == set(ids)


def test_who_is_outside_is_not_worked_out_again_for_a_policy_that_names_no_new_prefix() -> None:
    """With tens of thousands of prefixes this would cost five seconds for every change of any policy."""
    made = cluster_state(N1, WEB, policy(ingress=[{"fromCIDR": ["198.51.100.0/24", "203.0.113.0/24"]}]))
    before = made.view("n1").identities
    made.apply([Upsert(policy("other", ingress=[{"fromCIDR": ["203.0.113.0/24"]}]))])
    after = made.view("n1").identities
    outside = [number for number, one in before.items() if one.cidr is not None]
    assert outside and all(before[number] is after[number] for number in outside)


# hostNetwork


def test_pods_on_their_nodes_network_that_a_policy_selects_are_named() -> None:
    def on_host(name: str, node: str, app: str, **more: Any) -> Pod:
        return Pod("shop", name, node, ("192.168.0.1",), {"app": app}, host_network=True, **more)

    pods = on_host("agent", "n1", "web"), on_host("else", "n1", "other"), on_host("far", "n2", "web")
    found = view(N1, N2, WEB, *pods, on_host("done", "n1", "web", phase="Succeeded"), FROM_CLIENT)
    (accepted,) = found.policies
    assert [str(pod) for pod in found.selected_on_host(accepted)] == ["shop/agent"]
    assert found.selected(accepted) == 1
    every = view(N1, N2, WEB, *pods, FROM_CLIENT, node=None)
    assert [str(pod) for pod in every.selected_on_host(accepted)] == ["shop/agent", "shop/far"]


def test_a_pod_that_left_its_nodes_network_is_not_named_any_more() -> None:
    made = cluster_state(N1, Pod("shop", "web", "n1", ("192.168.0.1",), {"app": "web"}, host_network=True), FROM_CLIENT)
    before = made.view("n1")
    made.apply([Upsert(WEB)])
    after = made.view("n1")
    assert [len(found.selected_on_host(found.policies[0])) for found in (before, after)] == [1, 0]
    assert [found.selected(found.policies[0]) for found in (before, after)] == [0, 1]
