"""Services and CIDR groups in rules: what a name refers to; a name that does not exist matches nothing."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from typing import TYPE_CHECKING

import pytest

from l7proxy.cluster.state import ClusterState
from l7proxy.model.labels import EVERYTHING, Operator, Requirement, Selector
from l7proxy.model.net import PrefixTable
from l7proxy.model.ref import RuleRef
from l7proxy.model.resources import CidrGroup, Delete, EndpointSlice, Node, Pod, Service, SourceLocation, Upsert
from l7proxy.model.verdict import Action, Direction
from l7proxy.policy import decide, lint
from l7proxy.policy.compile import compile_policies
from l7proxy.policy.references import References, resolve, unknown
from l7proxy.policy.rules import AnyPeer, CidrGroupPeer, CidrPeer, EveryPeer, Peer, Rule, SelectorPeer, ServicePeer
from l7proxy.sources.files import manifest as manifests

if TYPE_CHECKING:
    from tests.unit.policy.conftest import Bench


def to_service(text: str, ports: str = "") -> str:
    return f"egress: [{{toServices: [{text}]{ports}}}]"


SERVICES = [
    (
        "1.4 a Service with a selector is its pods",
        "{k8sService: {serviceName: back, namespace: default}}",
        {"b": "allow", "a": "no rule", "outside": "no rule", "10.96.0.1": "no rule"},
    ),
    (
        "1.4 a Service without a selector is its addresses outside",
        "{k8sService: {serviceName: outside, namespace: default}}",
        {"outside": "allow", "203.0.113.8": "no rule", "b": "no rule"},
    ),
    (
        "1.4 an address of such a Service that is a pod's does not match the pod",
        "{k8sService: {serviceName: outside, namespace: default}}",
        {"a": "no rule"},
    ),
    (
        "11.56 without a namespace it is a Service of that name in any",
        "{k8sService: {serviceName: front}}",
        {"a": "allow", "other/a": "allow", "b": "no rule"},
    ),
    (
        "1.4 with a namespace it is that one's",
        "{k8sService: {serviceName: front, namespace: other}}",
        {"other/a": "allow", "a": "no rule"},
    ),
    (
        "1.4 by labels, in any namespace",
        "{k8sServiceSelector: {selector: {matchExpressions: [{key: kind, operator: In, values: [far, inside]}]}}}",
        {"a": "allow", "b": "allow", "other/a": "allow", "outside": "no rule"},
    ),
    (
        "1.4 by labels, in one namespace",
        "{k8sServiceSelector: {selector: {matchLabels: {kind: inside}}, namespace: default}}",
        {"a": "allow", "b": "allow", "other/a": "no rule"},
    ),
    (
        "1.4 by name and by labels is either",
        "{k8sService: {serviceName: back}, k8sServiceSelector: {selector: {matchLabels: {kind: far}}}}",
        {"b": "allow", "other/a": "allow", "a": "no rule"},
    ),
    (
        "1.6 an unknown Service is nobody",
        "{k8sService: {serviceName: nobody}}",
        {"a": "no rule", "outside": "no rule", "n2": "no rule"},
    ),
    (
        "1.6 a selector that selects no Service is nobody",
        "{k8sServiceSelector: {selector: {matchLabels: {kind: none}}}}",
        {"a": "no rule", "outside": "no rule"},
    ),
    (
        "1.4 default/kubernetes is no API server on a node",
        "{k8sService: {serviceName: kubernetes, namespace: default}}",
        {"n3": "no rule"},
    ),
]


@pytest.mark.parametrize(("peer", "expected"), [row[1:] for row in SERVICES], ids=[row[0] for row in SERVICES])
def test_to_services(peer: str, expected: dict[str, str], bench: Bench) -> None:
    town = bench.town(to_service(peer))
    assert {who: town.egress(who) for who in expected} == expected


@pytest.mark.parametrize("name", ["nobody", "kubernetes"])
def test_1_4_an_unknown_service_with_ports_is_nobody_not_anyone(name: str, bench: Bench) -> None:
    ports = ", toPorts: [{ports: [{port: '80'}]}]"
    town = bench.town(to_service(f"{{k8sService: {{serviceName: {name}, namespace: other}}}}", ports))
    assert town.egress("a", "b", "outside", "n1", "n2") == " ".join(["no rule"] * 5)


def test_1_4_ports_of_a_rule_hold_for_its_services(bench: Bench) -> None:
    town = bench.town(to_service("{k8sService: {serviceName: back}}", ", toPorts: [{ports: [{port: '80'}]}]"))
    assert (town.egress("b"), town.egress("b", port="81/TCP")) == ("allow", "no rule")


def test_a_denied_service_is_denied(bench: Bench) -> None:
    deny = "egressDeny: [{toServices: [{k8sService: {serviceName: back}}]}]"
    town = bench.town(deny, "egress: [{toEntities: [all]}]")
    assert town.egress("b", "a") == "deny allow"


SLICE = """
- {apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4,
   metadata: {name: outside-2, namespace: default, labels: {kubernetes.io/service-name: outside}},
   endpoints: [{addresses: [203.0.113.8]}], ports: [{port: 80}]}
