"""Lint: each code on the smallest policy that earns it, and silence on the one that does not."""

from __future__ import annotations

from typing import Any, Protocol

import pytest

from l7proxy.policy import lang, lint
from l7proxy.policy.compile import compile_policies


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
        ("[{method: GET, path: /a}, {method: GET, path: /b}]", ["get-without-head"]),  # once for a document
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
    assert [one.code for one in found] == (["l7-void"] if void else [])
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
    assert (found.code, found.ref.rule) == ("selects-nobody", "spec.ingress[0]")
    assert "app=nobody" in found.message


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("ingress: [{fromEndpoints: []}]", [("empty-is-nobody", "spec.ingress[0].fromEndpoints")]),
        ("egressDeny: [{toCIDR: []}]", [("empty-is-nobody", "spec.egressDeny[0].toCIDR")]),
        ("ingress: [{}]", []),
        ("egress: [{toFQDNs: [{matchName: a.b}]}]", [("fqdn-without-dns", "spec.egress[0].toFQDNs")]),
        (
            "egress: [{toFQDNs: [{matchName: a.b}]}, {toPorts: [{ports: [{port: '53'}], "
            "rules: {dns: [{matchPattern: '*'}]}}]}]",
            [],
        ),
        ("egress: 7", []),
        ("ingress: [7, {fromCIDR: 1}]", []),
    ],
)
def test_what_a_documents_fields_suggest(bench: Bench, spec: str, found: list[tuple[str, str]]) -> None:
    assert [(one.code, one.at) for one in lint.of_document(bench.cnp(spec))] == found
