"""Default deny, and which of several rules on one flow decides."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from l7proxy.model.verdict import DropReason
from l7proxy.policy.http_table import HttpTable

if TYPE_CHECKING:
    from tests.unit.policy.conftest import Bench

DENY_10 = "egressDeny: [{toCIDR: [10.0.0.0/8]}]"

DEFAULT_DENY = [
    ("2.5.1 no policy: all is allowed", [], "allow", "allow"),
    ("2.5.2 only ingress rules: egress is open", ["ingress: [{}]"], "allow", "allow"),
    ("2.5.3 only deny rules: nothing is allowed", [DENY_10], "deny", "no rule"),
    (
        "2.5.4 deny rules without default deny: the rest is allowed",
        [f"{{{DENY_10}, enableDefaultDeny: {{egress: false}}}}"],
        "deny",
        "allow",
    ),
    (
        "2.5.5 one policy with default deny is enough",
        [f"{{{DENY_10}, enableDefaultDeny: {{egress: false}}}}", "{egress: [{}], enableDefaultDeny: {egress: true}}"],
        "deny",
        "no rule",
    ),
    ("2.5.6 an empty egress item: nothing is allowed", ["egress: [{}]"], "no rule", "no rule"),
    (
        "2.5 default deny without an entry has no effect",
        ["{ingress: [{}], enableDefaultDeny: {egress: true}}"],
        "allow",
        "allow",
    ),
    (
        "2.5 an empty list is no entry",
        ["{ingress: [{}], egress: [], enableDefaultDeny: {egress: true}}"],
        "allow",
        "allow",
    ),
    (
        "2.5 an empty item without default deny says nothing",
        ["{egress: [{}], enableDefaultDeny: {egress: false}}"],
        "allow",
        "allow",
    ),
    (
        "2.5 the other direction's flag is not ours",
        [f"{{{DENY_10}, enableDefaultDeny: {{ingress: false}}}}"],
        "deny",
        "no rule",
    ),
]


@pytest.mark.parametrize(
    ("policies", "listed", "rest"), [row[1:] for row in DEFAULT_DENY], ids=[row[0] for row in DEFAULT_DENY]
)
def test_default_deny(policies: list[str], listed: str, rest: str, bench: Bench) -> None:
    land = bench.enforce(*policies)
    assert (land.egress("10.1.2.3"), land.egress("192.0.2.1")) == (listed, rest)


def test_an_endpoint_that_no_rule_selects_has_no_policy(bench: Bench) -> None:
    land = bench.enforce(bench.cnp("{ingress: [{}], egress: [{}]}", subject="app: nobody"))
    assert (land.policy.endpoint, land.policy.ingress, land.policy.egress) == (1, None, None)


def test_policies_of_another_namespace_do_not_apply(bench: Bench) -> None:
    land = bench.enforce(bench.cnp("{ingress: [{}], egress: [{}]}", namespace="other"))
    assert (land.policy.ingress, land.policy.egress) == (None, None)


A = "fromEndpoints: [{matchLabels: {app: a}}]"
B = "fromEndpoints: [{matchLabels: {app: b}}]"
TCP_80 = "ports: [{port: '80', protocol: TCP}]"
TCP_81 = "ports: [{port: '81', protocol: TCP}]"
RANGE = "ports: [{port: '1', endPort: 1000, protocol: TCP}]"
GET_A = "rules: {http: [{method: GET, path: /a}]}"
POST_B = "rules: {http: [{method: POST, path: /b}]}"


def allow(peer: str = "", *ports: str) -> str:
    """One ingress policy with one item."""
    cell = [f"toPorts: [{{{', '.join(ports)}}}]"] if ports else []
    parts = ", ".join([peer, *cell] if peer else cell)
    return f"ingress: [{{{parts}}}]"


def deny(peer: str = "", *ports: str) -> str:
    return allow(peer, *ports).replace("ingress", "ingressDeny")


R1 = allow(A, TCP_80, GET_A)

L4 = [
    (
        "3.3.1 plain for A, HTTP for anyone: A is steered",
        [allow(A, TCP_80), allow("", TCP_80, GET_A)],
        "a",
        "80/TCP",
        "proxy, all allowed",
    ),
    (
        "3.3.2 plain on exactly 80, HTTP on a range: steered",
        [allow(A, TCP_80), allow(A, RANGE, GET_A)],
        "a",
        "80/TCP",
        "proxy, all allowed",
    ),
    ("3.3.2 HTTP on a range alone: judged on 81, too", [allow(A, RANGE, GET_A)], "a", "81/TCP", "proxy"),
    ("3.3.3 L3-only for A, HTTP for A on 80: steered on 80", [allow(A), R1], "a", "80/TCP", "proxy, all allowed"),
    ("3.3.3 L3-only for A, HTTP for A on 80: other ports plain", [allow(A), R1], "a", "81/TCP", "allow"),
    ("3.2.2 deny L3 beats allow L7", [R1, deny(A)], "a", "80/TCP", "deny"),
    ("3.2.2 deny on a range beats allow on a port in it", [R1, deny("", RANGE)], "a", "80/TCP", "deny"),
    (
        "3.2.2 deny for everyone beats allow for A",
        [allow(A, TCP_80), deny("fromEntities: [all]")],
        "a",
        "80/TCP",
        "deny",
    ),
    ("3.2.3 deny on one port leaves the next", [allow(A), deny(A, TCP_80)], "a", "81/TCP", "allow"),
    ("3.2.3 deny for one peer leaves the other", [allow("fromEndpoints: [{}]"), deny(A)], "b", "80/TCP", "allow"),
    ("3.2.4 a rule is peer and port", [allow(A, TCP_80)], "a", "81/TCP", "no rule"),
    ("3.2.4 items are one or the other", [allow(A, TCP_80), allow(B, TCP_81)], "b", "80/TCP", "no rule"),
    (
        "3.4.1 same peer and port, plain and HTTP: HTTP is void",
        [R1, allow(A, TCP_80)],
        "a",
        "80/TCP",
        "proxy, all allowed",
    ),
    ("3.4.12 deny and anything: deny", [R1, allow(A, TCP_80), deny(A, TCP_80)], "a", "80/TCP", "deny"),
    (
        "3.2.5 HTTP without default deny: steered, all allowed",
        [f"{{{R1}, enableDefaultDeny: {{ingress: false}}}}"],
        "a",
        "80/TCP",
        "proxy, all allowed",
    ),
    (
        "3.2.5 HTTP without default deny: the rest is allowed",
        [f"{{{R1}, enableDefaultDeny: {{ingress: false}}}}"],
        "b",
        "80/TCP",
        "allow",
    ),
    (
        "3.2.5 HTTP without default deny beside default deny: judged",
        [f"{{{R1}, enableDefaultDeny: {{ingress: false}}}}", "ingress: [{}]"],
        "a",
        "80/TCP",
        "proxy",
    ),
]


@pytest.mark.parametrize(("policies", "peer", "port", "expected"), [row[1:] for row in L4], ids=[row[0] for row in L4])
def test_precedence(policies: list[str], peer: str, port: str, expected: str, bench: Bench) -> None:
    assert bench.enforce(*policies).ingress(peer, port) == expected
    assert bench.enforce(*reversed(policies)).ingress(peer, port) == expected


def test_3_4_3_http_rules_of_two_policies_are_one_union(bench: Bench) -> None:
    land = bench.enforce(R1, allow(A, TCP_80, POST_B))
    asked = ("GET /a", "POST /b", "GET /b", "POST /a")
    assert [land.http("a", line) for line in asked] == ["allow", "allow", "deny", "deny"]


def test_3_4_3_equal_http_rules_count_once(bench: Bench) -> None:
    land = bench.enforce(allow(A, TCP_80, "rules: {http: [{path: /a}, {path: /a}]}"))
    table = land.port("a").tables[0]
    assert isinstance(table, HttpTable)
    assert [rule.number for rule in table.rules] == [1, 2]  # two written rules, distinguished by their position
    assert land.http("a", "GET /a") == "allow"


MOOT = [
    ("3.5.1 R1 alone", [R1], "a", "judged"),
    ("3.5.2 and plain for the peer on 80", [R1, allow(A, TCP_80)], "a", "all allowed"),
    ("3.5.3 and L3-only for the peer", [R1, allow(A)], "a", "all allowed"),
    ("3.5.4 and plain for anyone on 80", [R1, allow("", TCP_80)], "a", "all allowed"),
    ("3.5.5 and plain for the peer on a range that covers 80", [R1, allow(A, RANGE)], "a", "all allowed"),
    ("3.5.6 and plain for the peer on 81", [R1, allow(A, TCP_81)], "a", "judged"),
    ("3.5.7 and plain for another peer: effective for this one", [R1, allow(B, TCP_80)], "a", "judged"),
    ("3.5.7 and plain for another peer: not steered at all", [R1, allow(B, TCP_80)], "b", "plain"),
    ("3.5.8 HTTP for anyone, L3-only for P: moot for P", [allow("", TCP_80, GET_A), allow(A)], "a", "all allowed"),
    ("3.5.8 HTTP for anyone, L3-only for P: effective for others", [allow("", TCP_80, GET_A), allow(A)], "b", "judged"),
    (
        "3.5.8 HTTP for anyone, L3-only for P: effective for the world",
        [allow("", TCP_80, GET_A), allow(A)],
        "192.0.2.1",
        "judged",
    ),
    ("3.5.11 and deny for the peer on 80", [R1, deny(A, TCP_80)], "a", "deny"),
    ("3.5.12 the host, with R1 only: plain", [R1], "host", "plain"),
    ("3.5.12 the host, HTTP for anyone: steered, all allowed", [allow("", TCP_80, GET_A)], "host", "all allowed"),
]


@pytest.mark.parametrize(("policies", "peer", "expected"), [row[1:] for row in MOOT], ids=[row[0] for row in MOOT])
def test_whether_http_rules_bind_a_peer(policies: list[str], peer: str, expected: str, bench: Bench) -> None:
    land = bench.enforce(*policies)
    seen = land.ingress(peer)
    assert {"proxy": "judged", "proxy, all allowed": "all allowed", "allow": "plain"}.get(seen, seen) == expected
    if seen.startswith("proxy"):
        assert land.http(peer, "GET /a") == "allow"
        assert land.http(peer, "GET /b") == ("deny" if expected == "judged" else "allow")


def test_3_5_9_http_rules_of_two_selectors_for_one_peer_are_a_union(bench: Bench) -> None:
    land = bench.enforce(R1, allow("fromEndpoints: [{}]", TCP_80, POST_B))
    assert [land.http("a", line) for line in ("GET /a", "POST /b", "GET /b")] == ["allow", "allow", "deny"]
    assert [land.http("b", line) for line in ("GET /a", "POST /b")] == ["deny", "allow"]


def test_http_rules_stay_with_their_own_peers_and_ports(bench: Bench) -> None:
    """GHSA-2h44-x2wx-49f4: an allow-all for one of several peers must not reach the rules of another."""
    for_a = f"{{{A}, toPorts: [{{{TCP_80}, {GET_A}}}, {{{TCP_81}, {POST_B}}}]}}"
    land = bench.enforce(f"ingress: [{for_a}, {{{B}, toPorts: [{{{TCP_80}}}]}}]")
    assert [land.http("a", line) for line in ("GET /a", "POST /b")] == ["allow", "deny"]
    assert [land.http("a", line, port="81/TCP") for line in ("GET /a", "POST /b")] == ["deny", "allow"]
    assert land.ingress("b") == "allow"


def test_drop_reasons_tell_an_explicit_deny_from_nothing_allowed(bench: Bench) -> None:
    land = bench.enforce(deny(A), allow("fromEndpoints: [{}]"))
    assert land.port("a").l4.drop_reason is DropReason.POLICY_DENY
    assert land.port("192.0.2.1").l4.drop_reason is DropReason.POLICY_DENIED


def test_a_denial_names_who_denied(bench: Bench) -> None:
    named = bench.cnp(deny(A), name="no-a")
    land = bench.enforce(named, bench.cnp(allow("fromEndpoints: [{}]", TCP_80), name="inside"))
    denied, nothing = land.port("a").l4, land.port("other/a", "81/TCP").l4
    assert denied.reason == "denied by policy default/no-a spec.ingressDeny[0]"
    assert (denied.ref, denied.also) == (land.rules[0].ref, ())
    number = land.who("other/a")
    assert nothing.reason == f"no rule of policy default/inside, policy default/no-a allows identity {number} to 81/TCP"
    assert nothing.ref is not None
    assert (nothing.ref.name, [ref.name for ref in nothing.also]) == ("inside", ["no-a"])


def test_a_denial_names_few_of_many_policies(bench: Bench) -> None:
    land = bench.enforce(*[bench.cnp(allow(B), name=f"p{place}") for place in range(5)])
    assert land.port("a").l4.reason == (
        "no rule of policy default/p0, policy default/p1, policy default/p2 and 2 more allows identity 301 to 80/TCP"
    )


def test_an_allow_names_all_who_allowed(bench: Bench) -> None:
    land = bench.enforce(allow(A, TCP_80), allow(A), R1)
    answer = land.port("a")
    assert [str(ref) for ref in (answer.l4.ref, *answer.l4.also)] == [
        "CiliumNetworkPolicy default/p2 spec.ingress[0].toPorts[0]"
    ]
    assert [ref.name for ref in (answer.rest.ref, *answer.rest.also) if ref] == ["p0", "p1"]
    assert answer.judge(bench.request("GET /x")) == answer.rest
