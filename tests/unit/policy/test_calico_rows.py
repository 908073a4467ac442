"""Calico's policies row by row: subjects, entities, ports, order, tiers and http."""

from __future__ import annotations

import json

import pytest

from l7proxy.model.resources import EndpointSlice, NetworkSet, PolicyTier, Resource, ServiceAccount, SlicePort
from tests.unit.policy.calico import Document, calico
from tests.unit.policy.town import PEOPLE, Town, check

A = "selector: pod == 'a', "


def from_(source: str, more: str = "") -> str:
    return f"{A}ingress: [{{action: Allow, {more}source: {{{source}}}}}]"


def to(destination: str, more: str = "protocol: TCP, ") -> str:
    return f"{A}ingress: [{{action: Allow, {more}destination: {{{destination}}}}}]"


WHOM = [
    ("9.3 nothing said: anybody", from_(""), "x/b>x/a:80/TCP 8.8.8.8>x/a:80/UDP n2>x/a:80/TCP", ""),
    (
        "9.3 selector: pods of the own namespace, never addresses",
        from_("selector: all()"),
        "x/b>x/a:80/TCP",
        "y/b>x/a:80/TCP 8.8.8.8>x/a:80/TCP n2>x/a:80/TCP",
    ),
    (
        "9.3 !has(x): only known endpoints without x",
        from_("selector: '!has(gone)', namespaceSelector: all()"),
        "x/b>x/a:80/TCP y/b>x/a:80/TCP",
        "8.8.8.8>x/a:80/TCP n2>x/a:80/TCP",
    ),
    (
        "9.3 namespaceSelector by labels, with a selector",
        from_("selector: \"pod in {'b', 'c'}\", namespaceSelector: ns == 'y'"),
        "y/b>x/a:80/TCP y/c>x/a:80/TCP",
        "y/a>x/a:80/TCP x/b>x/a:80/TCP",
    ),
    (
        "9.3 namespaceSelector by name",
        from_("namespaceSelector: projectcalico.org/name == 'z'"),
        "z/a>x/a:80/TCP",
        "x/b>x/a:80/TCP",
    ),
    ("9.3 namespaceSelector all(): any pod", from_("namespaceSelector: all()"), "z/a>x/a:80/TCP", "8.8.8.8>x/a:80/TCP"),
    ("11.65 namespaceSelector global(): no pod", from_("namespaceSelector: global()"), "", "x/b>x/a:80/TCP"),
    (
        "9.3 notSelector alone adds the own namespace (11.59)",
        from_("notSelector: pod == 'b'"),
        "x/c>x/a:80/TCP",
        "x/b>x/a:80/TCP y/c>x/a:80/TCP 8.8.8.8>x/a:80/TCP",
    ),
    (
        "9.3 nets mean pods and nodes, too",
        from_("nets: [10.0.2.0/24, 192.168.0.2]"),
        "z/a>x/a:80/TCP n2>x/a:80/TCP",
        "y/a>x/a:80/TCP 8.8.8.8>x/a:80/TCP",
    ),
    (
        "9.3 nets AND selector",
        from_("nets: [10.0.2.0/24], selector: pod == 'b', namespaceSelector: all()"),
        "z/b>x/a:80/TCP",
        "z/a>x/a:80/TCP y/b>x/a:80/TCP",
    ),
    (
        "9.3 notNets",
        from_("notNets: [10.0.2.0/24, 8.0.0.0/8]"),
        "y/a>x/a:80/TCP 9.9.9.9>x/a:80/TCP z/a@6>x/a:80/TCP",
        "z/a>x/a:80/TCP 8.8.8.8>x/a:80/TCP",
    ),
    (
        "9.3 serviceAccounts: names OR",
        from_("serviceAccounts: {names: [b, c]}, namespaceSelector: all()"),
        "x/b>x/a:80/TCP y/c>x/a:80/TCP",
        "y/a>x/a:80/TCP 8.8.8.8>x/a:80/TCP",
    ),
    (
        "9.3 serviceAccounts that name nobody ask for nothing",
        from_("serviceAccounts: {names: [], selector: ''}"),
        "y/a>x/a:80/TCP 8.8.8.8>x/a:80/TCP",
        "",
    ),
    (
        "9.3 selectors that are empty ask for nothing",
        from_("selector: '', notSelector: '', namespaceSelector: ''"),
        "y/a>x/a:80/TCP 8.8.8.8>x/a:80/TCP",
        "",
    ),
    (
        "9.3 serviceAccounts: names AND selector, own namespace",
        from_("serviceAccounts: {names: [b, c], selector: role == 'ci'}"),
        "x/b>x/a:80/TCP",
        "x/c>x/a:80/TCP y/b>x/a:80/TCP",
    ),
    (
        "9.2 labels that Calico gives to endpoints",
        from_(
            "namespaceSelector: all(), selector: \"projectcalico.org/namespace == 'y' &&"
            " projectcalico.org/orchestrator == 'k8s' && projectcalico.org/serviceaccount != 'c'\""
        ),
        "y/a>x/a:80/TCP y/b>x/a:80/TCP",
        "y/c>x/a:80/TCP x/b>x/a:80/TCP",
    ),
    ("9.3 ipVersion 4", from_("", "ipVersion: 4, "), "y/a>x/a:80/TCP 8.8.8.8>x/a:80/TCP", "y/a@6>x/a:80/TCP"),
    (
        "9.3 ipVersion 6",
        from_("selector: all()", "ipVersion: 6, "),
        "x/b@6>x/a:80/TCP",
        "x/b>x/a:80/TCP 2001:db8::1>x/a:80/TCP",
    ),
    (
        "9.2 a network set of the namespace, by its labels",
        from_("selector: kind == 'partners'"),
        "203.0.113.9>x/a:80/TCP",
        "198.51.100.1>x/a:80/TCP x/b>x/a:80/TCP",
    ),
    (
        "11.65 a global network set is in no namespace",
        from_("selector: kind == 'partners', namespaceSelector: global()"),
        "198.51.100.1>x/a:80/TCP",
        "203.0.113.9>x/a:80/TCP",
    ),
    (
        "9.2 a network set holds pods by their addresses",
        from_("selector: kind == 'z pods'"),
        "z/a>x/a:80/TCP",
        "z/b>x/a:80/TCP",
    ),
    (
        "9.3 the own side narrows the rule",
        "selector: all(), ingress: [{action: Allow, destination: {selector: pod == 'a'}}]",
        "y/a>x/a:80/TCP",
        "y/a>x/b:80/TCP",
    ),
    (
        "9.3 the own side, notSelector",
        "selector: all(), ingress: [{action: Allow, destination: {notSelector: pod == 'a'}}]",
        "y/a>x/b:80/TCP",
        "y/a>x/a:80/TCP",
    ),
]
MORE: list[Resource] = [
    ServiceAccount("x", "b", {"role": "ci"}),
    ServiceAccount("x", "c", {"role": "cd"}),
    NetworkSet("x", "partners", ("203.0.113.0/24",), {"kind": "partners"}),
    NetworkSet("", "partners", ("198.51.100.0/24",), {"kind": "partners"}),
    NetworkSet("x", "pods", ("10.0.2.31/32",), {"kind": "z pods"}),
]


