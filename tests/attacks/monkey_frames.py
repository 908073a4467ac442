"""Hostile frames, drawn at random. Each has a `Limit`: the most that its addressee may receive.

A malformed frame may be refused whatever the policy allows. It may never do more than the plain packet of the same
sender to the same receiver, and never reach another receiver.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Final

from scapy.layers.inet import (
    ICMP,
    TCP,
    UDP,
    IPOption_LSRR,
    IPOption_Router_Alert,
    IPOption_RR,
    IPOption_SSRR,
)
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6PacketTooBig,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP, GRE, Dot1Q
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw

from tests.attacks.labs import Place, Pod
from tests.attacks.packets import BROADCAST, Packet, ethernet, internet, multicast_mac, neighbour_advertisement


class Limit(Enum):
    """The condition under which the addressee may receive a frame. No other receiver ever may."""

    UDP = "UDP 9000 is allowed"
    RAW = "TCP 9000 is allowed"
    WEB = "anything on TCP 80 is allowed, HTTP or not"
    ICMP = "ICMP is allowed"
    ANY = "every protocol is allowed"
    NEVER = "never"


@dataclass(frozen=True)
class Shot:
    """One sender, one addressee, and a third party whose address the frame may forge or target."""

    random: Random
    family: int
    attacker: Pod
    target: Place
    other: Pod
    mac: str
    """The destination MAC of the frame."""
    payload: bytes

    @property
    def source(self) -> str:
        return self.attacker.addresses[self.family]

    @property
    def destination(self) -> str:
        return self.target.addresses[self.family]

    @property
    def port(self) -> int:
        return self.random.randrange(20000, 60000)

    def link(self, mac: str = "") -> Packet:
        return ethernet(self.attacker.mac, mac or self.mac)

    def head(self, **fields: object) -> Packet:
        return internet(self.source, self.destination, **fields)

    def datagram(self) -> Packet:
        return UDP(sport=self.port, dport=9000) / self.payload


Built = tuple[list[Packet], Limit]


def plain(s: Shot) -> Built:
    return [s.link() / s.head() / s.datagram()], Limit.UDP


def somebody_elses_address(s: Shot) -> Built:
    return [s.link() / internet(s.other.addresses[s.family], s.destination) / s.datagram()], Limit.NEVER


def nobodys_address(s: Shot) -> Built:
    sources = {
        4: ("0.0.0.0", "127.0.0.1", "169.254.7.7", "10.244.1.200", "10.244.2.201", "192.0.2.1", "224.0.0.5"),
        6: ("::", "::1", "fec0::7", "fd77::7", "::ffff:10.244.1.10", "fd00:10:244:1::99", "2001:db8::1", "ff02::1"),
    }  # fmt: skip
    return [s.link() / internet(s.random.choice(sources[s.family]), s.destination) / s.datagram()], Limit.NEVER


def somebody_elses_mac(s: Shot) -> Built:
    return [ethernet(s.other.mac, s.mac) / s.head() / s.datagram()], Limit.UDP


def stolen_identity(s: Shot) -> Built:
    head = internet(s.other.addresses[s.family], s.destination)
    return [ethernet(s.other.mac, s.mac) / head / s.datagram()], Limit.NEVER


def link_local(s: Shot) -> Built:
    source = s.random.choice((s.attacker.link_local, "fe80::7"))
    body = s.random.choice(
        (s.datagram(), TCP(sport=s.port, dport=9000, flags="S") / s.payload, ICMPv6EchoRequest(data=s.payload))
    )
    return [s.link(s.target.mac) / internet(source, s.target.link_local) / body], Limit.NEVER


def half_link_local(s: Shot) -> Built:
    if s.family == 4:
        return [s.link() / internet("169.254.7.7", s.destination) / s.datagram()], Limit.NEVER
    own = s.random.random() < 0.5
    source = s.source if own else s.attacker.link_local
    target = s.target.link_local if own else s.destination
    return [s.link() / internet(source, target) / s.datagram()], Limit.NEVER


def to_many(s: Shot) -> Built:
    if s.family == 4:
        group = s.random.choice(("224.0.0.1", "239.1.1.1", "255.255.255.255", "10.244.1.255"))
        mac = BROADCAST if group.endswith("255") else "01:00:5e:00:00:01"
    else:
        group = s.random.choice(("ff02::1", "ff05::1:3", "ff0e::7", "ff01::1"))
        mac = multicast_mac(group)
    mac = s.random.choice((mac, s.mac, BROADCAST))
    return [s.link(mac) / internet(s.source, group) / s.datagram()], Limit.UDP


def in_a_broadcast_frame(s: Shot) -> Built:
    mac = s.random.choice((BROADCAST, "01:00:5e:00:00:01", "33:33:00:00:00:01", "02:de:ad:00:00:01"))
    return [s.link(mac) / s.head() / s.datagram()], Limit.UDP


def reserved_group(s: Shot) -> Built:
    """IEEE 802.1D table 7-10: a bridge does not forward these; its port delivers them locally."""
    source = s.random.choice((s.source, s.other.addresses[s.family]))
    mac = f"01:80:c2:00:00:{s.random.randrange(16):02x}"
    limit = Limit.UDP if source == s.source else Limit.NEVER
    return [s.link(mac) / internet(source, s.destination) / s.datagram()], limit


def tunnel(s: Shot) -> Built:
    inner = internet(s.other.addresses[s.family], s.destination) / s.datagram()
    if s.random.random() < 0.4:
        number = s.random.choice((4 if s.family == 4 else 41, 50, 51, 97, 115, 132, 253))
        field = {"proto": number} if s.family == 4 else {"nh": number}
        return [s.link() / s.head(**field) / Raw(bytes(inner))], Limit.ANY
    return [s.link() / s.head() / GRE() / inner], Limit.ANY


def vxlan(s: Shot) -> Built:
    inner = ethernet(s.other.mac, s.target.mac) / internet(s.other.addresses[s.family], s.destination) / s.datagram()
    port = s.random.choice((8472, 4789, 6081, 6080, 5555))
    return [s.link() / s.head() / UDP(sport=s.port, dport=port) / VXLAN(vni=1) / inner], Limit.ANY


def tagged(s: Shot) -> Built:
    tags = Dot1Q(vlan=s.random.choice((0, 0, 1, 5, 4094)))
    if s.random.random() < 0.3:
        tags = tags / Dot1Q(vlan=0)
    own = s.random.random() < 0.5
    source = s.source if own else s.other.addresses[s.family]
    return [s.link() / tags / internet(source, s.destination) / s.datagram()], Limit.UDP if own else Limit.NEVER


def odd_ethertype(s: Shot) -> Built:
    kind = s.random.choice((0x88CC, 0x8847, 0x8864, 0x9000, 0x88E5, 0x0842, 0x22F0, 0x0060))
    mac = s.random.choice((s.mac, s.target.mac, BROADCAST))
    frame = bytes.fromhex((mac + s.attacker.mac).replace(":", "")) + kind.to_bytes(2) + bytes(4) + s.payload
    return [frame.ljust(60, b"\0")], Limit.ANY


def wrong_version(s: Shot) -> Built:
    packet = s.head() / s.datagram()
    kind = 0x86DD if s.family == 4 else 0x0800
    frame = bytes.fromhex((s.mac + s.attacker.mac).replace(":", "")) + kind.to_bytes(2) + bytes(packet)
    return [frame], Limit.NEVER


def fragments(s: Shot) -> Built:
    body = bytes(s.datagram())
    number = s.random.randrange(1, 1 << 16)
    if s.family == 4:
        first = s.link() / s.head(proto=17, flags="MF", id=number) / Raw(body[:8])
        second = s.link() / s.head(proto=17, frag=1, id=number) / Raw(body[8:])
    else:
        first = s.link() / s.head() / IPv6ExtHdrFragment(nh=17, m=1, offset=0, id=number) / Raw(body[:8])
        second = s.link() / s.head() / IPv6ExtHdrFragment(nh=17, m=0, offset=1, id=number) / Raw(body[8:])
    frames = [first, second]
    s.random.shuffle(frames)
    return frames[: s.random.choice((1, 2, 2))], Limit.UDP


def overlapping_fragments(s: Shot) -> Built:
    """The first fragment has port 9000; a later one would overwrite it with another port."""
    number, good = s.random.randrange(1, 1 << 16), bytes(UDP(sport=7, dport=9000, len=40) / s.payload.ljust(32, b"."))
    bad = bytes(UDP(sport=7, dport=53, len=40))
    if s.family == 4:
        parts = [
            s.link() / s.head(proto=17, flags="MF", id=number, frag=0) / Raw(good[:16]),
            s.link() / s.head(proto=17, flags="MF", id=number, frag=0) / Raw(bad.ljust(16, b".")),
            s.link() / s.head(proto=17, id=number, frag=2) / Raw(good[16:]),
        ]
    else:
        parts = [
            s.link() / s.head() / IPv6ExtHdrFragment(nh=17, m=1, offset=0, id=number) / Raw(good[:16]),
            s.link() / s.head() / IPv6ExtHdrFragment(nh=17, m=1, offset=0, id=number) / Raw(bad.ljust(16, b".")),
            s.link() / s.head() / IPv6ExtHdrFragment(nh=17, m=0, offset=2, id=number) / Raw(good[16:]),
        ]
    s.random.shuffle(parts)
    return parts, Limit.UDP


def extension_headers(s: Shot) -> Built:
    if s.family == 4:
        hops = [s.destination]
        options = [
            IPOption_LSRR(routers=hops),
            IPOption_SSRR(routers=hops),
            IPOption_RR(routers=["0.0.0.0"]),
            IPOption_Router_Alert(),
        ]
        return [s.link() / s.head(options=[s.random.choice(options)]) / s.datagram()], Limit.UDP
    headers = s.random.sample(
        [
            IPv6ExtHdrHopByHop(),
            IPv6ExtHdrDestOpt(),
            IPv6ExtHdrRouting(type=s.random.choice((0, 2, 4)), addresses=[s.destination], segleft=0),
            IPv6ExtHdrFragment(m=0, offset=0, id=7),
        ],
        s.random.randrange(1, 4),
    )
    packet = s.link() / s.head()
    for header in headers:
        packet = packet / header
    return [packet / s.datagram()], Limit.UDP


def source_route(s: Shot) -> Built:
    """Addressed to the target, with the other as the next hop."""
    onward = s.other.addresses[s.family]
    if s.family == 4:
        option = s.random.choice((IPOption_LSRR, IPOption_SSRR))(routers=[onward])
        return [s.link() / s.head(options=[option]) / s.datagram()], Limit.UDP
    header = IPv6ExtHdrRouting(type=s.random.choice((0, 2, 4)), addresses=[onward], segleft=1)
    return [s.link() / s.head() / header / s.datagram()], Limit.UDP


def segment(s: Shot) -> Built:
    """A TCP segment with data that belongs to no connection."""
    flags = "".join(s.random.sample("FSRPAUEC", s.random.randrange(0, 5)))
    port, limit = s.random.choice(((9000, Limit.RAW), (80, Limit.WEB)))
    body = TCP(sport=s.port, dport=port, flags=flags, seq=s.random.randrange(1 << 32)) / s.payload
    return [s.link() / s.head() / body], limit


def icmp_error(s: Shot) -> Built:
    """An ICMP error about a packet that was never sent, from the target to the sender or to the third party."""
    about = s.random.choice((s.source, s.other.addresses[s.family]))
    inner = internet(s.destination, about) / UDP(sport=9000, dport=s.port) / s.payload
    if s.family == 4:
        body = ICMP(type=3, code=s.random.choice((1, 3, 4, 13))) / inner
    else:
        body = s.random.choice((ICMPv6DestUnreach(code=1), ICMPv6PacketTooBig(mtu=1280))) / inner
    return [s.link() / s.head() / body], Limit.ICMP


def ping(s: Shot) -> Built:
    body = ICMP() / s.payload if s.family == 4 else ICMPv6EchoRequest(data=s.payload)
    return [s.link() / s.head() / body], Limit.ICMP


def loopback(s: Shot) -> Built:
    destination = s.random.choice(("127.0.0.1", "127.8.8.8", "0.0.0.0") if s.family == 4 else ("::1", "::"))
    port = s.random.choice((9000, 9999, 15001))
    return [s.link() / internet(s.source, destination) / UDP(sport=s.port, dport=port) / s.payload], Limit.NEVER


def few_hops(s: Shot) -> Built:
    hops = s.random.choice((0, 1, 2))
    field = {"ttl": hops} if s.family == 4 else {"hlim": hops}
    return [s.link() / s.head(**field) / s.datagram()], Limit.UDP


def lying_lengths(s: Shot) -> Built:
    size = s.random.choice((0, 7, 8, 9, 60000))
    field = {"len": s.random.choice((19, 20, 28, 60000))} if s.family == 4 else {"plen": s.random.choice((0, 7, 60000))}
    outer = s.head(**field) if s.random.random() < 0.5 else s.head()
    return [s.link() / outer / UDP(sport=s.port, dport=9000, len=size) / s.payload], Limit.UDP


def poisoned_neighbours(s: Shot) -> Built:
    """Claims the other's address; the plain traffic that follows shows the effect."""
    address = s.other.addresses[s.family]
    if s.family == 4:
        claim = ARP(
            op=s.random.choice((1, 2)), hwsrc=s.attacker.mac, psrc=address, hwdst=s.target.mac, pdst=s.destination
        )
        return [s.link(s.random.choice((s.target.mac, BROADCAST))) / claim], Limit.NEVER
    if s.random.random() < 0.5:
        return [neighbour_advertisement(s.attacker.mac, address, s.target.mac, s.destination)], Limit.NEVER
    body = s.random.choice(
        (ICMPv6ND_RA(routerlifetime=9000), ICMPv6ND_Redirect(tgt=s.attacker.link_local, dst=address))
    )
    head = internet(s.attacker.link_local, s.random.choice(("ff02::1", s.destination)), hlim=255)
    return [s.link(s.target.mac) / head / body], Limit.NEVER


FRAMES: Final[tuple[Callable[[Shot], Built], ...]] = (
    plain, somebody_elses_address, nobodys_address, somebody_elses_mac, stolen_identity, link_local, half_link_local,
    to_many, in_a_broadcast_frame, reserved_group, tunnel, vxlan, tagged, odd_ethertype, wrong_version, fragments,
    overlapping_fragments, extension_headers, source_route, segment, icmp_error, ping, loopback, few_hops,
    lying_lengths, poisoned_neighbours,
)  # fmt: skip
