"""Finding 10: while one pod floods, the refusals of another are still recorded, and suppressed flows are counted."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

import pytest
from scapy.layers.inet import UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from l7proxy.flows.hubble_constants import EventType
from tests.attacks.labs import AttackLab, Pod
from tests.attacks.packets import ethernet, internet

SPACED = 40
"""Refusals of the innocent pod, one every 40 ms."""
FLOOD = 4000
"""Packets of the flooding pod in the same time, in bursts."""
ETHERTYPE_LLDP = 0x88CC


def paced(send: Callable[[int], object], count: int, burst: int, seconds: float) -> None:
    for first in range(0, count, burst):
        for number in range(first, first + burst):
            send(number)
        time.sleep(seconds * burst / count)


def attack(flood: Callable[[int], object], innocent: Callable[[int], object]) -> None:
    flooding = threading.Thread(target=paced, args=(flood, FLOOD, 40, 1.6))
    flooding.start()
    paced(innocent, SPACED, 1, 1.6)
    flooding.join()


def datagrams(pod: Pod, family: int, target: str) -> tuple[socket.socket, Callable[[int], object]]:
    made = pod.open_socket(family, socket.SOCK_DGRAM)
    return made, lambda number: made.sendto(b"refuse me", (target, 9000))


def told(lab: AttackLab, since: int, source: str, target: str) -> int:
    """Packets with a drop flow, by their addresses ("" without IP); those that a policy refused have two flows."""
    return sum(
        flow["event_type"]["type"] == EventType.DROP
        and flow["IP"].get("source", "") == source
        and flow["IP"].get("destination", "") == target
        for flow in lab.flows("node-1", since)
    )


def counted(lab: AttackLab) -> dict[tuple[str, str, str], int]:
    """Refused packets without a flow, by sender, refusing policy and reason."""
    time.sleep(1.05)  # counted at most once a second
    (lab.lab.cni_directory("node-1") / "look").touch()  # makes the agent check and count at once
    (lab.lab.cni_directory("node-1") / "look").unlink()
    time.sleep(0.3)
    found: dict[tuple[str, str, str], int] = {}
    for one in lab.status("node-1")["flows"].get("rate_limited", []):
        key = (one["source"], one["policy_of"], one["reason"])
        found[key] = found.get(key, 0) + one["packets"]
    return found


def test_the_innocent_are_told_and_the_flood_is_counted(lab: AttackLab, family: int) -> None:
    flooder, innocent, victim = lab.pod("free"), lab.pod("open"), lab.pod("victim")
    target = victim.addresses[family]
    before, lost, began = counted(lab), lab.status("node-1")["flows"]["lost"], time.time_ns()
    one, flood = datagrams(flooder, family, target)
    other, plead = datagrams(innocent, family, target)
    with one, other:
        attack(flood, plead)
    assert told(lab, began, innocent.addresses[family], target) == SPACED
    sender = flooder.addresses[family] if lab.backend == "nftables" else ""  # iptables counts by rule
    key = (sender, "default/victim", "not allowed")
    suppressed, deadline = 0, time.monotonic() + 15
    while suppressed <= FLOOD / 2 and time.monotonic() < deadline:  # a busy agent counts later
        suppressed = counted(lab).get(key, 0) - before.get(key, 0)
    assert suppressed > FLOOD / 2
    assert told(lab, began, flooder.addresses[family], target) + suppressed == FLOOD
    assert lab.status("node-1")["flows"]["lost"] - lost == suppressed


@pytest.mark.where(backend="nftables")
def test_a_pod_that_lies_in_many_names_hides_only_its_own_lies(lab: AttackLab, family: int) -> None:
    """The limit is per interface, since forged source addresses mean nothing."""
    flooder, innocent, victim = lab.pod("free"), lab.pod("open"), lab.pod("victim")
    target, lie = victim.addresses[family], lab.pod("friend").addresses[family]

    def frame(pod: Pod, source: str) -> bytes:
        to = victim.mac if lab.cni == "bridge" else pod.gateway_mac
        return bytes(ethernet(pod.mac, to) / internet(source, target) / UDP(sport=7, dport=9000) / b"lie")

    lies = [frame(flooder, f"10.9.{n // 250}.{n % 250 + 1}" if family == 4 else f"fd00:9::{n:x}") for n in range(1000)]
    plain = frame(innocent, lie)
    began = time.time_ns()

    def raw(pod: Pod) -> socket.socket:
        def bound() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            made.bind((pod.interface, 0))
            return made

        return pod.do(bound)

    with raw(flooder) as one, raw(innocent) as other:
        attack(lambda n: one.send(lies[n % len(lies)]), lambda n: other.send(plain))
    counted(lab)
    assert told(lab, began, lie, target) == SPACED
    assert any(pod == "" and reason == "spoof" for _, pod, reason in counted(lab))


@pytest.mark.where(cni="bridge")
def test_a_frame_without_ip_hides_no_other(lab: AttackLab, family: int) -> None:
    """Its event has no addresses, and the agent reads it together with those of other pods."""
    attacker, innocent, victim = lab.pod("free"), lab.pod("open"), lab.pod("victim")
    target, lost, began = victim.addresses[family], lab.status("node-1")["flows"]["lost"], time.time_ns()
    frame = bytes(Ether(src=attacker.mac, dst=victim.mac, type=ETHERTYPE_LLDP) / Raw(bytes(46)))
    sock, plead = datagrams(innocent, family, target)
    with sock:
        attack(lambda number: attacker.send(frame) if number % 80 == 0 else None, plead)
    assert told(lab, began, innocent.addresses[family], target) == SPACED
    assert told(lab, began, "", "") == FLOOD / 80
    assert lab.status("node-1")["flows"]["lost"] == lost