@pytest.mark.parametrize(("spec", "allowed", "denied"), [row[1:] for row in WHOM], ids=[row[0] for row in WHOM])
@pytest.mark.parametrize("version", ["projectcalico.org/v3", "crd.projectcalico.org/v1"])
def test_whom_a_rule_means(spec: str, allowed: str, denied: str, version: str) -> None:
    town = Town(calico(spec, version=version), more=MORE)
    assert town.states == {"p": "accepted"}
    check(town, allowed, denied)


WHOM_GLOBALLY = [
    (
        "9.3 selector: everywhere, network sets too, never bare addresses",
        "selector: pod == 'b' || kind == 'partners'",
        "x/b>x/a:80/TCP z/b>x/a:80/TCP 203.0.113.9>x/a:80/TCP 198.51.100.1>x/a:80/TCP",
        "y/a>x/a:80/TCP 8.8.8.8>x/a:80/TCP n2>x/a:80/TCP",
    ),
    (
        "9.3 notSelector alone negates absolutely: whom Calico does not know passes it",
        "notSelector: pod == 'b'",
        "y/c>x/a:80/TCP 8.8.8.8>x/a:80/TCP n2>x/a:80/TCP 203.0.113.9>x/a:80/TCP",
        "x/b>x/a:80/TCP y/b>x/a:80/TCP",
    ),
    (
        "9.3 serviceAccounts: of every namespace",
        "serviceAccounts: {names: [b]}",
        "x/b>x/a:80/TCP z/b>x/a:80/TCP",
        "x/c>x/a:80/TCP 8.8.8.8>x/a:80/TCP",
    ),
    (
        "9.3 namespaceSelector all(): no network set that is in no namespace",
        "namespaceSelector: all()",
        "z/b>x/a:80/TCP 203.0.113.9>x/a:80/TCP",
        "198.51.100.1>x/a:80/TCP 8.8.8.8>x/a:80/TCP",
    ),
]


