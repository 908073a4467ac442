"""Cases that a naive implementation gets wrong, by number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.unit.policy.conftest import Bench

NS = "io.kubernetes.pod.namespace"
A = "fromEndpoints: [{matchLabels: {app: a}}]"
TCP_80 = "ports: [{port: '80', protocol: TCP}]"

INGRESS = [
    ("11.1 an empty item denies anyone", ["ingress: [{}]"], "a", "80/TCP", "no rule"),
    ("11.1 an empty item denies the world", ["ingress: [{}]"], "192.0.2.1", "80/TCP", "no rule"),
    (
        "11.4 explicit empty is not missing",
        ["ingress: [{fromEndpoints: [], toPorts: [{ports: [{port: '80'}]}]}]"],
        "a",
        "80/TCP",
        "no rule",
    ),
    ("11.5 no ports listed is no port", [f"ingress: [{{{A}, toPorts: [{{}}]}}]"], "a", "80/TCP", "no rule"),
    (
        "11.8 a namespace key drops the default",
        [f"ingress: [{{fromEndpoints: [{{matchExpressions: [{{key: {NS}, operator: Exists}}]}}]}}]"],
        "other/a",
        "80/TCP",
        "allow",
    ),
    (
        "11.10 NotIn on an absent label matches",
        ["ingress: [{fromEndpoints: [{matchExpressions: [{key: app, operator: NotIn, values: [a]}]}]}]"],
        "plain",
        "80/TCP",
        "allow",
    ),
    (
        "11.14 deny wins regardless of specificity",
        [
            f"ingress: [{{{A}, toPorts: [{{{TCP_80}}}]}}]",
            "ingressDeny: [{toPorts: [{ports: [{port: '1', endPort: 1000}]}]}]",
        ],
        "a",
        "80/TCP",
        "deny",
    ),
    (
        "11.20 a plain allow of one peer: proxied, allowed",
        [
            f"ingress: [{{toPorts: [{{{TCP_80}, rules: {{http: [{{path: /a}}]}}}}]}}]",
            f"ingress: [{{{A}, toPorts: [{{{TCP_80}}}]}}]",
        ],
        "a",
        "80/TCP",
        "proxy, all allowed",
    ),
    (
        "11.25 a probe from another node is no local host",
        [f"ingress: [{{{A}, toPorts: [{{{TCP_80}, rules: {{http: [{{path: /a}}]}}}}]}}]"],
        "remote-node",
        "80/TCP",
        "no rule",
    ),
    (
        "11.34 endPort below port is a single port",
        ["ingress: [{toPorts: [{ports: [{port: '80', endPort: 70}]}]}]"],
        "a",
        "80/TCP",
        "allow",
    ),
    (
        "11.34 endPort below port is not a range",
        ["ingress: [{toPorts: [{ports: [{port: '80', endPort: 70}]}]}]"],
        "a",
        "75/TCP",
        "no rule",
    ),
    (
        "11.34 endPort below port is not above",
        ["ingress: [{toPorts: [{ports: [{port: '80', endPort: 70}]}]}]"],
        "a",
        "81/TCP",
        "no rule",
    ),
    (
        "11.35 port 0 of TCP is every port of TCP",
        ["ingress: [{toPorts: [{ports: [{port: '0', protocol: TCP}]}]}]"],
        "a",
        "65535/TCP",
        "allow",
    ),
    (
        "11.35 port 0 of TCP is no port of UDP",
        ["ingress: [{toPorts: [{ports: [{port: '0', protocol: TCP}]}]}]"],
        "a",
        "53/UDP",
        "no rule",
    ),
    (
        "11.37 any protocol holds UDP",
        ["ingress: [{toPorts: [{ports: [{port: '0', protocol: ANY}]}]}]"],
        "a",
        "53/UDP",
        "allow",
    ),
    ("11.37 any protocol holds SCTP", ["ingress: [{toPorts: [{ports: [{port: '0'}]}]}]"], "a", "53/SCTP", "allow"),
    (
        "11.37 any protocol does not hold ICMP",
        ["ingress: [{toPorts: [{ports: [{port: '0', protocol: ANY}]}]}]"],
        "a",
        "8/ICMP",
        "no rule",
    ),
    ("11.38 an L3-only allow lets ping in", [f"ingress: [{{{A}}}]"], "a", "8/ICMP", "allow"),
    (
        "a range holds both its ends",
        ["ingress: [{toPorts: [{ports: [{port: '80', endPort: 90}]}]}]"],
        "a",
        "90/TCP",
        "allow",
    ),
    ("a range ends", ["ingress: [{toPorts: [{ports: [{port: '80', endPort: 90}]}]}]"], "a", "91/TCP", "no rule"),
]


@pytest.mark.parametrize(
    ("policies", "peer", "port", "expected"), [row[1:] for row in INGRESS], ids=[row[0] for row in INGRESS]
)
def test_ingress(policies: list[str], peer: str, port: str, expected: str, bench: Bench) -> None:
    assert bench.enforce(*policies).ingress(peer, port) == expected


def test_11_7_all_pods_of_the_cluster_are_not_everyone(bench: Bench) -> None:
    land = bench.enforce(bench.ccnp("ingress: [{fromEndpoints: [{}]}]"))
    assert [land.ingress(each) for each in ("other/a", "192.0.2.1", "remote-node")] == ["allow", "no rule", "no rule"]


EGRESS = [
    (
        "11.13 deny rules without default deny leave the rest",
        ["{egressDeny: [{toCIDR: [10.0.0.0/8]}], enableDefaultDeny: {egress: false}}"],
        "192.0.2.1",
        "allow",
    ),
    (
        "11.16 an exception of a deny is not thereby allowed",
        ["egressDeny: [{toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]}]"],
        "10.1.0.1",
        "no rule",
    ),
    (
        "11.16 an exception of a deny may be allowed",
        ["{egressDeny: [{toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]}], egress: [{toEntities: [world]}]}"],
        "10.1.0.1",
        "allow",
    ),
    (
        "11.16 what is no exception is denied",
        ["{egressDeny: [{toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]}], egress: [{toEntities: [world]}]}"],
        "10.2.0.1",
        "deny",
    ),
    (
        "11.26 cluster holds the API server",
        ["egress: [{toEntities: [cluster]}]"],
        "kube-apiserver+remote-node",
        "allow",
    ),
    ("11.27 a CIDR over everything does not match a pod", ["egress: [{toCIDR: [0.0.0.0/0]}]"], "a", "no rule"),
    ("11.28 nor a node", ["egress: [{toCIDR: [0.0.0.0/0]}]"], "remote-node", "no rule"),
    ("11.29 nor the other family", ["egress: [{toCIDR: [0.0.0.0/0]}]"], "2001:db8::1", "no rule"),
]


@pytest.mark.parametrize(("policies", "peer", "expected"), [row[1:] for row in EGRESS], ids=[row[0] for row in EGRESS])
def test_egress(policies: list[str], peer: str, expected: str, bench: Bench) -> None:
    assert bench.enforce(*policies).egress(peer) == expected


def test_11_19_a_plain_allow_of_another_peer_is_irrelevant(bench: Bench) -> None:
    q = "ingress: [{fromEndpoints: [{matchLabels: {app: b}}], toPorts: [{ports: [{port: '80'}]}]}]"
    land = bench.enforce(
        f"ingress: [{{{A}, toPorts: [{{{TCP_80}, rules: {{http: [{{method: GET, path: /a}}]}}}}]}}]", q
    )
    assert land.http("a", "GET /b") == "deny"
