"""Renders a node view into the policy snapshot and the desired kernel state."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from l7proxy.agent.dataplane.pod_interfaces import PodInterfaces
from l7proxy.agent.dataplane.render import DesiredState, render
from l7proxy.cluster.state import ClusterState, NodeView
from l7proxy.model.ref import RuleRef
from l7proxy.model.resources import Node, Pod, PolicyDocument, Resource, Service, ServicePort, Upsert
from l7proxy.model.verdict import Action
from l7proxy.policy.compile import compile_policies
from l7proxy.policy.tables import EndpointPolicy, Entry, union
from l7proxy.sources import objects
from tproxy_rules import desired as kernel
from tproxy_rules.evaluate import Connection, Evaluator
from tproxy_rules.validate import checked

REF = RuleRef("P", "ns", "p")
NODE = Node("n1", ("192.168.0.1",))
WEB = Pod("shop", "web", "n1", ("10.0.1.5", "fd00::5"), {"app": "web"})
PLAIN = Pod("shop", "plain", "n1", ("10.0.1.6",), {"app": "plain"})
CLIENT = Pod("shop", "client", "n2", ("10.0.2.5",), {"app": "client"})
SERVICES = (
    Service("shop", "web", ("10.96.0.1",), (ServicePort(80, 6, 8080), ServicePort(81, 6, 8081)), {"app": "web"}),
    Service("shop", "far", ("10.96.0.2",), (ServicePort(80, 6, 8080), ServicePort(53, 17, 8080)), {"app": "client"}),
)


def policy(**spec: Any) -> PolicyDocument:
    document = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "p", "namespace": "shop"},
        "spec": {"endpointSelector": {"matchLabels": {"app": "web"}}, **spec},
    }
    return objects.policy(document)


def port(number: str, *, http: bool = False) -> dict[str, Any]:
    cell: dict[str, Any] = {"ports": [{"port": number, "protocol": "TCP"}]}
    return cell | ({"rules": {"http": [{"method": "GET"}]}} if http else {})


def view(*resources: Resource) -> NodeView:
    cluster_state = ClusterState()
    cluster_state.apply([Upsert(resource) for resource in resources])
    return cluster_state.view("n1")


def snapshots(*resources: Resource, interfaces: PodInterfaces | None = None, resolve: bool = False) -> DesiredState:
    found = view(*resources)
    policies = compile_policies(found.rules, found.endpoints, found.identities)
    drawn = render(found, policies, interfaces or PodInterfaces(), settings=kernel.Settings(), resolve_services=resolve)
    checked(drawn.kernel)  # every kernel accepts it
    return drawn


def test_pods_without_policy_and_interface_are_not_the_kernels_business() -> None:
    drawn = snapshots(NODE, WEB, PLAIN, CLIENT)
    assert drawn.kernel.endpoints == ()
    assert [one.name for one in drawn.workers.endpoints] == ["shop/plain", "shop/web"]
    assert not drawn.steers


def test_an_interface_is_watched_even_without_policy() -> None:
    attachment = kernel.Port("veth1", "0a:58:0a:00:01:05", "cni0")
    bridge = kernel.Bridge("cni0", "02:00:00:00:00:01")
    drawn = snapshots(NODE, WEB, PLAIN, interfaces=PodInterfaces({"10.0.1.5": attachment}, (bridge,)))
    (endpoint,) = drawn.kernel.endpoints
    assert (endpoint.addresses, endpoint.port, endpoint.ingress) == (("10.0.1.5", "fd00::5"), attachment, None)
    assert drawn.kernel.bridges == (bridge,)


def test_l7_steers_and_the_rest_allows_or_denies() -> None:
    drawn = snapshots(
        NODE,
        WEB,
        CLIENT,
        policy(
            ingress=[
                {"fromEndpoints": [{"matchLabels": {"app": "client"}}], "toPorts": [port("80", http=True), port("81")]}
            ],
            ingressDeny=[{"fromEntities": ["world"]}],
        ),
    )
    (endpoint,) = drawn.kernel.endpoints
    assert endpoint.egress is None
    assert endpoint.ingress is not None
    client = drawn.workers.identities["10.0.2.5/32"]
    steer = kernel.Entry(kernel.Verdict.STEER, 6, 80, 80, any_peer=False, peers=(client,))
    allow = kernel.Entry(kernel.Verdict.ALLOW, 6, 81, 81, any_peer=False, peers=(client,))
    assert {steer, allow} <= set(endpoint.ingress.entries)
    denied = [entry for entry in endpoint.ingress.entries if entry.verdict is kernel.Verdict.DENY]
    assert [(entry.protocol, entry.first, entry.last) for entry in denied] == [(-1, 0, 65535)]
    assert drawn.steers


def entry(action: Action, protocol: int | None) -> Entry:
    return Entry(action, REF, None, protocol, 80, 80) if protocol is not None else Entry(action, REF)


@pytest.mark.parametrize(
    ("protocol", "steered"),
    [(6, [(kernel.Verdict.STEER, 6, 80, 80)]), (17, []), (132, []), (None, [(kernel.Verdict.STEER, 6, 0, 65535)])],
)
def test_only_tcp_can_be_steered_and_nothing_else_gets_in_by_it(protocol: int | None, steered: list[Any]) -> None:
    found = view(NODE, Pod("shop", "web", "n1", ("10.0.1.5",)))
    number = found.endpoints[0].id
    policies: dict[int, EndpointPolicy] = {
        number: EndpointPolicy(number, union((entry(Action.REDIRECT, protocol),), (REF,)))
    }
    drawn = render(found, policies, PodInterfaces(), settings=kernel.Settings(), resolve_services=False)
    (endpoint,) = drawn.kernel.endpoints
    assert endpoint.ingress is not None
    assert [(one.verdict, one.protocol, one.first, one.last) for one in endpoint.ingress.entries] == steered


def test_frontends_are_steered_when_some_backend_behind_them_is_judged() -> None:
    def steered(*resources: Resource) -> set[tuple[str, int, int]]:
        drawn = snapshots(NODE, WEB, CLIENT, *SERVICES, *resources, resolve=True)
        assert len(drawn.workers.frontends) == len(drawn.kernel.frontends) == 4
        return {(one.address, one.protocol, one.port) for one in drawn.kernel.frontends if one.steer}

    assert steered() == set()
    assert steered(policy(ingress=[{"toPorts": [port("8080", http=True)]}])) == {("10.96.0.1", 6, 80)}
    to_client = [{"toEndpoints": [{"matchLabels": {"app": "client"}}], "toPorts": [port("8080", http=True)]}]
    assert steered(policy(egress=to_client)) == {("10.96.0.2", 6, 80)}
    assert steered(policy(ingress=[{"toPorts": [port("8080")]}])) == set()


def test_frontends_are_nobodys_business_after_dnat() -> None:
    drawn = snapshots(NODE, WEB, *SERVICES, policy(ingress=[{"toPorts": [port("8080", http=True)]}]))
    assert drawn.kernel.frontends == ()
    assert drawn.workers.frontends == ()


def test_snapshots_compare_without_their_revision() -> None:
    one, two = snapshots(NODE, WEB), snapshots(WEB, NODE)
    assert one.at(1).equals(two.at(7))
    assert not one.equals(snapshots(NODE, WEB, CLIENT))
    assert not one.equals(None)
    assert one.at(3).workers.revision == 3


def test_what_policies_name_opens_no_address_that_is_held() -> None:
    """Else any namespace could open the addresses of all pods that start, one by one."""
    there = ("10.0.1.5/32", "10.0.1.9/32", "10.0.1.77/32", "192.0.2.1/32", "10.0.1.64/28")
    named = policy(egress=[{"toCIDR": [*there], "toPorts": [port("443")]}])
    unowned = Pod("shop", "elsewhere", "n2", ("10.0.1.77",))
    node = replace(NODE, pod_cidrs=("10.0.1.0/24",))
    found = snapshots(node, WEB, unowned, named).kernel
    assert found.held == ("10.0.1.0/24",)
    assert {prefix for prefix, _ in found.identities} & {*there} == {*there} - {"10.0.1.9/32"}
    judge = Evaluator(found)
    for other in ("10.0.1.5", "8.8.8.8"):
        assert judge.of(Connection("10.0.1.9", other, 6, 443)) is kernel.Verdict.DENY
        assert judge.of(Connection(other, "10.0.1.9", 6, 443)) is kernel.Verdict.DENY
    assert snapshots(node, WEB, Pod("shop", "new", "n1", ("10.0.1.9",)), named).kernel.identities != found.identities