@pytest.mark.parametrize(
    ("source", "allowed", "denied"), [row[1:] for row in WHOM_GLOBALLY], ids=[row[0] for row in WHOM_GLOBALLY]
)
def test_whom_a_rule_of_a_global_policy_means(source: str, allowed: str, denied: str) -> None:
    town = Town(calico(from_(source), space=""), more=MORE)
    assert town.states == {"p": "accepted"}
    check(town, allowed, denied)


PORTS = [
    ("9.3 no protocol, no ports", to("", ""), "y/a>x/a:1/TCP y/a>x/a:1/GRE y/a>x/a:2048/ICMP", ""),
    ("9.3 protocol alone", to(""), "y/a>x/a:1/TCP", "y/a>x/a:1/UDP"),
    ("9.3 protocol by number", to("", "protocol: 47, "), "y/a>x/a:0/GRE", "y/a>x/a:1/TCP"),
    ("9.3 notProtocol", to("", "notProtocol: TCP, "), "y/a>x/a:1/UDP y/a>x/a:0/GRE", "y/a>x/a:1/TCP"),
    (
        "9.3 ports: number, range, name",
        to("ports: [80, '90:95', serve-81-tcp, '100']"),
        "y/a>x/a:80/TCP y/a>x/a:90/TCP y/a>x/a:95/TCP y/a>x/a:81/TCP y/a>x/a:100/TCP",
        "y/a>x/a:80/UDP y/a>x/a:96/TCP y/a>x/a:82/TCP",
    ),
    (
        "9.3 names alone need no protocol",
        to("ports: [serve-80-tcp, serve-81-udp]", ""),
        "y/a>x/a:80/TCP y/a>x/a:81/UDP",
        "y/a>x/a:80/UDP y/a>x/a:81/TCP",
    ),
    (
        "9.3 notPorts",
        to("notPorts: [80, '90:95']"),
        "y/a>x/a:79/TCP y/a>x/a:81/TCP y/a>x/a:96/TCP y/a>x/a:65535/TCP y/a>x/a:1/TCP",
        "y/a>x/a:80/TCP y/a>x/a:92/TCP y/a>x/a:81/UDP",
    ),
    ("9.3 ports less notPorts", to("ports: ['80:100'], notPorts: [90]"), "y/a>x/a:89/TCP", "y/a>x/a:90/TCP"),
    (
        "9.3 icmp by type",
        to("", "protocol: ICMP, icmp: {type: 8}, "),
        "y/a>x/a:2048/ICMP y/a>x/a:2049/ICMP",
        "y/a>x/a:768/ICMP y/a>x/a:2048/ICMPv6",
    ),
    (
        "9.3 icmp by type and code",
        to("", "protocol: ICMPv6, icmp: {type: 1, code: 4}, "),
        "y/a@6>x/a:260/ICMPv6",
        "y/a@6>x/a:256/ICMPv6 y/a>x/a:260/ICMP",
    ),
    (
        "9.3 notICMP",
        to("", "protocol: ICMP, notICMP: {type: 8}, "),
        "y/a>x/a:768/ICMP",
        "y/a>x/a:2048/ICMP",
    ),
]


