"""Cilium's validation, row by row: its messages, with the file and line of the field."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from l7proxy.errors import PolicyError
from l7proxy.policy import lang
from l7proxy.sources.files import manifest as manifests

if TYPE_CHECKING:
    from tests.unit.policy.conftest import Bench

P = "ports: [{port: '80', protocol: TCP}]"
DNS = "ports: [{port: '53', protocol: UDP}]"
TLS = "{secret: {namespace: s, name: n}}"


def listener(text: str) -> str:
    return f"egress: [{{toPorts: [{{{P}, listener: {text}}}]}}]"


def query(text: str) -> str:
    return f"egress: [{{toPorts: [{{{DNS}, rules: {{dns: [{text}]}}}}]}}]"


LONG = "a" * 256
ROWS = [
    (
        "1.6.1 all four lists empty",
        "{ingress: [], ingressDeny: [], egress: [], egressDeny: []}",
        "spec",
        "rule must have at least one of Ingress, IngressDeny, Egress, EgressDeny",
    ),
    (
        "1.6.4 nodes and endpoints in one item",
        "ingress: [{fromNodes: [{}], fromEndpoints: [{}]}]",
        "spec.ingress[0]",
        "combining FromEndpoints and FromNodes is not supported yet",
    ),
    (
        "1.6.4 Services and names in one item",
        "egress: [{toServices: [{k8sService: {serviceName: s}}], toFQDNs: [{matchName: a.b}]}]",
        "spec.egress[0]",
        "combining ToServices and ToFQDNs is not supported yet",
    ),
    (
        "1.6.4 groups and entities in one item",
        "egressDeny: [{toGroups: [{aws: {}}], toEntities: [world]}]",
        "spec.egressDeny[0]",
        "combining ToEntities and ToGroups is not supported yet",
    ),
    (
        "1.6.7 DNS on ingress",
        f"ingress: [{{toPorts: [{{{DNS}, rules: {{dns: [{{matchName: a}}]}}}}]}}]",
        "spec.ingress[0].toPorts[0].rules.dns",
        "DNS rules are not allowed on ingress",
    ),
    (
        "1.6.10 HTTP and DNS, one of them empty",
        f"egress: [{{toPorts: [{{{P}, rules: {{http: [{{}}], dns: []}}}}]}}]",
        "spec.egress[0].toPorts[0].rules",
        "multiple L7 protocol rule types specified in single rule",
    ),
    (
        "1.6.11 DNS without a port",
        "egress: [{toPorts: [{rules: {dns: [{matchName: a.b}]}}]}]",
        "spec.egress[0].toPorts[0]",
        "port 53 must be specified for DNS rules",
    ),
    (
        "1.6.11 DNS with an empty list of ports",
        "egress: [{toPorts: [{ports: [], rules: {dns: [{matchName: a.b}]}}]}]",
        "spec.egress[0].toPorts[0]",
        "port 53 must be specified for DNS rules",
    ),
    (
        "1.6.12 DNS on a range",
        "egress: [{toPorts: [{ports: [{port: '53', endPort: 54}], rules: {dns: [{matchName: a.b}]}}]}]",
        "spec.egress[0].toPorts[0].ports[0]",
        "DNS rules do not support port ranges",
    ),
    (
        "1.6.13 DNS on port 0",
        "egress: [{toPorts: [{ports: [{port: '0'}], rules: {dns: [{matchName: a.b}]}}]}]",
        "spec.egress[0].toPorts[0].ports[0]",
        "L7 rules can not be used when a port is 0",
    ),
    (
        "1.6.14 server names with HTTP, without TLS termination",
        f"egress: [{{toPorts: [{{{P}, serverNames: [a.b], rules: {{http: [{{}}]}}}}]}}]",
        "spec.egress[0].toPorts[0]",
        "ServerNames are not allowed with L7 rules without TLS termination",
    ),
    (
        "1.6.15 an empty server name",
        f"egress: [{{toPorts: [{{{P}, serverNames: [a.b, '']}}]}}]",
        "spec.egress[0].toPorts[0].serverNames[1]",
        "empty server name is not allowed",
    ),
    (
        "1.6.27 a listener on ingress",
        f"ingress: [{{toPorts: [{{{P}, listener: {{name: l, envoyConfig: {{name: e}}}}}}]}}]",
        "spec.ingress[0].toPorts[0].listener",
        "Listener is not allowed on ingress (l)",
    ),
    (
        "1.6.28 a listener with HTTP",
        f"egress: [{{toPorts: [{{{P}, listener: {{name: l, envoyConfig: {{name: e}}}}, rules: {{http: [{{}}]}}}}]}}]",
        "spec.egress[0].toPorts[0].listener",
        "Listener is not allowed with L7 rules (l)",
    ),
    (
        "a listener without a name",
        listener("{envoyConfig: {name: e}}"),
        "spec.egress[0].toPorts[0].listener",
        "name is required",
    ),
    (
        "a listener without a configuration",
        listener("{name: l}"),
        "spec.egress[0].toPorts[0].listener",
        "envoyConfig is required",
    ),
    (
        "a listener of another kind",
        listener("{name: l, envoyConfig: {kind: Envoy, name: e}}"),
        "spec.egress[0].toPorts[0].listener.envoyConfig.kind",
        'must be CiliumEnvoyConfig or CiliumClusterwideEnvoyConfig, not "Envoy"',
    ),
    (
        "a listener's priority",
        listener("{name: l, priority: 101, envoyConfig: {name: e}}"),
        "spec.egress[0].toPorts[0].listener.priority",
        "must be between 1 and 100",
    ),
    (
        "1.6.30 CIDR set with an empty CIDR",
        "egress: [{toCIDRSet: [{cidr: ''}]}]",
        "spec.egress[0].toCIDRSet[0]",
        "one of cidr, cidrGroupRef, or cidrGroupSelector is required",
    ),
    (
        "1.6.30 CIDR set with a group by name and by label",
        "egress: [{toCIDRSet: [{cidrGroupRef: g, cidrGroupSelector: {}}]}]",
        "spec.egress[0].toCIDRSet[0]",
        "more than one of cidr, cidrGroupRef, or cidrGroupSelector may not be set",
    ),
    (
        "1.6.34 toFQDNs with name and pattern",
        "egress: [{toFQDNs: [{matchName: a.b, matchPattern: '*.b'}]}]",
        "spec.egress[0].toFQDNs[0]",
        "only one of MatchName or MatchPattern is allowed in an FQDNSelector",
    ),
    (
        "1.6.34 a name with other characters",
        "egress: [{toFQDNs: [{matchName: 'a/b'}]}]",
        "spec.egress[0].toFQDNs[0].matchName",
        'Invalid characters in MatchName: "a/b". Only 0-9, a-z, A-Z and . and - characters are allowed',
    ),
    (
        "1.6.34 a name with a star",
        query("{matchName: '*.b'}"),
        "spec.egress[0].toPorts[0].rules.dns[0].matchName",
        'Invalid characters in MatchName: "*.b". Only 0-9, a-z, A-Z and . and - characters are allowed',
    ),
    (
        "1.6.34 a pattern with other characters",
        query("{matchPattern: 'a|b'}"),
        "spec.egress[0].toPorts[0].rules.dns[0].matchPattern",
        'Invalid characters in MatchPattern: "a|b". Only 0-9, a-z, A-Z and ., -, _ and * characters are allowed',
    ),
    (
        "1.6.34 a pattern that is too long",
        query(f"{{matchPattern: '{LONG}'}}"),
        "spec.egress[0].toPorts[0].rules.dns[0].matchPattern",
        f'Invalid MatchPattern: "{"a" * 60}…". Must be <= 255 characters long.',
    ),
    (
        "1.7.12 a DNS item that names nothing",
        query("{}"),
        "spec.egress[0].toPorts[0].rules.dns[0]",
        "one of matchName or matchPattern is required",
    ),
    (
        "1.7.12 an item of toFQDNs that names nothing",
        "egress: [{toFQDNs: [{matchName: ''}]}]",
        "spec.egress[0].toFQDNs[0]",
        "one of matchName or matchPattern is required",
    ),
    (
        "1.5.6 no server names",
        f"egress: [{{toPorts: [{{{P}, serverNames: []}}]}}]",
        "spec.egress[0].toPorts[0].serverNames",
        "must have at least one name or be removed",
    ),
    (
        "1.5.5 TLS without a secret",
        f"egress: [{{toPorts: [{{{P}, terminatingTLS: {{}}}}]}}]",
        "spec.egress[0].toPorts[0].terminatingTLS",
        "secret is required",
    ),
    (
        "1.5.5 TLS with a secret of no name",
        f"egress: [{{toPorts: [{{{P}, originatingTLS: {{secret: {{namespace: s}}}}}}]}}]",
        "spec.egress[0].toPorts[0].originatingTLS.secret",
        "Secret name missing",
    ),
    (
        "1.3 authentication of another mode",
        "ingress: [{fromEndpoints: [{}], authentication: {mode: maybe}}]",
        "spec.ingress[0].authentication.mode",
        'must be disabled, required, test-always-fail, not "maybe"',
    ),
    (
        "1.3 authentication without a mode",
        "ingress: [{fromEndpoints: [{}], authentication: {}}]",
        "spec.ingress[0].authentication",
        "mode is required",
    ),
    (
        "1.2 a log value that is too long",
        f"{{ingress: [{{}}], log: {{value: {'x' * 33}}}}}",
        "spec.log.value",
        "must be at most 32 printable characters",
    ),
    (
        "1.2 a log value that would break a line",
        '{ingress: [{}], log: {value: "a\\nb"}}',
        "spec.log.value",
        "must be at most 32 printable characters",
    ),
    (
        "1.4 a Service without a name",
        "egress: [{toServices: [{k8sService: {namespace: n}}]}]",
        "spec.egress[0].toServices[0].k8sService",
        "serviceName is required",
    ),
    (
        "1.4 a Service by nothing",
        "egress: [{toServices: [{}]}]",
        "spec.egress[0].toServices[0]",
        "one of k8sService or k8sServiceSelector is required",
    ),
    (
        "1.4 Services by no labels",
        "egress: [{toServices: [{k8sServiceSelector: {namespace: n}}]}]",
        "spec.egress[0].toServices[0].k8sServiceSelector",
        "selector is required",
    ),
    (
        "1.3 toRequires was removed",
        "egress: [{toRequires: [{}]}]",
        "spec.egress[0].toRequires",
        "toRequires was removed from Cilium; use matchExpressions in the selectors instead",
    ),
]


def line_of(text: str, path: str) -> int:
    """The line of a field's key (or, in a list, of its item), found by PyYAML."""
    node = yaml.compose(text)
    line = 1
    for part in re.findall(r"[^.\[\]]+", path):
        if isinstance(node, yaml.SequenceNode):
            node = node.value[int(part)]
            line = node.start_mark.line + 1
        else:
            assert isinstance(node, yaml.MappingNode)
            found = {key.value: (key, value) for key, value in node.value}
            if part not in found:
                break
            key, node = found[part]
            line = key.start_mark.line + 1
    return line


