"""Lint: each code on the smallest policy that triggers it, and no finding on a similar one that does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import pytest

from l7proxy.model.resources import NetworkSet
from l7proxy.policy import lang, lint
from l7proxy.policy.compile import compile_policies
from l7proxy.policy.tiers import ADMIN, BASELINE, DEFAULT, UNPLACED, Level, Tier
from tests.unit.policy.town import Town, load


class Bench(Protocol):
    def cnp(self, spec: str, *, namespace: str = ..., name: str = ..., subject: str | None = ...) -> Any: ...
    def server(self) -> Any: ...
    def identities_for(self, rules: Any, *, dual: bool = ...) -> Any: ...


def http(items: str, port: str = '"80"', peers: str = "") -> str:
    return f"""
    ingress:
    - {peers or "fromEndpoints: [{matchLabels: {app: a}}]"}
      toPorts: [{{ports: [{{port: {port}, protocol: TCP}}], rules: {{http: {items}}}}}]
    """


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/", "not-a-prefix"),
        ("/api/", "not-a-prefix"),
        ("^/api", "not-a-prefix"),
        ("^/api$", ""),
        ("^/api/.*", ""),
        ("/api/.*", ""),
        ("/health", ""),
        ("/users/.*/profile", "crosses-slash"),
        ("/users/.+/profile", "crosses-slash"),
        ("/users/[^/]+/profile", ""),
        (r"/v1\\.*/x", ""),
        ("/a/.*", ""),
    ],
)
def test_paths_that_look_like_something_else(bench: Bench, path: str, code: str) -> None:
    rules = lang.parse(bench.cnp(http(f"[{{method: GET|HEAD, path: '{path}'}}]")))
    assert [found.code for found in lint.of_rules(rules)] == ([code] if code else [])


@pytest.mark.parametrize(
    ("items", "codes"),
    [
        ("[{method: GET, path: /a}]", ["get-without-head"]),
        ("[{method: GET, path: /a}, {method: HEAD, path: /a}]", []),
        ("[{method: GET, path: /a}, {method: HEAD, path: /b}]", ["get-without-head"]),
        ("[{method: GET|HEAD, path: /a}]", []),
        ("[{path: /a}]", []),
        ("[{method: POST, path: /a}]", []),
        ("[{method: GET, path: /a}, {method: GET, path: /b}]", ["get-without-head"]),  # once per document
    ],
)
def test_get_without_head(bench: Bench, items: str, codes: list[str]) -> None:
    assert [found.code for found in lint.of_rules(lang.parse(bench.cnp(http(items))))] == codes


PLAIN = "ingress: [{fromEndpoints: [{matchLabels: {app: a}}], toPorts: [{ports: [{port: '80', protocol: TCP}]}]}]"


@pytest.mark.parametrize(
    ("second", "void"),
    [
        (PLAIN, "its peers"),
        ("ingress: [{fromEndpoints: [{matchLabels: {app: a}}]}]", "its peers"),
        ("ingress: [{toPorts: [{ports: [{port: '80', protocol: TCP}]}]}]", "its peers"),
        ("ingress: [{toPorts: [{ports: [{port: '1', endPort: 100, protocol: TCP}]}]}]", "its peers"),
        (PLAIN.replace("'80'", "'81'"), ""),
        (PLAIN.replace("app: a", "app: b"), ""),
        (PLAIN.replace("TCP", "UDP"), ""),
    ],
)
def test_an_l4_rule_that_voids_an_l7_rule_is_named_with_it(bench: Bench, second: str, void: str) -> None:
    documents = [bench.cnp(http("[{path: /a}]"), name="l7"), bench.cnp(second, name="l4")]
    rules = [rule for document in documents for rule in lang.parse(document)]
    policies = compile_policies(rules, [bench.server()], bench.identities_for(rules))
    found = list(lint.of_tables(policies, [bench.server()]))
    assert [one.code for one in found] == (["l7-shadowed"] if void else [])
    for one in found:
        assert one.ref.name == "l7"
        assert "policy default/l4 spec.ingress[0]" in one.message
        assert void in one.message


def test_an_l4_rule_for_some_of_the_peers_voids_for_some(bench: Bench) -> None:
    everyone = http("[{path: /a}]", peers="fromEntities: [cluster]")
    documents = [bench.cnp(everyone, name="l7"), bench.cnp(PLAIN, name="l4")]
    rules = [rule for document in documents for rule in lang.parse(document)]
    policies = compile_policies(rules, [bench.server()], bench.identities_for(rules))
    (found,) = lint.of_tables(policies, [bench.server()])
    assert "some of its peers" in found.message


def test_a_peer_that_nobody_is(bench: Bench) -> None:
    text = "ingress: [{fromEndpoints: [{matchLabels: {app: a}}, {matchLabels: {app: nobody}}]}, {fromEntities: [host]}]"
    rules = lang.parse(bench.cnp(text))
    (found,) = lint.of_peers(rules, bench.identities_for(rules))
    assert (found.code, found.ref.rule) == ("peer-selects-nothing", "spec.ingress[0]")
    assert "app=nobody" in found.message


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("ingress: [{fromEndpoints: []}]", [("empty-matches-nothing", "spec.ingress[0].fromEndpoints")]),
        ("egressDeny: [{toCIDR: []}]", [("empty-matches-nothing", "spec.egressDeny[0].toCIDR")]),
        ("ingress: [{}]", []),
        ("ingress: [{fromEntities: [all], toPorts: []}]", [("empty-matches-everything", "spec.ingress[0].toPorts")]),
        ("ingress: [{toPorts: []}]", []),
        ("ingress: [{toPorts: [{}]}]", [("empty-matches-nothing", "spec.ingress[0].toPorts[0]")]),
        ("ingress: [{toPorts: [{ports: []}]}]", [("empty-matches-nothing", "spec.ingress[0].toPorts[0]")]),
        (
            "ingress: [{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: []}}]}]",
            [("empty-matches-everything", "spec.ingress[0].toPorts[0].rules.http")],
        ),
        ("ingress: [{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{}]}}]}]", []),
        ("ingress: [{toPorts: 7}, {toPorts: [7]}]", []),
        ("egress: 7", []),
        ("ingress: [7, {fromCIDR: 1}]", []),
    ],
)
def test_what_a_documents_fields_suggest(bench: Bench, spec: str, found: list[tuple[str, str]]) -> None:
    assert [(one.code, one.at) for one in lint.of_document(bench.cnp(spec))] == found


@pytest.mark.parametrize(
    ("item", "found"),
    [
        ("{from: []}", ["spec.ingress[0].from"]),
        ("{from: [], ports: []}", ["spec.ingress[0].from", "spec.ingress[0].ports"]),
        ("{}", []),
        ("{from: [{podSelector: {}}], ports: [{port: 80}]}", []),
    ],
)
def test_an_empty_list_of_kubernetes_is_everyone(item: str, found: list[str]) -> None:
    (document,) = load(
        f"{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p}}, "
        f"spec: {{podSelector: {{}}, ingress: [{item}]}}}}"
    )
    assert [(one.code, one.at) for one in lint.of_document(document)] == [
        ("empty-matches-everything", at) for at in found
    ]


FQDN = "egress: [{toFQDNs: [{matchName: a.b}]}]"
DNS = "egress: [{toPorts: [{ports: [{port: '53'}], rules: {dns: [{matchPattern: '*'}]}}]}]"


def test_names_are_learned_by_a_dns_rule_of_any_policy(bench: Bench) -> None:
    names, dns = bench.cnp(FQDN), bench.cnp(DNS, name="dns")
    found = list(lint.of_names_learned([bench.cnp(PLAIN), names]))
    assert [(number, one.code, one.at) for number, one in found] == [(1, "fqdn-without-dns", "spec.egress[0].toFQDNs")]
    assert not list(lint.of_names_learned([names, dns]))


def test_a_header_value_that_is_read_as_a_regex_is_a_note_with_a_code(bench: Bench) -> None:
    notes = lang.notes(bench.cnp(http("[{headers: ['X-A: .*']}, {headers: ['X-A: plain']}]")))
    assert [(note.code, note.at[-10:]) for note in notes] == [("header-regex", "headers[0]")]


CALICO = """
    {{apiVersion: projectcalico.org/v3, kind: NetworkPolicy, metadata: {{name: p, namespace: x}},
     spec: {{selector: all(), ingress: [{{action: Allow, source: {{{}}}}}]}}}}
