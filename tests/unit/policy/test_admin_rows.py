"""AdminNetworkPolicy, BaselineAdminNetworkPolicy and ClusterNetworkPolicy row by row."""

from __future__ import annotations

from typing import Any

import pytest

from l7proxy.errors import PolicyError
from l7proxy.model.resources import Pod
from l7proxy.policy import lang
from tests.unit.policy.town import PEOPLE, Town, check, load

Document = dict[str, Any]
GROUP = "policy.networking.k8s.io"


def document(kind: str, version: str, name: str, spec: dict[str, Any]) -> Document:
    return {"apiVersion": f"{GROUP}/{version}", "kind": kind, "metadata": {"name": name}, "spec": spec}


def anp(rules: str, *, priority: int = 5, subject: str = "namespaces: {}", name: str = "anp") -> Document:
    """Rules in flow style: `ingress: […], egress: […]`."""
    (spec,) = load(f"{{priority: {priority}, subject: {{{subject}}}, {rules}}}")
    return document("AdminNetworkPolicy", "v1alpha1", name, spec)


def banp(rules: str, *, subject: str = "namespaces: {}") -> Document:
    (spec,) = load(f"{{subject: {{{subject}}}, {rules}}}")
    return document("BaselineAdminNetworkPolicy", "v1alpha1", "default", spec)


def cnp(
    rules: str, *, tier: str = "Admin", priority: int = 5, subject: str = "namespaces: {}", name: str = "cnp"
) -> Document:
    (spec,) = load(f"{{tier: {tier}, priority: {priority}, subject: {{{subject}}}, {rules}}}")
    return document("ClusterNetworkPolicy", "v1alpha2", name, spec)


def knp(rules: str = "ingress: [{ports: [{port: 80}]}]", pod: str = "a", space: str = "x") -> Document:
    (spec,) = load(f"{{podSelector: {{matchLabels: {{pod: {pod}}}}}, {rules}}}")
    metadata = {"name": "knp", "namespace": space}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


ALL = "from: [{namespaces: {}}]"
Y = "{namespaces: {matchLabels: {ns: y}}}"
YA = "{pods: {namespaceSelector: {matchLabels: {ns: y}}, podSelector: {matchLabels: {pod: a}}}}"

PEERS = [
    ("namespaces", f"ingress: [{{action: Deny, from: [{Y}]}}]", "z/a>x/a:80/TCP 8.8.8.8>x/a:80/TCP", "y/c>x/a:80/TCP"),
    ("pods", f"ingress: [{{action: Deny, from: [{YA}]}}]", "y/b>x/a:80/TCP", "y/a>x/a:80/TCP"),
    (
        "namespaces {} is every pod, and neither nodes nor the outside",
        f"ingress: [{{action: Deny, {ALL}}}]",
        "8.8.8.8>x/a:80/TCP n2>x/a:80/TCP n1>x/a:80/TCP",
        "y/a>x/a:80/TCP x/b>x/a:80/TCP",
    ),
    (
        "two peers are OR",
        f"ingress: [{{action: Deny, from: [{YA}, {{namespaces: {{matchLabels: {{ns: z}}}}}}]}}]",
        "y/b>x/a:80/TCP",
        "y/a>x/a:80/TCP z/c>x/a:80/TCP",
    ),
    (
        "networks mean pods and nodes, too (11.67)",
        "egress: [{action: Deny, to: [{networks: [0.0.0.0/0]}]}]",
        "x/a>y/a@6:80/TCP",
        "x/a>y/a:80/TCP x/a>n2:80/TCP x/a>8.8.8.8:80/TCP",
    ),
    (
        "nodes",
        "egress: [{action: Deny, to: [{nodes: {matchLabels: {zone: two}}}]}]",
        "x/a>n1:80/TCP x/a>z/a:80/TCP x/a>8.8.8.8:80/TCP",
        "x/a>n2:80/TCP x/a>n2@6:80/TCP",
    ),
    (
        "nodes {}",
        "egress: [{action: Deny, to: [{nodes: {}}]}]",
        "x/a>z/a:80/TCP x/a>8.8.8.8:80/TCP",
        "x/a>n1:80/TCP x/a>n2:80/TCP",
    ),
]