@pytest.mark.parametrize(("spec", "allowed", "denied"), [row[1:] for row in PORTS], ids=[row[0] for row in PORTS])
def test_which_ports_a_rule_means(spec: str, allowed: str, denied: str) -> None:
    town = Town(calico(spec))
    assert town.states == {"p": "accepted"}
    check(town, allowed, denied)


TYPES = [
    ("9.4 no rules: ingress", "", "x/a>y/a:80/TCP", "y/a>x/a:80/TCP"),
    ("9.4 only egress rules: egress", "egress: [{action: Deny}]", "y/a>x/a:80/TCP", "x/a>y/a:80/TCP"),
    ("9.4 only ingress rules: ingress", "ingress: [{action: Allow}]", "y/a>x/a:80/TCP x/a>y/a:80/TCP", ""),
    (
        "9.4 both",
        "ingress: [{action: Allow}], egress: [{action: Allow, destination: {nets: [10.0.2.0/24]}}]",
        "y/a>x/a:80/TCP x/a>z/a:80/TCP",
        "x/a>y/a:80/TCP",
    ),
    ("9.4 types said: no rule of it is a default deny", "types: [Egress]", "y/a>x/a:80/TCP", "x/a>y/a:80/TCP"),
    (
        "9.4 rules of a direction that types leave out do nothing",
        "types: [Egress], ingress: [{action: Deny}]",
        "y/a>x/a:80/TCP",
        "x/a>y/a:80/TCP",
    ),
    ("9.4 Log decides nothing", "ingress: [{action: Log}, {action: Allow}]", "y/a>x/a:80/TCP", ""),
    ("9.4 Log alone: the end of the tier", "ingress: [{action: Log}]", "", "y/a>x/a:80/TCP"),
    (
        "9.4 first match wins",
        "ingress: [{action: Allow, protocol: TCP}, {action: Deny}]",
        "y/a>x/a:1/TCP",
        "y/a>x/a:1/UDP",
    ),
    ("9.4 first match wins, deny first", "ingress: [{action: Deny}, {action: Allow}]", "", "y/a>x/a:1/TCP"),
    ("9.4 the own node gets in whatever is denied", "ingress: [{action: Deny}]", "n1>x/a:80/TCP", "n2>x/a:80/TCP"),
    (
        "9.4 Pass from the last tier: on to what Calico's profiles allow",
        "ingress: [{action: Pass}]",
        "y/a>x/a:80/TCP",
        "",
    ),
]


@pytest.mark.parametrize(("spec", "allowed", "denied"), [row[1:] for row in TYPES], ids=[row[0] for row in TYPES])
def test_types_and_the_order_of_rules(spec: str, allowed: str, denied: str) -> None:
    town = Town(calico(A + spec))
    assert town.states == {"p": "accepted"}
    check(town, allowed, denied)


SUBJECTS = [
    ("9.2 a namespaced policy is for its namespace", calico("selector: all()"), "x/a x/b x/c"),
    ("9.2 no selector is all()", calico(""), "x/a x/b x/c"),
    ("11.58 != holds for a label that is missing", calico("selector: gone != 'a'"), "x/a x/b x/c"),
    ("9.2 a global one is for every pod", calico("selector: pod == 'a'", space=""), "x/a y/a z/a"),
    (
        "9.2 namespaceSelector of a global one",
        calico("selector: pod == 'a', namespaceSelector: \"ns in {'x', 'z'}\"", space=""),
        "x/a z/a",
    ),
    ("9.2 serviceAccountSelector", calico("serviceAccountSelector: role == 'ci'"), "x/b"),
    (
        "9.2 serviceAccountSelector by name",
        calico("serviceAccountSelector: projectcalico.org/name == 'c'", space=""),
        "x/c y/c z/c",
    ),
    (
        "9.2 applyOnForward changes nothing for pods",
        calico("applyOnForward: true, selector: pod == 'b'", space=""),
        "x/b y/b z/b",
    ),
]


