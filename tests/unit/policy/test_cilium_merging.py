"""Several rules on one flow: both directions, unions, levels, merges, and rules without a gate yet."""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING, Any

import pytest

from l7proxy.model.identity import RESERVED_IDENTITIES
from l7proxy.model.verdict import Direction, DropReason, Verdict
from l7proxy.wire import path

if TYPE_CHECKING:
    from tests.unit.policy.conftest import Bench

TO_A = "toEndpoints: [{matchLabels: {app: a}}]"
P443 = "ports: [{port: '443', protocol: TCP}]"
P80 = "ports: [{port: '80', protocol: TCP}]"
P53 = "ports: [{port: '53', protocol: UDP}]"
GET_A = "rules: {http: [{method: GET, path: /a}]}"
TLS = "{secret: {namespace: s, name: %s}}"
LISTENER = "{name: %s, envoyConfig: {name: e}}"


def to_a(*cells: str, more: str = "") -> str:
    """Egress to pod `a`, on these toPorts items."""
    return f"egress: [{{{TO_A}, toPorts: [{', '.join(f'{{{cell}}}' for cell in cells)}]{more}}}]"


# --- 3.1 one connection


def test_3_1_2_a_direction_that_no_policy_governs_passes_and_one_that_is_needs_a_rule(bench: Bench) -> None:
    town = bench.town("ingress: [{fromEndpoints: [{matchLabels: {app: a}}]}]")
    assert (town.ingress("a", "b"), town.egress("a", "b")) == ("allow no rule", "allow allow")
    assert not town.port(Direction.EGRESS, "10.1.0.2").enforced


def test_3_1_4_a_deny_rule_and_no_rule_have_their_own_reasons(bench: Bench) -> None:
    town = bench.town("{ingressDeny: [{fromEntities: [world]}], ingress: [{fromEndpoints: [{}]}]}")
    reasons = [town.port(Direction.INGRESS, who).l4.drop_reason for who in ("203.0.113.7", "10.3.0.2", "10.1.0.2")]
    assert reasons == [DropReason.POLICY_DENY, DropReason.POLICY_DENIED, DropReason.UNKNOWN]


# --- 3.2 and 3.3 unions and levels

R1 = f"ingress: [{{fromEndpoints: [{{matchLabels: {{app: a}}}}], toPorts: [{{{P80}, {GET_A}}}]}}]"
RULES = [
    R1,
    "ingress: [{fromEndpoints: [{}], toPorts: [{ports: [{port: '1', endPort: 100}]}]}]",
    "{ingressDeny: [{fromEntities: [world]}], enableDefaultDeny: {ingress: false}}",
    "ingress: [{fromEntities: [remote-node]}]",
]


def test_3_2_1_policies_are_a_union_in_any_order(bench: Bench) -> None:
    everyone = ("n1", "n2", "a", "b", "other/a", "outside")
    towns = [bench.town(*order) for order in permutations(RULES)]
    seen = {tuple(town.ingress(*everyone, port=port) for port in ("80/TCP", "443/TCP")) for town in towns}
    assert seen == {
        (
            "allow allow proxy, all allowed allow no rule deny",
            "allow allow no rule no rule no rule deny",
        )
    }


def test_3_2_6_without_any_default_deny_what_no_rule_names_passes_at_the_end(bench: Bench) -> None:
    off = "enableDefaultDeny: {egress: false}"
    town = bench.town(f"{{egress: [{{toEntities: [host]}}], {off}}}", f"{{egressDeny: [{{{TO_A}}}], {off}}}")
    assert town.egress("n1", "b", "a", "outside") == "allow allow deny allow"
    ref = town.port(Direction.EGRESS, "203.0.113.7").l4.ref
    assert ref is not None
    assert ref.name == "no-default-deny"


NO_GATE = {
    "listener": f"{P443}, listener: {LISTENER % 'l'}",
    "server names": f"{P443}, serverNames: [a.b]",
    "terminating TLS": f"{P443}, terminatingTLS: {TLS % 'n'}",
}


