"""Fields that are no wildcards: what is missing, what is empty, and what contains an empty item."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from l7proxy.model.verdict import Direction, Verdict

if TYPE_CHECKING:
    from tests.unit.policy.conftest import Bench

HTTP_80 = "ports: [{port: '80', protocol: TCP}]"

ROWS = [
    ("1.7.1 a missing list leaves its direction ungoverned", "egress: [{}]", "a", "80/TCP", "allow"),
    ("1.7.2 an empty list beside another counts as missing", "{ingress: [], egress: [{}]}", "a", "80/TCP", "allow"),
    ("1.7.3 an empty item allows nothing and denies by default", "ingress: [{}]", "a", "80/TCP", "no rule"),
    ("1.7.3 an empty deny item denies nothing but by default", "ingressDeny: [{}]", "a", "80/TCP", "no rule"),
    (
        "1.7.4 an empty selector is everyone of the namespace",
        "ingress: [{fromEndpoints: [{}]}]",
        "a",
        "80/TCP",
        "allow",
    ),
    ("1.7.4 an empty selector is nobody else", "ingress: [{fromEndpoints: [{}]}]", "other/a", "80/TCP", "no rule"),
    ("1.7.4 an empty selector is not the world", "ingress: [{fromEndpoints: [{}]}]", "192.0.2.1", "80/TCP", "no rule"),
    ("1.7.5 an empty peer list is nobody", "ingress: [{fromEndpoints: []}]", "a", "80/TCP", "no rule"),
    (
        "1.7.5 an empty peer list is nobody even with ports",
        f"ingress: [{{fromEndpoints: [], toPorts: [{{{HTTP_80}}}]}}]",
        "a",
        "80/TCP",
        "no rule",
    ),
    (
        "1.7.5 no entities is nobody",
        f"ingress: [{{fromEntities: [], toPorts: [{{{HTTP_80}}}]}}]",
        "world",
        "80/TCP",
        "no rule",
    ),
    (
        "1.7.5 no CIDR is nobody",
        f"ingress: [{{fromCIDR: [], toPorts: [{{{HTTP_80}}}]}}]",
        "192.0.2.1",
        "80/TCP",
        "no rule",
    ),
    (
        "1.7.5 no CIDR set is nobody",
        f"ingress: [{{fromCIDRSet: [], toPorts: [{{{HTTP_80}}}]}}]",
        "192.0.2.1",
        "80/TCP",
        "no rule",
    ),
    (
        "1.7.5 an empty deny list denies nobody",
        "{ingressDeny: [{fromEntities: []}], ingress: [{fromEndpoints: [{}]}]}",
        "a",
        "80/TCP",
        "allow",
    ),
    (
        "1.7.6 missing peers are anyone: the world",
        f"ingress: [{{toPorts: [{{{HTTP_80}}}]}}]",
        "192.0.2.1",
        "80/TCP",
        "allow",
    ),
    (
        "1.7.6 missing peers are anyone: other namespaces",
        f"ingress: [{{toPorts: [{{{HTTP_80}}}]}}]",
        "other/a",
        "80/TCP",
        "allow",
    ),
    (
        "1.7.6 missing peers are anyone, on those ports",
        f"ingress: [{{toPorts: [{{{HTTP_80}}}]}}]",
        "a",
        "81/TCP",
        "no rule",
    ),
    ("1.7.7 missing ports are all ports", "ingress: [{fromEndpoints: [{}]}]", "a", "9999/SCTP", "allow"),
    ("1.7.7 missing ports are all protocols, ICMP too", "ingress: [{fromEndpoints: [{}]}]", "a", "8/ICMP", "allow"),
    (
        "1.7.7 an empty toPorts is as if missing",
        "ingress: [{fromEndpoints: [{}], toPorts: []}]",
        "a",
        "8/ICMP",
        "allow",
    ),
    ("1.7.7 an empty toPorts without peers is an empty item", "ingress: [{toPorts: []}]", "a", "80/TCP", "no rule"),
    (
        "1.7.8 an empty toPorts item is no port",
        "ingress: [{fromEndpoints: [{}], toPorts: [{}]}]",
        "a",
        "80/TCP",
        "no rule",
    ),
    (
        "1.7.8 an empty ports list is no port",
        "ingress: [{fromEndpoints: [{}], toPorts: [{ports: []}]}]",
        "a",
        "80/TCP",
        "no rule",
    ),
    (
        "1.7.8 an empty deny ports list denies no port",
        "{ingressDeny: [{toPorts: [{ports: []}]}], ingress: [{fromEndpoints: [{}]}]}",
        "a",
        "80/TCP",
        "allow",
    ),
    (
        "1.7.10 empty rules are plain L4",
        f"ingress: [{{toPorts: [{{{HTTP_80}, rules: {{}}}}]}}]",
        "a",
        "80/TCP",
        "allow",
    ),
    (
        "1.7.10 an empty http list is plain L4",
        f"ingress: [{{toPorts: [{{{HTTP_80}, rules: {{http: []}}}}]}}]",
        "a",
        "80/TCP",
        "allow",
    ),
    (
        "1.7.11 an empty http item is judged by the proxy",
        f"ingress: [{{toPorts: [{{{HTTP_80}, rules: {{http: [{{}}]}}}}]}}]",
        "a",
        "80/TCP",
        "proxy",
    ),
]


@pytest.mark.parametrize(("spec", "peer", "port", "expected"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_emptiness(spec: str, peer: str, port: str, expected: str, bench: Bench) -> None:
    assert bench.enforce(spec).ingress(peer, port) == expected


def test_1_7_11_an_empty_http_item_allows_every_request(bench: Bench) -> None:
    land = bench.enforce(f"ingress: [{{toPorts: [{{{HTTP_80}, rules: {{http: [{{}}]}}}}]}}]")
    assert land.http("a", "BREW /any?thing") == "allow"


def test_1_7_4_an_empty_selector_of_a_cluster_wide_policy_is_every_pod(bench: Bench) -> None:
    land = bench.enforce(bench.ccnp("ingress: [{fromEndpoints: [{}]}]"))
    who = ("a", "other/a", "third/a", "192.0.2.1", "remote-node", "health")
    assert [land.ingress(each) for each in who] == ["allow"] * 3 + ["no rule"] * 3


BOTH_WAYS = [
    ("fromEndpoints", "ingress"),
    ("fromEntities", "ingress"),
    ("fromCIDR", "ingress"),
    ("fromCIDRSet", "ingress"),
    ("toEndpoints", "egress"),
    ("toEntities", "egress"),
    ("toCIDR", "egress"),
    ("toCIDRSet", "egress"),
]


@pytest.mark.parametrize(("name", "way"), BOTH_WAYS, ids=[row[0] for row in BOTH_WAYS])
def test_empty_is_not_absent_for_any_peer_list(name: str, way: str, bench: Bench) -> None:
    """If an empty list were dropped on the way, "no peer" would become "every peer"."""
    ports = "toPorts: [{ports: [{port: '80'}]}]"
    empty, absent = bench.enforce(f"{way}: [{{{name}: [], {ports}}}]"), bench.enforce(f"{way}: [{{{ports}}}]")
    direction = Direction.INGRESS if way == "ingress" else Direction.EGRESS
    for peer in ("a", "other/a", "192.0.2.1", "remote-node"):
        assert empty.port(peer, direction=direction).l4.verdict is Verdict.DROPPED
        assert absent.port(peer, direction=direction).l4.verdict is Verdict.FORWARDED


@pytest.mark.parametrize("other", ["fromEntities: [all]", "fromEndpoints: [{}]", "fromCIDR: [0.0.0.0/0]"])
def test_an_empty_peer_list_beside_a_full_one_is_still_nobody(other: str, bench: Bench) -> None:
    empty = "fromCIDRSet: []"
    land = bench.enforce(f"ingress: [{{{other}, {empty}}}]")
    assert {land.ingress(peer) for peer in ("a", "192.0.2.1", "remote-node")} == {"no rule"}
