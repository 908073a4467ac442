"""Kubernetes NetworkPolicy row by row: the meaning of each construct, and what the API server would reject."""

from __future__ import annotations

import pytest

from l7proxy.errors import PolicyError
from l7proxy.model.resources import Pod
from l7proxy.policy import lang
from l7proxy.policy.lang import Options
from tests.unit.policy.town import PEOPLE, Town, check, load

CILIUM = Options(kubernetes_like_cilium=True)


def policy(spec: str, name: str = "p", space: str = "x") -> str:
    """A policy whose spec is in flow style, without its braces; `A` in front selects pod a."""
    if spec.startswith("A"):
        spec = "podSelector: {matchLabels: {pod: a}}" + spec[1:]
    head = f"{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}, namespace: {space}}}, "
    return head + f"spec: {{{spec}}}}}"


ROWS = [
    (
        "8.1 podSelector {} is every pod of the namespace",
        "podSelector: {}, ingress: []",
        "x/a>y/a:80/TCP",
        "y/a>x/a:80/TCP y/a>x/b:80/TCP x/b>x/a:80/TCP z/a>x/c:81/UDP",
    ),
    ("8.1 podSelector missing is {}", "ingress: []", "x/a>y/a:80/TCP", "y/a>x/a:80/TCP x/a>x/b:80/TCP"),
    (
        "8.1 policyTypes missing: ingress always",
        "A",
        "x/a>y/a:80/TCP y/a>x/b:80/TCP",
        "y/a>x/a:80/TCP",
    ),
    (
        "8.1 policyTypes missing: egress when there are egress items",
        "A, egress: [{to: [{podSelector: {}}]}]",
        "x/a>x/b:80/TCP",
        "x/a>y/a:80/TCP y/a>x/a:80/TCP",
    ),
    ("8.1 policyTypes missing: not when egress is []", "A, egress: []", "x/a>y/a:80/TCP", "y/a>x/a:80/TCP"),
    ("8.1 policyTypes [] is as missing", "A, policyTypes: []", "x/a>y/a:80/TCP", "y/a>x/a:80/TCP"),
    ("8.1 policyTypes [Ingress] without items", "A, policyTypes: [Ingress]", "x/a>y/a:80/TCP", "x/b>x/a:80/TCP"),
    (
        "8.1 policyTypes [Egress] leaves ingress alone although items are written (11.31)",
        "A, policyTypes: [Egress], ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]",
        "y/a>x/a:80/TCP x/b>x/a:80/TCP",
        "x/a>y/a:80/TCP",
    ),
    ("8.1 ingress [{}] allows all (11.2)", "A, ingress: [{}]", "y/a>x/a:80/TCP 8.8.8.8>x/a:9/SCTP y/a>x/a:8/ICMP", ""),
    ("8.1 from [] is any source", "A, ingress: [{from: []}]", "y/a>x/a:80/TCP 8.8.8.8>x/a:80/UDP", ""),
    (
        "8.1 ports [] is every port and protocol",
        "A, ingress: [{ports: [], from: [{podSelector: {}}]}]",
        "x/b>x/a:80/TCP x/b>x/a:9/SCTP x/b>x/a:0/GRE",
        "y/a>x/a:80/TCP",
    ),
    ("8.1 ports [{}] is all of TCP (11.32)", "A, ingress: [{ports: [{}]}]", "y/a>x/a:1/TCP", "y/a>x/a:1/UDP"),
    (
        "8.1 ports [{protocol: UDP}] is all of UDP",
        "A, ingress: [{ports: [{protocol: UDP}]}]",
        "y/a>x/a:1/UDP y/a>x/a:65535/UDP",
        "y/a>x/a:1/TCP",
    ),
    (
        "8.1 a port by number",
        "A, ingress: [{ports: [{port: 80}]}]",
        "y/a>x/a:80/TCP",
        "y/a>x/a:80/UDP y/a>x/a:81/TCP",
    ),
    (
        "8.1 a port by name is the destination's, with its protocol",
        "A, ingress: [{ports: [{port: serve-80-tcp}, {port: serve-81-udp}]}]",
        "y/a>x/a:80/TCP",
        "y/a>x/a:81/UDP y/a>x/a:81/TCP",
    ),
    (
        "8.1 a port by name in egress",
        "A, egress: [{ports: [{port: serve-81-udp, protocol: UDP}]}], policyTypes: [Egress]",
        "x/a>y/a:81/UDP x/a>z/c:81/UDP",
        "x/a>y/a:80/UDP x/a>198.51.100.7:81/UDP",
    ),
    (
        "8.1 endPort is inclusive",
        "A, ingress: [{ports: [{port: 80, endPort: 90}]}]",
        "y/a>x/a:80/TCP y/a>x/a:90/TCP",
        "y/a>x/a:79/TCP y/a>x/a:91/TCP",
    ),
    ("8.1 endPort equal to port", "A, ingress: [{ports: [{port: 80, endPort: 80}]}]", "y/a>x/a:80/TCP", ""),
    ("8.1 SCTP", "A, ingress: [{ports: [{port: 80, protocol: SCTP}]}]", "y/a>x/a:80/SCTP", "y/a>x/a:80/TCP"),
    ("8.1 ICMP once isolated", "A, ingress: [{ports: [{}]}]", "", "y/a>x/a:2048/ICMP"),
    (
        "8.1 podSelector alone is the policy's namespace",
        "A, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]",
        "x/b>x/a:80/TCP",
        "y/b>x/a:80/TCP x/c>x/a:80/TCP",
    ),
    (
        "8.1 namespaceSelector alone is all pods there",
        "A, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}}]}]",
        "y/a>x/a:80/TCP y/c>x/a:80/TCP",
        "x/b>x/a:80/TCP z/a>x/a:80/TCP 8.8.8.8>x/a:80/TCP",
    ),
    (
        "8.1 namespaceSelector {} is every namespace, and pods only",
        "A, ingress: [{from: [{namespaceSelector: {}}]}]",
        "y/a>x/a:80/TCP x/b>x/a:80/TCP z/c>x/a:80/TCP",
        "8.8.8.8>x/a:80/TCP n2>x/a:80/TCP",
    ),
    (
        "8.1 both selectors in one item are AND",
        "A, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}, namespaceSelector: {matchLabels: {ns: y}}}]}]",
        "y/b>x/a:80/TCP",
        "x/b>x/a:80/TCP y/a>x/a:80/TCP",
    ),
    (
        "8.1 two items are OR",
        "A, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}, {namespaceSelector: {matchLabels: {ns: y}}}]}]",
        "y/b>x/a:80/TCP x/b>x/a:80/TCP y/a>x/a:80/TCP",
        "x/c>x/a:80/TCP z/b>x/a:80/TCP",
    ),
    (
        "8.1 ipBlock means any address: outside, pods and nodes",
        "A, ingress: [{from: [{ipBlock: {cidr: 10.0.2.0/24}}, {ipBlock: {cidr: 192.168.0.2/32}}]}]",
        "z/a>x/a:80/TCP n2>x/a:80/TCP",
        "y/a>x/a:80/TCP 8.8.8.8>x/a:80/TCP z/a@6>x/a:80/TCP n2@6>x/a:80/TCP",
    ),
    (
        "8.1 ipBlock with except",
        "A, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.1.0/24, 10.0.2.31/32]}}]}]",
        "z/b>x/a:80/TCP 10.9.9.9>x/a:80/TCP",
        "z/a>x/a:80/TCP y/a>x/a:80/TCP",
    ),
    (
        "8.1 ipBlock of everything holds pods, nodes and the outside, of its family",
        "A, egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}]}], policyTypes: [Egress]",
        "x/a>y/a:80/TCP x/a>n2:80/TCP x/a>n1:80/TCP x/a>8.8.8.8:80/TCP x/a>10.0.2.200:80/TCP",
        "x/a>y/a@6:80/TCP x/a>2001:db8::1:80/TCP x/a>n2@6:80/TCP x/a>n1@6:80/TCP",
    ),
    (
        "8.1 ipBlock of IPv6",
        "A, ingress: [{from: [{ipBlock: {cidr: 'fd00:2::/64', except: ['fd00:2::31/128']}}]}]",
        "z/b@6>x/a:80/TCP",
        "z/b>x/a:80/TCP z/a@6>x/a:80/TCP y/a@6>x/a:80/TCP",
    ),
    (
        "8.1 the pod's own node gets in, other nodes do not",
        "A, policyTypes: [Ingress]",
        "n1>x/a:80/TCP n1@6>x/a:80/TCP",
        "n2>x/a:80/TCP",
    ),
    (
        "8.1 NotIn holds for a label that is missing",
        "A, ingress: [{from: [{podSelector: {matchExpressions: [{key: gone, operator: NotIn, values: [v]}]}}]}]",
        "x/b>x/a:80/TCP",
        "y/b>x/a:80/TCP",
    ),
    (
        "8.1 In, DoesNotExist",
        "A, ingress: [{from: [{podSelector: {matchExpressions: [{key: pod, operator: In, values: [b, c]},"
        " {key: gone, operator: DoesNotExist}]}}]}]",
        "x/b>x/a:80/TCP x/c>x/a:80/TCP",
        "y/b>x/a:80/TCP",
    ),
    (
        "8.1 kubernetes.io/metadata.name is on every namespace",
        "A, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: z}}}]}]",
        "z/a>x/a:80/TCP",
        "y/a>x/a:80/TCP",
    ),
]