"""


def test_all_slices_of_a_service_count(bench: Bench) -> None:
    town = bench.town(to_service("{k8sService: {serviceName: outside}}"), more=SLICE)
    assert town.egress("203.0.113.7", "203.0.113.8", "203.0.113.9") == "allow allow no rule"


EXTERNAL_NAME = """
- {apiVersion: v1, kind: Service, metadata: {name: named, namespace: default},
   spec: {type: ExternalName, externalName: a.example, selector: {app: a}}}
"""


def test_a_service_that_is_only_a_name_is_nobody(bench: Bench) -> None:
    town = bench.town(to_service("{k8sService: {serviceName: named}}"), more=EXTERNAL_NAME)
    assert town.egress("a", "outside") == "no rule no rule"


GROUPS = [
    (
        "3.7 a group by its name",
        "{cidrGroupRef: partners}",
        {"203.0.113.7": "allow", "apiserver": "allow", "203.0.113.200": "no rule", "192.0.2.1": "no rule"},
    ),
    ("3.7 a missing group is nobody", "{cidrGroupRef: nobody}", {"203.0.113.7": "no rule", "192.0.2.1": "no rule"}),
    (
        "3.7 groups by their labels",
        "{cidrGroupSelector: {matchLabels: {trust: full}}}",
        {"192.0.2.1": "allow", "203.0.113.7": "no rule"},
    ),
    (
        "3.7 the empty selector is every group",
        "{cidrGroupSelector: {}}",
        {"192.0.2.1": "allow", "203.0.113.7": "allow", "203.0.113.200": "no rule"},
    ),
    (
        "3.7 a selector of the groups' own source",
        "{cidrGroupSelector: {matchLabels: {'cidrgroup:trust': full}}}",
        {"192.0.2.1": "allow", "203.0.113.7": "no rule"},
    ),
    (
        "3.7 a selector of another source selects none",
        "{cidrGroupSelector: {matchLabels: {'k8s:trust': full}}}",
        {"192.0.2.1": "no rule"},
    ),
    (
        "3.7 exceptions hold for a named group",
        "{cidrGroupRef: partners, except: [203.0.113.0/28]}",
        {"203.0.113.7": "no rule", "203.0.113.17": "allow"},
    ),
    (
        "3.7 exceptions hold for selected groups",
        "{cidrGroupSelector: {}, except: [203.0.113.0/28]}",
        {"203.0.113.7": "no rule", "192.0.2.1": "allow"},
    ),
    (
        "1.6 an exception outside a group is not refused",
        "{cidrGroupRef: partners, except: [172.16.0.0/12]}",
        {"203.0.113.7": "allow"},
    ),
    ("3.7 a group never matches a pod or a node", "{cidrGroupRef: office}", {"a": "no rule", "n1": "no rule"}),
]


@pytest.mark.parametrize(("peer", "expected"), [row[1:] for row in GROUPS], ids=[row[0] for row in GROUPS])
def test_cidr_groups(peer: str, expected: dict[str, str], bench: Bench) -> None:
    ways = {"egress": f"egress: [{{toCIDRSet: [{peer}]}}]", "ingress": f"ingress: [{{fromCIDRSet: [{peer}]}}]"}
    out, let_in = bench.town(ways["egress"]), bench.town(ways["ingress"])
    assert {who: out.egress(who) for who in expected} == expected
    # every ingress policy allows the local host
    assert {who: let_in.ingress(who) for who in expected if who != "n1"} == {
        who: answer for who, answer in expected.items() if who != "n1"
    }


def test_3_7_in_a_deny_rule_the_exception_of_a_group_is_not_denied(bench: Bench) -> None:
    town = bench.town(
        "ingressDeny: [{fromCIDRSet: [{cidrGroupRef: partners, except: [203.0.113.0/28]}]}]",
        "ingress: [{fromEntities: [world]}]",
    )
    assert town.ingress("203.0.113.7", "203.0.113.17") == "allow deny"


# --- references alone ------------------------------------------------------------------------------------------------

TEN = CidrPeer(ip_network("10.0.0.0/8"))
LAND = References(
    services=(
        Service("shop", "web", selector={"app": "web"}, labels={"tier": "front"}),
        Service("shop", "db", labels={"tier": "back"}),
    ),
    slices=(EndpointSlice("shop", "db-1", "db", ("203.0.113.7", "2001:db8::7")),),
    cidr_groups=(CidrGroup("g", ("192.0.2.0/24", "2001:db8::/32"), {"a": "b"}),),
)
WEB = ServicePeer("shop", "web")
DB = ServicePeer("shop", "db")
NOBODY = ServicePeer("shop", "nobody")
NONE = Selector((Requirement("any", "a", Operator.IN, ("none",)),))


def rule(*peers: Peer) -> Rule:
    return Rule(RuleRef("K", "shop", "p", "spec.egress[0]"), EVERYTHING, Direction.EGRESS, Action.ALLOW, peers)


def resolved(*peers: Peer) -> tuple[Peer, ...] | None:
    return resolve([rule(*peers)], LAND)[0].peers


def test_a_service_is_its_pods_in_its_namespace_or_its_addresses() -> None:
    (pods,) = resolved(WEB) or ()
    assert str(pods.selector if isinstance(pods, SelectorPeer) else pods) == (
        "k8s:app=web,k8s:io.kubernetes.pod.namespace=shop"
    )
    assert resolved(DB) == (CidrPeer(ip_network("2001:db8::7")), CidrPeer(ip_network("203.0.113.7")))


def test_what_is_not_there_leaves_a_rule_of_nobody() -> None:
    assert resolved(NOBODY) == ()
    assert resolved(CidrGroupPeer("nobody")) == ()
    assert resolved(NOBODY, TEN) == (TEN,)


def test_names_inside_other_peers_are_put_in_place_too() -> None:
    assert resolved(AnyPeer((NOBODY, TEN))) == (AnyPeer((TEN,)),)
    assert resolved(EveryPeer((DB,), (NOBODY,))) == (
        EveryPeer(
            (AnyPeer((CidrPeer(ip_network("2001:db8::7")), CidrPeer(ip_network("203.0.113.7")))),), (AnyPeer(()),)
        ),
    )
    assert resolved(EveryPeer((NOBODY, TEN))) == (EveryPeer((AnyPeer(()), TEN)),)


def test_nobody_in_a_conjunction_is_nobody(bench: Bench) -> None:
    rules = resolve([rule(EveryPeer((NOBODY,)))], LAND)
    table = compile_policies(rules, [bench.server()], bench.identities_for(rules))[1]
    assert table.egress is not None
    assert (list(table.egress.entries), len(table.egress.denied_by)) == ([], 1)


def test_rules_without_names_are_left_as_they_are() -> None:
    plain = [rule(TEN), Rule(RuleRef("K", "", "q"), EVERYTHING, Direction.INGRESS, Action.DENY)]
    assert all(one is other for one, other in zip(resolve(plain, LAND), plain, strict=True))


def test_compiling_what_is_still_a_name_is_a_mistake_of_ours(bench: Bench) -> None:
    with pytest.raises(TypeError, match="references before compile"):
        compile_policies([rule(WEB)], [bench.server()], bench.identities_for([]))


def test_who_is_not_there_can_be_told() -> None:
    labelled = ServicePeer("", selector=Selector((Requirement("any", "tier", Operator.IN, ("none",)),)))
    rules = [rule(WEB, DB), rule(AnyPeer((NOBODY,))), rule(EveryPeer((TEN,), (CidrGroupPeer("x"),))), rule(labelled)]
    assert [name for _, name in unknown(rules, LAND)] == [
        "Service shop/nobody",
        "CIDR group x",
        "Service in any namespace with labels any:tier=none",
    ]


def test_lint_tells_who_is_not_there() -> None:
    rules = [rule(NOBODY), rule(WEB), rule(ServicePeer("", "nobody"), CidrGroupPeer(selector=NONE))]
    assert [(found.code, found.message) for found in lint.of_names(rules, LAND)] == [
        ("unknown-reference", "Service shop/nobody does not exist, so this matches no peer"),
        ("unknown-reference", "Service nobody in any namespace does not exist, so this matches no peer"),
        ("unknown-reference", "CIDR group with labels any:a=none does not exist, so this matches no peer"),
    ]


BROKEN = b"""apiVersion: cilium.io/v2
kind: CiliumCIDRGroup
metadata: {name: bad}
spec:
  externalCIDRs: [192.0.2.0/24, 10.0.0.0/99]
