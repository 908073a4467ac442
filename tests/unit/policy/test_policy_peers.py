"""Entities, CIDRs, the local host, named ports."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from l7proxy.model.ids import EndpointId
from l7proxy.policy import decide, lang
from l7proxy.policy.compile import ALLOW_LOCALHOST, cidrs_of, compile_policies

if TYPE_CHECKING:
    from tests.unit.policy.conftest import Bench

EVERYONE = (
    "a", "other/a", "host", "world", "unmanaged", "health", "init", "remote-node", "kube-apiserver+remote-node",
    "ingress", "world-ipv4", "world-ipv6", "192.0.2.1", "2001:db8::1",
)  # fmt: skip
CLUSTER = "a other/a host unmanaged health init remote-node kube-apiserver+remote-node ingress"

ENTITIES = [
    ("3.6.1 none is nobody", "none", ""),
    ("3.6.2 host is the local node only", "host", "host"),
    ("3.6.3 world is anything outside", "world", "world world-ipv4 world-ipv6 192.0.2.1 2001:db8::1"),
    ("3.6.4 unmanaged", "unmanaged", "unmanaged"),
    ("3.6.5 health", "health", "health"),
    ("3.6.6 init", "init", "init"),
    ("3.6.7 remote-node, an API server's too", "remote-node", "remote-node kube-apiserver+remote-node"),
    ("3.6.8 kube-apiserver", "kube-apiserver", "kube-apiserver+remote-node"),
    ("3.6.9 ingress", "ingress", "ingress"),
    ("3.6.10 cluster is nodes, pods and ours, not the world", "cluster", CLUSTER),
    ("3.6.11 cluster-mesh is the same in one cluster", "cluster-mesh", CLUSTER),
    ("3.6.12 all is everyone", "all", " ".join(EVERYONE)),
    # with one family `world` is the outside; in dual stack no address has that number
    ("3.6.13 world-ipv4 is that family", "world-ipv4", "world world-ipv4 192.0.2.1"),
    ("3.6.13 world-ipv6 is that family", "world-ipv6", "world world-ipv6 2001:db8::1"),
]


@pytest.mark.parametrize(("entity", "expected"), [row[1:] for row in ENTITIES], ids=[row[0] for row in ENTITIES])
def test_an_entity(entity: str, expected: str, bench: Bench) -> None:
    land = bench.enforce(f"egress: [{{toEntities: [{entity}]}}]")
    assert [each for each in EVERYONE if land.egress(each) == "allow"] == expected.split()


def test_3_6_an_outside_address_that_a_policy_names_is_still_the_world(bench: Bench) -> None:
    land = bench.enforce(
        "egress: [{toEntities: [world]}]", "egress: [{toCIDR: [192.0.2.0/24], toPorts: [{ports: [{port: '1'}]}]}]"
    )
    assert land.who("192.0.2.1") != land.who("world-ipv4")
    assert land.egress("192.0.2.1") == "allow"


def test_3_6_allowing_all_but_the_world(bench: Bench) -> None:
    land = bench.enforce("egress: [{toEntities: [host, remote-node, cluster, init, health, kube-apiserver]}]")
    assert [each for each in EVERYONE if land.egress(each) != "allow"] == [
        "world",
        "world-ipv4",
        "world-ipv6",
        "192.0.2.1",
        "2001:db8::1",
    ]


CIDRS = [
    ("3.7.1 an address inside", "toCIDR: [10.0.0.0/8]", "10.1.2.3", "allow"),
    ("3.7.1 an address outside", "toCIDR: [10.0.0.0/8]", "11.1.2.3", "no rule"),
    ("3.7.1 never a pod, though its address is in the prefix", "toCIDR: [0.0.0.0/0]", "a", "no rule"),
    ("3.7.1 never the host", "toCIDR: [0.0.0.0/0]", "host", "no rule"),
    ("3.7.1 never a node", "toCIDR: [0.0.0.0/0]", "remote-node", "no rule"),
    ("3.7.1 never an API server on a node", "toCIDR: [0.0.0.0/0]", "kube-apiserver+remote-node", "no rule"),
    ("3.7.1 never an address of nobody's pod", "toCIDR: [0.0.0.0/0]", "unmanaged", "no rule"),
    ("3.7.3 0.0.0.0/0 is the world of its family", "toCIDR: [0.0.0.0/0]", "192.0.2.1", "allow"),
    ("3.7.3 0.0.0.0/0 is not the other family", "toCIDR: [0.0.0.0/0]", "2001:db8::1", "no rule"),
    ("3.7.3 ::/0 is the world of its family", "toCIDR: ['::/0']", "2001:db8::1", "allow"),
    ("3.7.3 ::/0 is not the other family", "toCIDR: ['::/0']", "192.0.2.1", "no rule"),
    (
        "3.7.3 0.0.0.0/0 holds what another prefix names",
        "{toCIDR: [0.0.0.0/0]}, {toCIDR: [10.0.0.0/8], toPorts: [{}]}",
        "10.1.1.1",
        "allow",
    ),
    (
        "3.7.4 an exception does not match",
        "toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.96.0.0/12]}]",
        "10.96.0.1",
        "no rule",
    ),
    (
        "3.7.4 what is around the exception does",
        "toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.96.0.0/12]}]",
        "10.95.0.1",
        "allow",
    ),
    (
        "3.7.4 another item may still allow it",
        "toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.96.0.0/12]}, {cidr: 10.96.0.1/32}]",
        "10.96.0.1",
        "allow",
    ),
    (
        "3.7.4 an exception equal to the prefix leaves nothing",
        "toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.0.0.0/8]}]",
        "10.1.2.3",
        "no rule",
    ),
    ("3.7.4 the world but an exception", "toCIDRSet: [{cidr: 0.0.0.0/0, except: [10.0.0.0/8]}]", "10.1.2.3", "no rule"),
    (
        "3.7.4 the world around an exception",
        "toCIDRSet: [{cidr: 0.0.0.0/0, except: [10.0.0.0/8]}]",
        "192.0.2.1",
        "allow",
    ),
    ("3.7.4 the world but all of it", "toCIDRSet: [{cidr: 0.0.0.0/0, except: [0.0.0.0/0]}]", "192.0.2.1", "no rule"),
    (
        "3.7.5 a narrower prefix inside a wider one",
        "{toCIDR: [10.0.0.0/8]}, {toCIDR: [10.1.0.0/16], toPorts: [{}]}",
        "10.1.2.3",
        "allow",
    ),
    ("host bits do not matter", "toCIDR: [10.1.2.3/8]", "10.200.0.1", "allow"),
    ("IPv6", "toCIDRSet: [{cidr: '2001:db8::/32', except: ['2001:db8:1::/48']}]", "2001:db8::1", "allow"),
    ("IPv6 exception", "toCIDRSet: [{cidr: '2001:db8::/32', except: ['2001:db8:1::/48']}]", "2001:db8:1::1", "no rule"),
]


@pytest.mark.parametrize(("items", "peer", "expected"), [row[1:] for row in CIDRS], ids=[row[0] for row in CIDRS])
def test_a_cidr(items: str, peer: str, expected: str, bench: Bench) -> None:
    land = bench.enforce(f"egress: [{items if items.startswith('{') else f'{{{items}}}'}]")
    assert land.egress(peer) == expected


def test_3_6_with_one_family_both_worlds_are_one(bench: Bench) -> None:
    land = bench.enforce("egress: [{toCIDR: [0.0.0.0/0]}]", dual=False)
    assert land.who("192.0.2.1") == land.who("world")
    assert land.egress("192.0.2.1") == "allow"
    land = bench.enforce("egress: [{toCIDRSet: [{cidr: 0.0.0.0/0, except: [10.0.0.0/8]}]}]", dual=False)
    assert [land.egress(each) for each in ("10.0.0.1", "192.0.2.1")] == ["no rule", "allow"]
    land = bench.enforce("egress: [{toCIDRSet: [{cidr: 0.0.0.0/0, except: [0.0.0.0/0]}]}]", dual=False)
    assert land.egress("192.0.2.1") == "no rule"


def test_3_7_5_a_wide_deny_beats_a_narrow_allow(bench: Bench) -> None:
    land = bench.enforce("{egress: [{toCIDR: [10.1.2.3/32]}], egressDeny: [{toCIDR: [10.0.0.0/8]}]}")
    assert land.egress("10.1.2.3") == "deny"


def test_cidrs_of_names_every_prefix_and_exception(bench: Bench) -> None:
    egress = "egress: [{toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]}]"
    land = bench.enforce(f"{{{egress}, ingressDeny: [{{fromCIDR: ['2001:db8::/32']}}]}}")
    assert {str(network) for network in cidrs_of(land.rules)} == {"10.0.0.0/8", "10.1.0.0/16", "2001:db8::/32"}
    networks = set(cidrs_of([]))
    assert networks == frozenset()


LOCALHOST = [
    ("3.8.1 the local host comes in despite default deny", ["ingress: [{}]"], "host", "allow"),
    ("3.8.2 an explicit deny for the host beats it", ["ingressDeny: [{fromEntities: [host]}]"], "host", "deny"),
    ("3.8.2 an explicit deny for all beats it", ["ingressDeny: [{fromEntities: [all]}]"], "host", "deny"),
    (
        "3.8.2 a deny for the host on another port does not",
        ["ingressDeny: [{fromEntities: [host], toPorts: [{ports: [{port: '81'}]}]}]"],
        "host",
        "allow",
    ),
    ("3.8.4 another node does not come in", ["ingress: [{}]"], "remote-node", "no rule"),
    ("3.8.4 nor an API server on one", ["ingress: [{}]"], "kube-apiserver+remote-node", "no rule"),
]


@pytest.mark.parametrize(
    ("policies", "peer", "expected"), [row[1:] for row in LOCALHOST], ids=[row[0] for row in LOCALHOST]
)
def test_the_local_host(policies: list[str], peer: str, expected: str, bench: Bench) -> None:
    assert bench.enforce(*policies).ingress(peer) == expected


def test_3_8_1_every_port_and_protocol_of_the_pod_is_open_to_its_host(bench: Bench) -> None:
    land = bench.enforce("ingress: [{fromEndpoints: []}]")
    assert {land.ingress("host", port) for port in ("1/TCP", "65535/UDP", "8/ICMP")} == {"allow"}
    assert land.port("host").l4.ref == ALLOW_LOCALHOST


def test_3_8_5_the_way_out_to_the_host_is_not_implied(bench: Bench) -> None:
    assert bench.enforce("egress: [{}]").egress("host") == "no rule"
    assert bench.enforce("egress: [{toEntities: [host]}]").egress("host") == "allow"


def ports(*ports: str) -> str:
    return f"toPorts: [{{ports: [{', '.join(ports)}]}}]"


HTTP = "{port: http, protocol: TCP}"
NAMED = [
    (
        "3.9.1 ingress: the endpoint's own port of that name",
        f"ingress: [{{{ports(HTTP)}}}]",
        "ingress",
        "a",
        "8080/TCP",
        "allow",
    ),
    (
        "3.9.1 ingress: not the number that a peer gives the name",
        f"ingress: [{{{ports(HTTP)}}}]",
        "ingress",
        "b",
        "9090/TCP",
        "no rule",
    ),
    (
        "3.9.1 ingress: of the same protocol",
        f"ingress: [{{{ports('{port: dns, protocol: TCP}')}}}]",
        "ingress",
        "a",
        "53/TCP",
        "no rule",
    ),
    (
        "3.9.1 ingress: any protocol that has the name",
        f"ingress: [{{{ports('{port: dns}')}}}]",
        "ingress",
        "a",
        "53/UDP",
        "allow",
    ),
    (
        "3.9.1 names are looked up in lower case",
        f"ingress: [{{{ports('{port: HTTP, protocol: TCP}')}}}]",
        "ingress",
        "a",
        "8080/TCP",
        "allow",
    ),
    (
        "3.9.2 egress: each destination's own number, one pod",
        f"egress: [{{{ports(HTTP)}}}]",
        "egress",
        "web1",
        "8081/TCP",
        "allow",
    ),
    (
        "3.9.2 egress: each destination's own number, the other",
        f"egress: [{{{ports(HTTP)}}}]",
        "egress",
        "web2",
        "8082/TCP",
        "allow",
    ),
    (
        "3.9.2 egress: not another destination's number",
        f"egress: [{{{ports(HTTP)}}}]",
        "egress",
        "web1",
        "8082/TCP",
        "no rule",
    ),
    ("3.9.2 egress: not one's own number", f"egress: [{{{ports(HTTP)}}}]", "egress", "web1", "8080/TCP", "no rule"),
    ("3.9.2 egress: of that protocol", f"egress: [{{{ports(HTTP)}}}]", "egress", "web2", "8083/UDP", "no rule"),
    (
        "3.9.2 egress: only to the peers",
        f"egress: [{{toEndpoints: [{{matchLabels: {{v: '1'}}}}], {ports(HTTP)}}}]",
        "egress",
        "web2",
        "8082/TCP",
        "no rule",
    ),
    (
        "3.9.3 a name nobody has: nothing, and default deny",
        f"ingress: [{{{ports('{port: nosuch}')}}}]",
        "ingress",
        "a",
        "80/TCP",
        "no rule",
    ),
    (
        "3.9.3 outside addresses have no names",
        f"egress: [{{toCIDR: [0.0.0.0/0], {ports(HTTP)}}}]",
        "egress",
        "192.0.2.1",
        "8080/TCP",
        "no rule",
    ),
    (
        "3.9.4 in deny rules",
        f"{{ingressDeny: [{{{ports(HTTP)}}}], ingress: [{{fromEndpoints: [{{}}]}}]}}",
        "ingress",
        "a",
        "8080/TCP",
        "deny",
    ),
    (
        "3.9.4 in deny rules, other ports",
        f"{{ingressDeny: [{{{ports(HTTP)}}}], ingress: [{{fromEndpoints: [{{}}]}}]}}",
        "ingress",
        "a",
        "80/TCP",
        "allow",
    ),
    (
        "3.9.4 with HTTP rules",
        "ingress: [{toPorts: [{ports: [{port: http, protocol: TCP}], rules: {http: [{}]}}]}]",
        "ingress",
        "a",
        "8080/TCP",
        "proxy",
    ),
]


@pytest.mark.parametrize(
    ("spec", "way", "peer", "port", "expected"), [row[1:] for row in NAMED], ids=[row[0] for row in NAMED]
)
def test_a_named_port(spec: str, way: str, peer: str, port: str, expected: str, bench: Bench) -> None:
    land = bench.enforce(spec)
    assert (land.ingress if way == "ingress" else land.egress)(peer, port) == expected


def test_3_9_1_replicas_may_have_other_numbers_under_one_name(bench: Bench) -> None:
    one, two = bench.server(), replace(bench.server(), id=EndpointId(2), named_ports=frozenset({("http", 6, 8888)}))
    rules = lang.parse(bench.cnp(f"ingress: [{{{ports(HTTP)}}}]"))
    policies = compile_policies(rules, [one, two], bench.identities_for(rules))
    verdicts = {
        (number, port): decide.port(policies[number].ingress, 301, 6, port).l4.verdict.name
        for number in (1, 2)
        for port in (8080, 8888)
    }
    assert verdicts == {(1, 8080): "FORWARDED", (1, 8888): "DROPPED", (2, 8080): "DROPPED", (2, 8888): "FORWARDED"}


def test_thousands_of_prefixes_compile_in_no_time(bench: Bench) -> None:
    """A block list: the cost is not prefixes times prefixes (which would be minutes here)."""
    document = bench.cnp("egress: [{}]")
    prefixes = [f"10.{a}.{b}.0/24" for a in range(40) for b in range(250)]
    document["spec"]["egress"] = [{"toCIDRSet": [{"cidr": each, "except": [each[:-2] + "32"]} for each in prefixes]}]
    land = bench.enforce(document)
    assert [land.egress(each) for each in ("10.0.0.0", "10.0.0.1", "10.39.249.9", "10.40.0.1")] == [
        "no rule",
        "allow",
        "allow",
        "no rule",
    ]
