"""Renders the ebtables rules: anti-spoofing of frames, and handing frames to the IP layer.

Same semantics as nft/bridge. ebtables has no usable sets, so rules are per port: their number grows with the pods of
the node, not with policy. ebtables cannot match the target of a neighbour advertisement, so a pod can still claim
another pod's IPv6 address towards its neighbours; nor hop limits, which receivers check themselves. Packets from ports
of unknown pods get the mark bit of the proxy's own connections here; the raw table, which has sets, refuses those with
known addresses. In ARP only the addresses of this node and its pods are compared.

bridge-nf-call must be off (see iptables/backend): frames are handed up to the IP layer, and br_netfilter would lose the
proxy's socket on the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv6Address
from typing import Final

from tproxy_rules.desired import Desired, Endpoint, Port, Settings
from tproxy_rules.iptables.rules import IptTable
from tproxy_rules.marks import CHAIN_PREFIX, LOG_QUEUE, LOG_SNAPLEN, LogDirection, LogEvent, log_prefix
from tproxy_rules.networks import family
from tproxy_rules.nft.bridge import link_local

_ICMP6 = "-p IPv6 --ip6-proto ipv6-icmp --ip6-icmp-type"
_GROUPS = ("-p IPv4 --ip-dst 224.0.0.0/4", "-p IPv4 --ip-dst 255.255.255.255", "-p IPv6 --ip6-dst ff00::/8")
_LINK = (
    f"{_ICMP6} 133:133", f"{_ICMP6} 135:136",
    f"{_ICMP6} 130:132 --ip6-dst ff02::/16", f"{_ICMP6} 143:143 --ip6-dst ff02::/16",
    "-p IPv4 --ip-proto igmp --ip-dst 224.0.0.0/4",
)  # fmt: skip
_LINK_LOCAL: Final = ("-p IPv6 --ip6-dst fe80::/10", "-p IPv6 --ip6-src fe80::/10 --ip6-dst ! ff00::/8")
"""Unicast to and from link-local addresses."""
_RESERVED: Final = "-d 01:80:c2:00:00:00/ff:ff:ff:ff:ff:f0"


def render(desired: Desired) -> tuple[IptTable, ...]:
    """The tables nat and filter, empty without a bridge."""
    nat, forward = IptTable("nat"), IptTable("filter")
    if desired.bridges:
        pods = [(one, one.port) for one in desired.endpoints if one.port and one.port.bridge]
        for one, port in pods:
            nat.chain(f"P{one.id}", _own(one, port))
        nat.chain("SPOOF", _dropped(desired.settings, LogEvent.SPOOF, LogDirection.EGRESS))
        nat.chain("LINK", _link_local_unicast(desired.settings, LogDirection.EGRESS))
        nat.chain("LOCAL", _link_local_from_others(desired, pods))
        nat.chain("HELD", _foreign(pods))
        nat.chain("GROUP", _in_group_frames())
        nat.chain("UNKNOWN", _unknown(desired, pods))
        nat.chain("UP", _up(pods))
        known = [f"-i {port.interface} -j {CHAIN_PREFIX}P{one.id}" for one, port in pods]
        others = [f"-j {CHAIN_PREFIX}{name}" for name in ("HELD", "UNKNOWN", "UP")]
        nat.base("PREROUTING", "PRE", [*known, *others])
        forward.chain("CLOSED", [*(f"{link} -j RETURN" for link in ("-p ARP", *_LINK)), "-j DROP"])
        forward.chain("LINK", _link_local_unicast(desired.settings, LogDirection.INGRESS))
        forward.chain("PODS", (f"-o {port.interface} -j {CHAIN_PREFIX}LINK" for _, port in pods))
        forward.chain("SPOOF", _dropped(desired.settings, LogEvent.SPOOF, LogDirection.EGRESS))
        forward.chain("STRAY", _dropped(desired.settings, LogEvent.STRAY, LogDirection.INGRESS))
        for one, port in pods:
            forward.chain(f"T{one.id}", _to(one, port))
        closed = [f"-o {port.interface} -j {CHAIN_PREFIX}CLOSED" for one, port in pods if one.ingress is not None]
        local = [f"{match} -j {CHAIN_PREFIX}PODS" for match in _LINK_LOCAL]
        if desired.held:
            bit = f"{desired.settings.mark_upstream:#x}"
            forward.chain("HELD", _between(desired, pods))
            local.append(f"--mark {bit}/{bit} -j {CHAIN_PREFIX}HELD")
        forward.base("FORWARD", "FWD", [*local, *closed])
        # Repeats a check of the raw table's guard, see iptables/rules: most such frames pass here.
        forward.base("INPUT", "IN", [f"{_RESERVED} -p {kind} -j {CHAIN_PREFIX}SPOOF" for kind in ("IPv4", "IPv6")])
        forward.base("OUTPUT", "OUT", [f"-o {port.interface} -j {CHAIN_PREFIX}T{one.id}" for one, port in pods])
    return nat, forward


def _between(desired: Desired, pods: list[tuple[Endpoint, Port]]) -> Iterator[str]:
    """From ports of unknown pods, which are held closed, to pods. See nft/bridge."""
    yield from (f"-o {port.interface} -j {CHAIN_PREFIX}CLOSED" for _, port in pods)
    for prefix in desired.held:
        protocol, name = ("IPv4", "ip") if family(prefix) == 4 else ("IPv6", "ip6")
        yield from (f"-p {protocol} --{name}-{end} {prefix} -j {CHAIN_PREFIX}CLOSED" for end in ("src", "dst"))


def _own(endpoint: Endpoint, port: Port) -> Iterator[str]:
    """Anti-spoofing of one port. The MAC comes first, so that a false one never enters the forwarding table."""
    up, spoofed = f"-j {CHAIN_PREFIX}UP", f"-j {CHAIN_PREFIX}SPOOF"
    yield f"-s ! {port.mac} {spoofed}"
    for address in endpoint.addresses:
        if family(address) == 4:
            yield f"-p IPv4 --ip-src {address} {up}"
            yield f"-p ARP --arp-mac-src {port.mac} --arp-ip-src {address} -j ACCEPT"
            # RFC 5227: a probe has no sender address. A probe for another's address would make its owner give it up.
            probe = f"-p ARP --arp-op Request --arp-mac-src {port.mac} --arp-ip-src 0.0.0.0"
            yield f"{probe} --arp-ip-dst {address} -j ACCEPT"
    # RFC 6105: hosts are not routers.
    yield f"{_ICMP6} 134:134 {spoofed}"
    yield f"{_ICMP6} 137:137 {spoofed}"
    yield from (f"{match} -j {CHAIN_PREFIX}LINK" for match in _LINK_LOCAL)
    for address in (*endpoint.addresses, link_local(port.mac)):
        if family(address) == 6:
            yield f"-p IPv6 --ip6-src {address} {up}"
            # RFC 4862, 5.4: duplicate address detection has the unspecified source. ebtables cannot match its target,
            # but the owner receives only the solicited-node group of the target (RFC 4291, 2.7.1).
            yield f"{_ICMP6} 135:135 --ip6-src :: --ip6-dst {_solicited(address)} {up}"
    yield f"{_ICMP6} 143:143 --ip6-src :: {up}"
    yield f"-j {CHAIN_PREFIX}SPOOF"


def _foreign(pods: list[tuple[Endpoint, Port]]) -> Iterator[str]:
    """Frames from other ports must not use MACs or addresses of this node's pods."""
    for one, port in pods:
        yield from _held(one, port)
    yield from (f"{match} -j {CHAIN_PREFIX}LOCAL" for match in _LINK_LOCAL)


