"""Frames for attackers: small builders on top of scapy. All addresses are explicit, so scapy resolves nothing.

The layers themselves (IP, UDP, GRE, VXLAN, …) are scapy's: `ethernet(mac, mac) / internet(a, b) / UDP(...) / token()`.
"""

from __future__ import annotations

import itertools
import os
from ipaddress import IPv6Address
from typing import Any, Final

from scapy.config import conf
from scapy.layers.inet import IP
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptDstLLAddr, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether

Packet = Any
"""A scapy packet; scapy's types are not checked."""
BROADCAST: Final = "ff:ff:ff:ff:ff:ff"
_RUN: Final = os.urandom(4).hex()
_numbers = itertools.count(1)
conf.verb = 0


def token() -> bytes:
    """16 bytes that are in no other packet: the payload that identifies a packet at the victim."""
    return f"{_RUN}{next(_numbers):08x}".encode()


def ethernet(source: str, destination: str) -> Packet:
    """Ethernet header; scapy sets the type from the next layer."""
    return Ether(src=source, dst=destination)


def internet(source: str, destination: str, **fields: Any) -> Packet:
    """IPv4 or IPv6 header, depending on the addresses."""
    return (IPv6 if ":" in destination else IP)(src=source, dst=destination, **fields)


def arp_reply(mac: str, address: str, target_mac: str, target: str) -> Packet:
    """An ARP reply to one host: `address` is at `mac` (RFC 826)."""
    return ethernet(mac, target_mac) / ARP(op=2, hwsrc=mac, psrc=address, hwdst=target_mac, pdst=target)


def neighbour_advertisement(mac: str, address: str, target_mac: str, target: str) -> Packet:
    """A neighbour advertisement to one host, override set: `address` is at `mac` (RFC 4861 section 4.4)."""
    body = ICMPv6ND_NA(tgt=address, R=0, S=1, O=1) / ICMPv6NDOptDstLLAddr(lladdr=mac)
    return ethernet(mac, target_mac) / IPv6(src=address, dst=target, hlim=255) / body


def neighbour_solicitation(mac: str, source: str, target: str) -> Packet:
    """A neighbour solicitation for `target`. From `::` it is duplicate address detection (RFC 4862 section 5.4.2)."""
    group = solicited_node(target)
    option = ICMPv6NDOptSrcLLAddr(lladdr=mac) if source != "::" else b""
    return (
        ethernet(mac, multicast_mac(group)) / IPv6(src=source, dst=group, hlim=255) / ICMPv6ND_NS(tgt=target) / option
    )


def solicited_node(address: str) -> str:
    """The solicited-node multicast address (RFC 4291 section 2.7.1)."""
    return str(IPv6Address(int(IPv6Address("ff02::1:ff00:0")) | int(IPv6Address(address)) & 0xFFFFFF))


def multicast_mac(group: str) -> str:
    """The Ethernet address of an IPv6 multicast address (RFC 2464 section 7)."""
    return ":".join(f"{byte:02x}" for byte in (0x33, 0x33, *IPv6Address(group).packed[12:]))


def link_local(mac: str) -> str:
    """The link-local address derived from a MAC (modified EUI-64, RFC 4291 appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes((octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]))
    return str(IPv6Address(bytes((0xFE, 0x80, 0, 0, 0, 0, 0, 0)) + identifier))
