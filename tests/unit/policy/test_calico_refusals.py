"""Refused parts of Calico policies: the message, the field, and that the covered traffic is denied."""

from __future__ import annotations

import pytest

from l7proxy.errors import PolicyError
from l7proxy.policy import lang
from tests.unit.policy.calico import calico
from tests.unit.policy.town import Town, check

A = "selector: pod == 'a', "
KNP = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "knp", "namespace": "x"},
    "spec": {"podSelector": {"matchLabels": {"pod": "a"}}, "ingress": [{"ports": [{"port": 80}]}]},
}

RULE = "ingress: [{action: Allow, %s}]"
BAD = [
    ("9.1 a selector", "selector: a =! 'x'", "spec.selector: invalid selector: expected == at 2, not \"=! 'x'\""),
    ("9.3 no action", "ingress: [{}]", "spec.ingress[0]: action is required"),
    (
        "9.3 actions are case-sensitive",
        "ingress: [{action: allow}]",
        'spec.ingress[0].action: must be Allow, Deny, Log or Pass, not "allow"',
    ),
    (
        "9.3 protocol",
        RULE % "protocol: tcp",
        'spec.ingress[0].protocol: "tcp" is not a protocol: must be TCP, UDP, ICMP, ICMPv6, SCTP, UDPLite or a number',
    ),
    ("9.3 protocol 0", RULE % "protocol: 0", "spec.ingress[0].protocol: must be between 1 and 255"),
    (
        "9.3 numeric ports without a protocol",
        RULE % "destination: {ports: [80]}",
        "spec.ingress[0].destination.ports: rules with numeric port or port range must set protocol to TCP or",
    ),
    (
        "9.3 numeric notPorts with ICMP",
        RULE % "protocol: ICMP, destination: {notPorts: [80]}",
        "spec.ingress[0].destination.notPorts: rules with numeric port or port range must set protocol to TCP or",
    ),
    (
        "9.3 a range that ends first",
        RULE % "protocol: TCP, destination: {ports: ['9:8']}",
        'spec.ingress[0].destination.ports[0]: the range "9:8" ends before it starts',
    ),
    (
        "9.3 a port too high",
        RULE % "protocol: TCP, destination: {ports: ['70000']}",
        'spec.ingress[0].destination.ports[0]: "70000" is not a port: the maximum is 65535',
    ),
    (
        "9.3 no port at all",
        RULE % "protocol: TCP, destination: {ports: ['a b']}",
        'spec.ingress[0].destination.ports[0]: "a b" is not a port: must be a number, a range as 1000:2000, or a name',
    ),
    (
        "9.3 source ports",
        RULE % "protocol: TCP, source: {ports: [80]}",
        "spec.ingress[0].source.ports: source ports are not supported yet",
    ),
    (
        "9.3 icmp without its protocol",
        RULE % "icmp: {type: 8}",
        "spec.ingress[0].icmp: protocol must be ICMP or ICMPv6",
    ),
    (
        "9.3 icmp code without a type",
        RULE % "protocol: ICMP, icmp: {code: 1}",
        "spec.ingress[0].icmp: code requires a type",
    ),
    (
        "9.3 icmp type 255",
        RULE % "protocol: ICMP, icmp: {type: 255}",
        "spec.ingress[0].icmp.type: must be between 0 and 254",
    ),
    (
        "9.3 icmp with ports",
        RULE % "protocol: ICMP, icmp: {type: 8}, destination: {ports: [80]}",
        "spec.ingress[0].destination.ports: rules with numeric port or port range must set protocol to TCP or",
    ),
    (
        "9.3 ICMP is of IPv4",
        RULE % "protocol: ICMP, ipVersion: 6",
        "spec.ingress[0].ipVersion: must be 4 with protocol ICMP",
    ),
    (
        "9.3 ICMPv6 is of IPv6",
        RULE % "notProtocol: ICMPv6, ipVersion: 4",
        "spec.ingress[0].ipVersion: must be 6 with notProtocol ICMPv6",
    ),
    ("9.3 ipVersion", RULE % "ipVersion: 5", "spec.ingress[0].ipVersion: must be 4 or 6"),
    (
        "9.3 ipVersion and nets",
        RULE % "ipVersion: 6, source: {nets: [10.0.0.0/8]}",
        "spec.ingress[0].source.nets[0]: must be of IP version 6, as the rule is",
    ),
    (
        "9.3 mixed families",
        RULE % "source: {nets: [10.0.0.0/8, 'fd00::/8']}",
        "spec.ingress[0].source.nets[1]: IPv4 and IPv6 cannot be mixed in one list: use two rules",
    ),
    (
        "9.3 mixed families of nets and notNets",
        RULE % "source: {nets: [10.0.0.0/8], notNets: ['fd00::/8']}",
        "spec.ingress[0].source.notNets[0]: must be of IP version 4, as the rule is",
    ),
    (
        "9.3 everything in notNets",
        RULE % "source: {notNets: [0.0.0.0/0]}",
        "spec.ingress[0].source.notNets[0]: 0.0.0.0/0 covers every address: the rule would match nothing",
    ),
    ("9.3 no prefix", RULE % "source: {nets: [10.0.0.0/33]}", "spec.ingress[0].source.nets[0]: unable to parse CIDR"),
    (
        "9.3 services on the own side",
        RULE % "destination: {services: {name: a}}",
        "spec.ingress[0].destination.services: services can only be a source in ingress rules",
    ),
    (
        "9.3 services without a name",
        RULE % "source: {services: {}}",
        "spec.ingress[0].source.services: must specify a service name",
    ),
    (
        "9.3 services and selector",
        RULE % "source: {services: {name: a}, selector: all()}",
        "spec.ingress[0].source.services: services cannot be combined with selector",
    ),
    (
        "9.3 ports with a service",
        "egress: [{action: Allow, protocol: TCP, destination: {services: {name: a}, ports: [80]}}]",
        "spec.egress[0].destination.ports: cannot specify ports with a service as destination",
    ),
    (
        "9.3 nets of the own side",
        RULE % "destination: {nets: [10.0.0.0/8]}",
        "spec.ingress[0].destination.nets: nets for the pod's own addresses are not supported yet",
    ),
    (
        "9.3 http in egress",
        "egress: [{action: Allow, http: {}}]",
        "spec.egress[0].http: http is allowed only in ingress rules with action Allow",
    ),
    (
        "9.3 http with Deny",
        "ingress: [{action: Deny, http: {}}]",
        "spec.ingress[0].http: http is allowed only in ingress rules with action Allow",
    ),
    (
        "9.3 http with UDP",
        RULE % "protocol: UDP, http: {}",
        "spec.ingress[0].http: rules with http must have protocol TCP or no protocol",
    ),
    (
        "9.5 duplicate methods",
        RULE % "http: {methods: [GET, GET]}",
        'spec.ingress[0].http.methods[1]: duplicate method "GET"',
    ),
    (
        "9.5 exact and prefix",
        RULE % "http: {paths: [{exact: /a, prefix: /b}]}",
        "spec.ingress[0].http.paths[0]: must have exactly one of exact and prefix",
    ),
    (
        "9.5 a path without /",
        RULE % "http: {paths: [{exact: a}]}",
        'spec.ingress[0].http.paths[0].exact: must start with /: "a"',
    ),
    (
        "9.5 a path with ?",
        RULE % "http: {paths: [{exact: '/a?b'}]}",
        'spec.ingress[0].http.paths[0].exact: must not contain ?, # or whitespace: "/a?b"',
    ),
    (
        "limit: methods",
        RULE % f"http: {{methods: {[f'M{n}' for n in range(21)]}}}",
        "spec.ingress[0].http.methods: too many methods, the max is 20",
    ),
    (
        "limit: paths",
        RULE % f"http: {{paths: {[{'exact': f'/{n}'} for n in range(21)]}}}",
        "spec.ingress[0].http.paths: too many paths, the max is 20",
    ),
    (
        "limit: ports",
        RULE % f"protocol: TCP, destination: {{ports: {list(range(51))}}}",
        "spec.ingress[0].destination.ports: too many ports, the max is 50",
    ),
    (
        "limit: nets",
        RULE % f"source: {{nets: {['10.0.0.0/8'] * 257}}}",
        "spec.ingress[0].source.nets: too many nets, the max is 256",
    ),
    ("limit: rules", f"ingress: {[{'action': 'Allow'}] * 1025}", "spec.ingress: too many rules, the max is 1024"),
    ("9.3 types twice", "types: [Ingress, Ingress]", 'spec.types[1]: "Ingress" is listed twice'),
    ("9.3 types", "types: [Forward]", 'spec.types[0]: must be Ingress or Egress, not "Forward"'),
    ("order", "order: high", 'spec.order: must be a number, not "high"'),
    ("tier", "tier: A B", 'spec.tier: "A B" is not the name of a tier'),
    ("a field of a global policy", "doNotTrack: true", 'spec.doNotTrack: unknown field "doNotTrack"'),
    (
        "9.1 global() in a selector",
        "selector: global()",
        "spec.selector: invalid selector: global() must stand alone and is allowed only in namespaceSelector",
    ),
    (
        "a misspelt entity",
        RULE % "source: {selectors: all()}",
        'spec.ingress[0].source.selectors: unknown field "selectors"; did you mean "selector"?',
    ),
]


