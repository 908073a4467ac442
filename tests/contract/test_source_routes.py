"""Source-routed packets: the evaluated address must be the one that they reach."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest

from tests.contract.conftest import IDENTITY, World, entry
from tests.contract.test_frames import heard, mac, send
from tests.support.frames import IPV4, IPV6, PORT, checksum, frame, udp
from tproxy_rules.desired import Verdict, union

pytestmark = pytest.mark.lab

LOOSE, STRICT = 131, 137
SEGMENTS = 4
ONLY_THE_CLIENT = union((entry(Verdict.ALLOW, protocol=-1, peers=(IDENTITY["client"],)),))


def in_ipv4(option: int, source: str, via: str, target: str) -> bytes:
    """A datagram to `via` with a source route to the target (RFC 791, 3.1)."""
    one, node, other = (ip_address(address).packed for address in (source, via, target))
    datagram = struct.pack(">HHHH", PORT, PORT, 14, 0) + b"attack"
    head = struct.pack(">BBHHHBBH", 0x47, 0, 28 + len(datagram), 1, 0, 64, 17, 0) + one + node
    head += bytes((option, 7, 4)) + other + b"\1"
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + datagram


def in_ipv6(source: str, via: str, target: str) -> bytes:
    """The same with a segment routing header (RFC 8754)."""
    one, node, other = (ip_address(address).packed for address in (source, via, target))
    datagram = udp(source, target)[40:]
    routing = struct.pack(">BBBBBBH", 17, 4, SEGMENTS, 1, 1, 0, 0) + other + node
    return struct.pack(">IHBB", 0x60000000, len(routing + datagram), 43, 64) + one + node + routing + datagram


def arrived(world: World, packet: bytes) -> list[bytes]:
    """What the server receives when the stranger sends this to the node."""
    device = world.bridge.name if world.bridge else "vethstranger"
    words = world.node.sh(f"ip -o link show {device}").split()
    version, kind = (4, IPV4) if packet[0] >> 4 == 4 else (6, IPV6)
    shot = frame(mac(world.stranger), words[words.index("link/ether") + 1], kind, packet)
    return heard(world.server, version, lambda: send(world.stranger, shot))


def follow_source_routes(world: World, value: str) -> None:
    for namespace in (world.node, world.server.namespace):
        names = namespace.sh("ls /proc/sys/net/ipv4/conf").split()
        for name in names:
            namespace.write(f"/proc/sys/net/ipv4/conf/{name}/accept_source_route", value)
            namespace.write(f"/proc/sys/net/ipv6/conf/{name}/seg6_enabled", value)


@pytest.mark.parametrize("kind", ["loose", "strict", "segments"])
def test_no_route_of_the_senders_choice_leads_around_policy(world: World, kind: str) -> None:
    version = 6 if kind == "segments" else 4
    way = (world.stranger.addresses[version], world.node_address(version), world.server.addresses[version])
    packet = in_ipv6(*way) if version == 6 else in_ipv4(LOOSE if kind == "loose" else STRICT, *way)
    if kind == "segments" and world.backend.name == "iptables":
        pytest.skip("the node follows segments only where it is told to, and iptables cannot look at them everywhere")
    world.node.do(world.backend.remove)
    try:
        follow_source_routes(world, "1")
        assert arrived(world, packet) == [b"attack"], "the attack works without us"
        world.apply(world.snapshot(server_ingress=ONLY_THE_CLIENT))
        assert arrived(world, packet) == []
        assert world.client.connect(world.server.addresses[version], 80).startswith("hello")
    finally:
        follow_source_routes(world, "0")


def test_a_switch_that_is_set_again_changes_nothing(world: World) -> None:
    if world.backend.name == "iptables":
        pytest.skip("iptables has no match for IPv4's options: there the switch is all (see routes.tune)")
    packet = in_ipv4(LOOSE, world.stranger.addresses[4], world.node_address(4), world.server.addresses[4])
    world.apply(world.snapshot(server_ingress=ONLY_THE_CLIENT))
    try:
        follow_source_routes(world, "1")
        assert arrived(world, packet) == []
    finally:
        follow_source_routes(world, "0")
