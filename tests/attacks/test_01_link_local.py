"""Finding 1. IPv6 link-local addresses, which no policy can name, bypass no policy: between pods, to and from the node.

Also on clusters with IPv4 only: every interface has a link-local address there, too.
"""

from __future__ import annotations

import contextlib
import time

import pytest
from scapy.layers.inet import UDP
from scapy.layers.inet6 import IPv6

from tests.attacks.labs import AttackLab, Place, Pod
from tests.attacks.packets import ethernet, internet, link_local, neighbour_solicitation, token

PORT = 9000


def _sources(pod: Pod) -> list[str]:
    return [pod.link_local, *(address for family, address in pod.addresses.items() if family == 6)]


@pytest.mark.where(cni="bridge")
@pytest.mark.parametrize("who", ["free", "locked"])
def test_to_a_pod(lab: AttackLab, who: str) -> None:
    """Neither raw frames nor an ordinary client with a neighbour entry for the MAC get through."""
    attacker, victim, started = lab.pod(who), lab.pod("victim"), time.time_ns()
    attacks = {source: token() for source in _sources(attacker)}
    with victim.capture() as seen:
        for source, forbidden in attacks.items():
            packet = internet(source, victim.link_local) / UDP(sport=1, dport=PORT) / forbidden
            attacker.send(ethernet(attacker.mac, victim.mac) / packet)
        assert not seen.arrived(*attacks.values())
    assert attacker.connect(victim.link_local, PORT) == "timeout"
    assert attacker.datagram(victim.link_local, PORT) is None
    assert lab.flow("node-1", started, lambda flow: _to(flow, victim.link_local)), "every verdict has its flow"


@pytest.mark.parametrize("who", ["free", "locked"])
def test_to_the_node(lab: AttackLab, who: str) -> None:
    attacker, node, started = lab.pod(who), lab.node("node-1"), time.time_ns()
    there = _gateway_link_local(lab, attacker)
    with node.receiver(4711, 6) as listening:
        for source in _sources(attacker):
            packet = internet(source, there) / UDP(sport=1, dport=4711) / token()
            attacker.send(ethernet(attacker.mac, _gateway_mac(lab, attacker)) / packet)
        listening.settimeout(0.25)
        with pytest.raises(TimeoutError):
            listening.recv(100)
    assert lab.flow("node-1", started, lambda flow: _to(flow, there)), "every verdict has its flow"


@pytest.mark.where(family=6)
def test_neighbours_are_still_found(lab: AttackLab) -> None:
    """Neighbour discovery still works: a pod resolves its node's link-local address."""
    pod = lab.pod("free")
    there = _gateway_link_local(lab, pod)
    with pod.capture() as seen:
        pod.send(neighbour_solicitation(pod.mac, pod.link_local, there))
        advertised = [frame for frame in seen.packets() if frame[12:14] == b"\x86\xdd" and frame[54] == 136]
    assert any(IPv6(frame[14:]).src == there for frame in advertised)


@pytest.mark.where(cni="bridge")
def test_from_the_node(lab: AttackLab) -> None:
    """A process in the node's network (a hostNetwork pod) reaches a pod only by addresses that policy can name."""
    pod, node = lab.pod("open"), lab.node("node-1")
    sender = Place("node", node.namespace, {}, "", "cni0")
    with pod.capture() as seen:
        for address in pod.addresses.values():
            sender.datagram(address, PORT, allowed := token())
            assert seen.arrived(allowed), "where there is no policy, it arrives"
        forbidden = token()
        with contextlib.suppress(PermissionError):  # refused in the output hook
            sender.datagram(pod.link_local, PORT, forbidden)
        assert not seen.arrived(forbidden)


def _to(flow: dict[str, object], address: str) -> bool:
    ip = flow.get("IP")
    return flow.get("verdict") == "DROPPED" and isinstance(ip, dict) and ip.get("destination") == address


def _gateway_mac(lab: AttackLab, pod: Pod) -> str:
    device = "cni0" if lab.cni == "bridge" else pod.port
    words = lab.node(pod.node).sh(f"ip -o link show {device}").split()
    return words[words.index("link/ether") + 1]


def _gateway_link_local(lab: AttackLab, pod: Pod) -> str:
    return link_local(_gateway_mac(lab, pod))