@pytest.mark.parametrize(("spec", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_what_is_refused_with_its_field(spec: str, message: str) -> None:
    document = calico(spec)
    with pytest.raises(PolicyError) as caught:
        lang.parse(document)
    assert str(caught.value).startswith(message)
    town = Town(document)
    assert town.states["p"].split()[0] in ("invalid", "refused")
    assert not (town.allows("y/a", "x/a") and town.allows("x/a", "y/a")), "what cannot be read refuses"


GLOBALLY_BAD = [
    (
        "9.1 global() is for entities",
        "namespaceSelector: global()",
        "spec.namespaceSelector: global() is allowed only in the namespaceSelector of a source or destination",
    ),
    (
        "9.3 services without a namespace",
        RULE % "source: {services: {name: a}}",
        "spec.ingress[0].source.services: must specify a service namespace",
    ),
    ("a field of a staged policy", "stagedAction: Set", 'spec.stagedAction: unknown field "stagedAction"'),
]


@pytest.mark.parametrize(("spec", "message"), [row[1:] for row in GLOBALLY_BAD], ids=[row[0] for row in GLOBALLY_BAD])
def test_what_is_refused_in_a_global_policy(spec: str, message: str) -> None:
    town = Town(calico(spec, space=""))
    assert town.states["p"] == f"invalid {message}"
    assert not town.allows("y/a", "x/a"), "what cannot be read refuses"


@pytest.mark.parametrize("field", ["doNotTrack", "preDNAT"])
def test_9_2_policies_of_host_endpoints_are_refused_by_name(field: str) -> None:
    town = Town(calico(f"{field}: true, applyOnForward: true, selector: has(host)", space=""))
    assert (
        town.states["p"]
        == f"refused spec.{field}: {field} policies are for host endpoints, which are not supported yet"
    )
    check(town, "y/a>x/a:80/TCP", "")


def test_a_refused_policy_stands_where_it_would_have_stood() -> None:
    """It does not revoke what an earlier policy decides; it denies what later ones would decide."""
    broken = calico(f"{A}order: 500, ingress: [{{action: Allow, protocol: tcp}}]", "broken")
    early = calico(f"{A}order: 1, ingress: [{{action: Allow, protocol: UDP}}]", "early")
    check(Town(broken, early, KNP), "y/a>x/a:80/UDP n1>x/a:80/TCP", "y/a>x/a:80/TCP")