@pytest.mark.parametrize(("policy", "subjects"), [row[1:] for row in SUBJECTS], ids=[row[0] for row in SUBJECTS])
def test_whom_a_policy_is_for(policy: Document, subjects: str) -> None:
    town = Town(policy, more=MORE)
    assert town.states == {"p": "accepted"}
    assert " ".join(one for one in PEOPLE if not town.allows("8.8.8.8", one)) == subjects


def test_services_of_ingress_sources_and_egress_destinations() -> None:
    web = EndpointSlice("y", "web-1", "web", ("10.0.1.21",), (SlicePort("w", 80, 6),))
    more = EndpointSlice("y", "web-2", "web", ("10.0.2.31",), (SlicePort("w", 81, 6),))
    out = calico(A + "types: [Egress], egress: [{action: Allow, destination: {services: {name: web, namespace: y}}}]")
    into = calico(A + "ingress: [{action: Allow, source: {services: {name: web, namespace: y}}}]", "q")
    town = Town(out, into, more=[web, more])
    check(town, "x/a>y/a:80/TCP x/a>z/a:81/TCP", "x/a>y/a:81/TCP x/a>z/a:80/TCP x/a>y/b:80/TCP")
    check(town, "y/a>x/a:9/TCP z/a>x/a:80/UDP", "y/b>x/a:80/TCP")
    check(Town(out), "", "x/a>y/a:80/TCP")


ALLOW_80 = "types: [Ingress], ingress: [{action: Allow, protocol: TCP, destination: {ports: [80]}}]"
DENY = "types: [Ingress], ingress: [{action: Deny}]"
KNP = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "knp", "namespace": "x"},
    "spec": {"podSelector": {"matchLabels": {"pod": "a"}}, "ingress": [{"ports": [{"port": 80}]}]},
}


@pytest.mark.parametrize(
    ("policies", "allowed", "denied"),
    [
        pytest.param([calico(f"{A}order: 10, {DENY}"), KNP], "", "y/a>x/a:80/TCP", id="order below 1000: before KNP"),
        pytest.param(
            [calico(f"{A}order: 2000, {DENY}"), KNP],
            "y/a>x/a:80/TCP",
            "y/a>x/a:81/TCP",
            id="order above 1000: after KNP",
        ),
        pytest.param([calico(f"{A}{DENY}"), KNP], "y/a>x/a:80/TCP", "y/a>x/a:81/TCP", id="11.61 no order: after KNP"),
        pytest.param(
            [calico(f"{A}order: 2000, ingress: [{{action: Allow, protocol: UDP}}]"), KNP],
            "y/a>x/a:80/TCP y/a>x/a:9/UDP",
            "y/a>x/a:81/TCP",
            id="what KNP does not match goes on to Calico's, and is denied at the end of the tier",
        ),
        pytest.param(
            [
                calico(f"{A}order: 10, ingress: [{{action: Pass}}]", "pass"),
                calico(f"{A}order: 20, {DENY}", "deny"),
                KNP,
            ],
            "y/a>x/a:80/TCP y/a>x/a:81/TCP",
            "",
            id="11.62 Pass leaves the tier: Deny and KNP are skipped",
        ),
        pytest.param(
            [calico(f"{A}order: 10, {DENY}", "b"), calico(f"{A}order: 10, {ALLOW_80}", "a")],
            "y/a>x/a:80/TCP",
            "y/a>x/a:81/TCP",
            id="equal orders: by name",
        ),
        pytest.param(
            [calico(f"{A}{ALLOW_80}", "b"), calico(f"{A}order: 1.5, {DENY}", "c")],
            "",
            "y/a>x/a:80/TCP",
            id="an order goes before none",
        ),
    ],
)
def test_9_4_order_in_the_default_tier(policies: list[Document], allowed: str, denied: str) -> None:
    check(Town(*policies), allowed, denied)
    check(Town(*reversed(policies)), allowed, denied)