@pytest.mark.parametrize(("rules", "allowed", "denied"), [row[1:] for row in PEERS], ids=[row[0] for row in PEERS])
@pytest.mark.parametrize("kind", [anp, banp, cnp])
def test_10_peers(kind: Any, rules: str, allowed: str, denied: str) -> None:
    town = Town(kind(rules))
    assert set(town.states.values()) == {"accepted"}
    check(town, allowed, denied)


SUBJECTS = [
    ("namespaces: {}", " ".join(PEOPLE)),
    ("namespaces: {matchLabels: {ns: x}}", "x/a x/b x/c"),
    ("pods: {namespaceSelector: {}, podSelector: {matchLabels: {pod: a}}}", "x/a y/a z/a"),
    ("pods: {namespaceSelector: {matchLabels: {ns: x}}, podSelector: {}}", "x/a x/b x/c"),
    ("pods: {namespaceSelector: {matchLabels: {ns: x}}, podSelector: {matchLabels: {pod: b}}}", "x/b"),
]


@pytest.mark.parametrize(("subject", "subjects"), SUBJECTS)
def test_10_subjects(subject: str, subjects: str) -> None:
    town = Town(cnp("egress: [{action: Deny, to: [{networks: [8.0.0.0/8]}]}]", subject=subject))
    assert " ".join(one for one in PEOPLE if not town.allows(one, "8.8.8.8")) == subjects


def test_10_pods_in_the_network_of_their_node_are_neither_subjects_nor_peers() -> None:
    host = Pod("y", "agent", "n2", ("192.168.0.2",), {"pod": "a"}, host_network=True)
    town = Town(anp(f"ingress: [{{action: Deny, from: [{YA}]}}]"), more=[host])
    check(town, "n2>x/a:80/TCP y/a>n2:80/TCP", "y/a>x/a:80/TCP")
    assert "agent" not in {one.name for one in town.view("n2").endpoints}


OLD = [
    ("ports: []", "", "y/a>x/a:80/TCP y/a>x/a:0/GRE"),
    ("ports: [{portNumber: {port: 80}}]", "y/a>x/a:80/UDP y/a>x/a:81/TCP", "y/a>x/a:80/TCP"),
    ("ports: [{portNumber: {protocol: UDP, port: 80}}]", "y/a>x/a:80/TCP", "y/a>x/a:80/UDP"),
    ("ports: [{portRange: {start: 80, end: 90}}]", "y/a>x/a:79/TCP y/a>x/a:91/TCP", "y/a>x/a:80/TCP y/a>x/a:90/TCP"),
    ("ports: [{namedPort: serve-81-udp}]", "y/a>x/a:81/TCP y/a>x/a:80/UDP", "y/a>x/a:81/UDP"),
    ("ports: [{portNumber: {port: 1}}, {portNumber: {port: 2, protocol: SCTP}}]", "y/a>x/a:2/TCP", "y/a>x/a:2/SCTP"),
]
NEW = [
    ("protocols: [{tcp: {}}]", "y/a>x/a:80/UDP", "y/a>x/a:80/TCP y/a>x/a:1/TCP"),
    ("protocols: [{tcp: {destinationPort: {number: 80}}}]", "y/a>x/a:80/UDP y/a>x/a:81/TCP", "y/a>x/a:80/TCP"),
    ("protocols: [{udp: {destinationPort: {range: {start: 80, end: 90}}}}]", "y/a>x/a:91/UDP", "y/a>x/a:90/UDP"),
    ("protocols: [{sctp: {destinationPort: {number: 80}}}]", "y/a>x/a:80/TCP", "y/a>x/a:80/SCTP"),
    ("protocols: [{destinationNamedPort: serve-81-udp}]", "y/a>x/a:81/TCP", "y/a>x/a:81/UDP"),
]


@pytest.mark.parametrize(
    ("kind", "ports", "allowed", "denied"),
    [*((anp, *row) for row in OLD), *((banp, *row) for row in OLD), *((cnp, *row) for row in NEW)],
)
def test_10_ports(kind: Any, ports: str, allowed: str, denied: str) -> None:
    check(Town(kind(f"ingress: [{{action: Deny, {ALL}, {ports}}}]")), allowed, denied)


