"""A bridge port of an unknown pod: it cannot forge another sender, claim another's address, or act as a router."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest

from tests.contract.conftest import BACKENDS, Namespace, Pod, World, entry
from tests.contract.test_frames import heard, mac, send, without_the_stranger
from tests.support.frames import (
    ARP,
    EVERYBODY,
    IPV4,
    IPV6,
    advertisement,
    arp_reply,
    checksum,
    frame,
    pseudo_header,
    udp,
    with_source,
)
from tproxy_rules.desired import Bridge, Desired, Verdict, union
from tproxy_rules.nft.bridge import link_local

pytestmark = [pytest.mark.lab, pytest.mark.pairwise]

REMOTE, REMOTE_POD = 70_004, {4: "10.2.0.5", 6: "fd00:2::5"}
OPEN = union((entry(Verdict.ALLOW, protocol=-1),))


@pytest.fixture(
    scope="module", params=[f"{backend}/{nf}" for backend in BACKENDS for nf in ("bridge-nf-0", "bridge-nf-1")]
)
def bridged(request: pytest.FixtureRequest, sandbox: None) -> Iterator[World]:
    backend, _, topology = request.param.partition("/")
    made = World(topology, backend)
    yield made
    made.close()


def snapshot(world: World, *, uplink: bool = False) -> Desired:
    """The stranger's port is an uplink, or unknown. A pod of another node is known. No policy refuses."""
    made = without_the_stranger(world.snapshot(server_ingress=OPEN))
    assert world.bridge
    ports = ("vethclient", "vethserver", "vethstranger")
    bridge = replace(world.bridge, ports=ports, uplinks=("vethstranger",) if uplink else ())
    remote = tuple((f"{address}/{32 if of == 4 else 128}", REMOTE) for of, address in REMOTE_POD.items())
    return replace(made, bridges=(bridge,), identities=(*made.identities, *remote))


def bare(world: World) -> None:
    world.node.do(world.backend.remove)


def received(pod: Pod, *shots: bytes, sender: Pod) -> list[bool]:
    """Which of these frames arrive unchanged at the pod's interface."""
    with pod.namespace.do(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))) as raw:
        raw.bind(("eth0", 3))
        send(sender, *shots)
        raw.settimeout(0.15)
        seen = []
        with contextlib.suppress(TimeoutError):
            while True:
                seen.append(raw.recv(2000))
    return [any(one.startswith(shot) for one in seen) for shot in shots]


@pytest.mark.parametrize("to", ["the pod", "everybody", "everybody in VLAN 0"])
@pytest.mark.parametrize("whose", ["pod of another node", "node"])
def test_it_speaks_as_nobody_else(bridged: World, family: int, whose: str, to: str) -> None:
    source, target = bridged.stranger, bridged.server
    address = REMOTE_POD[family] if whose == "pod of another node" else bridged.node_address(family)
    there, tag = mac(target) if to == "the pod" else EVERYBODY, 0 if "VLAN" in to else None
    shot = frame(mac(source), there, IPV4 if family == 4 else IPV6, udp(address, target.addresses[family]), tag=tag)
    bare(bridged)
    assert heard(target, family, lambda: send(source, shot)) == [b"attack"], "the attack works without us"
    bridged.apply(snapshot(bridged))
    assert heard(target, family, lambda: send(source, *[shot] * 3)) == []
    honest = frame(
        mac(source),
        mac(target),
        IPV4 if family == 4 else IPV6,
        udp(source.addresses[family], target.addresses[family]),
    )
    assert heard(target, family, lambda: send(source, honest)) == [b"attack"], "as itself it may"


def test_by_an_uplink_packets_of_pods_of_other_nodes_come(bridged: World, family: int) -> None:
    source, target = bridged.stranger, bridged.server
    packet = udp(REMOTE_POD[family], target.addresses[family])
    shot = frame(mac(source), mac(target), IPV4 if family == 4 else IPV6, packet)
    bridged.apply(snapshot(bridged))
    assert heard(target, family, lambda: send(source, shot)) == []
    bridged.apply(snapshot(bridged, uplink=True))
    assert heard(target, family, lambda: send(source, shot)) == [b"attack"]


def router(sender: Pod, kind: int) -> bytes:
    """A router advertisement with a lifetime (RFC 4861, 4.2), or a redirect, to all hosts."""
    source, group = ip_address(link_local(mac(sender))).packed, ip_address("ff02::1").packed
    body = struct.pack(">BBH", kind, 0, 0) + (struct.pack(">BBHII", 64, 0, 1800, 0, 0) if kind == 134 else bytes(36))
    body = body[:2] + struct.pack(">H", checksum(pseudo_header(source, group, 58, body))) + body[4:]
    packet = struct.pack(">IHBB", 0x60000000, len(body), 58, 255) + source + group + body
    return frame(mac(sender), "33:33:00:00:00:01", IPV6, packet)