"""
OUTSIDE = (CidrPeer(ip_network("0.0.0.0/0")), CidrPeer(ip_network("::/0")))


def test_a_group_that_cannot_be_read_is_a_fault_and_stands_there_unread() -> None:
    (fault,) = manifests.parse(BROKEN, "g.yaml").faults
    assert str(fault.error) == "g.yaml:5: spec.externalCIDRs[1]: '10.0.0.0/99' is not a valid CIDR"
    assert fault.placeholder == CidrGroup("bad", unread=True, origin=SourceLocation("g.yaml", 1))


def test_an_unread_group_is_nobody_to_allow_and_anyone_outside_to_deny() -> None:
    land = References(cidr_groups=(CidrGroup("bad", unread=True), CidrGroup("good", ("192.0.2.0/24",), {"a": "b"})))
    named, selected = (
        CidrGroupPeer("bad"),
        CidrGroupPeer(selector=Selector((Requirement("any", "a", Operator.EXISTS),))),
    )
    rules = [rule(named), replace(rule(named), action=Action.DENY), rule(selected)]
    rules.append(replace(rule(selected), action=Action.DENY))
    assert [one.peers for one in resolve(rules, land)] == [
        (),
        OUTSIDE,
        (CidrPeer(ip_network("192.0.2.0/24")),),
        (*OUTSIDE, CidrPeer(ip_network("192.0.2.0/24"))),
    ]


def test_all_but_an_unread_group_is_nobody_outside() -> None:
    land = References(cidr_groups=(CidrGroup("bad", unread=True),))
    (resolved_rule,) = resolve([rule(EveryPeer((TEN,), (CidrGroupPeer("bad"),)))], land)
    assert resolved_rule.peers == (EveryPeer((TEN,), (AnyPeer(OUTSIDE),)),)


POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  egress:
  - toServices: [{k8sService: {serviceName: db}}]
  - toCIDRSet: [{cidrGroupRef: g}]
"""


