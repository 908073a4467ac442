"""Ethernet frames and IP packets built byte by byte, for packets that no socket sends."""

from __future__ import annotations

import struct
from ipaddress import ip_address

PORT = 5353
"""The UDP destination and source port of `udp`."""
EVERYBODY = "ff:ff:ff:ff:ff:ff"
IPV4, ARP, VLAN, IPV6 = 0x0800, 0x0806, 0x8100, 0x86DD


def frame(source: str, target: str, kind: int, payload: bytes, *, tag: int | None = None) -> bytes:
    """An Ethernet frame; `tag` is a VLAN ID, inserted before the EtherType."""
    vlan = struct.pack(">HH", VLAN, tag) if tag is not None else b""
    octets = bytes.fromhex((target + source).replace(":", ""))
    return octets + vlan + struct.pack(">H", kind) + payload


def udp(source: str, target: str, data: bytes = b"attack") -> bytes:
    """An IP packet with a UDP datagram to `PORT`."""
    one, other = ip_address(source), ip_address(target)
    datagram = struct.pack(">HHHH", PORT, PORT, 8 + len(data), 0) + data
    total = checksum(pseudo_header(one.packed, other.packed, 17, datagram))
    checked = datagram[:6] + struct.pack(">H", total) + datagram[8:]
    if one.version == 4:
        head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(checked), 1, 0, 64, 17, 0) + one.packed + other.packed
        return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + checked
    return struct.pack(">IHBB", 0x60000000, len(checked), 17, 64) + one.packed + other.packed + checked


def advertisement(claimed: str, target: str, own_mac: str) -> bytes:
    """A neighbour advertisement with the override flag (RFC 4861, 4.4)."""
    one, other = ip_address(claimed), ip_address(target)
    option = b"\x02\x01" + bytes.fromhex(own_mac.replace(":", ""))
    body = struct.pack(">BBHI", 136, 0, 0, 0x20000000) + one.packed + option
    body = body[:2] + struct.pack(">H", checksum(pseudo_header(one.packed, other.packed, 58, body))) + body[4:]
    return struct.pack(">IHBB", 0x60000000, len(body), 58, 255) + one.packed + other.packed + body


def arp_reply(claimed: str, target: str, sender_mac: str, target_mac: str) -> bytes:
    """ARP or neighbour advertisement that maps `claimed` to `sender_mac`."""
    macs = [bytes.fromhex(one.replace(":", "")) for one in (sender_mac, target_mac)]
    ips = [ip_address(one).packed for one in (claimed, target)]
    return struct.pack(">HHBBH", 1, IPV4, 6, 4, 2) + macs[0] + ips[0] + macs[1] + ips[1]


def pseudo_header(source: bytes, target: bytes, protocol: int, payload: bytes) -> bytes:
    return source + target + struct.pack(">IBBH", len(payload), 0, 0, protocol) + payload


def checksum(data: bytes) -> int:
    """The checksum of RFC 1071; the IPv4 pseudo header gives the same sum for both families."""
    padded = data + b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f">{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF or 0xFFFF


def with_source(packet: bytes, source: str) -> bytes:
    """The same ICMPv6 packet with another source address."""
    packed, body = ip_address(source).packed, packet[40:42] + b"\0\0" + packet[44:]
    total = checksum(pseudo_header(packed, packet[24:40], 58, body))
    return packet[:8] + packed + packet[24:40] + body[:2] + struct.pack(">H", total) + body[4:]