ORDER = [
    (
        "list order, first match wins",
        [anp(f"ingress: [{{action: Allow, from: [{YA}]}}, {{action: Deny, {ALL}}}]")],
        "y/a>x/a:80/TCP",
        "y/b>x/a:80/TCP",
    ),
    (
        "the lower priority goes first",
        [
            anp(f"ingress: [{{action: Allow, from: [{YA}]}}]", priority=1, name="z"),
            anp(f"ingress: [{{action: Deny, {ALL}}}]", priority=2, name="a"),
        ],
        "y/a>x/a:80/TCP",
        "y/b>x/a:80/TCP",
    ),
    (
        "the two kinds of admin policies stand in one order",
        [
            cnp(f"ingress: [{{action: Accept, from: [{YA}]}}]", priority=1),
            anp(f"ingress: [{{action: Deny, {ALL}}}]", priority=2),
        ],
        "y/a>x/a:80/TCP",
        "y/b>x/a:80/TCP",
    ),
    (
        "no isolation: what matches no rule goes on",
        [anp(f"ingress: [{{action: Allow, from: [{YA}]}}]")],
        "y/a>x/a:80/TCP y/b>x/a:80/TCP",
        "",
    ),
    (
        "Allow is final: before a NetworkPolicy",
        [anp(f"ingress: [{{action: Allow, from: [{YA}]}}]"), knp("policyTypes: [Ingress]")],
        "y/a>x/a:80/TCP",
        "y/b>x/a:80/TCP",
    ),
    (
        "Deny is final: before a NetworkPolicy",
        [anp(f"ingress: [{{action: Deny, from: [{YA}]}}]"), knp()],
        "y/b>x/a:80/TCP",
        "y/a>x/a:80/TCP",
    ),
    (
        "Pass jumps over the rest of the admins, to the NetworkPolicy",
        [
            anp(f"ingress: [{{action: Pass, from: [{YA}]}}]", priority=1),
            anp(f"ingress: [{{action: Deny, {ALL}}}]", priority=2, name="late"),
            knp(),
        ],
        "y/a>x/a:80/TCP",
        "y/a>x/a:81/TCP y/b>x/a:80/TCP",
    ),
    (
        "the baseline is for whom no NetworkPolicy isolates",
        [banp(f"ingress: [{{action: Deny, {ALL}}}]"), knp()],
        "y/a>x/a:80/TCP 8.8.8.8>x/b:80/TCP",
        "y/a>x/a:81/TCP y/a>x/b:80/TCP",
    ),
    (
        "the baseline cannot open what a NetworkPolicy isolates",
        [banp(f"ingress: [{{action: Allow, {ALL}}}]"), knp()],
        "y/a>x/b:81/TCP",
        "y/a>x/a:81/TCP",
    ),
    (
        "the baseline is asked by direction",
        [banp(f"ingress: [{{action: Deny, {ALL}}}]"), knp("policyTypes: [Egress]")],
        "",
        "y/a>x/a:80/TCP",
    ),
    (
        "Pass with nobody after the admins goes on to the baseline",
        [anp(f"ingress: [{{action: Pass, from: [{YA}]}}]"), banp(f"ingress: [{{action: Deny, {ALL}}}]")],
        "8.8.8.8>x/a:80/TCP",
        "y/a>x/a:80/TCP y/b>x/a:80/TCP",
    ),
    (
        "baselines by priority",
        [
            cnp(f"ingress: [{{action: Accept, from: [{YA}]}}]", tier="Baseline", priority=7),
            banp(f"ingress: [{{action: Deny, {ALL}}}]"),
        ],
        "y/a>x/a:80/TCP",
        "y/b>x/a:80/TCP",
    ),
    (
        "Pass in the baseline goes on to what is always allowed",
        [
            cnp(f"ingress: [{{action: Pass, from: [{YA}]}}]", tier="Baseline", priority=7),
            banp(f"ingress: [{{action: Deny, {ALL}}}]"),
        ],
        "y/a>x/a:80/TCP",
        "y/b>x/a:80/TCP",
    ),
    (
        "both sides are asked",
        [
            anp(f"ingress: [{{action: Allow, {ALL}}}]", priority=1),
            anp(
                f"egress: [{{action: Deny, to: [{Y}]}}]",
                priority=1,
                name="out",
                subject="namespaces: {matchLabels: {ns: z}}",
            ),
        ],
        "x/a>y/a:80/TCP",
        "z/a>y/a:80/TCP",
    ),
]


