"""Finding 5, on bridges: a port without CNI result and Pod cannot forge another address and is no router."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network

import pytest
from scapy.layers.inet import UDP
from scapy.layers.inet6 import ICMPv6ND_RA, IPv6

from tests.attacks.labs import AttackLab, Place
from tests.attacks.packets import (
    arp_reply,
    ethernet,
    internet,
    link_local,
    multicast_mac,
    neighbour_advertisement,
    token,
)

pytestmark = pytest.mark.where(cni="bridge")
MAC = "02:bb:00:00:00:01"
ELSEWHERE = {4: "198.51.100.7", 6: "2001:db8:7::7"}
"""Addresses outside the cluster."""


@pytest.fixture
def rogue(lab: AttackLab) -> Iterator[Place]:
    """The far end of an interface that was just added to the bridge of node-1."""
    node = lab.node("node-1")
    node.sh(
        f"ip link add rogue0 type veth peer name rogue1 address {MAC}",
        "ip link set rogue1 up",
        "ip link set rogue0 up master cni0",
    )
    try:
        yield Place("rogue", node.namespace, {}, MAC, "rogue1")
    finally:
        node.sh("ip link del rogue0")


def _unused(lab: AttackLab, family: int) -> str:
    """An unused address of the pod network of node-1: held closed until a pod is known to have it."""
    return str(ip_network(f"{lab.node('node-1').gateways[family]}/{24 if family == 4 else 64}", strict=False)[250])


def test_it_speaks_as_nobody_else(lab: AttackLab, rogue: Place, family: int) -> None:
    receiver = lab.pod("open")
    node = lab.node("node-1")
    others = [
        lab.pod("friend").addresses[family],
        lab.pod("far-friend").addresses[family],
        node.addresses[family],
        node.gateways[family],
        lab.node("node-2").addresses[family],
        _unused(lab, family),
    ]
    forged, honest = [token() for _ in others], token()
    with receiver.capture() as seen:
        for source, mark in zip([*others, ELSEWHERE[family]], [*forged, honest], strict=True):
            packet = internet(source, receiver.addresses[family]) / UDP(sport=1, dport=9000) / mark
            rogue.send(ethernet(MAC, receiver.mac) / packet)
        assert seen.arrived(*forged, honest) == {honest}


def test_it_claims_nobodys_address_and_is_no_router(lab: AttackLab, rogue: Place) -> None:
    receiver, node = lab.pod("open"), lab.node("node-1")
    claims = [_router_advertisement()]
    for family in lab.families:
        address, other = receiver.addresses[family], lab.pod("friend").addresses[family]
        claim = arp_reply if family == 4 else neighbour_advertisement
        claims += [bytes(claim(MAC, one, receiver.mac, address)) for one in (node.gateways[family], other)]
    with receiver.capture() as seen:
        rogue.send(*claims)
        assert not [one for one in claims if one in seen.packets()]


def _router_advertisement() -> bytes:
    packet = IPv6(src=link_local(MAC), dst="ff02::1", hlim=255) / ICMPv6ND_RA(routerlifetime=1800)
    return bytes(ethernet(MAC, multicast_mac("ff02::1")) / packet)
