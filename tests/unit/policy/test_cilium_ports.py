"""Ports and protocols of a toPorts item: edge cases."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from l7proxy.cluster.policy_status import PolicyPhase
from l7proxy.errors import PolicyError
from l7proxy.policy import lang
from l7proxy.policy.lang import Options

if TYPE_CHECKING:
    from tests.unit.policy.conftest import Bench

EXTENDED = Options(extended_protocols=True)


def ports(text: str) -> str:
    return f"ingress: [{{toPorts: [{{ports: [{text}]}}]}}]"


EDGES = [
    ("1.5.1 a number", "{port: '80'}", "80/TCP", "allow"),
    ("1.5.1 the last one", "{port: '65535'}", "65535/TCP", "allow"),
    ("1.5.1 zero is every port", "{port: '0', protocol: UDP}", "1/UDP", "allow"),
    ("1.5.1 zero is every port of that protocol", "{port: '0', protocol: UDP}", "1/TCP", "no rule"),
    ("1.5.1 zeros are zero", "{port: '00', protocol: UDP}", "65535/UDP", "allow"),
    ("1.5.1 a leading zero is octal", "{port: '010'}", "8/TCP", "allow"),
    ("1.5.1 a leading zero is not decimal", "{port: '010'}", "10/TCP", "no rule"),
    ("1.5.1 a leading zero, with an end", "{port: '010', endPort: 9}", "9/TCP", "allow"),
    ("1.5.1 0x10 is a name that nobody has", "{port: '0x10'}", "16/TCP", "no rule"),
    ("1.5.2 a range holds its first", "{port: '80', endPort: 90}", "80/TCP", "allow"),
    ("1.5.2 a range holds its last", "{port: '80', endPort: 90}", "90/TCP", "allow"),
    ("1.5.2 a range ends", "{port: '80', endPort: 90}", "91/TCP", "no rule"),
    ("1.5.2 an end before the start is the port alone", "{port: '80', endPort: 70}", "75/TCP", "no rule"),
    ("1.5.2 an end at the start is the port alone", "{port: '80', endPort: 80}", "81/TCP", "no rule"),
    ("1.5.2 an end of zero is none", "{port: '80', endPort: 0}", "80/TCP", "allow"),
    ("1.5.2 the whole range", "{port: '1', endPort: 65535}", "65535/TCP", "allow"),
    ("1.5.3 no protocol is TCP, UDP and SCTP", "{port: '80'}", "80/SCTP", "allow"),
    ("1.5.3 ANY is no ICMP", "{port: '0', protocol: ANY}", "8/ICMP", "no rule"),
    ("1.5.3 ANY is none of the extended ones", "{port: '0', protocol: ANY}", "0/GRE", "no rule"),
    ("1.5.3 in lower case", "{port: '80', protocol: udp}", "80/UDP", "allow"),
    ("1.5.3 empty is ANY", "{port: '80', protocol: ''}", "80/UDP", "allow"),
    ("1.5.8 ports are one or the other", "{port: '80'}, {port: '443'}", "443/TCP", "allow"),
]


@pytest.mark.parametrize(("text", "port", "expected"), [row[1:] for row in EDGES], ids=[row[0] for row in EDGES])
def test_ports(text: str, port: str, expected: str, bench: Bench) -> None:
    assert bench.enforce(ports(text)).ingress("a", port) == expected


def test_1_5_8_toports_items_are_one_or_the_other_each_with_its_own_rules(bench: Bench) -> None:
    land = bench.enforce(
        "ingress: [{toPorts: ["
        "{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: /a}]}}, {ports: [{port: '81', protocol: TCP}]}]}]"
    )
    assert (land.ingress("a"), land.ingress("a", "81/TCP")) == ("proxy", "allow")


NOTES = [
    ("a leading zero", "{port: '010'}", "port", "is octal because of its leading zero: this is port 8"),
    (
        "an end before the start",
        "{port: '80', endPort: 70}",
        "endPort",
        "is less than port, so this matches only port 80",
    ),
]


@pytest.mark.parametrize(("text", "at", "message"), [row[1:] for row in NOTES], ids=[row[0] for row in NOTES])
def test_what_may_not_be_meant_is_noted(text: str, at: str, message: str, bench: Bench) -> None:
    (note,) = lang.notes(bench.cnp(ports(text)))
    assert (note.at, note.message) == (f"spec.ingress[0].toPorts[0].ports[0].{at}", message)


NUMBERS = [("VRRP", 112), ("IGMP", 2), ("GRE", 47), ("IPIP", 4), ("IPV6", 41), ("ESP", 50), ("AH", 51)]


@pytest.mark.parametrize(("name", "number"), NUMBERS, ids=[row[0] for row in NUMBERS])
def test_1_5_3_an_extended_protocol_is_its_number(name: str, number: int, bench: Bench) -> None:
    (rule,) = lang.parse(bench.cnp(ports(f"{{port: '0', protocol: {name}}}")), options=EXTENDED)
    assert rule.ports is not None
    assert [(match.protocols, match.first, match.last) for match in rule.ports] == [(frozenset({number}), 0, 65535)]


EXTENDED_ROWS = [
    ("without a port", "{protocol: GRE}", "0/GRE", "allow"),
    ("another protocol", "{protocol: GRE}", "0/VRRP", "no rule"),
    ("not TCP", "{protocol: VRRP}", "80/TCP", "no rule"),
    ("TCP without a port is every port", "{protocol: TCP}", "80/TCP", "allow"),
    ("neither is every port of TCP, UDP and SCTP", "{}", "80/UDP", "allow"),
    ("neither is no extended one", "{}", "0/GRE", "no rule"),
]


@pytest.mark.parametrize(
    ("text", "port", "expected"), [row[1:] for row in EXTENDED_ROWS], ids=[row[0] for row in EXTENDED_ROWS]
)
def test_extended_protocols_switched_on(text: str, port: str, expected: str, bench: Bench) -> None:
    assert bench.town(ports(text), options=EXTENDED).ingress("a", port=port) == expected


def test_extended_protocols_switched_off_are_refused_and_close(bench: Bench) -> None:
    town = bench.town(ports("{port: '0', protocol: GRE}"))
    (policy,) = town.view.policies
    assert (policy.state, policy.reason) == (
        PolicyPhase.REFUSED,
        "spec.ingress[0].toPorts[0].ports[0]: protocol GRE can only be used when extended IP protocols are enabled",
    )
    assert town.ingress("a") == "deny"


@pytest.mark.parametrize("port", ["'80'", "http"])
def test_1_6_20_an_extended_protocol_has_no_port(port: str, bench: Bench) -> None:
    with pytest.raises(PolicyError) as caught:
        lang.parse(bench.cnp(ports(f"{{port: {port}, protocol: GRE}}")), options=EXTENDED)
    assert caught.value.message == "port must be empty or 0"


def test_1_6_18_a_port_is_needed_while_they_are_off(bench: Bench) -> None:
    with pytest.raises(PolicyError, match="port must be specified"):
        lang.parse(bench.cnp(ports("{protocol: GRE}")))
    with pytest.raises(PolicyError, match="port must be specified"):
        lang.parse(bench.cnp(ports("{}")))


@pytest.mark.parametrize("way", ["ingress", "ingressDeny", "egress", "egressDeny"])
def test_1_6_16_at_most_40_ports_whichever_the_list(way: str, bench: Bench) -> None:
    def item(count: int) -> str:
        return f"{way}: [{{toPorts: [{{ports: [{', '.join(['{port: a}'] * count)}]}}]}}]"

    assert lang.parse(bench.cnp(item(40)))
    with pytest.raises(PolicyError, match="too many ports, the max is 40"):
        lang.parse(bench.cnp(item(41)))
