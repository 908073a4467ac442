"""Parses NFLOG messages, whole or cut off anywhere. Packets are built here byte by byte from the RFCs."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy_rules.marks import LogDirection, LogEvent
from tproxy_rules.nflog import NflogEvent, parse_packet


def event() -> NflogEvent:
    return NflogEvent(LogEvent.ALLOW, LogDirection.INGRESS, 7)


def parsed(data: bytes) -> NflogEvent:
    found = event()
    parse_packet(data, found)
    return found


def ipv4(protocol: int, payload: bytes, *, options: bytes = b"", fragment: int = 0) -> bytes:
    words, length = 5 + len(options) // 4, 20 + len(options) + len(payload)
    head = struct.pack(">BBHHHBBH", 0x40 | words, 0, length, 1, fragment, 64, protocol, 0)
    return head + ip_address("10.1.0.11").packed + ip_address("10.1.0.12").packed + options + payload


def ipv6(first: int, payload: bytes) -> bytes:
    head = struct.pack(">IHBB", 6 << 28, len(payload), first, 64)
    return head + ip_address("fd00:1::b").packed + ip_address("fd00:1::c").packed + payload


TCP = struct.pack(">HHIIBBHHH", 40000, 80, 1, 2, 0x50, 0x12, 100, 0, 0)
UDP = struct.pack(">HHHH", 40000, 53, 8, 0)
UNREACHABLE = bytes((3, 1)) + bytes(6)
HOP_BY_HOP = bytes((60, 0)) + bytes(6)
DESTINATION = bytes((6, 1)) + bytes(14)
FRAGMENT = bytes((17, 0)) + struct.pack(">HI", 8 << 3, 9)
AUTHENTICATION = bytes((6, 1)) + bytes(10)


@pytest.mark.parametrize("version", [4, 6])
def test_tcp(version: int) -> None:
    found = parsed(ipv4(6, TCP) if version == 4 else ipv6(6, TCP))
    ends = ("10.1.0.11", "10.1.0.12") if version == 4 else ("fd00:1::b", "fd00:1::c")
    assert (found.source, found.destination, found.protocol, found.source_port, found.destination_port) == (
        *ends, 6, 40000, 80,
    )  # fmt: skip
    assert found.tcp_flags == 0x12
    assert found.length == (40 if version == 4 else 60)
    assert (found.kind, found.way, found.endpoint) == (LogEvent.ALLOW, LogDirection.INGRESS, 7)


@pytest.mark.parametrize("packet", [ipv4(17, UDP), ipv6(17, UDP), ipv4(17, UDP, options=bytes(8))])
def test_udp_with_options_and_without(packet: bytes) -> None:
    found = parsed(packet)
    assert (found.protocol, found.source_port, found.destination_port, found.tcp_flags) == (17, 40000, 53, 0)


@pytest.mark.parametrize(("packet", "protocol"), [(ipv4(1, UNREACHABLE), 1), (ipv6(58, UNREACHABLE), 58)])
def test_icmp(packet: bytes, protocol: int) -> None:
    found = parsed(packet)
    assert (found.protocol, found.icmp_type, found.icmp_code, found.destination_port) == (protocol, 3, 1, 0)


def test_ipv6_extension_headers_are_walked() -> None:
    assert parsed(ipv6(0, HOP_BY_HOP + DESTINATION + TCP)).destination_port == 80
    assert parsed(ipv6(51, AUTHENTICATION + TCP)).destination_port == 80


def test_an_endless_chain_of_headers_ends() -> None:
    found = parsed(ipv6(0, (bytes((0, 0)) + bytes(6)) * 50))
    assert (found.source, found.destination_port) == ("fd00:1::b", 0)


@pytest.mark.parametrize("packet", [ipv4(17, UDP, fragment=1), ipv6(44, FRAGMENT + UDP)])
def test_a_later_fragment_has_no_ports(packet: bytes) -> None:
    found = parsed(packet)
    assert (found.protocol, found.source_port, found.destination_port) == (17, 0, 0)


WHOLE = [ipv4(6, TCP), ipv4(17, UDP, options=bytes(8)), ipv4(1, UNREACHABLE), ipv6(6, TCP), ipv6(58, UNREACHABLE),
         ipv6(0, HOP_BY_HOP + DESTINATION + TCP), ipv6(44, FRAGMENT + UDP), ipv6(51, AUTHENTICATION + TCP)]  # fmt: skip


@pytest.mark.parametrize("packet", WHOLE)
def test_cut_off_anywhere_it_tells_what_is_there_and_invents_nothing(packet: bytes) -> None:
    whole, empty = parsed(packet), event()
    for length in range(len(packet)):
        found = parsed(packet[:length])
        for name in ("source", "destination", "source_port", "destination_port", "tcp_flags", "icmp_type", "icmp_code"):
            assert getattr(found, name) in (getattr(whole, name), getattr(empty, name)), (name, length)
        if length < 20:
            assert found == empty


@given(st.binary(max_size=140))
def test_any_bytes_will_do(data: bytes) -> None:
    for version in (b"\x45", b"\x4f", b"\x40", b"\x60", b""):
        parsed(version + data)


_UNPRIVILEGED = """
import os, sys
from tproxy_rules.backend import KernelError
from tproxy_rules.nflog import NflogReader
os.setuid(65534)
try:
    NflogReader(79)
except KernelError as error:
    sys.exit(str(error))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give it up")
def test_a_refused_group_says_both_possible_reasons() -> None:
    try:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12).close()
    except OSError as error:
        pytest.skip(f"no netfilter netlink here: {error}")
    done = subprocess.run([sys.executable, "-c", _UNPRIVILEGED], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "NFLOG group 79: permission denied" in done.stderr
    assert "if another process reads this group, set another nflog_group" in done.stderr