def _held(endpoint: Endpoint, port: Port) -> Iterator[str]:
    spoofed = f"-j {CHAIN_PREFIX}SPOOF"
    yield f"-s {port.mac} {spoofed}"
    for address in endpoint.addresses:
        if family(address) == 4:
            yield f"-p IPv4 --ip-src {address} {spoofed}"
            yield f"-p ARP --arp-ip-src {address} {spoofed}"
    for address in (*endpoint.addresses, link_local(port.mac)):
        if family(address) == 6:
            yield f"-p IPv6 --ip6-src {address} {spoofed}"
            yield f"{_ICMP6} 135:135 --ip6-src :: --ip6-dst {_solicited(address)} {spoofed}"


def _unknown(desired: Desired, pods: list[tuple[Endpoint, Port]]) -> Iterator[str]:
    """Ports of unknown pods must not use any known address and must not act as routers."""
    spoofed, mark = f"-j {CHAIN_PREFIX}SPOOF", f"{desired.settings.mark_upstream:#x}"
    outward = {*desired.other_ports, *(name for bridge in desired.bridges for name in bridge.uplinks)}
    yield from (f"-i {name} -j RETURN" for name in sorted(outward))
    yield from (f"-s {bridge.mac} {spoofed}" for bridge in desired.bridges)
    for mac in (*(port.mac for _, port in pods), *(bridge.mac for bridge in desired.bridges)):
        yield f"-p ARP --arp-mac-src {mac} {spoofed}"
    for address in _of_node(desired, 4):
        yield f"-p ARP --arp-ip-src {address} {spoofed}"
    yield "-p ARP -j RETURN"
    for address in (*_of_node(desired, 6), *(link_local(bridge.mac) for bridge in desired.bridges)):
        yield f"-p IPv6 --ip6-src {address} {spoofed}"
        yield f"{_ICMP6} 135:135 --ip6-src :: --ip6-dst {_solicited(address)} {spoofed}"
    yield f"{_ICMP6} 134:134 {spoofed}"
    yield f"{_ICMP6} 137:137 {spoofed}"
    for protocol in ("IPv4", "IPv6"):
        yield f"-p {protocol} -d Multicast -j {CHAIN_PREFIX}GROUP"
        yield f"-p {protocol} -j mark --mark-or {mark} --mark-target RETURN"
    yield f"-j {CHAIN_PREFIX}SPOOF"