def test_rules_follow_the_cluster_and_only_what_is_there_now_counts() -> None:
    pods = (
        Node("n1", ("192.168.0.1",), ("10.1.0.0/16",)),
        Pod("shop", "web", "n1", ("10.1.0.1",), {"app": "web"}),
        Pod("bank", "db", "n1", ("10.1.0.2",), {"app": "db"}),
    )
    (document,) = manifests.parse(POLICY.encode(), "p.yaml").resources
    service, group = Service("bank", "db", selector={"app": "db"}), CidrGroup("g", ("203.0.113.0/24",))
    world = ClusterState()
    world.apply(Upsert(resource) for resource in (document, *pods))
    assert reached(world) == []
    world.apply([Upsert(service), Upsert(group)])
    assert reached(world) == ["10.1.0.2", "203.0.113.7"]
    world.apply([Upsert(replace(service, selector={"app": "web"})), Upsert(replace(group, networks=()))])
    assert reached(world) == [], "a Service's pods are of its own namespace"
    world.apply([Upsert(service), Delete(group.key)])
    assert reached(world) == ["10.1.0.2"]
    fresh = ClusterState()
    fresh.apply(Upsert(resource) for resource in (service, *reversed(pods), document))
    assert fresh.view("n1") == world.view("n1"), "no hysteresis"


def reached(world: ClusterState) -> list[str]:
    view = world.view("n1")
    policies = compile_policies(view.rules, view.endpoints, view.identities)
    web = next(one for one in view.endpoints if one.name == "web")
    table = PrefixTable(view.by_prefix)
    asked = {address: table.get(address) for address in ("10.1.0.1", "10.1.0.2", "203.0.113.7", "192.168.0.1")}
    return [
        address
        for address, identity in asked.items()
        if identity is not None and decide.port(policies[web.id].egress, identity, 6, 80).l4.allowed
    ]