def claims(world: World) -> dict[str, bytes]:
    """Frames to the server with the forged sender of another pod."""
    liar, target = world.stranger, world.server
    own, there = mac(liar), mac(target)
    return {
        "node, ARP": frame(own, there, ARP, arp_reply("10.1.0.1", target.addresses[4], own, there)),
        "client's MAC, ARP": frame(
            own, there, ARP, arp_reply("10.1.0.200", target.addresses[4], mac(world.client), there)
        ),
        "node, advertisement": frame(own, there, IPV6, advertisement("fd00:1::1", target.addresses[6], own)),
        "router": router(liar, 134),
        "redirect": router(liar, 137),
    }


def unseen_by_ebtables(world: World) -> dict[str, bytes]:
    liar, target = world.stranger, world.server
    own, there = mac(liar), mac(target)
    return {
        "pod of another node, ARP": frame(own, there, ARP, arp_reply("10.2.0.5", target.addresses[4], own, there)),
        "node, advertisement from another address": frame(
            own, there, IPV6, with_source(advertisement("fd00:1::1", target.addresses[6], own), liar.addresses[6])
        ),
    }


def test_it_claims_nobodys_address_and_is_no_router(bridged: World) -> None:
    attacks = claims(bridged)
    if bridged.backend.name == "nftables":
        attacks |= unseen_by_ebtables(bridged)
    bare(bridged)
    passed = received(bridged.server, *attacks.values(), sender=bridged.stranger)
    assert all(passed), "the attacks work without us"
    bridged.apply(snapshot(bridged))
    passed = received(bridged.server, *attacks.values(), sender=bridged.stranger)
    assert {name for name, one in zip(attacks, passed, strict=True) if one} == set()
    honest = frame(
        mac(bridged.stranger),
        mac(bridged.server),
        ARP,
        arp_reply(
            bridged.stranger.addresses[4], bridged.server.addresses[4], mac(bridged.stranger), mac(bridged.server)
        ),
    )
    assert received(bridged.server, honest, sender=bridged.stranger) == [True], "its own it may"
    desired = snapshot(bridged, uplink=True)  # without policy, because under one multicast is not received
    bridged.apply(replace(desired, endpoints=tuple(replace(one, ingress=None) for one in desired.endpoints)))
    assert received(bridged.server, attacks["router"], sender=bridged.stranger) == [True], "a router may be there"


@pytest.mark.parametrize("listed", [True, False], ids=["listed", "not listed yet"])
def test_bridges_without_pods_are_left_alone(bridged: World, listed: bool) -> None:
    """Two containers on docker0: link-local unicast passes; once its ports are listed, all traffic does."""
    made = [Namespace(), Namespace()]
    macs = [f"02:dd:00:00:00:0{number}" for number in range(2)]
    bridged.node.sh("ip link add docker0 address 02:dd:00:00:00:99 type bridge", "ip link set docker0 up")
    try:
        for number, (one, own) in enumerate(zip(made, macs, strict=True)):
            one.write("/proc/sys/net/ipv6/conf/default/accept_dad", "0")
            bridged.node.sh(
                f"ip link add dock{number} type veth peer name eth0 address {own} netns {one.path}",
                f"ip link set dock{number} up master docker0",
            )
            one.sh("ip link set eth0 up")
        first, second = (Pod(own, one, {}, None) for own, one in zip(macs, made, strict=True))
        desired = replace(snapshot(bridged), other_ports=("dock0", "dock1") if listed else ())
        bridged.apply(desired)
        local = frame(macs[0], macs[1], IPV6, udp(link_local(macs[0]), link_local(macs[1])))
        as_node = frame(macs[0], macs[1], IPV4, udp(REMOTE_POD[4], "172.17.0.2"))
        # ebtables refuses forged addresses only on the way to pods and to the node (see ipt_bridge).
        passes = listed or bridged.backend.name == "iptables"
        assert received(second, local, as_node, sender=first) == [True, passes]
    finally:
        bridged.node.sh("ip link del dock0", "ip link del dock1", "ip link del docker0")
        for one in made:
            one.close()


def test_a_new_port_is_closed_before_anybody_lists_it(bridged: World) -> None:
    """It is in no list, so it is treated as a pod's."""
    assert bridged.bridge
    desired = replace(snapshot(bridged), bridges=(Bridge(bridged.bridge.name, bridged.bridge.mac),))
    bridged.apply(desired)
    shot = claims(bridged)["node, ARP"]
    assert received(bridged.server, shot, sender=bridged.stranger) == [False]