@pytest.mark.parametrize(("policies", "allowed", "denied"), [row[1:] for row in ORDER], ids=[row[0] for row in ORDER])
def test_10_order(policies: list[Document], allowed: str, denied: str) -> None:
    check(Town(*policies), allowed, denied)
    check(Town(*reversed(policies)), allowed, denied)


UNKNOWN = [
    ("egress: [{action: %s, to: [{domainNames: [example.com]}]}]", "spec.egress[0].to[0].domainNames: domainNames is"),
    ("egress: [{action: %s, to: [{namespaces: {}}, {planets: {}}]}]", "spec.egress[0].to[1].planets: planets is"),
    ("egress: [{action: %s, to: [{}]}]", "spec.egress[0].to[0]: must have one of namespaces, pods, nodes, networks"),
    (
        "egress: [{action: %s, to: [{namespaces: {}}], protocols: [{quic: {}}]}]",
        "spec.egress[0].protocols[0].quic: quic is",
    ),
]


@pytest.mark.parametrize(("rules", "reason"), UNKNOWN)
def test_10_what_is_not_known_fails_closed(rules: str, reason: str) -> None:
    """Accept allows nothing; Deny and Pass deny. The rest of the policy is enforced."""
    accept = Town(cnp(rules % "Accept"), knp("policyTypes: [Egress]"))
    assert accept.states["cnp"].startswith(f"partly {reason}")
    check(accept, "x/b>y/a:80/TCP", "x/a>y/a:80/TCP x/a>8.8.8.8:80/TCP")
    for action in ("Deny", "Pass"):
        town = Town(cnp(rules % action), knp("egress: [{}]"))
        assert town.states["cnp"].startswith(f"partly {reason}")
        check(town, "8.8.8.8>x/b:80/TCP", "x/a>y/a:80/TCP x/a>8.8.8.8:80/TCP")


def test_10_what_is_not_known_in_ingress_leaves_the_own_node_in() -> None:
    town = Town(cnp("ingress: [{action: Deny, from: [{planets: {}}]}]"))
    check(town, "n1>x/a:80/TCP", "y/a>x/a:80/TCP 8.8.8.8>x/a:80/TCP")


