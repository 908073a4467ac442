"""The bridge half of the iptables picture, in ebtables: who may send a frame, and sending frames up to the IP layer.

The same law as nft_bridge with the means of ebtables, which has no sets worth the name: rules are per port, so their
number grows with the pods of the node and not with policy. What ebtables cannot see is the target of a neighbour
advertisement; there a pod can still claim another pod's IPv6 address towards its neighbours.

bridge-nf-call must be off here (see iptables): the frames are raised to where routed packets are, and br_netfilter
would lose the proxy's socket on the way.
"""

from __future__ import annotations

from collections.abc import Iterator

from tproxy_rules.desired import Desired, Endpoint, Port
from tproxy_rules.ipt_rules import IptTable
from tproxy_rules.marks import CHAIN_PREFIX
from tproxy_rules.networks import family
from tproxy_rules.nft_bridge import link_local

_ICMP6 = "-p IPv6 --ip6-proto ipv6-icmp --ip6-icmp-type"
_GROUPS = ("-p IPv4 --ip-dst 224.0.0.0/4", "-p IPv4 --ip-dst 255.255.255.255", "-p IPv6 --ip6-dst ff00::/8")
_LINK = (
    f"{_ICMP6} 133:133", f"{_ICMP6} 135:136",
    f"{_ICMP6} 130:132 --ip6-dst ff02::/16", f"{_ICMP6} 143:143 --ip6-dst ff02::/16",
    "-p IPv4 --ip-proto igmp --ip-dst 224.0.0.0/4",
)  # fmt: skip


def render(desired: Desired) -> tuple[IptTable, ...]:
    """Tables nat and filter, with nothing in them when there is no bridge."""
    nat, forward = IptTable("nat"), IptTable("filter")
    if desired.bridges:
        pods = [(one, one.port) for one in desired.endpoints if one.port and one.port.bridge]
        for one, port in pods:
            nat.chain(f"P{one.id}", _own(one, port))
        nat.chain("HELD", (rule for one, port in pods for rule in _held(one, port)))
        nat.chain("UP", _up(pods))
        known = [f"-i {port.interface} -j {CHAIN_PREFIX}P{one.id}" for one, port in pods]
        nat.base("PREROUTING", "PRE", [*known, f"-j {CHAIN_PREFIX}HELD", f"-j {CHAIN_PREFIX}UP"])
        forward.chain("CLOSED", [*(f"{link} -j RETURN" for link in ("-p ARP", *_LINK)), "-j DROP"])
        closed = [f"-o {port.interface} -j {CHAIN_PREFIX}CLOSED" for one, port in pods if one.ingress is not None]
        forward.base("FORWARD", "FWD", closed)
    return nat, forward


def _own(endpoint: Endpoint, port: Port) -> Iterator[str]:
    """Anti-spoofing of one port: the MAC first, so that a forged one never enters the forwarding table."""
    up = f"-j {CHAIN_PREFIX}UP"
    yield f"-s ! {port.mac} -j DROP"
    for address in endpoint.addresses:
        if family(address) == 4:
            yield f"-p IPv4 --ip-src {address} {up}"
            yield f"-p ARP --arp-mac-src {port.mac} --arp-ip-src {address} -j ACCEPT"
    # RFC 5227: a probe asks for an address before it is one's own.
    yield f"-p ARP --arp-op Request --arp-mac-src {port.mac} --arp-ip-src 0.0.0.0 -j ACCEPT"
    # RFC 6105: hosts are no routers.
    yield f"{_ICMP6} 134:134 -j DROP"
    yield f"{_ICMP6} 137:137 -j DROP"
    for address in (*endpoint.addresses, link_local(port.mac)):
        if family(address) == 6:
            yield f"-p IPv6 --ip6-src {address} {up}"
    # RFC 4862, 5.4: duplicate address detection comes from the unspecified address.
    yield f"{_ICMP6} 135:135 --ip6-src :: {up}"
    yield f"{_ICMP6} 143:143 --ip6-src :: {up}"
    yield "-j DROP"


def _held(endpoint: Endpoint, port: Port) -> Iterator[str]:
    """From other ports, as a pod's that is not known yet: nothing that is known to be somebody's."""
    yield f"-s {port.mac} -j DROP"
    for address in endpoint.addresses:
        if family(address) == 4:
            yield f"-p IPv4 --ip-src {address} -j DROP"
            yield f"-p ARP --arp-ip-src {address} -j DROP"
    for address in (*endpoint.addresses, link_local(port.mac)):
        if family(address) == 6:
            yield f"-p IPv6 --ip6-src {address} -j DROP"


def _up(pods: list[tuple[Endpoint, Port]]) -> Iterator[str]:
    """The link's own stays on the bridge, and IP of pods goes up: for what a known port sends it always ends here."""
    yield from (f"{link} -j ACCEPT" for link in _LINK)
    for group in _GROUPS:
        yield from (f"{group} -i {port.interface} -j DROP" for one, port in pods if one.egress and one.egress.governed)
        yield f"{group} -j ACCEPT"
    for _, port in pods:
        for protocol in ("IPv4", "IPv6"):
            yield f"-p {protocol} -i {port.interface} -j redirect --redirect-target ACCEPT"
            yield f"-p {protocol} -d {port.mac} -j redirect --redirect-target ACCEPT"
