"""Protocols that policies rarely name, and packets that forge their connection."""

from __future__ import annotations

import contextlib
import socket
import time

import pytest
from scapy.layers.inet import ICMP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6PacketTooBig
from scapy.layers.l2 import ARP
from scapy.layers.sctp import SCTP, SCTPChunkData
from scapy.packet import Raw

from tests.attacks.labs import AttackLab, Pod
from tests.attacks.packets import BROADCAST, Packet, ethernet, internet, neighbour_solicitation, token


def way(lab: AttackLab, sender: Pod, target: Pod) -> Packet:
    """The Ethernet header by which the sender reaches the target."""
    near = lab.cni == "bridge" and sender.node == target.node
    return ethernet(sender.mac, target.mac if near else sender.gateway_mac)


@pytest.mark.parametrize("number", [4, 41, 47, 50, 51, 97, 115, 253])
def test_other_protocols_do_not_reach_a_policed_pod(lab: AttackLab, family: int, number: int) -> None:
    attacker, victim, sent = lab.pod("free"), lab.pod("victim"), token()
    source, target = attacker.addresses[family], victim.addresses[family]
    field = {"proto": number} if family == 4 else {"nh": number}
    inner = internet(lab.pod("friend").addresses[family], target) / UDP(sport=7, dport=9000) / sent
    with victim.capture() as seen:
        attacker.send(way(lab, attacker, victim) / internet(source, target, **field) / Raw(bytes(inner)))
        assert not seen.arrived(sent)


def test_sctp_is_judged_as_any_protocol(lab: AttackLab, family: int) -> None:
    attacker = lab.pod("free")
    for name, may in (("open", True), ("victim", False)):
        target, sent = lab.pod(name), token()
        head = internet(attacker.addresses[family], target.addresses[family])
        with target.capture() as seen:
            chunk = SCTPChunkData(data=sent, beginning=1, ending=1)
            attacker.send(way(lab, attacker, target) / head / SCTP(sport=7, dport=9000) / chunk)
            assert seen.arrived(sent) == ({sent} if may else set())


def test_data_in_a_syn_does_not_arrive_before_the_verdict(lab: AttackLab, family: int) -> None:
    attacker, victim, sent = lab.pod("free"), lab.pod("victim"), token()
    head = way(lab, attacker, victim) / internet(attacker.addresses[family], victim.addresses[family])
    with victim.capture() as seen:
        for port in (80, 9000):
            attacker.send(head / TCP(sport=6001, dport=port, flags="S") / (b"GET /public/" + sent))
        assert not seen.arrived(sent)


def test_fast_open_requests_are_judged(lab: AttackLab, family: int) -> None:
    """A client that sends its request in the SYN, without a cookie (net.ipv4.tcp_fastopen 0x4)."""
    friend, victim, good, bad = lab.pod("friend"), lab.pod("victim"), token(), token()
    friend.write("net/ipv4/tcp_fastopen", 0x5)
    with victim.capture() as seen:
        for path, sent, status in ((b"/public/", good, b"200"), (b"/secret/", bad, b"403")):
            request = b"GET " + path + sent + b" HTTP/1.1\r\nHost: a\r\n\r\n"
            with friend.open_socket(family, seconds=2) as client:
                client.sendto(request, socket.MSG_FASTOPEN, (victim.addresses[family], 80))
                assert client.recv(4096).split()[1] == status
        assert seen.arrived(good, bad) == {good}


def test_a_simultaneous_open_needs_the_side_that_may_open(lab: AttackLab, family: int) -> None:
    """`locked` may not connect to `free`; `free` may to `locked`. A SYN of `locked` needs an earlier one of `free`."""
    locked, free = lab.pod("locked"), lab.pod("free")
    addresses = locked.addresses[family], free.addresses[family]
    early, late = token(), token()

    def cross(sent: bytes) -> None:
        segment = TCP(sport=5050, dport=6060, flags="S", seq=1000) / sent
        locked.send(way(lab, locked, free) / internet(*addresses) / segment)

    with free.capture() as seen:
        cross(early)
        assert not seen.arrived(early)
        with free.open_socket(family, seconds=0.1) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.bind((addresses[1], 6060))
            with contextlib.suppress(OSError):
                client.connect((addresses[0], 5050))
            cross(late)
            seen.arrived(late)  # now a reply: may arrive, like any answer on an allowed connection


