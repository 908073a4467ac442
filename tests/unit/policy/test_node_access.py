"""What the node itself may reach in a pod under policy: everything, or only what its kubelet asks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from l7proxy.agent.dataplane.pod_interfaces import PodInterfaces
from l7proxy.agent.dataplane.render import render
from l7proxy.cluster.state import ClusterState, NodeView
from l7proxy.model.endpoint import Probe
from l7proxy.model.http import Request
from l7proxy.model.resources import Namespace, Node, Pod, PolicyDocument, Resource, Service, ServicePort, Upsert
from l7proxy.policy import decide
from l7proxy.policy.compile import compile_policies
from l7proxy.policy.lang.options import Options
from l7proxy.sources import objects
from l7proxy.sources.source import SYNCED
from tproxy_rules import desired as kernel
from tproxy_rules.validate import checked

N1 = Node("n1", ("192.168.0.1",))
PROBES = (Probe(7000), Probe(8080, "/livez?full=1"), Probe(8080, "/readyz"))
WEB = Pod("shop", "web", "n1", ("10.0.1.5",), {"app": "web"}, probes=PROBES)
HOST, PEER = "192.168.0.1", "10.0.1.6"


def policy(kind: str, version: str, spec: dict[str, object]) -> PolicyDocument:
    return objects.policy(
        {"apiVersion": version, "kind": kind, "metadata": {"name": "p", "namespace": "shop"}, "spec": spec}
    )


SELECT = {"endpointSelector": {"matchLabels": {"app": "web"}}}
CLOSED = policy("CiliumNetworkPolicy", "cilium.io/v2", {**SELECT, "ingress": [{}]})
KUBERNETES = policy("NetworkPolicy", "networking.k8s.io/v1", {"podSelector": {}, "policyTypes": ["Ingress"]})
CALICO = policy("NetworkPolicy", "projectcalico.org/v3", {"selector": "all()", "types": ["Ingress"]})
FROM_HOST = policy(
    "CiliumNetworkPolicy",
    "cilium.io/v2",
    {**SELECT, "ingress": [{"fromEntities": ["host"], "toPorts": [{"ports": [{"port": "90"}]}]}]},
)
NOT_FROM_HOST = policy(
    "CiliumNetworkPolicy", "cilium.io/v2", {**SELECT, "ingress": [{}], "ingressDeny": [{"fromEntities": ["host"]}]}
)
REFUSED = policy("CiliumNetworkPolicy", "cilium.io/v2", {**SELECT, "ingress": [{"fromEndpoints": [{"nonsense": 1}]}]})


def view(*policies: PolicyDocument, probes_only: bool = True, pods: tuple[Pod, ...] = (WEB,)) -> NodeView:
    cluster = ClusterState(options=Options(probes_only=probes_only))
    resources: tuple[Resource, ...] = (N1, Namespace("shop"), *pods, Pod("shop", "peer", "n1", (PEER,)), *policies)
    cluster.apply([*(Upsert(one) for one in resources), *SYNCED])
    return cluster.view("n1")


def answer(found: NodeView, source: str, port: int, *, path: str = "", protocol: int = 6) -> str:
    """`allow`, `refuse`, or for L7 the answer to a GET of `path`."""
    (web,) = (one for one in found.endpoints if one.name == "web")
    ingress = compile_policies(found.rules, found.endpoints, found.identities)[web.id].ingress
    found_policy = decide.port(ingress, found.by_prefix[f"{source}/32"], protocol, port)
    if not found_policy.redirects:
        return "allow" if found_policy.l4.allowed else "refuse"
    allowed = found_policy.judge(Request(b"GET", path.encode(), b"10.0.1.5", [])).allowed
    return "L7 allow" if allowed else "L7 refuse"


ALL = [(80, 6), (7000, 6), (8080, 6), (53, 17)]


@pytest.mark.parametrize("document", [CLOSED, KUBERNETES, CALICO])
def test_everything_by_default(document: PolicyDocument) -> None:
    found = view(document, probes_only=False)
    assert {answer(found, HOST, port, protocol=protocol) for port, protocol in ALL} == {"allow"}


@pytest.mark.parametrize("document", [CLOSED, KUBERNETES, CALICO, REFUSED])
def test_only_probes_when_asked_so(document: PolicyDocument) -> None:
    found = view(document)
    assert [answer(found, HOST, port, protocol=17) for port, _ in ALL] == ["refuse"] * 4
    assert [answer(found, HOST, port) for port in (80, 7000, 7001)] == ["refuse", "allow", "refuse"]
    paths = ("/readyz", "/livez?full=1", "/livez", "/readyz?x", "/readyz/", "/admin")
    assert [answer(found, HOST, 8080, path=path) for path in paths] == ["L7 allow"] * 2 + ["L7 refuse"] * 4
    assert {answer(found, PEER, port) for port in (80, 7000, 8080)} == {"refuse"}, "nobody else may"


def test_only_get_counts() -> None:
    found = view(CLOSED)
    (web,) = (one for one in found.endpoints if one.name == "web")
    ingress = compile_policies(found.rules, found.endpoints, found.identities)[web.id].ingress
    asked = decide.port(ingress, found.by_prefix[f"{HOST}/32"], 6, 8080)
    assert not asked.judge(Request(b"POST", b"/readyz", b"10.0.1.5", [])).allowed


def test_a_policy_may_allow_the_node_more_or_deny_it_all() -> None:
    assert [answer(view(FROM_HOST), HOST, port) for port in (90, 7000, 91)] == ["allow", "allow", "refuse"]
    assert {answer(view(NOT_FROM_HOST), HOST, port) for port, _ in ALL} == {"refuse"}


def test_a_pod_without_policy_is_open_and_one_without_probes_closed() -> None:
    assert {answer(view(), HOST, port) for port, _ in ALL} == {"allow"}
    silent = view(CLOSED, pods=(replace(WEB, probes=()),))
    assert {answer(silent, HOST, port) for port, _ in ALL} == {"refuse"}


def test_replicas_with_other_probes_have_their_own_policy() -> None:
    other = replace(WEB, name="web2", addresses=("10.0.1.7",), probes=(Probe(9),))
    found = view(CLOSED, pods=(WEB, other))
    policies = compile_policies(found.rules, found.endpoints, found.identities)
    ports = {
        one.name: [entry.first for entry in ingress.entries]
        for one in found.endpoints
        if (ingress := policies[one.id].ingress) is not None and ingress.governed
    }
    assert ports == {"web": [7000, 8080], "web2": [9]}


def test_the_kernel_takes_it_and_services_do_not_go_through_workers_for_it() -> None:
    """The kubelet never asks through a Service; other clients of the Service may not ask at all."""
    service = Service("shop", "web", ("10.96.0.9",), (ServicePort(80, 6, 8080),), {"app": "web"})
    cluster = ClusterState(options=Options(probes_only=True))
    cluster.apply([*(Upsert(one) for one in (N1, WEB, CLOSED, service)), *SYNCED])
    found = cluster.view("n1")
    policies = compile_policies(found.rules, found.endpoints, found.identities)
    state = render(found, policies, PodInterfaces(), settings=kernel.Settings(), resolve_services=True)
    checked(state.kernel)
    assert state.steers
    assert [one.steer for one in state.kernel.frontends] == [False]
