"""What Cilium's validation refuses, with its messages; what it accepts; and what we refuse in addition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from l7proxy.errors import PolicyError
from l7proxy.policy import lang
from l7proxy.policy.lang.document import MAX_RULES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.unit.policy.conftest import Bench

L7_80 = "ports: [{port: '80', protocol: TCP}]"

REFUSED = [
    (
        "1.6.1 a rule without any list",
        "{}",
        "spec",
        "rule must have at least one of Ingress, IngressDeny, Egress, EgressDeny",
    ),
    (
        "1.6.1 an empty list alone counts as none",
        "ingress: []",
        "spec",
        "rule must have at least one of Ingress, IngressDeny, Egress, EgressDeny",
    ),
    (
        "1.6.2 no subject",
        "{endpointSelector: null, ingress: [{}]}",
        "spec",
        "rule must have one of EndpointSelector or NodeSelector",
    ),
    (
        "1.6.3 both subjects",
        "{endpointSelector: {}, nodeSelector: {}, ingress: [{}]}",
        "spec",
        "rule cannot have both EndpointSelector and NodeSelector",
    ),
    (
        "1.6.3 a namespaced policy selects nodes",
        "{endpointSelector: null, nodeSelector: {}, ingress: [{}]}",
        "spec.nodeSelector",
        "rule cannot have NodeSelector",
    ),
    (
        "1.6.4 endpoints and CIDR in one item",
        "ingress: [{fromEndpoints: [{}], fromCIDR: [10.0.0.0/8]}]",
        "spec.ingress[0]",
        "combining FromEndpoints and FromCIDR is not supported yet",
    ),
    (
        "1.6.4 entities and CIDR set in one egress item",
        "egress: [{toEntities: [world], toCIDRSet: [{cidr: 10.0.0.0/8}]}]",
        "spec.egress[0]",
        "combining ToCIDRSet and ToEntities is not supported yet",
    ),
    (
        "1.6.9 HTTP on any protocol",
        "ingress: [{toPorts: [{ports: [{port: '80'}], rules: {http: [{}]}}]}]",
        "spec.ingress[0].toPorts[0].ports[0]",
        "L7 rules can only apply to TCP (not ANY) except for DNS rules",
    ),
    (
        "1.6.9 HTTP on UDP",
        "ingress: [{toPorts: [{ports: [{port: '80', protocol: UDP}], rules: {http: [{}]}}]}]",
        "spec.ingress[0].toPorts[0].ports[0]",
        "L7 rules can only apply to TCP (not UDP) except for DNS rules",
    ),
    (
        "1.6.9 HTTP on a named port of any protocol",
        "ingress: [{toPorts: [{ports: [{port: web}], rules: {http: [{}]}}]}]",
        "spec.ingress[0].toPorts[0].ports[0]",
        "L7 rules can only apply to TCP (not ANY) except for DNS rules",
    ),
    (
        "1.6.10 HTTP and DNS in one item",
        f"egress: [{{toPorts: [{{{L7_80}, rules: {{http: [{{}}], dns: [{{}}]}}}}]}}]",
        "spec.egress[0].toPorts[0].rules",
        "multiple L7 protocol rule types specified in single rule",
    ),
    (
        "1.6.6 DNS on ingress",
        f"ingress: [{{toPorts: [{{{L7_80}, rules: {{dns: [{{matchPattern: '*'}}]}}}}]}}]",
        "spec.ingress[0].toPorts[0].rules.dns",
        "DNS rules are not allowed on ingress",
    ),
    (
        "1.6.13 HTTP on port 0",
        "ingress: [{toPorts: [{ports: [{port: '0', protocol: TCP}], rules: {http: [{}]}}]}]",
        "spec.ingress[0].toPorts[0].ports[0]",
        "L7 rules can not be used when a port is 0",
    ),
    (
        "1.6.16 41 ports in an item",
        "ingress: [{toPorts: [{ports: [" + "{port: '1'}," * 41 + "]}]}]",
        "spec.ingress[0].toPorts[0].ports",
        "too many ports, the max is 40",
    ),
    (
        "1.6.18 port missing",
        "ingress: [{toPorts: [{ports: [{protocol: TCP}]}]}]",
        "spec.ingress[0].toPorts[0].ports[0]",
        "port must be specified",
    ),
    (
        "1.6.18 port empty",
        "ingress: [{toPorts: [{ports: [{port: ''}]}]}]",
        "spec.ingress[0].toPorts[0].ports[0]",
        "port must be specified",
    ),
    (
        "1.6.21 unknown protocol",
        "ingress: [{toPorts: [{ports: [{port: '80', protocol: quic}]}]}]",
        "spec.ingress[0].toPorts[0].ports[0].protocol",
        'invalid protocol "quic", must be { tcp | udp | sctp | vrrp | igmp | gre | ipip | ipv6 | esp | ah | any }',
    ),
    (
        "1.6.22 ICMP beside ports",
        "ingress: [{icmps: [{}], toPorts: [{ports: []}]}]",
        "spec.ingress[0]",
        "the ICMPs block may only be present without ToPorts. Define a separate rule to use ToPorts",
    ),
    (
        "1.6.26 unknown entity",
        "ingress: [{fromEntities: [moon]}]",
        "spec.ingress[0].fromEntities[0]",
        "unsupported entity: moon",
    ),
    ("1.6.29 CIDR empty", "ingress: [{fromCIDR: ['']}]", "spec.ingress[0].fromCIDR[0]", "IP must be specified"),
    (
        "1.6.30 CIDR set without a CIDR",
        "ingress: [{fromCIDRSet: [{except: [10.0.0.0/8]}]}]",
        "spec.ingress[0].fromCIDRSet[0]",
        "one of cidr, cidrGroupRef, or cidrGroupSelector is required",
    ),
    (
        "1.6.30 CIDR set with two selectors",
        "ingress: [{fromCIDRSet: [{cidr: 10.0.0.0/8, cidrGroupRef: g}]}]",
        "spec.ingress[0].fromCIDRSet[0]",
        "more than one of cidr, cidrGroupRef, or cidrGroupSelector may not be set",
    ),
    (
        "1.6.31 except outside the CIDR",
        "ingress: [{fromCIDRSet: [{cidr: 10.0.0.0/8, except: [11.0.0.0/16]}]}]",
        "spec.ingress[0].fromCIDRSet[0].except[0]",
        "allow CIDR prefix 10.0.0.0/8 does not contain exclude CIDR prefix 11.0.0.0/16",
    ),
    (
        "1.6.31 except wider than the CIDR",
        "ingress: [{fromCIDRSet: [{cidr: 10.1.0.0/16, except: [10.0.0.0/8]}]}]",
        "spec.ingress[0].fromCIDRSet[0].except[0]",
        "allow CIDR prefix 10.1.0.0/16 does not contain exclude CIDR prefix 10.0.0.0/8",
    ),
    (
        "1.6.31 except of the other family",
        "ingress: [{fromCIDRSet: [{cidr: 10.0.0.0/8, except: ['2001:db8::/32']}]}]",
        "spec.ingress[0].fromCIDRSet[0].except[0]",
        "allow CIDR prefix 10.0.0.0/8 does not contain exclude CIDR prefix 2001:db8::/32",
    ),
    (
        "1.6.33 header without a name",
        f"ingress: [{{toPorts: [{{{L7_80}, rules: {{http: [{{headers: ['']}}]}}}}]}}]",
        "spec.ingress[0].toPorts[0].rules.http[0].headers[0]",
        "Header name missing",
    ),
    (
        "1.6.35 selector label with an empty source",
        "ingress: [{fromEndpoints: [{matchLabels: {':app': a}}]}]",
        "spec.ingress[0].fromEndpoints[0].matchLabels.:app",
        "label source should be a non empty string with only alphanumeric characters",
    ),
    (
        "1.6.35 selector label with a bad source",
        "ingress: [{fromEndpoints: [{matchLabels: {'k-8s:app': a}}]}]",
        "spec.ingress[0].fromEndpoints[0].matchLabels.k-8s:app",
        "label source should be a non empty string with only alphanumeric characters",
    ),
    (
        "1.3 a removed field",
        "ingress: [{fromRequires: [{}]}]",
        "spec.ingress[0].fromRequires",
        "fromRequires was removed from Cilium; use matchExpressions in the selectors instead",
    ),
]


@pytest.mark.parametrize(("spec", "at", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused_with_the_message_that_users_know(spec: str, at: str, message: str, bench: Bench) -> None:
    document = bench.cnp(spec)
    with pytest.raises(PolicyError) as caught:
        lang.parse({**document, "spec": {key: value for key, value in document["spec"].items() if value is not None}})
    assert (caught.value.at, caught.value.message, caught.value.unsupported) == (at, message, False)


BEGINS = [
    ("1.6.19 port is neither number nor name", "ports: [{port: 'a_b'}]", "unable to parse port: "),
    ("1.6.19 port above 65535", "ports: [{port: '65536'}]", "unable to parse port: "),
    ("1.6.19 port is negative", "ports: [{port: '-1'}]", "unable to parse port: "),
    ("1.5 a leading zero is octal, and 8 is no digit of it", "ports: [{port: '08'}]", "unable to parse port: "),
    ("1.5 more digits than the API lets through", "ports: [{port: '00010'}]", "unable to parse port: "),
    ("1.6.19 a name of more than 15 characters", "ports: [{port: 'abcdefghijklmnop'}]", "unable to parse port: "),
    ("a port that is a YAML number", "ports: [{port: 80}]", "must be a string, not a number: write it in quotes"),
    ("endPort above 65535", "ports: [{port: '80', endPort: 65536}]", "must be between 0 and 65535"),
    ("endPort of every port", "ports: [{port: '0', endPort: 10}]", "endPort has no effect"),
]


@pytest.mark.parametrize(("port", "begin"), [row[1:] for row in BEGINS], ids=[row[0] for row in BEGINS])
def test_a_port_that_is_none(port: str, begin: str, bench: Bench) -> None:
    with pytest.raises(PolicyError) as caught:
        lang.parse(bench.cnp(f"ingress: [{{toPorts: [{{{port}}}]}}]"))
    assert caught.value.message.startswith(begin)
    assert caught.value.at.startswith("spec.ingress[0].toPorts[0].ports[0]")


@pytest.mark.parametrize(
    "text",
    [
        "10.0.0.1",
        "10.0.0.0/33",
        "10.0.0.0/255.0.0.0",
        "10.0.0.0/08",
        "fe80::%eth0/64",
        "10.0.0.0/-1",
        "x/8",
        "1.2.3/8",
        "::ffff:10.0.0.0/104",
        "10.0.0.0/8 ",
        "١٠.0.0.0/8",
        "/8",
        "10.0.0.0/",
    ],
)
def test_1_6_29_a_bare_address_and_other_strings_are_no_cidr(text: str, bench: Bench) -> None:
    document = bench.cnp("ingress: [{}]")
    document["spec"]["ingress"] = [{"fromCIDR": [text]}]
    with pytest.raises(PolicyError, match="unable to parse CIDR: ") as caught:
        lang.parse(document)
    assert caught.value.at == "spec.ingress[0].fromCIDR[0]"


ACCEPTED = [
    (
        "overlapping and double ports",
        "ingress: [{toPorts: [{ports: [{port: '80'}, {port: '80'}, {port: '1', endPort: 90}]}]}]",
    ),
    ("1.5 endPort before port", "ingress: [{toPorts: [{ports: [{port: '80', endPort: 70}]}]}]"),
    ("toPorts with an empty item", "ingress: [{toPorts: [{}]}]"),
    ("fromEndpoints empty", "ingress: [{fromEndpoints: []}]"),
    ("http empty", "ingress: [{toPorts: [{ports: [{port: '80'}], rules: {http: []}}]}]"),
    ("rules empty on a UDP port", "ingress: [{toPorts: [{ports: [{port: '53', protocol: UDP}], rules: {}}]}]"),
    ("a port name nobody has", "ingress: [{toPorts: [{ports: [{port: no-such-port}]}]}]"),
    ("host bits in a CIDR", "ingress: [{fromCIDR: [10.1.2.3/8]}]"),
    ("except equal to the CIDR", "ingress: [{fromCIDRSet: [{cidr: 10.0.0.0/8, except: [10.0.0.0/8]}]}]"),
    ("protocol in lower case", "ingress: [{toPorts: [{ports: [{port: '80', protocol: tcp}], rules: {http: [{}]}}]}]"),
    ("0x10 is a port name", "ingress: [{toPorts: [{ports: [{port: '0x10'}]}]}]"),
    ("40 ports", "ingress: [{toPorts: [{ports: [" + "{port: '1'}," * 40 + "]}]}]"),
    ("fromRequires empty", "ingress: [{fromRequires: []}]"),
    (
        "labels and a description",
        "{ingress: [{}], description: d, labels: ['k8s:a=b', {key: a, value: b, source: k8s}]}",
    ),
]


@pytest.mark.parametrize("spec", [row[1] for row in ACCEPTED], ids=[row[0] for row in ACCEPTED])
def test_not_refused_although_a_reader_would_expect_it(spec: str, bench: Bench) -> None:
    assert lang.parse(bench.cnp(spec))


UNKNOWN: list[tuple[str, dict[str, Any], str, str]] = [
    ("at the top", {"specc": {}}, "specc", 'unknown field "specc"; did you mean "spec"?'),
    (
        "in metadata",
        {"metadata": {"name": "p", "namespce": "x"}},
        "metadata.namespce",
        'unknown field "namespce"; did you mean "namespace"?',
    ),
]


@pytest.mark.parametrize(("more", "at", "message"), [row[1:] for row in UNKNOWN], ids=[row[0] for row in UNKNOWN])
def test_an_unknown_field_of_the_envelope(more: dict[str, Any], at: str, message: str, bench: Bench) -> None:
    with pytest.raises(PolicyError) as caught:
        lang.parse({**bench.cnp("ingress: [{}]"), **more})
    assert (caught.value.at, caught.value.message) == (at, message)


MISSPELT = [
    ("{ingress: [{}], egres: []}", "spec.egres", "egress"),
    ("ingress: [{fromEndpoint: []}]", "spec.ingress[0].fromEndpoint", "fromEndpoints"),
    ("ingress: [{toEndpoints: []}]", "spec.ingress[0].toEndpoints", "fromEndpoints"),
    ("egressDeny: [{toPort: []}]", "spec.egressDeny[0].toPort", "toPorts"),
    ("ingress: [{toPorts: [{port: []}]}]", "spec.ingress[0].toPorts[0].port", "ports"),
    ("ingress: [{toPorts: [{ports: [{prot: '80'}]}]}]", "spec.ingress[0].toPorts[0].ports[0].prot", "port"),
    ("ingress: [{toPorts: [{ports: [], rules: {htttp: []}}]}]", "spec.ingress[0].toPorts[0].rules.htttp", "http"),
    (
        "ingress: [{toPorts: [{ports: [], rules: {http: [{paths: x}]}}]}]",
        "spec.ingress[0].toPorts[0].rules.http[0].paths",
        "path",
    ),
    ("ingress: [{fromEndpoints: [{matchLabel: {}}]}]", "spec.ingress[0].fromEndpoints[0].matchLabel", "matchLabels"),
    (
        "ingress: [{fromEndpoints: [{matchExpressions: [{key: a, operater: Exists}]}]}]",
        "spec.ingress[0].fromEndpoints[0].matchExpressions[0].operater",
        "operator",
    ),
    ("ingress: [{fromCIDRSet: [{cidr: 10.0.0.0/8, excepts: []}]}]", "spec.ingress[0].fromCIDRSet[0].excepts", "except"),
    ("{ingress: [{}], enableDefaultDeny: {igress: true}}", "spec.enableDefaultDeny.igress", "ingress"),
    ("ingressDeny: [{toPorts: [{ports: [], rules: {}}]}]", "spec.ingressDeny[0].toPorts[0].rules", ""),
    ("egressDeny: [{toFQDNs: []}]", "spec.egressDeny[0].toFQDNs", ""),
]


@pytest.mark.parametrize(("spec", "at", "meant"), MISSPELT, ids=[row[1] for row in MISSPELT])
def test_an_unknown_field_is_refused_wherever_it_stands(spec: str, at: str, meant: str, bench: Bench) -> None:
    with pytest.raises(PolicyError) as caught:
        lang.parse(bench.cnp(spec))
    assert caught.value.at == at
    assert caught.value.message.startswith("unknown field ")
    assert f'did you mean "{meant}"?' in caught.value.message if meant else not caught.value.unsupported


NOT_OF_THAT_TYPE = [
    ("ingress: {}", "spec.ingress", "must be a list, not a mapping"),
    ("ingress: [null]", "spec.ingress[0]", "must be a mapping, not null"),
    ("ingress: [{fromEndpoints: {}}]", "spec.ingress[0].fromEndpoints", "must be a list, not a mapping"),
    (
        "ingress: [{fromEndpoints: [{matchLabels: {app: 1}}]}]",
        "spec.ingress[0].fromEndpoints[0].matchLabels.app",
        "must be a string, not a number: write it in quotes",
    ),
    (
        "ingress: [{fromEndpoints: [{matchLabels: {app: null}}]}]",
        "spec.ingress[0].fromEndpoints[0].matchLabels.app",
        "has no value",
    ),
    (
        "{ingress: [{}], enableDefaultDeny: {ingress: 'no'}}",
        "spec.enableDefaultDeny.ingress",
        "must be true or false, not a string",
    ),
    (
        "ingress: [{toPorts: [{ports: [{port: '1', endPort: '2'}]}]}]",
        "spec.ingress[0].toPorts[0].ports[0].endPort",
        "must be a number, not a string",
    ),
    (
        "ingress: [{toPorts: [{ports: [{port: '1', endPort: true}]}]}]",
        "spec.ingress[0].toPorts[0].ports[0].endPort",
        "must be a number, not true or false",
    ),
    ("{1: 2}", "spec", "keys must be strings, not a number"),
]


@pytest.mark.parametrize(
    ("spec", "at", "message"), NOT_OF_THAT_TYPE, ids=[row[2] + " " + row[1] for row in NOT_OF_THAT_TYPE]
)
def test_a_value_of_the_wrong_type(spec: str, at: str, message: str, bench: Bench) -> None:
    with pytest.raises(PolicyError) as caught:
        lang.parse(bench.cnp(spec))
    assert (caught.value.at, caught.value.message) == (at, message)


SELECTORS = [
    ("matchExpressions: [{key: app, operator: In}]", "values must not be empty for operator In"),
    ("matchExpressions: [{key: app, operator: NotIn, values: []}]", "values must not be empty for operator NotIn"),
    ("matchExpressions: [{key: app, operator: Exists, values: [a]}]", "values must be empty for operator Exists"),
    (
        "matchExpressions: [{key: app, operator: Gt, values: ['1']}]",
        'must be In, NotIn, Exists or DoesNotExist, not "Gt"',
    ),
    ("matchExpressions: [{operator: Exists}]", "key is required"),
    ("matchExpressions: [{key: app}]", "operator is required"),
    ("matchLabels: {'a:b:c': x}", '"a:b:c" is not a label key'),
    ("matchLabels: {'-app': x}", '"-app" is not a label key'),
    ("matchLabels: {app: 'a b'}", "\"a b\" is not a label value: at most 63 letters, digits, '-', '_' and '.'"),
]


@pytest.mark.parametrize(("selector", "message"), SELECTORS)
def test_a_selector_that_is_none(selector: str, message: str, bench: Bench) -> None:
    with pytest.raises(PolicyError) as caught:
        lang.parse(bench.cnp(f"ingress: [{{fromEndpoints: [{{{selector}}}]}}]"))
    assert caught.value.message == message
    assert caught.value.at.startswith("spec.ingress[0].fromEndpoints[0].match")


PATTERNS = [
    ("path", "/a(", "error parsing regexp: missing closing ): `/a(`"),
    ("path", "/a)", "error parsing regexp: unexpected ): `/a)`"),
    ("path", "/[a", "error parsing regexp: missing closing ]: `[a`"),
    ("path", "/[z-a]", "error parsing regexp: invalid character class range: `z-a`"),
    ("path", "a\\", "error parsing regexp: trailing backslash at end of expression: ``"),
    ("method", "GET|+", "error parsing regexp: missing argument to repetition operator: `+`"),
    ("path", "/a**", "error parsing regexp: invalid nested repetition operator: `**`"),
    ("path", "a{1001}", "error parsing regexp: invalid repeat count: `{1001}`"),
    ("path", "(?P<n", "error parsing regexp: invalid named capture: `(?P<n`"),
    ("host", "(?=a)", "error parsing regexp: invalid or unsupported Perl syntax: `(?=`"),
    ("path", "(a)\\1", "error parsing regexp: invalid escape sequence: `\\1`"),
    ("path", "(\x1b[0m]", "error parsing regexp: missing closing ): `(\\x1b[0m]`"),
    ("path", "(" * 999, "error parsing regexp: missing closing ): `" + "(" * 200 + "…`"),
    ("path", "((a{1000}){100}){10}", "error parsing regexp: invalid repeat count: `{100}`"),
    ("path", "\\pL{1000}", "error parsing regexp: pattern too large - compile failed"),
    ("path", "a" * 100_000, "the regular expression has 100000 bytes, the limit is 8192"),
]


@pytest.mark.parametrize(("field", "pattern", "message"), PATTERNS, ids=[f"{row[0]} {row[1][:20]}" for row in PATTERNS])
def test_1_6_32_a_pattern_that_re2_cannot_use(field: str, pattern: str, message: str, bench: Bench) -> None:
    document = bench.cnp("ingress: [{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{}]}}]}]")
    document["spec"]["ingress"][0]["toPorts"][0]["rules"]["http"] = [{}, {field: pattern}]
    with pytest.raises(PolicyError) as caught:
        lang.parse(document)
    assert caught.value.at == f"spec.ingress[0].toPorts[0].rules.http[1].{field}"
    assert caught.value.message == message


def test_unicode_that_nothing_can_send_is_refused(bench: Bench) -> None:
    document = bench.cnp("ingress: [{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{}]}}]}]")
    document["spec"]["ingress"][0]["toPorts"][0]["rules"]["http"] = [{"path": "/\ud800"}]
    with pytest.raises(PolicyError, match="is not valid Unicode"):
        lang.parse(document)


ENVELOPE: list[tuple[str, dict[str, Any], str]] = [
    ("1.1 neither spec nor specs", {"spec": None}, "spec: spec or specs must be provided"),
    ("1.1 specs empty and no spec", {"spec": None, "specs": []}, "spec: spec or specs must be provided"),
    ("1.1 no name", {"metadata": {}}, "metadata.name: CiliumNetworkPolicy must have name"),
    ("1.1 no metadata", {"metadata": None}, "metadata.name: CiliumNetworkPolicy must have name"),
    (
        "a name that would break a log line",
        {"metadata": {"name": "a\nb"}},
        "metadata.name: must be lower case letters, digits, '-' and '.', at most 253",
    ),
    (
        "a namespace that is none",
        {"metadata": {"name": "a", "namespace": "A b"}},
        "metadata.namespace: must be lower case letters, digits and '-', at most 63",
    ),
    (
        "1.1 one bad entry of specs",
        {"specs": [{"endpointSelector": {}, "ingress": [{}]}, {}]},
        "specs[1]: rule must have at least one of Ingress, IngressDeny, Egress, EgressDeny",
    ),
    (
        "another version",
        {"apiVersion": "cilium.io/v3"},
        "apiVersion: CiliumNetworkPolicy is supported in version v2 only",
    ),
    ("not a policy", {"kind": "Pod"}, "kind: not a policy: unknown apiVersion and kind"),
    ("a kind that is no string", {"kind": ["Pod"]}, "kind: not a policy: unknown apiVersion and kind"),
    (
        "Kubernetes' own of old",
        {"apiVersion": "extensions/v1beta1", "kind": "NetworkPolicy"},
        "kind: extensions/v1beta1 NetworkPolicy is not supported yet",
    ),
]


@pytest.mark.parametrize(("change", "message"), [row[1:] for row in ENVELOPE], ids=[row[0] for row in ENVELOPE])
def test_the_envelope(change: dict[str, Any], message: str, bench: Bench) -> None:
    with pytest.raises(PolicyError) as caught:
        lang.parse({**bench.cnp("ingress: [{}]"), **change})
    assert str(caught.value) == message


def test_spec_and_specs_are_both_enforced(bench: Bench) -> None:
    document = bench.cnp("ingress: [{fromEndpoints: [{matchLabels: {app: a}}]}]")
    document["specs"] = [bench.cnp("ingress: [{fromEndpoints: [{matchLabels: {app: b}}]}]")["spec"]]
    land = bench.enforce(document)
    assert (land.ingress("a"), land.ingress("b"), land.ingress("plain")) == ("allow", "allow", "no rule")
    assert [rule.ref.rule for rule in land.rules] == ["spec.ingress[0]", "specs[0].ingress[0]"]


def test_a_missing_namespace_is_default(bench: Bench) -> None:
    document = bench.cnp("ingress: [{}]")
    del document["metadata"]["namespace"]
    assert {rule.ref.namespace for rule in lang.parse(document)} == {"default"}


def test_rules_know_where_they_were_written(bench: Bench) -> None:
    document = bench.cnp(
        "ingress: [{toPorts: [{ports: []}, {ports: [{port: '80', protocol: TCP}], rules: {http: [{}]}}]}]"
    )
    rules = lang.parse(document, locate=lambda path: ("p.yaml", len(path)))
    assert [str(rule.ref) for rule in rules] == [
        "CiliumNetworkPolicy default/p spec.ingress[0].toPorts[0]",
        "CiliumNetworkPolicy default/p spec.ingress[0].toPorts[1]",
    ]
    http = rules[1].http
    assert http is not None
    assert http[0].ref.rule == "spec.ingress[0].toPorts[1].rules.http[0]"
    assert (http[0].ref.file, http[0].ref.line) == ("p.yaml", len(http[0].ref.rule))


def test_http_rules_are_numbered_through_the_document(bench: Bench) -> None:
    item = "{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: /a}, {path: /b}]}}]}"
    rules = lang.parse(bench.cnp(f"{{ingress: [{item}, {item}], egress: [{item}]}}"))
    assert [http.number for rule in rules for http in rule.http] == [1, 2, 3, 4, 5, 6]


NOTES = [
    (
        "a header value that is a pattern",
        "headers: ['X-Token: .*']",
        "the value is also matched as a whole-string regular expression",
    ),
    (
        "a header value that only looks like one",
        "headers: ['X-Token: (a']",
        "the value is matched literally only: error parsing regexp: missing closing ): `(a`",
    ),
    (
        "a header with a colon and no blank",
        "headers: ['X-Token:true']",
        "never matches: \"X-Token:true\" is not a header name; use 'Name: value' with one space",
    ),
    (
        "a header value after two blanks",
        "headers: ['X-Token:  a']",
        "never matches: the value has leading or trailing whitespace, which is matched literally",
    ),
]


@pytest.mark.parametrize(("http", "message"), [row[1:] for row in NOTES], ids=[row[0] for row in NOTES])
def test_notes_tell_what_an_author_may_not_expect(http: str, message: str, bench: Bench) -> None:
    spec = f"ingress: [{{toPorts: [{{ports: [{{port: '80', protocol: TCP}}], rules: {{http: [{{{http}}}]}}}}]}}]"
    (note,) = lang.notes(bench.cnp(spec))
    assert (note.at, note.message) == ("spec.ingress[0].toPorts[0].rules.http[0].headers[0]", message)


def test_notes_on_values_that_are_null_and_flags_without_effect(bench: Bench) -> None:
    document = bench.cnp(
        "{ingress: [{fromEndpoints: null, toPorts: [{ports: [{port: '80'}]}]}], enableDefaultDeny: {egress: true}}"
    )
    assert [str(note) for note in lang.notes(document)] == [
        "spec.enableDefaultDeny.egress: has no effect: there are no egress entries",
        "spec.ingress[0].fromEndpoints: has no value, the same as an absent field; use [] for an empty list",
    ]
    assert bench.enforce(document).ingress("third/a") == "allow"


def test_a_plain_policy_has_no_notes(bench: Bench) -> None:
    assert lang.notes(bench.cnp("ingress: [{fromEndpoints: [{matchLabels: {app: a.b-c}}]}]")) == ()


def test_faults_of_several_items_are_told_at_once(bench: Bench) -> None:
    document = bench.cnp("{ingress: [{fromEntity: []}, {}, {fromCIDR: [x]}], egress: [{toEntities: [moon]}]}")
    document["specs"] = [{}]
    assert [fault.at for fault in lang.faults(document)] == [
        "spec.ingress[0].fromEntity",
        "spec.ingress[2].fromCIDR[0]",
        "spec.egress[0].toEntities[0]",
        "specs[0]",
    ]
    with pytest.raises(PolicyError) as caught:
        lang.parse(document)
    assert caught.value.at == "spec.ingress[0].fromEntity"


SPEC = """
endpointSelecter: {}
labels: 7
log: {value: "\\t"}
ingress:
- fromEndpoint: []
  fromEndpoints: [{matchLabels: {app: 1}}, {matchLabels: {app: a}}, {matchLabel: {app: a}}]
  authentication: {mode: never}
  icmps: [{fields: [{type: 999}]}]