@pytest.mark.parametrize(("spec", "allowed", "denied"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_a_row(spec: str, allowed: str, denied: str) -> None:
    town = Town(policy(spec))
    assert town.states == {"p": "accepted"}
    check(town, allowed, denied)


def test_8_1_several_policies_are_a_union() -> None:
    from_b = policy("A, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]", "one")
    from_y = policy("A, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}}]}]", "two")
    nothing = policy("A, ingress: []", "three")
    check(Town(from_b, from_y, nothing), "x/b>x/a:80/TCP y/c>x/a:80/TCP", "x/c>x/a:80/TCP")


def test_8_1_both_directions_must_allow() -> None:
    out = policy("A, egress: [{to: [{namespaceSelector: {matchLabels: {ns: y}}}]}], policyTypes: [Egress]")
    into = policy("A, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: z}}}]}]", "in", "y")
    check(Town(out, into), "x/a>y/b:80/TCP z/a>y/a:80/TCP", "x/a>y/a:80/TCP x/a>z/a:80/TCP")


def test_8_1_pods_in_the_network_of_their_node_are_no_subjects() -> None:
    host = Pod("x", "agent", "n1", ("192.168.0.1",), {"pod": "a"}, host_network=True)
    town = Town(policy("A, policyTypes: [Ingress, Egress]"), more=[host])
    assert [one.name for one in town.view("n1").endpoints if one.namespace == "x"] == ["a", "b", "c"]


def test_8_1_live_labels_count_also_those_that_cilium_keeps_out_of_identities() -> None:
    hashed = Pod("x", "d", "n1", ("10.0.1.90",), {"pod-template-hash": "7", "pod": "d"}, phase="Running")
    other = Pod("x", "e", "n1", ("10.0.1.91",), {"pod-template-hash": "8", "pod": "d"}, phase="Running")
    text = policy("podSelector: {matchLabels: {pod-template-hash: '7'}}, ingress: []")
    check(Town(text, more=[hashed, other]), "y/a>x/e:80/TCP", "y/a>x/d:80/TCP")
    check(Town(text, more=[hashed, other], options=CILIUM), "y/a>x/d:80/TCP y/a>x/e:80/TCP", "")


def test_8_1_a_pod_cannot_name_itself_into_another_namespace() -> None:
    liar = Pod("z", "liar", "n2", ("10.0.2.90",), {"io.kubernetes.pod.namespace": "y"}, phase="Running")
    text = policy("A, ingress: [{from: [{podSelector: {}, namespaceSelector: {matchLabels: {ns: y}}}]}]")
    check(Town(text, more=[liar]), "y/a>x/a:80/TCP", "z/liar>x/a:80/TCP")
    own_label = policy("podSelector: {matchExpressions: [{key: io.kubernetes.pod.namespace, operator: DoesNotExist}]}")
    check(Town(own_label), "y/a>z/a:80/TCP", "y/a>x/a:80/TCP")


def test_11_31_like_cilium_items_count_although_their_direction_is_not_among_the_types() -> None:
    text = policy("A, policyTypes: [Egress], ingress: [{from: [{podSelector: {}}]}]")
    check(Town(text, options=CILIUM), "x/b>x/a:80/TCP", "y/a>x/a:80/TCP x/a>y/a:80/TCP")
    check(Town(text), "x/b>x/a:80/TCP y/a>x/a:80/TCP", "x/a>y/a:80/TCP")


def test_8_3_like_cilium_an_ip_block_is_neither_pods_nor_nodes() -> None:
    text = policy("A, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]")
    check(Town(text, options=CILIUM), "8.8.8.8>x/a:80/TCP n1>x/a:80/TCP", "y/a>x/a:80/TCP n2>x/a:80/TCP")


BAD = [
    ("{podSelector: {}, ingress: [{from: [{}]}]}", "spec.ingress[0].from[0]: must specify a peer"),
    (
        "{ingress: [{from: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}]}",
        "spec.ingress[0].from[0]: may not specify both ipBlock and another peer",
    ),
    ("{egress: [{to: [{ipBlock: {except: [10.0.0.0/8]}}]}]}", "spec.egress[0].to[0].ipBlock: cidr is required"),
    (
        "{egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/8]}}]}]}",
        (
            "spec.egress[0].to[0].ipBlock.except[0]: must be a strict subset of cidr: "
            "10.0.0.0/8 does not contain 11.0.0.0/8"
        ),
    ),
    (
        "{egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}]}",
        (
            "spec.egress[0].to[0].ipBlock.except[0]: must be a strict subset of cidr: "
            "10.0.0.0/8 does not contain 10.0.0.0/8"
        ),
    ),
    (
        "{ingress: [{ports: [{protocol: ICMP}]}]}",
        'spec.ingress[0].ports[0].protocol: unsupported value "ICMP": supported values: "SCTP", "TCP", "UDP"',
    ),
    (
        "{ingress: [{ports: [{endPort: 80}]}]}",
        "spec.ingress[0].ports[0].endPort: may not be specified when `port` is not specified",
    ),
    (
        "{ingress: [{ports: [{port: http, endPort: 80}]}]}",
        "spec.ingress[0].ports[0].endPort: may not be specified when `port` is non-numeric",
    ),
    (
        "{ingress: [{ports: [{port: 80, endPort: 79}]}]}",
        "spec.ingress[0].ports[0].endPort: must be greater than or equal to `port`",
    ),
    ("{ingress: [{ports: [{port: 0}]}]}", "spec.ingress[0].ports[0].port: must be between 1 and 65535"),
    (
        "{ingress: [{ports: [{port: '80'}]}]}",
        "spec.ingress[0].ports[0].port: \"80\" is not a port name: at most 15 lower case letters, digits and '-',"
        " a letter among them: write a number without quotes",
    ),
    (
        "{policyTypes: [ingress]}",
        'spec.policyTypes[0]: unsupported value "ingress": supported values: "Egress", "Ingress"',
    ),
    (
        "{policyTypes: [Ingress, Egress, Ingress]}",
        "spec.policyTypes: may not specify more than two policyTypes",
    ),
    ("{podselector: {}}", 'spec.podselector: unknown field "podselector"; did you mean "podSelector"?'),
    ("{ingress: [null]}", "spec.ingress[0]: must be a mapping, not null"),
    ("{podSelector: {matchLabels: {'k8s:app': a}}}", '"k8s:app" is not a label key'),
    ("{podSelector: {matchLabels: {$host: ''}}}", '"$host" is not a label key'),
    ("{podSelector: {matchLabels: {app: null}}}", "spec.podSelector.matchLabels.app: has no value"),
]


@pytest.mark.parametrize(("spec", "message"), BAD)
def test_what_is_refused_with_its_field(spec: str, message: str) -> None:
    document = load(policy(spec[1:-1]))[0]
    with pytest.raises(PolicyError) as caught:
        lang.parse(document)
    assert str(caught.value).endswith(message)
    town = Town(document)
    assert town.states["p"].startswith("invalid")
    assert not any(town.allows(one, "x/a") and town.allows("x/a", one) for one in PEOPLE if one != "x/a")


def test_items_without_their_type_are_noted() -> None:
    (note,) = lang.notes(load(policy("A, policyTypes: [Egress], ingress: [{}]"))[0])
    assert str(note) == "spec.ingress: has no effect: policyTypes does not include Ingress"