"""
SETS = [NetworkSet("x", "s", ("203.0.113.0/24",), {"kind": "set"})]


@pytest.mark.parametrize(
    ("source", "codes"),
    [
        ("selector: pod == 'b'", []),
        ("selector: pod == 'gone'", ["peer-selects-nothing"]),
        ("selector: kind == 'set'", []),
        ("selector: kind == 'other'", ["peer-selects-nothing"]),
        ("selector: pod == 'gone', notNets: [10.0.0.0/24]", ["peer-selects-nothing"]),
        ("selector: pod == 'b', notNets: [10.0.0.0/24]", []),
        ("namespaceSelector: ns == 'gone'", ["peer-selects-nothing"]),
        ("nets: [203.0.113.0/24]", []),
        ("notSelector: pod == 'b'", []),
    ],
)
def test_a_calico_peer_that_nobody_is(source: str, codes: list[str]) -> None:
    view = Town(CALICO.format(source), more=SETS).view("n1")
    assert [one.code for one in lint.of_peers(view.rules, view.identities)] == codes


KNP_80 = """
    {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: l4, namespace: default},
     spec: {podSelector: {}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]}}
"""


@pytest.mark.parametrize(
    ("second", "void"),
    [
        (PLAIN, True),
        (KNP_80, True),
        (KNP_80.replace("podSelector: {},", "podSelector: {matchLabels: {app: other}},"), False),
        (KNP_80.replace("[{podSelector: {}}]", "[{podSelector: {matchLabels: {app: b}}}]"), False),
        (KNP_80.replace("[{podSelector: {}}]", "[{podSelector: {matchLabels: {app: a}}}]"), True),
        (KNP_80.replace("port: 80", "port: 81"), False),
        (KNP_80.replace("port: 80", "port: 1, endPort: 100"), True),
        (KNP_80.replace("port: 80", "port: 80, protocol: UDP"), False),
        ("ingress: [{fromEntities: [all]}]", True),
        ("ingress: [{fromEntities: [host]}]", False),
        ("ingress: [{toPorts: [{ports: [{port: '80'}]}]}]", True),
        ("ingress: [{fromEndpoints: [], toPorts: [{ports: [{port: '80'}]}]}]", False),
        ("egress: [{toEntities: [all]}]", False),
        ("ingressDeny: [{fromEntities: [all]}]", False),
    ],
)
def test_an_l4_rule_voids_an_l7_rule_also_where_no_pods_are_given(bench: Bench, second: str, void: bool) -> None:
    other = load(second)[0] if second.strip().startswith("{") else bench.cnp(second, name="l4")
    rules = [*lang.parse(bench.cnp(http("[{path: /a}]"), name="l7")), *lang.parse(other)]
    found = list(lint.of_pairs(rules))
    assert [one.code for one in found] == (["l7-shadowed"] if void else [])
    for one in found:
        assert one.ref.name == "l7"
        assert "policy default/l4 spec.ingress[0]" in one.message


LEVELS = [
    ("before it", Level(DEFAULT, 10), True),
    ("after it", Level(DEFAULT, 2000), True),
    ("in a tier before it", Level(ADMIN, 5), True),
    ("in a tier after it", Level(BASELINE, 5), False),
    ("in a tier that nobody has placed", Level(Tier(UNPLACED, "named"), 5), False),
]


@pytest.mark.parametrize(("level", "void"), [row[1:] for row in LEVELS], ids=[row[0] for row in LEVELS])
def test_where_an_l4_rule_stands_that_voids_an_l7_rule(bench: Bench, level: Level, void: bool) -> None:
    (plain,) = lang.parse(bench.cnp(PLAIN, name="l4"))
    rules = [*lang.parse(bench.cnp(http("[{path: /a}]"), name="l7")), replace(plain, level=level)]
    assert bool(list(lint.of_pairs(rules))) is void
    if level.tier.order != UNPLACED:
        policies = compile_policies(rules, [bench.server()], bench.identities_for(rules))
        assert bool(list(lint.of_tables(policies, [bench.server()]))) is void