BAD = [
    (
        anp(f"ingress: [{{action: Accept, {ALL}}}]"),
        'spec.ingress[0].action: must be one of Allow, Deny, Pass, not "Accept"',
    ),
    (banp(f"ingress: [{{action: Pass, {ALL}}}]"), 'spec.ingress[0].action: must be one of Allow, Deny, not "Pass"'),
    (
        cnp(f"ingress: [{{action: Allow, {ALL}}}]"),
        'spec.ingress[0].action: must be one of Accept, Deny, Pass, not "Allow"',
    ),
    (anp(f"ingress: [{{{ALL}}}]"), "spec.ingress[0]: action is required"),
    (anp("ingress: [{action: Deny, from: []}]"), "spec.ingress[0]: from must have at least one peer"),
    (anp("ingress: [{action: Deny}]"), "spec.ingress[0]: from must have at least one peer"),
    (
        anp("ingress: [{action: Deny, from: [{namespaces: {}, pods: {}}]}]"),
        "spec.ingress[0].from[0]: must have exactly one field, not namespaces and pods",
    ),
    (
        anp("ingress: [{action: Deny, from: [{pods: {podSelector: {}}}]}]"),
        "spec.ingress[0].from[0].pods: namespaceSelector is required",
    ),
    (
        anp(f"ingress: [{{action: Deny, {ALL}, ports: [{{portRange: {{start: 9, end: 8}}}}]}}]"),
        "spec.ingress[0].ports[0].portRange: end must not be less than start",
    ),
    (
        anp(f"ingress: [{{action: Deny, {ALL}, ports: [{{portNumber: {{port: 0}}}}]}}]"),
        "spec.ingress[0].ports[0].portNumber.port: must be between 1 and 65535",
    ),
    (
        anp(f"ingress: [{{action: Deny, {ALL}, ports: [{{portNumber: {{port: 1, protocol: ICMP}}}}]}}]"),
        'spec.ingress[0].ports[0].portNumber.protocol: must be TCP, UDP or SCTP, not "ICMP"',
    ),
    (anp(f"ingress: [{{action: Deny, {ALL}, protocols: []}}]"), 'spec.ingress[0].protocols: unknown field "protocols"'),
    (
        anp(f"ingress: [{{action: Deny, {ALL}, name: {'n' * 101}}}]"),
        "spec.ingress[0].name: must have at most 100 characters",
    ),
    (
        anp("egress: [{action: Deny, to: [{networks: [10.0.0.0]}]}]"),
        "spec.egress[0].to[0].networks[0]: unable to parse CIDR",
    ),
    (
        anp("egress: [{action: Deny, to: [{networks: []}]}]"),
        "spec.egress[0].to[0].networks: must have at least one network",
    ),
    (anp("ingress: []", priority=1001), "spec.priority: must be between 0 and 1000"),
    (anp("ingress: []", priority=-1), "spec.priority: must be between 0 and 1000"),
    (cnp("ingress: []", tier="Middle"), 'spec.tier: must be Admin or Baseline, not "Middle"'),
    (document("AdminNetworkPolicy", "v1alpha1", "p", {"subject": {"namespaces": {}}}), "spec: priority is required"),
    (document("AdminNetworkPolicy", "v1alpha1", "p", {"priority": 1}), "spec: subject is required"),
    (
        document("BaselineAdminNetworkPolicy", "v1alpha1", "p", {"subject": {"namespaces": {}}}),
        "metadata.name: BaselineAdminNetworkPolicy must be named default",
    ),
    (
        document("BaselineAdminNetworkPolicy", "v1alpha1", "default", {"subject": {"namespaces": {}}, "priority": 1}),
        'spec.priority: unknown field "priority"',
    ),
    (
        anp(f"ingress: {[{'action': 'Deny', 'from': [{'namespaces': {}}]}] * 101}"),
        "spec.ingress: too many rules, the max is 100",
    ),
    (
        cnp(f"ingress: {[{'action': 'Deny', 'from': [{'namespaces': {}}]}] * 26}"),
        "spec.ingress: too many rules, the max is 25",
    ),
    (
        anp(f"ingress: [{{action: Deny, from: {[{'namespaces': {}}] * 101}}}]"),
        "spec.ingress[0].from: too many peers, the max is 100",
    ),
    (
        cnp(f"ingress: [{{action: Deny, {ALL}, protocols: {[{'tcp': {}}] * 26}}}]"),
        "spec.ingress[0].protocols: too many protocols, the max is 25",
    ),
    (
        anp(f"ingress: [{{action: Deny, {ALL}, ports: {[{'portNumber': {'port': 1}}] * 101}}}]"),
        "spec.ingress[0].ports: too many ports, the max is 100",
    ),
    (
        anp(f"egress: [{{action: Deny, to: [{{networks: {['10.0.0.0/8'] * 26}}}]}}]"),
        "spec.egress[0].to[0].networks: too many networks, the max is 25",
    ),
]


@pytest.mark.parametrize(("policy", "message"), BAD, ids=[row[1] for row in BAD])
def test_10_what_is_refused_with_its_field(policy: Document, message: str) -> None:
    with pytest.raises(PolicyError) as caught:
        lang.parse(policy)
    assert str(caught.value).startswith(message)
    assert not Town(policy).allows("x/a", "y/a"), "what cannot be read refuses"


def test_10_versions() -> None:
    new = {**cnp("ingress: []"), "apiVersion": f"{GROUP}/v1alpha1"}
    with pytest.raises(PolicyError, match="ClusterNetworkPolicy is supported in version v1alpha2 only"):
        lang.parse(new)
