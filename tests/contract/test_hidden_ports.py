"""Ports behind extension headers and in fragments are found: no encoding of a datagram evades a rule about ports."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest

from tests.contract.conftest import World, entry
from tests.contract.test_frames import heard, mac, send
from tests.support.frames import IPV4, IPV6, PORT, checksum, frame, udp
from tproxy_rules.desired import Table, Tier, Verdict, union

pytestmark = pytest.mark.lab

HOP, UDP, FRAGMENT, OPTIONS = 0, 17, 44, 60
DENIED = Table((Tier(((entry(Verdict.DENY, PORT, protocol=UDP),),), closed=False),))
NOT_ALLOWED = union((entry(Verdict.ALLOW, 9, protocol=UDP), entry(Verdict.ALLOW)))


def v6(source: str, target: str, kind: int, payload: bytes) -> bytes:
    head = struct.pack(">IHBB", 0x60000000, len(payload), kind, 64)
    return head + ip_address(source).packed + ip_address(target).packed + payload


def padding(following: int) -> bytes:
    """An empty hop-by-hop or destination options header."""
    return bytes((following, 0, 1, 4, 0, 0, 0, 0))


def fragment(following: int, number: int, *, at: int = 0, more: bool = False) -> bytes:
    return struct.pack(">BBHI", following, 0, at << 3 | more, number)


def wrapped(source: str, target: str) -> dict[str, list[bytes]]:
    """The same datagram in all encodings that a receiver accepts."""
    plain = udp(source, target)
    if ip_address(source).version == 4:
        return {"two fragments": [v4_fragment(plain, 0, 8, more=True), v4_fragment(plain, 8, 999, more=False)]}
    datagram = plain[40:]
    halves = [
        fragment(UDP, 3, more=True) + datagram[:8],
        fragment(UDP, 3, at=1) + datagram[8:],
    ]
    both = padding(OPTIONS) + padding(FRAGMENT) + fragment(UDP, 1) + datagram
    return {
        "hop-by-hop options": [v6(source, target, HOP, padding(UDP) + datagram)],
        "eight option headers": [v6(source, target, OPTIONS, padding(OPTIONS) * 7 + padding(UDP) + datagram)],
        "options and a fragment": [v6(source, target, HOP, both)],
        "a fragment that is whole": [v6(source, target, FRAGMENT, fragment(UDP, 2) + datagram)],
        "two fragments": [v6(source, target, FRAGMENT, half) for half in halves],
    }


def v4_fragment(packet: bytes, start: int, end: int, *, more: bool) -> bytes:
    payload = packet[20:][start:end]
    fields = struct.pack(">HHH", 20 + len(payload), 4, more << 13 | start >> 3)
    head = packet[:2] + fields + packet[8:10] + b"\0\0" + packet[12:20]
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + payload


def test_no_wrapping_hides_a_port(world: World, family: int) -> None:
    source, target = world.stranger, world.server
    at = mac(target)
    if not world.bridge:
        words = world.node.sh("ip -o link show vethstranger").split()
        at = words[words.index("link/ether") + 1]
    for name, packets in wrapped(source.addresses[family], target.addresses[family]).items():
        shots = [frame(mac(source), at, IPV4 if family == 4 else IPV6, packet) for packet in packets]

        def arrived(shots: list[bytes] = shots) -> list[bytes]:
            return heard(target, family, lambda: send(source, *shots))

        world.node.do(world.backend.remove)
        assert arrived() == [b"attack"], f"{name}: it arrives without us"
        world.apply(world.snapshot(server_ingress=union((entry(Verdict.ALLOW, PORT, protocol=UDP),))))
        assert arrived() == [b"attack"], f"{name}: the port is allowed"
        for table in (DENIED, NOT_ALLOWED):
            world.apply(world.snapshot(server_ingress=table))
            assert arrived() == [], name