@pytest.mark.parametrize("kind", NO_GATE)
def test_3_3_what_would_be_steered_elsewhere_beats_a_plain_allow_however_specific(kind: str, bench: Bench) -> None:
    """Redirect beats allow; the redirect has no gate yet, so nothing passes."""
    town = bench.town(f"egress: [{{toPorts: [{{{NO_GATE[kind]}}}]}}]", to_a(P443))
    assert town.egress("a", "b", port="443/TCP") == "deny deny"


# --- 3.4 the same peers and ports

MERGED = [
    ("3.4.2 plain and DNS: every name", [to_a(P53), to_a(f"{P53}, rules: {{dns: [{{matchName: x.y}}]}}")], "53/UDP",
     "allow"),
    ("3.4.2 DNS alone: no gate yet", [to_a(f"{P53}, rules: {{dns: [{{matchName: x.y}}]}}")], "53/UDP", "no rule"),
    ("3.4.4 HTTP and DNS: HTTP is judged, DNS opens nothing",
     [to_a(f"{P80}, {GET_A}"), to_a(f"{P80}, rules: {{dns: [{{matchPattern: '*'}}]}}")], "80/TCP", "proxy"),
    ("3.4.4 HTTP and a listener", [to_a(f"{P443}, {GET_A}"), to_a(NO_GATE["listener"])], "443/TCP", "deny"),
    ("3.4.5 server names and HTTP with termination",
     [to_a(NO_GATE["server names"]), to_a(f"{NO_GATE['terminating TLS']}, {GET_A}")], "443/TCP", "deny"),
    ("3.4.6 two listeners",
     [to_a(NO_GATE["listener"]), to_a(f"{P443}, listener: {LISTENER % 'other'}")], "443/TCP", "deny"),
    ("3.4.7 two modes of authentication",
     [to_a(P443, more=", authentication: {mode: required}"), to_a(P443, more=", authentication: {mode: disabled}")],
     "443/TCP", "deny"),
    ("3.4.7 authentication and none", [to_a(P443, more=", authentication: {mode: required}"), to_a(P443)], "443/TCP",
     "deny"),
    ("3.4.8 two contexts of TLS",
     [to_a(NO_GATE["terminating TLS"]), to_a(f"{P443}, terminatingTLS: {TLS % 'other'}")], "443/TCP", "deny"),
    ("3.4.9 server names survive a plain allow", [to_a(NO_GATE["server names"]), to_a(P443)], "443/TCP", "deny"),
    ("3.4.10 server names twice, one with HTTP",
     [to_a(NO_GATE["server names"]),
      to_a(f"{P443}, serverNames: [c.d], terminatingTLS: {TLS % 'n'}, {GET_A}")], "443/TCP", "deny"),
    ("3.4.11 server names and HTTP without termination",
     [to_a(NO_GATE["server names"]), to_a(f"{P443}, {GET_A}")], "443/TCP", "deny"),
    ("3.4.12 deny and what has no gate",
     [to_a(NO_GATE["server names"]), "egressDeny: [{toEntities: [all]}]"], "443/TCP", "deny"),
]  # fmt: skip


@pytest.mark.parametrize(("policies", "port", "expected"), [row[1:] for row in MERGED], ids=[row[0] for row in MERGED])
def test_merges(policies: list[str], port: str, expected: str, bench: Bench) -> None:
    for order in permutations(policies):
        assert bench.town(*order).egress("a", port=port) == expected


# --- 3.5 whether HTTP rules bind a peer: beside a Kubernetes policy


def kubernetes(app: str, bench: Bench) -> Any:
    return bench.load(f"""
        apiVersion: networking.k8s.io/v1
        kind: NetworkPolicy
        metadata: {{name: k, namespace: default}}
        spec:
          podSelector: {{matchLabels: {{app: server}}}}
          ingress: [{{from: [{{podSelector: {{matchLabels: {{app: {app}}}}}}}], ports: [{{port: 80}}]}}]
    """)