TIERS: list[Resource] = [PolicyTier("early", 5.0), PolicyTier("late", 2e6), PolicyTier("gentle", 6.0, passes=True)]


@pytest.mark.parametrize(
    ("policies", "allowed", "denied"),
    [
        pytest.param(
            [calico(f"{A}tier: early, {ALLOW_80}", "early.p"), calico(f"{A}order: 1, {DENY}", "d")],
            "y/a>x/a:80/TCP",
            "y/a>x/a:81/TCP",
            id="an earlier tier goes first, and denies at its end",
        ),
        pytest.param(
            [
                calico(f"{A}tier: gentle, {ALLOW_80}", "gentle.p"),
                calico(f"{A}types: [Ingress], ingress: [{{action: Deny, protocol: UDP}}, {{action: Allow}}]", "d"),
            ],
            "y/a>x/a:80/TCP y/a>x/a:81/TCP",
            "y/a>x/a:81/UDP",
            id="a tier whose default action is Pass denies nothing at its end",
        ),
        pytest.param(
            [
                calico(f"{A}tier: late, {ALLOW_80}", "late.p"),
                calico(f"{A}types: [Ingress], ingress: [{{action: Pass, protocol: TCP}}]", "d"),
            ],
            "y/a>x/a:80/TCP",
            "y/a>x/a:81/TCP y/a>x/a:80/UDP",
            id="Pass goes to a tier after the default one",
        ),
        pytest.param(
            [calico(f"selector: pod == 'b', tier: early, {DENY}", "early.p")],
            "y/a>x/a:80/TCP",
            "y/a>x/b:80/TCP",
            id="a tier that does not select the pod is skipped",
        ),
        pytest.param(
            [calico(f"{A}tier: kube-admin, {ALLOW_80}", "kube-admin.p")],
            "y/a>x/a:80/TCP y/a>x/a:81/TCP",
            "",
            id="kube-admin passes at its end",
        ),
    ],
)
def test_9_4_tiers(policies: list[Document], allowed: str, denied: str) -> None:
    town = Town(*policies, more=TIERS)
    assert set(town.states.values()) == {"accepted"}
    check(town, allowed, denied)


def test_a_policy_in_a_tier_that_does_not_exist_is_refused_closed() -> None:
    town = Town(calico(f"{A}tier: nowhere, ingress: [{{action: Allow}}]", "nowhere.p"), KNP)
    assert town.states == {"nowhere.p": "refused Tier nowhere does not exist", "knp": "accepted"}
    check(town, "y/a>x/b:80/TCP n1>x/a:80/TCP", "y/a>x/a:80/TCP")


def test_kubernetes_and_calico_policies_of_one_name_are_two() -> None:
    town = Town(calico(f"{A}order: 1, {DENY}", "knp"), KNP)
    assert [(one.kind, one.name) for one in town.view("n1").policies] == [
        ("CalicoNetworkPolicy", "knp"),
        ("NetworkPolicy", "knp"),
    ]
    ref = town.ingress("y/a", "x/a").l4.ref
    assert ref is not None and (ref.kind, ref.rule) == ("CalicoNetworkPolicy", "spec.ingress[0]")


@pytest.mark.parametrize(
    ("kind", "space"),
    [
        ("StagedNetworkPolicy", "x"),
        ("StagedGlobalNetworkPolicy", ""),
        ("StagedKubernetesNetworkPolicy", "x"),
    ],
)
def test_9_4_staged_policies_are_reported_and_never_enforced(kind: str, space: str) -> None:
    spec = "stagedAction: Set, " + (
        "podSelector: {}" if "Kubernetes" in kind else "selector: all(), ingress: [{action: Deny}]"
    )
    town = Town(calico(spec, kind=kind, space=space))
    assert town.states == {"p": "staged"}
    check(town, "y/a>x/a:80/TCP", "")
    broken = Town(calico("selector: 5, podSelector: 5", kind=kind, space=space))
    assert broken.states["p"].startswith("invalid")
    check(broken, "y/a>x/a:80/TCP", "")