@pytest.mark.parametrize(("spec", "at", "message"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_refused_in_cilium_s_words_at_its_line(spec: str, at: str, message: str, bench: Bench) -> None:
    document = bench.cnp(spec)
    with pytest.raises(PolicyError) as caught:
        lang.parse(document)
    assert (caught.value.at, caught.value.message, caught.value.unsupported) == (at, message, False)
    text = yaml.safe_dump(document, sort_keys=False)
    (fault,) = manifests.parse(text.encode(), "p.yaml").faults
    assert str(fault.error) == f"p.yaml:{line_of(text, at)}: {at}: {message}"
    assert fault.placeholder is not None, "what it selects is refused"


BEGINS = [
    (
        "1.6.29 an address without its prefix, in a CIDR set",
        "ingress: [{fromCIDRSet: [{cidr: 10.0.0.1}]}]",
        "spec.ingress[0].fromCIDRSet[0].cidr",
        'unable to parse CIDRRule "10.0.0.1": ',
    ),
    (
        "1.6.29 an exception that is not a valid CIDR",
        "ingress: [{fromCIDRSet: [{cidrGroupRef: g, except: [x]}]}]",
        "spec.ingress[0].fromCIDRSet[0].except[0]",
        "unable to parse CIDR: ",
    ),
    (
        "a name that is too long",
        query(f"{{matchName: {LONG}}}"),
        "spec.egress[0].toPorts[0].rules.dns[0].matchName",
        "Invalid MatchName: ",
    ),
]


@pytest.mark.parametrize(("spec", "at", "begin"), [row[1:] for row in BEGINS], ids=[row[0] for row in BEGINS])
def test_refused_in_words_that_begin_so(spec: str, at: str, begin: str, bench: Bench) -> None:
    with pytest.raises(PolicyError) as caught:
        lang.parse(bench.cnp(spec))
    assert caught.value.at == at
    assert caught.value.message.startswith(begin)


SERVER_NAMES = [
    ("a.example", True),
    ("A.Example", True),
    ("*", True),
    ("**", True),
    ("*.example", True),
    ("**.example", True),
    ("a.**.example", True),
    ("a*b.example", True),
    ("a*b*.example", True),
    ("under_score.example", True),
    ("a.example.", False),
    ("a..example", False),
    (".example", False),
    ("***", False),
    ("***.example", False),
    ("a**.example", False),
    ("**a.example", False),
    ("a b", False),
    ("a/b", False),
    ("é.example", False),
    ("a" * 256, False),
]


@pytest.mark.parametrize(("name", "valid"), SERVER_NAMES, ids=[row[0][:20] for row in SERVER_NAMES])
def test_6_1_which_server_names_there_are(name: str, valid: bool, bench: Bench) -> None:
    document = bench.cnp(f"egress: [{{toPorts: [{{{P}}}]}}]")
    document["spec"]["egress"][0]["toPorts"][0]["serverNames"] = [name]
    faults = lang.faults(document)
    assert len(faults) == 1
    assert faults[0].unsupported is valid


PATTERNS = [
    "*",
    "**",
    "*.cilium.io",
    "*cilium.io",
    "sub*.cilium.io",
    "**.cilium.io",
    "a.b.",
    "_srv._tcp.a-b.c",
    "A.B",
    ".",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_5_1_which_patterns_there_are(pattern: str, bench: Bench) -> None:
    for spec in (query(f"{{matchPattern: '{pattern}'}}"), f"egress: [{{toFQDNs: [{{matchPattern: '{pattern}'}}]}}]"):
        assert lang.parse(bench.cnp(spec))


def test_5_1_a_dns_item_may_have_both_and_a_port_other_than_53(bench: Bench) -> None:
    assert lang.parse(
        bench.cnp(
            "egress: [{toPorts: [{ports: [{port: '5353', protocol: ANY}, {port: '53', protocol: TCP}], "
            "rules: {dns: [{matchName: a.b, matchPattern: '*.c'}]}}]}]"
        )
    )


HOST_ROWS = [
    (
        "1.6.5 HTTP on host ingress",
        f"ingress: [{{toPorts: [{{{P}, rules: {{http: [{{}}]}}}}]}}]",
        "spec.ingress[0].toPorts[0].rules",
        "L7 policy is not supported on host ingress yet",
    ),
    (
        "1.6.6 HTTP on host egress",
        f"egress: [{{toPorts: [{{{P}, rules: {{http: [{{}}]}}}}]}}]",
        "spec.egress[0].toPorts[0].rules",
        "L7 protocol HTTP is not supported on host egress yet",
    ),
    ("a host policy is read like any other", "ingress: [{fromCIDR: [x]}]", "spec.ingress[0].fromCIDR[0]", "unable to"),
]


def host(bench: Bench, spec: str) -> Any:
    document = bench.ccnp(spec)
    document["spec"]["nodeSelector"] = document["spec"].pop("endpointSelector")
    return document


@pytest.mark.parametrize(("spec", "at", "message"), [row[1:] for row in HOST_ROWS], ids=[row[0] for row in HOST_ROWS])
def test_policies_for_nodes(spec: str, at: str, message: str, bench: Bench) -> None:
    with pytest.raises(PolicyError) as caught:
        lang.parse(host(bench, spec))
    assert caught.value.at == at
    assert caught.value.message.startswith(message)


def test_1_6_5_no_rules_of_a_host_policy_are_valid(bench: Bench) -> None:
    assert lang.parse(host(bench, f"ingress: [{{toPorts: [{{{P}, rules: {{http: []}}}}]}}]")) == ()


def test_dns_rules_of_a_host_policy_are_valid(bench: Bench) -> None:
    assert lang.parse(host(bench, query("{matchName: a.b}"))) == ()


def test_1_6_36_a_cluster_wide_policy_has_no_namespaced_listener(bench: Bench) -> None:
    config = "{name: x, envoyConfig: {kind: CiliumEnvoyConfig, name: e}}"
    with pytest.raises(PolicyError) as caught:
        lang.parse(bench.ccnp(listener(config)))
    assert caught.value.message == 'Listener "x" in CCNP can not use Kind CiliumEnvoyConfig'
    assert lang.parse(bench.ccnp(listener(config.replace("CiliumEnvoy", "CiliumClusterwideEnvoy"))))


def test_1_6_what_is_not_refused_although_a_reader_would_expect_it(bench: Bench) -> None:
    for spec in (
        "egress: [{toServices: [{k8sService: {serviceName: no-such-service}}], toPorts: [{ports: [{port: '80'}]}]}]",
        "egress: [{toCIDRSet: [{cidrGroupRef: no-such-group, except: [10.0.0.0/8]}]}]",
        f"egress: [{{toPorts: [{{{P}, terminatingTLS: {TLS}, originatingTLS: {TLS}}}]}}]",
        "egress: [{toFQDNs: [{matchName: a.b}], toPorts: [{ports: [{port: '443'}]}]}]",
    ):
        assert lang.parse(bench.cnp(spec))


def test_1_2_deny_rules_are_for_addresses_and_ports_only(bench: Bench) -> None:
    for spec in (
        "egressDeny: [{toFQDNs: [{matchName: a.b}]}]",
        "egressDeny: [{toEntities: [world], authentication: {mode: required}}]",
        f"egressDeny: [{{toPorts: [{{{P}, serverNames: [a.b]}}]}}]",
        f"egressDeny: [{{toPorts: [{{{P}, rules: {{http: [{{}}]}}}}]}}]",
    ):
        with pytest.raises(PolicyError, match="unknown field") as caught:
            lang.parse(bench.cnp(spec))
        assert not caught.value.unsupported


@pytest.mark.parametrize(
    ("name", "item"),
    [("toServices", "{k8sServiceSelector: {selector: {}}}"), ("toCIDRSet", "{cidrGroupSelector: {}}")],
)
def test_references_by_label_are_not_without_end(name: str, item: str, bench: Bench) -> None:
    """Each may match every Service of the cluster: a tenant's document must not keep a node busy for minutes."""
    assert lang.parse(bench.cnp(f"egress: [{{{name}: [{', '.join([item] * 100)}]}}]"))
    with pytest.raises(PolicyError, match="too many references by label in one document, the max is 100"):
        lang.parse(bench.cnp(f"egress: [{{{name}: [{', '.join([item] * 101)}]}}]"))
