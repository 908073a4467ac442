"""Renders the table `bridge l7proxy`: anti-spoofing of frames, and handing frames to the IP layer.

A Linux bridge forwards frames between pods without any IP hook (or, with bridge-nf-call-iptables=1, through hooks where
TPROXY cannot deliver). So every unicast IP frame from or to a pod gets the bridge's own MAC as destination and is
evaluated like routed packets. Only ARP, neighbour discovery and group traffic stay on the bridge.

Rules match ports and MACs, never bridges: many kernels lack `meta ibrname`, and without it a rule for one bridge would
also affect others such as docker0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from ipaddress import IPv6Address
from typing import Final

from tproxy_rules.desired import Desired, Endpoint, Prefixes, Settings
from tproxy_rules.marks import TABLE, LogDirection, LogEvent
from tproxy_rules.networks import Identities, family, split
from tproxy_rules.nft import limits as nft_limits
from tproxy_rules.nft.table import Chain, Listed, NftTable, Set, chain, made, named_set, prefix_sets
from tproxy_rules.nft.text import as_bits, log

# RFC 4861: neighbour discovery requires hop limit 255. RFC 3810 and RFC 2710: listener reports.
NEIGHBOUR = "ip6 hoplimit 255 icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert }"
ROUTER = "icmpv6 type { nd-router-advert, nd-redirect }"
LISTENER = "icmpv6 type { mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report }"
ICMP_ERRORS: Final = "{ destination-unreachable, source-quench, redirect, time-exceeded, parameter-problem }"
GROUP4 = "ether type ip ip daddr { 224.0.0.0/4, 255.255.255.255 }"
GROUP6 = "ether type ip6 ip6 daddr ff00::/8"
TO_LINK_LOCAL: Final = "ip6 daddr fe80::/10"
FROM_LINK_LOCAL: Final = "ip6 saddr fe80::/10 ip6 daddr != ff00::/8"
"""Unicast only: packets to groups are handled as group traffic, whatever their source."""
RESERVED: Final = "ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00"
"""IEEE 802.1Q, table 8-1: addresses that bridges do not forward."""
UNICAST: Final = "ether daddr & 01:00:00:00:00:00 == 00:00:00:00:00:00"
TARGET = "@th,64,128"
"""Target address of a neighbour solicitation or advertisement: nft before 1.0.8 has no `icmpv6 taddr`."""


def table(desired: Desired, split_up: Callable[[Prefixes], Mapping[int, Identities]] = split) -> NftTable:
    """For a state with bridges. `split_up` is `split` or a cache of it."""
    settings = desired.settings
    held = prefix_sets("cidrs", desired.held)
    sets = (*_sets(desired), *held, *_listed(split_up(desired.identities)), *nft_limits.by_port(settings))
    return made("bridge", TABLE, "", (*sets, *_chains(desired)))


def link_local(mac: str) -> str:
    """The link-local address that Linux derives from a MAC by default (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    eui64 = bytes((octets[0] ^ 2,)) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return str(IPv6Address(b"\xfe\x80" + bytes(6) + eui64))


def _sets(desired: Desired) -> Iterator[Set]:
    pods = [one for one in desired.endpoints if one.port and one.port.bridge]
    macs = {bridge.name: bridge.mac for bridge in desired.bridges}
    own6 = [(one, address) for one in pods for address in (*_addresses(one, 6), link_local(_mac(one)))]
    held6 = [*(address for _, address in own6), *(link_local(bridge.mac) for bridge in desired.bridges)]
    yield named_set("ports", "ifname", [_name(one) for one in pods])
    yield named_set("cables", "ifname . ether_addr", [f"{_name(one)} . {_mac(one)}" for one in pods])
    yield named_set(
        "own4",
        "ifname . ether_addr . ipv4_addr",
        [f"{_name(one)} . {_mac(one)} . {address}" for one in pods for address in _addresses(one, 4)],
    )
    yield named_set(
        "own6", "ifname . ether_addr . ipv6_addr", [f"{_name(one)} . {_mac(one)} . {address}" for one, address in own6]
    )
    # Without the port: what other ports may not claim.
    yield named_set("macs", "ether_addr", [_mac(one) for one in pods])
    yield named_set("nodes", "ether_addr", [bridge.mac for bridge in desired.bridges])
    outward = (*desired.other_ports, *(name for bridge in desired.bridges for name in bridge.uplinks))
    yield named_set("outward", "ifname", [f'"{name}"' for name in sorted(set(outward))])
    yield named_set("uplinks", "ifname", [f'"{name}"' for bridge in desired.bridges for name in bridge.uplinks])
    yield named_set("homes4", "ipv4_addr", [address for one in pods for address in _addresses(one, 4)])
    yield named_set("homes6", "ipv6_addr", held6)
    yield named_set(
        "targets",
        f"iifname . {TARGET}",
        [f"{_name(one)} . {as_bits(address)}" for one, address in own6],
        of="typeof",
    )
    yield named_set("held", TARGET, [f"{as_bits(address)}" for address in held6], of="typeof")
    yield named_set("up_from", "ifname : ether_addr", [f"{_name(one)} : {macs[_bridge(one)]}" for one in pods])
    yield named_set("up_to", "ether_addr : ether_addr", sorted({f"{_mac(one)} : {macs[_bridge(one)]}" for one in pods}))
    yield named_set("closed_in", "ifname", [_name(one) for one in pods if one.ingress])
    yield named_set("closed_out", "ifname", [_name(one) for one in pods if one.egress and one.egress.governed])


def _listed(nets: Mapping[int, Identities]) -> Iterator[Set]:
    """All known addresses, of pods and nodes."""
    yield Set("hosts4", "ipv4_addr", Listed(nets[4].hosts))
    yield Set("hosts6", "ipv6_addr", Listed(nets[6].hosts))
    yield Set("taken", TARGET, Listed(nets[6].hosts, as_bits=True), of="typeof")


def _chains(desired: Desired) -> Iterator[Chain]:
    settings = desired.settings
    yield chain("own", _own())
    yield chain("foreign", _foreign())
    yield chain("unknown", _unknown())
    yield chain("spoofed", (log(settings, LogEvent.SPOOF, LogDirection.EGRESS, 0), "drop"))
    for way in LogDirection:
        yield chain(f"link_{way}", link_local_unicast(settings, way))
    yield chain("stray", (log(settings, LogEvent.STRAY, LogDirection.INGRESS, 0), "drop"))
    yield chain("group_out", (log(settings, LogEvent.GROUP, LogDirection.EGRESS, 0), "drop"))
    yield chain("group_in", (log(settings, LogEvent.GROUP, LogDirection.INGRESS, 0), "drop"))
    yield chain("prerouting", _prerouting(), hook="prerouting", priority=-300)
    if desired.held:
        yield chain("between", _between())
    yield chain("forward", _forward(held=bool(desired.held)), hook="forward", priority=-300)
    yield chain("input", _input(), hook="input", priority=-300)
    yield chain("output", _output(), hook="output", priority=-300)


def _own() -> Iterator[str]:
    """Anti-spoofing of known ports. The MAC comes first, so that a false one never enters the forwarding table."""
    yield "iifname . ether saddr != @cables goto spoofed"
    yield "ether type arp iifname . arp saddr ether . arp saddr ip @own4 return"
    # RFC 5227: a probe has no sender address. A probe for another's address would make its owner give it up.
    probe = "ether type arp arp operation request arp saddr ip 0.0.0.0"
    yield f"{probe} iifname . arp saddr ether . arp daddr ip @own4 return"
    yield "ether type ip iifname . ether saddr . ip saddr @own4 return"
    # RFC 6105: hosts are not routers.
    yield f"{ROUTER} goto spoofed"
    yield f"icmpv6 type nd-neighbor-advert iifname . {TARGET} != @targets goto spoofed"
    yield f"{TO_LINK_LOCAL} jump link_egress"
    yield f"{FROM_LINK_LOCAL} jump link_egress"
    yield "ether type ip6 iifname . ether saddr . ip6 saddr @own6 return"
    # RFC 4862, 5.4: duplicate address detection, and the group join before it, have the unspecified source address. A
    # probe for another's address would deny it to its owner.
    yield f"ip6 saddr :: icmpv6 type nd-neighbor-solicit iifname . {TARGET} @targets return"
    yield "ip6 saddr :: icmpv6 type mld2-listener-report return"
    # Everything else is spoofed, or neither ARP nor IP. This includes priority-tagged frames (VLAN 0): the receiver
    # would accept them as plain IP, but the rules of the bridge do not see them as IP.
    yield "goto spoofed"


def _foreign() -> Iterator[str]:
    """Frames from other ports must not use MACs or addresses of this node's pods."""
    yield "ether saddr @macs goto spoofed"
    yield "ether type arp arp saddr ip @homes4 goto spoofed"
    yield "ether type ip ip saddr @homes4 goto spoofed"
    yield "ether type ip6 ip6 saddr @homes6 goto spoofed"
    yield f"icmpv6 type nd-neighbor-advert {TARGET} @held goto spoofed"
    yield f"ip6 saddr :: icmpv6 type nd-neighbor-solicit {TARGET} @held goto spoofed"
    for theirs in ("ether daddr @macs", "iifname != @uplinks ether daddr @nodes"):
        yield f"{theirs} {TO_LINK_LOCAL} jump link_egress"
        yield f"{theirs} {FROM_LINK_LOCAL} jump link_egress"
    yield "iifname != @outward jump unknown"


def _unknown() -> Iterator[str]:
    """Ports of unknown pods must not use any known address and must not act as routers."""
    yield "ether type != { arp, ip, ip6 } goto spoofed"  # other rules cannot see the payload of a tagged frame
    yield "ether saddr @nodes goto spoofed"
    yield "ether type arp arp saddr ip @hosts4 goto spoofed"
    yield "ether type arp arp saddr ether @macs goto spoofed"
    yield "ether type arp arp saddr ether @nodes goto spoofed"
    yield "ether type ip ip saddr @hosts4 goto spoofed"
    yield "ether type ip6 ip6 saddr @hosts6 goto spoofed"
    yield f"{ROUTER} goto spoofed"
    # Like a router, it may have an unknown address, and could send errors about other pods' connections.
    yield f"icmp type {ICMP_ERRORS} goto spoofed"
    yield "icmpv6 type < 128 goto spoofed"
    yield f"icmpv6 type nd-neighbor-advert {TARGET} @taken goto spoofed"
    yield f"ip6 saddr :: icmpv6 type nd-neighbor-solicit {TARGET} @taken goto spoofed"
    # A unicast packet in a group frame: receivers accept it, but no rule would hand it to the IP layer.
    yield f"{UNICAST} return"
    yield "ether type ip ip daddr != { 224.0.0.0/4, 255.255.255.255 } goto spoofed"
    yield "ether type ip6 ip6 daddr != ff00::/8 goto spoofed"


def link_local_unicast(settings: Settings, way: LogDirection) -> Iterator[str]:
    """Returns for link protocols only: RFC 4861 (hop limit 255), RFC 3810, section 5 (hop limit 1)."""
    yield "ip6 hoplimit 255 icmpv6 type 133-137 return"
    yield "ip6 hoplimit 1 icmpv6 type { 130, 131, 132, 143 } return"
    yield log(settings, LogEvent.LINK_LOCAL, way, 0)
    yield "drop"


def _prerouting() -> Iterator[str]:
    yield "iifname @ports jump own"
    yield "iifname != @ports jump foreign"
    yield f"{NEIGHBOUR} accept"
    yield f"{GROUP6} {LISTENER} accept"
    yield f"{GROUP4} ip protocol igmp accept"
    for group in (GROUP4, GROUP6):
        yield f"{group} iifname @closed_out goto group_out"
        yield f"{group} accept"
    # Unicast packets in broadcast frames are evaluated like any other, because receivers accept them.
    yield "ether type { ip, ip6 } ether daddr set iifname map @up_from meta pkttype set host accept"
    yield "ether type { ip, ip6 } ether daddr set ether daddr map @up_to meta pkttype set host accept"


def _between() -> Iterator[str]:
    """From ports of unknown pods, to pods. Of bridges without pods, only frames with addresses of pods are affected."""
    yield f"{NEIGHBOUR} return"
    yield f"{GROUP6} {LISTENER} return"
    yield f"{GROUP4} ip protocol igmp return"
    yield "oifname @ports goto group_out"
    for version, name in ((4, "ip"), (6, "ip6")):
        yield from (f"{name} {field} @cidrs{version} goto group_out" for field in ("saddr", "daddr"))


def _forward(*, held: bool) -> Iterator[str]:
    """Frames still on the bridge were not evaluated: a port with an ingress policy gets only those listed here. An
    unknown pod, which has no rules yet, is held closed."""
    if held:
        yield "iifname != @ports iifname != @outward ether type { ip, ip6 } jump between"
    yield f"oifname @ports {TO_LINK_LOCAL} jump link_ingress"
    yield f"oifname @ports {FROM_LINK_LOCAL} jump link_ingress"
    yield "oifname != @closed_in accept"
    # With bridge-nf-call a frame handed up is evaluated on the bridge, and passes here if a Service's DNAT then changes
    # its destination to a pod of the same bridge. Only frames that we handed up have type "host" here: frames to the
    # bridge or to the node's end of a veth are not forwarded; all others are "other", "broadcast" or "multicast".
    yield "meta pkttype host accept"
    yield "ether type arp accept"
    yield f"{NEIGHBOUR} accept"
    yield f"{GROUP6} {LISTENER} accept"
    yield f"{GROUP4} ip protocol igmp accept"
    yield "goto group_in"


def _input() -> Iterator[str]:
    """Repeats a check of `guard` in the inet table (see there): most such frames pass here."""
    yield f"{RESERVED} ether type {{ ip, ip6 }} goto spoofed"


def _output() -> Iterator[str]:
    """From the node or routed by it: only to the pod's own addresses, not others it configured, and to groups."""
    yield "oifname != @ports accept"
    yield f"{TO_LINK_LOCAL} goto link_ingress"
    yield f"ether type ip {UNICAST} oifname . ether daddr . ip daddr != @own4 goto stray"
    yield f"ether type ip6 {UNICAST} oifname . ether daddr . ip6 daddr != @own6 goto stray"


def _addresses(endpoint: Endpoint, version: int) -> list[str]:
    return [address for address in endpoint.addresses if family(address) == version]


def _name(endpoint: Endpoint) -> str:
    return f'"{endpoint.port.interface}"' if endpoint.port else ""


def _mac(endpoint: Endpoint) -> str:
    return endpoint.port.mac if endpoint.port else ""


def _bridge(endpoint: Endpoint) -> str:
    return endpoint.port.bridge if endpoint.port else ""
