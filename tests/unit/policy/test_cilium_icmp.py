"""ICMP in policies: by type, as number or name; never by code, and never by ports."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from l7proxy.cluster.policy_status import PolicyPhase
from l7proxy.errors import PolicyError
from l7proxy.policy import lang
from l7proxy.policy.lang import Options

if TYPE_CHECKING:
    from tests.unit.policy.conftest import Bench

FLAG = 'ICMP rules can only be applied when the "enable-icmp-rules" flag is set'


def fields(*items: str) -> str:
    return f"ingress: [{{fromEndpoints: [{{}}], icmps: [{{fields: [{', '.join(items)}]}}]}}]"


TYPES = [
    ("7.1 a type by number", fields("{type: 8}"), "8.0/ICMP", "allow"),
    ("7.1 any code of it", fields("{type: 3}"), "3.4/ICMP", "allow"),
    ("7.1 the last code of it", fields("{type: 3}"), "3.255/ICMP", "allow"),
    ("7.1 not the next type", fields("{type: 3}"), "4.0/ICMP", "no rule"),
    ("7.1 a number in quotes", fields("{type: '8'}"), "8.0/ICMP", "allow"),
    ("7.1 the default family is IPv4", fields("{type: 8}"), "8.0/ICMPV6", "no rule"),
    ("7.1 IPv6", fields("{family: IPv6, type: 128}"), "128.0/ICMPV6", "allow"),
    ("7.1 IPv6 is not IPv4", fields("{family: IPv6, type: 8}"), "8.0/ICMP", "no rule"),
    ("7.1 a type by name", fields("{type: EchoRequest}"), "8.0/ICMP", "allow"),
    ("7.1 the other name of it", fields("{type: Echo}"), "8.0/ICMP", "allow"),
    ("7.1 a name of IPv6", fields("{family: IPv6, type: EchoRequest}"), "128.0/ICMPV6", "allow"),
    ("7.1 several fields are one or the other", fields("{type: 8}", "{type: 13}"), "13.0/ICMP", "allow"),
    ("7.1 type 0", fields("{type: 0}"), "0.0/ICMP", "allow"),
    ("7.1 type 255", fields("{type: 255}"), "255.255/ICMP", "allow"),
    ("7.4 icmps alone admit no TCP", fields("{type: 8}"), "80/TCP", "no rule"),
    ("7.4 ports admit no ICMP", "ingress: [{toPorts: [{ports: [{port: '0'}]}]}]", "8.0/ICMP", "no rule"),
    ("7.4 peers alone admit ICMP", "ingress: [{fromEndpoints: [{}]}]", "8.0/ICMP", "allow"),
    ("1.7.9 an empty item matches nothing", "ingress: [{fromEndpoints: [{}], icmps: [{}]}]", "8.0/ICMP", "no rule"),
    ("1.7.9 no fields match nothing", fields(), "8.0/ICMP", "no rule"),
    ("an empty list is as if absent", "ingress: [{fromEndpoints: [{}], icmps: []}]", "80/TCP", "allow"),
    ("without peers it is anyone", "ingress: [{icmps: [{fields: [{type: 8}]}]}]", "8.0/ICMP", "allow"),
    ("a deny rule denies it", "ingressDeny: [{icmps: [{fields: [{type: 8}]}]}]", "8.0/ICMP", "deny"),
    ("a deny rule denies that type", "ingressDeny: [{icmps: [{fields: [{type: 8}]}]}]", "13.0/ICMP", "no rule"),
]


@pytest.mark.parametrize(("spec", "port", "expected"), [row[1:] for row in TYPES], ids=[row[0] for row in TYPES])
def test_a_type(spec: str, port: str, expected: str, bench: Bench) -> None:
    assert bench.town(spec).ingress("a", port=port) == expected


def test_an_item_of_icmps_is_a_rule_of_its_own(bench: Bench) -> None:
    rules = lang.parse(bench.cnp("ingress: [{icmps: [{fields: [{type: 8}]}, {fields: [{type: 13}]}]}]"))
    assert [rule.ref.rule for rule in rules] == ["spec.ingress[0].icmps[0]", "spec.ingress[0].icmps[1]"]


REFUSED = [
    ("1.6.23 while switched off", "{type: 8}", "spec.ingress[0].icmps", FLAG, Options(icmp=False)),
    (
        "1.6.24 another family",
        "{family: IPX, type: 8}",
        "spec.ingress[0].icmps[0].fields[0].family",
        "wrong family: IPX",
        Options(),
    ),
    (
        "7.6 a name that nobody has",
        "{type: Ping}",
        "spec.ingress[0].icmps[0].fields[0].type",
        "ICMP type Ping not found in IPv4",
        Options(),
    ),
    (
        "7.6 a name of the other family",
        "{family: IPv6, type: Photuris}",
        "spec.ingress[0].icmps[0].fields[0].type",
        "ICMP type Photuris not found in IPv6",
        Options(),
    ),
    ("no type", "{family: IPv4}", "spec.ingress[0].icmps[0].fields[0]", "type is required", Options()),
    (
        "a type that is too large",
        "{type: 256}",
        "spec.ingress[0].icmps[0].fields[0].type",
        "must be between 0 and 255",
        Options(),
    ),
    (
        "a type that is far too large, in quotes",
        "{type: '" + "9" * 30 + "'}",
        "spec.ingress[0].icmps[0].fields[0].type",
        "must be between 0 and 255",
        Options(),
    ),
    (
        "a type that is true",
        "{type: true}",
        "spec.ingress[0].icmps[0].fields[0].type",
        "must be a number or a name, not true or false",
        Options(),
    ),
]


@pytest.mark.parametrize(
    ("field", "at", "message", "options"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_a_type_that_is_none(field: str, at: str, message: str, options: Options, bench: Bench) -> None:
    with pytest.raises(PolicyError) as caught:
        lang.parse(bench.cnp(fields(field)), options=options)
    assert (caught.value.at, caught.value.message) == (at, message)


def test_1_6_17_there_are_at_most_40_types(bench: Bench) -> None:
    assert lang.parse(bench.cnp(fields(*["{type: 8}"] * 40)))
    with pytest.raises(PolicyError, match="too many types, the max is 40") as caught:
        lang.parse(bench.cnp(fields(*["{type: 8}"] * 41)))
    assert caught.value.at == "spec.ingress[0].icmps[0].fields"


def test_switched_off_they_are_refused_and_close(bench: Bench) -> None:
    town = bench.town(fields("{type: 8}"), options=Options(icmp=False))
    assert town.view.policies[0].state is PolicyPhase.REFUSED
    assert town.ingress("a") == "deny"


IPV4_NAMES = """EchoReply 0, DestinationUnreachable 3, Redirect 5, Echo 8, EchoRequest 8, RouterAdvertisement 9,
    RouterSelection 10, TimeExceeded 11, ParameterProblem 12, Timestamp 13, TimestampReply 14, Photuris 40,
    ExtendedEchoRequest 42, ExtendedEchoReply 43"""
IPV6_NAMES = """DestinationUnreachable 1, PacketTooBig 2, TimeExceeded 3, ParameterProblem 4, EchoRequest 128,
    EchoReply 129, MulticastListenerQuery 130, MulticastListenerReport 131, MulticastListenerDone 132,
    RouterSolicitation 133, RouterAdvertisement 134, NeighborSolicitation 135, NeighborAdvertisement 136,
    RedirectMessage 137, RouterRenumbering 138, ICMPNodeInformationQuery 139, ICMPNodeInformationResponse 140,
    InverseNeighborDiscoverySolicitation 141, InverseNeighborDiscoveryAdvertisement 142,
    HomeAgentAddressDiscoveryRequest 144, HomeAgentAddressDiscoveryReply 145, MobilePrefixSolicitation 146,
    MobilePrefixAdvertisement 147, DuplicateAddressRequestCodeSuffix 157, DuplicateAddressConfirmationCodeSuffix 158,
    ExtendedEchoRequest 160, ExtendedEchoReply 161"""
NAMES = [
    (family, protocol, *entry.split())
    for family, protocol, names in (("IPv4", "ICMP", IPV4_NAMES), ("IPv6", "ICMPV6", IPV6_NAMES))
    for entry in names.split(",")
]


@pytest.mark.parametrize(
    ("family", "protocol", "name", "number"), NAMES, ids=[f"7.6 {family} {name}" for family, _, name, _ in NAMES]
)
def test_every_name_is_its_number(family: str, protocol: str, name: str, number: str, bench: Bench) -> None:
    land = bench.enforce(fields(f"{{family: {family}, type: {name}}}"))
    allowed = [kind for kind in range(256) if land.ingress("a", f"{kind << 8}/{protocol}") == "allow"]
    assert allowed == [int(number)]