def test_forged_icmp_errors_do_not_reach_a_policed_server(lab: AttackLab, family: int) -> None:
    """Errors about an existing connection from a pod outside it are refused; the server keeps its path MTU."""
    free, friend, victim = lab.pod("free"), lab.pod("friend"), lab.pod("victim")
    ours, theirs = victim.addresses[family], friend.addresses[family]
    with friend.open_socket(family) as client:
        client.connect((ours, 9000))
        port = client.getsockname()[1]
        for source in (free.addresses[family], theirs):
            sent = token()
            inner = internet(ours, theirs) / TCP(sport=9000, dport=port, flags="A") / sent
            error = ICMP(type=3, code=4, nexthopmtu=600) if family == 4 else ICMPv6PacketTooBig(mtu=1280)
            with victim.capture() as seen:
                free.send(way(lab, free, victim) / internet(source, ours) / error / inner)
                assert not seen.arrived(sent)
        assert "mtu" not in victim.sh(f"ip route get {theirs}").replace("mtu 1500", "")
        client.sendall(b"still")
        assert client.recv(100)


def test_forged_unreachables_do_not_arrive(lab: AttackLab, family: int) -> None:
    """Errors about connections of others are refused; a pod may report errors about packets sent to it."""
    free, friend, victim = lab.pod("free"), lab.pod("friend"), lab.pod("victim")
    ours, theirs = victim.addresses[family], friend.addresses[family]
    with friend.open_socket(family, seconds=2) as client:
        client.connect((ours, 9000))
        port = client.getsockname()[1]
        inner = internet(theirs, ours) / TCP(sport=port, dport=9000, flags="A", seq=1)
        error = ICMP(type=3, code=3) if family == 4 else ICMPv6DestUnreach(code=4)
        for attacker, may in ((free, False), (victim, True)):
            sent = token()
            with friend.capture() as seen:
                head = way(lab, attacker, friend) / internet(attacker.addresses[family], theirs)
                attacker.send(head / error / inner / sent)
                assert seen.arrived(sent) == ({sent} if may else set())
        client.sendall(b"still")
        assert client.recv(100)


def test_a_spoofed_address_does_not_cross_between_nodes(lab: AttackLab, family: int) -> None:
    attacker, friend, victim = lab.pod("far-free"), lab.pod("friend"), lab.pod("victim")
    with victim.capture() as seen:
        for source in (friend, lab.pod("far-friend")):
            sent = token()
            head = internet(source.addresses[family], victim.addresses[family])
            attacker.send(ethernet(attacker.mac, attacker.gateway_mac) / head / UDP(sport=7, dport=9000) / sent)
            assert not seen.arrived(sent)
    assert lab.pod("far-friend").datagram(victim.addresses[family], 9000, seconds=1)


def test_a_storm_of_neighbour_questions_stops_nobody(lab: AttackLab, family: int) -> None:
    attacker, friend, victim = lab.pod("free"), lab.pod("friend"), lab.pod("victim")
    own = attacker.addresses[family]
    if family == 4:
        questions = [
            ethernet(attacker.mac, BROADCAST) / ARP(op=1, hwsrc=attacker.mac, psrc=own, pdst=f"10.244.1.{n}")
            for n in range(2, 250)
        ]
    else:
        questions = [neighbour_solicitation(attacker.mac, own, f"fd00:10:244:1::{n:x}") for n in range(2, 250)]
    frames = [bytes(question) for question in questions] * 40
    began = time.monotonic()
    attacker.send(*frames)
    assert friend.http(victim.addresses[family], "/public/storm") == "200"
    assert friend.datagram(victim.addresses[family], 9000, seconds=1)
    assert attacker.http(victim.addresses[family]) == "refused"
    assert time.monotonic() - began < 20


def test_large_packets_and_fragments_are_judged_as_small_ones(lab: AttackLab, family: int) -> None:
    free, friend, victim = lab.pod("free"), lab.pod("friend"), lab.pod("victim")
    ours, sent = victim.addresses[family], token()
    assert friend.datagram(ours, 9000, b"x" * 9000, seconds=1), "fragments of an allowed datagram arrive"
    with victim.capture() as seen:
        assert free.datagram(ours, 9000, sent * 500) is None
        assert not seen.arrived(sent)
    free.sh("ip link set eth0 mtu 1280")
    try:
        assert free.http(ours) == "refused"
    finally:
        free.sh("ip link set eth0 mtu 1500")