def http(spec: str) -> Town:
    return Town(calico(f"{A}ingress: [{{action: Allow, protocol: TCP, http: {{{spec}}}}}]"))


HTTP = [
    ("methods: [GET, HEAD]", "GET /x; HEAD /", "POST /x; get /x; GETS /"),
    ("methods: ['*']", "GET /x; DELETE /y", ""),
    ("methods: []", "GET /x; DELETE /y", ""),
    ("", "GET /x; DELETE /y", ""),
    ("paths: [{exact: /foo}]", "GET /foo; GET /foo?a=/b", "GET /foo/; GET /foobar; GET /Foo; GET /"),
    ("paths: [{prefix: /pub}]", "GET /pub; GET /pub/x; GET /pub/; GET /pub?q", "GET /public; GET /pu; GET /x/pub"),
    ("paths: [{prefix: /pub/}]", "GET /pub/; GET /pub/x", "GET /pub; GET /public"),
    ("paths: [{prefix: /}]", "GET /; GET /any/thing?x", ""),
    ("paths: [{exact: /a}, {prefix: /b}], methods: [GET]", "GET /a; GET /b/c", "POST /a; GET /c"),
    ("paths: [{exact: /a.b+c}]", "GET /a.b+c; GET /a.b%2Bc", "GET /axb+c; GET /a.bbc"),
    ("paths: [{exact: /café}]", "GET /caf%C3%A9; GET /caf%C3%A9?x", "GET /caf"),
    ("paths: [{exact: '/50%'}]", "GET /50%25", "GET /50"),
    ("paths: [{prefix: '/(a|b)'}]", "GET /(a|b)/c; GET /(a%7Cb)", "GET /a; GET /b"),
]


@pytest.mark.parametrize(("spec", "allowed", "denied"), HTTP, ids=[f"9.5 {row[0]}" for row in HTTP])
def test_9_5_http(spec: str, allowed: str, denied: str) -> None:
    town = http(spec)
    assert town.states == {"p": "accepted"}
    for line in filter(None, allowed.split("; ")):
        assert town.http("y/a", "x/a", line), line
    for line in filter(None, denied.split("; ")):
        assert not town.http("y/a", "x/a", line), line


def test_9_5_a_rule_whose_http_does_not_match_goes_on_to_the_next() -> None:
    rules = [
        {"action": "Allow", "protocol": "TCP", "http": {"methods": ["GET"]}},
        {"action": "Deny", "source": {"selector": "pod == 'b'", "namespaceSelector": "all()"}},
        {"action": "Allow", "protocol": "TCP", "http": {"paths": [{"prefix": "/post"}]}},
    ]
    town = Town(calico(f"{A}ingress: {json.dumps(rules)}"))
    assert town.http("y/b", "x/a", "GET /x") and town.http("y/a", "x/a", "POST /post")
    assert not town.http("y/b", "x/a", "POST /post") and not town.http("y/a", "x/a", "POST /x")
    check(town, "", "y/a>x/a:80/UDP y/b>x/a:80/UDP")


def test_9_5_a_plain_allow_before_http_keeps_the_connection_from_being_read() -> None:
    plain, http = (
        "{action: Allow, protocol: TCP, destination: {ports: [80]}}",
        "{action: Allow, http: {methods: [GET]}}",
    )
    assert not Town(calico(f"{A}ingress: [{plain}, {http}]")).ingress("y/a", "x/a").redirects
    after = Town(calico(f"{A}ingress: [{http}, {plain}]"))
    assert after.ingress("y/a", "x/a").redirects and after.http("y/a", "x/a", "PUT /x")


def test_9_5_http_without_a_protocol_is_about_tcp() -> None:
    town = Town(calico(f"{A}ingress: [{{action: Allow, http: {{methods: [GET]}}}}]"))
    assert town.http("y/a", "x/a", "GET /x", "8080/TCP") and not town.http("y/a", "x/a", "PUT /x", "8080/TCP")
    check(town, "", "y/a>x/a:80/UDP")