def _in_group_frames() -> Iterator[str]:
    """A unicast packet in a group frame: receivers accept it, but no rule would hand it to the IP layer."""
    yield from (f"{group} -j RETURN" for group in _GROUPS)
    yield f"-j {CHAIN_PREFIX}SPOOF"


def _of_node(desired: Desired, version: int) -> Iterator[str]:
    """The node's own addresses."""
    for prefix, identity in desired.identities:
        address, _, length = prefix.partition("/")
        if identity == desired.host_identity and family(address) == version and length == ("32", "128")[version == 6]:
            yield address


def _link_local_from_others(desired: Desired, pods: list[tuple[Endpoint, Port]]) -> Iterator[str]:
    """Link-local unicast from ports without a known pod: to pods, and, except from uplinks, to the node."""
    yield from (f"-d {port.mac} -j {CHAIN_PREFIX}LINK" for _, port in pods)
    yield from (f"-i {name} -j RETURN" for bridge in desired.bridges for name in bridge.uplinks)
    yield from (f"-d {bridge.mac} -j {CHAIN_PREFIX}LINK" for bridge in desired.bridges)


def _link_local_unicast(settings: Settings, way: LogDirection) -> Iterator[str]:
    """Returns for link protocols only."""
    yield from (f"{_ICMP6} {types} -j RETURN" for types in ("133:137", "130:132", "143:143"))
    yield from _dropped(settings, LogEvent.LINK_LOCAL, way)


def _to(endpoint: Endpoint, port: Port) -> Iterator[str]:
    """From the node or routed by it: only to the pod's own addresses, not others it configured, and to groups."""
    yield f"-p IPv6 --ip6-dst fe80::/10 -j {CHAIN_PREFIX}LINK"
    yield "-p IPv6 --ip6-dst fe80::/10 -j RETURN"
    for version, protocol, destination in ((4, "IPv4", "--ip-dst"), (6, "IPv6", "--ip6-dst")):
        for address in endpoint.addresses:
            if family(address) == version:
                yield f"-p {protocol} {destination} {address} -j RETURN"
        yield f"-p {protocol} -d {port.mac} -j {CHAIN_PREFIX}STRAY"


def _dropped(settings: Settings, kind: LogEvent, way: LogDirection) -> Iterator[str]:
    """Drop with an event. ebtables has limits per rule only, so all ports share one limit per reason."""
    share = max(settings.log_rate // 10, 1)
    yield (
        f"--limit {share}/sec --limit-burst {share} --nflog-group {settings.nflog_group} "
        f"--nflog-prefix {log_prefix(kind, way, 0)} --nflog-range {LOG_SNAPLEN} --nflog-threshold {LOG_QUEUE} "
        "-j CONTINUE"
    )
    yield "-j DROP"


def _solicited(address: str) -> str:
    """The solicited-node multicast address (RFC 4291, 2.7.1)."""
    return str(IPv6Address(b"\xff\x02" + bytes(9) + b"\x01\xff" + IPv6Address(address).packed[-3:]))


def _up(pods: list[tuple[Endpoint, Port]]) -> Iterator[str]:
    """Link protocols stay on the bridge, IP of pods is handed up. Final for packets from known ports."""
    yield from (f"{link} -j ACCEPT" for link in _LINK)
    for group in _GROUPS:
        yield from (f"{group} -i {port.interface} -j DROP" for one, port in pods if one.egress and one.egress.governed)
        yield f"{group} -j ACCEPT"
    for _, port in pods:
        for protocol in ("IPv4", "IPv6"):
            yield f"-p {protocol} -i {port.interface} -j redirect --redirect-target ACCEPT"
            yield f"-p {protocol} -d {port.mac} -j redirect --redirect-target ACCEPT"
