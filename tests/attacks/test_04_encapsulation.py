"""A packet inside a packet: policy sees the outer one, and a node that is part of an overlay delivers the inner one."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest
from scapy.layers.inet import UDP
from scapy.layers.vxlan import VXLAN

from l7proxy.model.tunnels import TUNNEL_PORTS, TUNNEL_PROTOCOLS
from tests.attacks.labs import AttackLab, Flow, Node, Place
from tests.attacks.packets import ethernet, internet, token

VXLAN_PORT, VNI, AH = 8472, 77, 51
DEVICE, DEVICE_MAC = "attacked", "02:77:00:00:00:01"
NAMED = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: tunnel}
spec:
  endpointSelector: {matchLabels: {role: free}}
  egress:
  - toEntities: [all]
  - toEntities: [host]
    toPorts: [{ports: [{port: "8472", protocol: UDP}]}]
"""


@contextlib.contextmanager
def overlay(node: Node, family: int) -> Iterator[None]:
    """The node is part of a VXLAN overlay, as with Flannel and Cilium."""
    local, inet = node.addresses[family], f"ipv{family}/conf/{DEVICE}"
    node.sh(
        f"ip link add {DEVICE} address {DEVICE_MAC} type vxlan id {VNI} dstport {VXLAN_PORT} local {local}",
        f"ip link set {DEVICE} up",
    )
    if family == 4:
        node.write(f"net/{inet}/rp_filter", 0)
    try:
        yield
    finally:
        node.sh(f"ip link del {DEVICE}")


def in_vxlan(lab: AttackLab, family: int, data: bytes) -> bytes:
    """From `free` to its node; the inner packet, to the victim, claims to come from a friend on the other node."""
    attacker, node = lab.pod("free"), lab.node("node-1")
    friend, victim = lab.pod("far-friend").addresses[family], lab.pod("victim").addresses[family]
    inner = ethernet("02:77:00:00:00:02", DEVICE_MAC) / internet(friend, victim) / UDP(sport=4000, dport=9000) / data
    outer = internet(attacker.addresses[family], node.addresses[family]) / UDP(sport=4000, dport=VXLAN_PORT)
    return bytes(ethernet(attacker.mac, attacker.gateway_mac) / outer / VXLAN(vni=VNI, flags="Instance") / inner)


def test_vxlan_of_a_pod_reaches_nobody_through_its_node(lab: AttackLab, family: int) -> None:
    attacker, victim, began = lab.pod("free"), lab.pod("victim"), time.time_ns()
    forbidden, named = token(), token()
    with overlay(lab.node("node-1"), family), victim.capture() as seen:
        attacker.send(in_vxlan(lab, family, forbidden))
        assert not seen.arrived(forbidden)
        with lab.applied(NAMED):
            attacker.send(in_vxlan(lab, family, named))
            assert seen.arrived(named), "the node unpacks it, and a policy that names the port lets it through"
    assert lab.flow("node-1", began, lambda flow: refused(flow, attacker.addresses[family]))


def refused(flow: Flow, source: str) -> bool:
    return (
        flow["verdict"] == "DROPPED"
        and flow["IP"]["source"] == source
        and flow["l4"]["UDP"]["destination_port"] == VXLAN_PORT
        and [one["name"] for one in flow["egress_denied_by"]] == ["no-encapsulation"]
        and flow["policy_log"][0].startswith("8472/UDP is a tunnel")
    )


@pytest.mark.parametrize("where", ["node", "pod", "far-node", "far-pod"])
def test_no_tunnel_leaves_a_pod(lab: AttackLab, family: int, where: str) -> None:
    """Tries each port and each protocol, to nodes and pods that it may otherwise reach."""
    attacker = lab.pod("free")
    targets = {
        "node": lab.node("node-1"),
        "pod": lab.pod("open"),
        "far-node": lab.node("node-2"),
        "far-pod": lab.pod("far-open"),
    }
    target: Place = targets[where]
    tunnels = [(socket.IPPROTO_UDP, port) for port in TUNNEL_PORTS]
    tunnels += [(protocol, 0) for protocol in TUNNEL_PROTOCOLS if (family, protocol) != (6, AH)]
    free = [(socket.IPPROTO_UDP, 8471), (socket.IPPROTO_UDP, 9999), (89, 0)]
    assert arrived(attacker, target, family, [*tunnels, *free]) == free


def arrived(attacker: Place, target: Place, family: int, packets: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The (protocol, port) pairs whose packet reached a socket of the target."""
    tokens = {packet: token() for packet in packets}
    with contextlib.ExitStack() as sockets:
        listening = {
            packet: sockets.enter_context(
                target.receiver(packet[1], family)
                if packet[1]
                else target.open_socket(family, socket.SOCK_RAW, packet[0])
            )
            for packet in packets
        }
        for (protocol, port), word in tokens.items():
            kind = socket.SOCK_DGRAM if port else socket.SOCK_RAW
            with attacker.open_socket(family, kind, protocol) as sender:
                sender.sendto(bytes(8) + word, (target.addresses[family], port))
        time.sleep(0.25)
        return [packet for packet in packets if _holds(listening[packet], tokens[packet])]


def _holds(listening: socket.socket, word: bytes) -> bool:
    listening.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            if word in listening.recv(2000):
                return True
    return False


def test_nodes_own_tunnels_are_not_touched(lab: AttackLab, family: int) -> None:
    tunnels = [(socket.IPPROTO_UDP, VXLAN_PORT), (4, 0), (47, 0)]
    assert arrived(lab.node("node-1"), lab.node("node-2"), family, tunnels) == tunnels