- {fromEntities: [moon, all, sun]}
"""
TO_PORTS = """
ingress:
- toPorts:
  - ports: [{port: "99999", protocol: TPC}, {port: "80", protocol: TCP}, {port: "x_y", protocol: TCP}]
    rules: {http: [{path: "(", method: "["}, {pth: /a}, {headers: [7, "X: a", ""]}]}
  - {ports: [{port: "1", prot: UDP}]}
"""


def places(document: Mapping[str, Any]) -> list[str]:
    return [fault.at.removeprefix("spec.") for fault in lang.faults(document)]


def test_all_faults_of_a_spec_are_told_each_at_its_place(bench: Bench) -> None:
    assert places(bench.cnp(SPEC)) == [
        "endpointSelecter",
        "labels",
        "log.value",
        "ingress[0].fromEndpoint",
        "ingress[0].fromEndpoints[0].matchLabels.app",
        "ingress[0].fromEndpoints[2].matchLabel",
        "ingress[0].authentication.mode",
        "ingress[0].icmps[0].fields[0].type",
        "ingress[1].fromEntities[0]",
        "ingress[1].fromEntities[2]",
    ]


def test_all_faults_of_one_rule_are_told_each_at_its_place(bench: Bench) -> None:
    at = "ingress[0].toPorts"
    assert places(bench.cnp(TO_PORTS)) == [
        f"{at}[0].rules.http[0].method",
        f"{at}[0].rules.http[0].path",
        f"{at}[0].rules.http[1].pth",
        f"{at}[0].rules.http[2].headers[0]",
        f"{at}[0].rules.http[2].headers[2]",
        f"{at}[0].ports[0].protocol",
        f"{at}[0].ports[0].port",
        f"{at}[0].ports[2].port",
        f"{at}[1].ports[0].prot",
    ]


OTHERS = {
    "networking.k8s.io/v1 NetworkPolicy": (
        "{podSelector: {matchLabel: {}}, ingress: [{from: [{ipBlock: {cidr: x}}, {}], ports: [{port: 0}, {prt: 1}]}]}",
        """podSelector.matchLabel ingress[0].from[0].ipBlock.cidr ingress[0].from[1] ingress[0].ports[0].port
        ingress[0].ports[1].prt""",
    ),
    "projectcalico.org/v3 NetworkPolicy": (
        "{selector: '(', ingress: [{action: Alow, source: {nets: [x]}, destination: {ports: [x y]}}, {acton: Deny}]}",
        """selector ingress[0].action ingress[0].destination.ports[0] ingress[0].source.nets[0] ingress[1].acton
        ingress[1]""",
    ),
    "policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy": (
        """{tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Alow, to: [{networks: [x]},
        {networks: [y]}], protocols: [{tcp: {destinationPort: {number: 0}}}]}]}""",
        """egress[0].action egress[0].to[0].networks[0] egress[0].to[1].networks[0]
        egress[0].protocols[0].tcp.destinationPort.number""",
    ),
}


@pytest.mark.parametrize("which", OTHERS)
def test_all_faults_of_other_languages_are_told_each_at_its_place(which: str) -> None:
    version, _, kind = which.partition(" ")
    spec, wanted = OTHERS[which]
    document = {"apiVersion": version, "kind": kind, "metadata": {"name": "p"}, "spec": yaml.safe_load(spec)}
    assert places(document) == wanted.split()
    with pytest.raises(PolicyError):
        lang.parse(document)


def test_a_good_document_has_no_faults(bench: Bench) -> None:
    assert lang.faults(bench.cnp("ingress: [{}]")) == ()


def expensive(count: int) -> list[dict[str, str]]:
    """Patterns that RE2 accepts one by one, each of some 8 000 instructions."""
    return [{"path": f"/{place}.{{1000}}"} for place in range(count)]


def test_patterns_may_not_be_too_large_together(bench: Bench) -> None:
    document = bench.cnp("ingress: [{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{}]}}]}]")
    rules = document["spec"]["ingress"][0]["toPorts"][0]["rules"]
    rules["http"] = expensive(60)
    assert lang.parse(document)
    rules["http"] = expensive(70)
    with pytest.raises(PolicyError, match="the regular expressions of this document are too large") as caught:
        lang.parse(document)
    assert caught.value.at.startswith("spec.ingress[0].toPorts[0].rules.http[")


def test_a_document_full_of_faults_is_not_read_to_its_end(bench: Bench) -> None:
    document = bench.cnp("ingress: [{}]")
    document["spec"]["ingress"] = [{"fromCIDR": ["x"]}] * 1000
    *told, last = lang.faults(document)
    assert [fault.at for fault in told] == [f"spec.ingress[{number}].fromCIDR[0]" for number in range(10)]
    assert str(last) == "only the first 10 errors of this CiliumNetworkPolicy are shown"
    document["spec"]["ingress"] = [{"fromCIDR": ["x"] * 1000}]
    assert len(lang.faults(document)) == 11
    document["spec"]["ingress"] = [{f"wrong{number}": [] for number in range(1000)}]
    assert len(lang.faults(document)) == 11


def test_parts_that_cannot_be_enforced_are_bounded_too(bench: Bench) -> None:
    document = bench.cnp("egress: [{}]")
    document["spec"]["egress"] = [{"toFQDNs": [{"matchName": "a.b"}]}] * 1000
    *told, last = lang.faults(document)
    assert len(told) == 10
    assert all(fault.unsupported for fault in told) and str(last).startswith("only the first 10 errors of this")


@pytest.mark.parametrize("count", [MAX_RULES - 1, MAX_RULES, 3 * MAX_RULES])
def test_a_document_has_so_many_rules_and_no_more(bench: Bench, count: int) -> None:
    """Reading stops at the limit: policies of others do not wait for a document's end."""
    document = bench.cnp("ingress: [{}]")
    document["spec"]["ingress"] = [{"fromEntities": ["world"]}] * count
    found = lang.faults(document)
    assert [str(fault) for fault in found] == (
        [f"spec.ingress[{MAX_RULES}]: more than {MAX_RULES} rules in one document: split it into several"]
        if count > MAX_RULES
        else []
    )


def test_header_values_that_are_compiled_in_vain_count_as_well(bench: Bench) -> None:
    """Each is used as a literal, but takes RE2 0.1 s to compile: without a limit they would stop the agent."""
    document = bench.cnp("ingress: [{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{}]}}]}]")
    rules = document["spec"]["ingress"][0]["toPorts"][0]["rules"]
    in_vain = {"headers": ["X-A: " + r"\pL{1,9}" * 20]}
    rules["http"] = [in_vain] * 5
    assert lang.parse(document)
    rules["http"] = [in_vain] * 500 + [{"path": "/x.*"}]
    with pytest.raises(PolicyError, match="the regular expressions of this document are too large"):
        lang.parse(document)