def test_3_5_10_a_kubernetes_allow_for_the_peer_makes_http_rules_moot(bench: Bench) -> None:
    town = bench.town(R1, kubernetes("a", bench))
    assert town.ingress("a", "b") == "proxy, all allowed no rule"
    assert town.port(Direction.INGRESS, "10.1.0.2").judge(bench.request("GET /b")).verdict is Verdict.FORWARDED
    town = bench.town(R1, kubernetes("b", bench))
    assert town.ingress("a", "b") == "proxy allow"


# --- 3.6 identities have Cilium's numbers

NUMBERS = [
    (1, ["reserved:host"]),
    (2, ["reserved:world"]),
    (3, ["reserved:unmanaged"]),
    (4, ["reserved:health"]),
    (5, ["reserved:init"]),
    (6, ["reserved:remote-node"]),
    (7, ["reserved:kube-apiserver", "reserved:remote-node"]),
    (8, ["reserved:ingress"]),
    (9, ["reserved:world-ipv4"]),
    (10, ["reserved:world-ipv6"]),
]


@pytest.mark.parametrize(("number", "labels"), NUMBERS, ids=[f"3.6 number {number}" for number, _ in NUMBERS])
def test_numbers(number: int, labels: list[str], bench: Bench) -> None:
    (found,) = (one for key, one in RESERVED_IDENTITIES.items() if key == number)
    assert list(found.text) == labels
    known = bench.town("egress: [{toCIDR: [203.0.113.0/24, 8.8.8.8/32]}]").view.identities
    assert number in known
    others = [key for key in known if key > 10]
    assert all(256 <= key < 1 << 24 or key >> 24 == 1 for key in others), "pods from 256, CIDRs from 1 << 24"
    assert len([key for key in others if key >> 24 == 1]) == 3, "two CIDRs, and the API server outside"


# --- 3.10 authentication has no gate yet

AUTH = [
    ("3.10 required: nobody passes", "{mode: required}", "deny"),
    ("3.10 test-always-fail never succeeds", "{mode: test-always-fail}", "deny"),
    ("3.10 disabled asks for nothing", "{mode: disabled}", "allow"),
]


@pytest.mark.parametrize(("mode", "expected"), [row[1:] for row in AUTH], ids=[row[0] for row in AUTH])
def test_authentication(mode: str, expected: str, bench: Bench) -> None:
    town = bench.town(to_a(P443, more=f", authentication: {mode}"))
    assert town.egress("a", "b", port="443/TCP") == f"{expected} no rule"


def test_3_10_a_narrower_rule_without_a_mode_is_covered_as_well(bench: Bench) -> None:
    wide = "egress: [{toEndpoints: [{}], authentication: {mode: required}}]"
    assert bench.town(wide, to_a(P443)).egress("a", port="443/TCP") == "deny"


# --- 11 paths are normalised before they are matched

PATHS = [
    ("11.40 the whole path", "/foo", "/foobar", "deny"),
    ("11.41 dot segments are taken out first", "/public/.*", "/public/../private", "deny"),
    ("11.41 and what they lead to is matched", "/private", "/public/../private", "allow"),
    ("11.41 in escapes, too", "/public/.*", "/public/%2e%2e/private", "deny"),
    ("11.43 slashes are merged first", "/a", "//a", "allow"),
    ("11.43 so that two match no rule", "//a", "//a", "deny"),
]


@pytest.mark.parametrize(("rule", "sent", "expected"), [row[1:] for row in PATHS], ids=[row[0] for row in PATHS])
def test_paths(rule: str, sent: str, expected: str, bench: Bench) -> None:
    land = bench.enforce(f"ingress: [{{toPorts: [{{{P80}, rules: {{http: [{{path: '{rule}'}}]}}}}]}}]")
    assert land.http("a", f"GET {path.normalise(sent.encode()).decode()}") == expected
