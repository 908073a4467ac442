"""An attacker in a pod sends frames built byte by byte. On a bridge no frame may bypass the IP layer.

Each attack is first shown to work without our rules: a test that cannot fail proves nothing. Receivers are
ordinary UDP sockets, so only a packet that the victim's own stack accepts counts.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest

from tests.contract.conftest import BRIDGES, IDENTITY, Pod, World, entry
from tests.support.frames import ARP, EVERYBODY, IPV4, IPV6, PORT, advertisement, arp_reply, frame, udp, with_source
from tproxy_rules.desired import Desired, Table, Tier, Verdict, union

pytestmark = [pytest.mark.lab, pytest.mark.pairwise]

GROUPS = {4: ("224.0.0.251", "01:00:5e:00:00:fb"), 6: ("ff02::fb", "33:33:00:00:00:fb")}


@pytest.fixture(scope="module", params=BRIDGES)
def bridged(request: pytest.FixtureRequest, sandbox: None) -> Iterator[World]:
    backend, _, topology = request.param.partition("/")
    made = World(topology, backend)
    # Neighbour entries may be overwritten at once: the test is about the bridge, not about the victim's timers.
    made.server.namespace.write("/proc/sys/net/ipv4/neigh/eth0/locktime", "0")
    yield made
    made.close()


# --- sending and receiving --------------------------------------------------------------------------------------------


def mac(pod: Pod) -> str:
    assert pod.port
    return pod.port.mac


def send(pod: Pod, *frames: bytes) -> None:
    def shoot() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("eth0", 0))
            for one in frames:
                raw.send(one)

    pod.namespace.do(shoot)


def heard(pod: Pod, family: int, shoot: Callable[[], None]) -> list[bytes]:
    """What a UDP socket of the pod receives while the frames are sent."""
    with pod.namespace.socket(family, socket.SOCK_DGRAM) as listening:
        listening.bind(("", PORT))
        group, _ = GROUPS[family]
        if family == 4:
            here = struct.pack("4s4si", socket.inet_aton(group), b"\0\0\0\0", index(pod))
            listening.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, here)
        else:
            here = struct.pack("16si", ip_address(group).packed, index(pod))
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, here)
        listening.settimeout(0.15)
        shoot()
        found = []
        try:
            while True:
                found.append(listening.recv(100))
        except TimeoutError:
            return found


def index(pod: Pod) -> int:
    return pod.namespace.do(lambda: socket.if_nametoindex("eth0"))


# --- attacks --------------------------------------------------------------------------------------------------------

Attack = Callable[[World, Pod, Pod, int], bytes]


def _kind(family: int) -> int:
    return IPV4 if family == 4 else IPV6


def plain(world: World, source: Pod, target: Pod, family: int) -> bytes:
    packet = udp(source.addresses[family], target.addresses[family])
    return frame(mac(source), mac(target), _kind(family), packet)


def to_everybody(world: World, source: Pod, target: Pod, family: int) -> bytes:
    """The victim's own address in a broadcast frame: its stack accepts it."""
    packet = udp(source.addresses[family], target.addresses[family])
    return frame(mac(source), EVERYBODY, _kind(family), packet)


def in_vlan_0(world: World, source: Pod, target: Pod, family: int) -> bytes:
    """A priority tag (VLAN 0): the victim sees a plain packet, a careless bridge rule sees no IP."""
    packet = udp(source.addresses[family], target.addresses[family])
    return frame(mac(source), mac(target), _kind(family), packet, tag=0)


def in_vlan_0_to_everybody(world: World, source: Pod, target: Pod, family: int) -> bytes:
    packet = udp(source.addresses[family], target.addresses[family])
    return frame(mac(source), EVERYBODY, _kind(family), packet, tag=0)


def to_a_group(world: World, source: Pod, target: Pod, family: int) -> bytes:
    address, group_mac = GROUPS[family]
    return frame(mac(source), group_mac, _kind(family), udp(source.addresses[family], address))


def with_the_clients_address(world: World, source: Pod, target: Pod, family: int) -> bytes:
    packet = udp(world.client.addresses[family], target.addresses[family])
    return frame(mac(source), mac(target), _kind(family), packet)


def as_the_client(world: World, source: Pod, target: Pod, family: int) -> bytes:
    """Forges address and MAC: only the bridge port is not the client's."""
    packet = udp(world.client.addresses[family], target.addresses[family])
    return frame(mac(world.client), mac(target), _kind(family), packet)


def as_the_client_to_everybody(world: World, source: Pod, target: Pod, family: int) -> bytes:
    packet = udp(world.client.addresses[family], target.addresses[family])
    return frame(mac(world.client), EVERYBODY, _kind(family), packet)


AROUND: tuple[Attack, ...] = (plain, to_everybody, in_vlan_0, in_vlan_0_to_everybody, to_a_group)
FORGED: tuple[Attack, ...] = (with_the_clients_address, as_the_client, as_the_client_to_everybody)


def names(attack: Attack) -> str:
    return attack.__name__


def bare(world: World) -> None:
    """Without our rules, and the bridge does not call iptables: pods just talk."""
    world.node.do(world.backend.remove)


@pytest.mark.parametrize("attack", [*AROUND, *FORGED], ids=names)
def test_no_frame_goes_around_an_ingress_policy(bridged: World, family: int, attack: Attack) -> None:
    source, target = bridged.stranger, bridged.server
    shot = attack(bridged, source, target, family)
    bare(bridged)
    assert heard(target, family, lambda: send(source, shot)) == [b"attack"], "the attack works without us"
    closed = union((entry(Verdict.ALLOW, protocol=-1, peers=(IDENTITY["client"],)),))
    bridged.apply(bridged.snapshot(server_ingress=closed))
    assert heard(target, family, lambda: send(source, *[shot] * 3)) == []
    honest = plain(bridged, bridged.client, target, family)
    assert heard(target, family, lambda: send(bridged.client, honest)) == [b"attack"], "whom it allows gets through"


@pytest.mark.parametrize("attack", AROUND, ids=names)
def test_no_frame_goes_around_an_egress_policy(bridged: World, family: int, attack: Attack) -> None:
    """To a pod without policy, so that only the sender's own policy can stop it."""
    source, target = bridged.stranger, bridged.server
    shot = attack(bridged, source, target, family)
    bare(bridged)
    assert heard(target, family, lambda: send(source, shot)) == [b"attack"], "the attack works without us"
    bridged.apply(bridged.snapshot(stranger_egress=union((entry(Verdict.ALLOW, 80),))))
    assert heard(target, family, lambda: send(source, *[shot] * 3)) == []


def test_refusals_without_a_policy_leave_groups_alone(bridged: World, family: int) -> None:
    source, target = bridged.stranger, bridged.server
    shot = to_a_group(bridged, source, target, family)
    refused = Table((Tier(((entry(Verdict.DENY, 8472, protocol=17),),), closed=False),), governed=False)
    bridged.apply(bridged.snapshot(stranger_egress=refused))
    assert heard(target, family, lambda: send(source, shot)) == [b"attack"]


def without_the_stranger(snapshot: Desired) -> Desired:
    """While a pod on the bridge is still unknown to the agent."""
    endpoints = tuple(one for one in snapshot.endpoints if one.port and one.port.interface != "vethstranger")
    identities = tuple(one for one in snapshot.identities if one[1] != IDENTITY["stranger"])
    return replace(snapshot, endpoints=endpoints, identities=identities)


@pytest.mark.parametrize("attack", [plain, *FORGED], ids=names)
def test_a_pod_that_is_not_known_yet_is_nobody_else(bridged: World, family: int, attack: Attack) -> None:
    source, target = bridged.stranger, bridged.server
    shot = attack(bridged, source, target, family)
    bare(bridged)
    assert heard(target, family, lambda: send(source, shot)) == [b"attack"], "the attack works without us"
    closed = union((entry(Verdict.ALLOW, protocol=-1, peers=(IDENTITY["client"],)),))
    bridged.apply(without_the_stranger(bridged.snapshot(server_ingress=closed)))
    assert heard(target, family, lambda: send(source, *[shot] * 3)) == []
    open_ = union((entry(Verdict.ALLOW, protocol=-1),))
    bridged.apply(without_the_stranger(bridged.snapshot(server_ingress=open_)))
    assert heard(target, family, lambda: send(source, shot)) == ([] if attack in FORGED else [b"attack"])


def eventually(holds: Callable[[], bool], seconds: float = 5) -> bool:
    """The kernel takes a frame when a CPU has time for it, not when it is sent."""
    deadline = time.monotonic() + seconds
    while not (true := holds()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return true


def _believed(pod: Pod, address: str) -> str:
    """The MAC in the pod's neighbour entry for the address."""
    words = pod.namespace.sh(f"ip neigh show {address} dev eth0").split()
    return words[words.index("lladdr") + 1] if "lladdr" in words else ""


def _knows_the_client(world: World, family: int) -> None:
    address = world.client.addresses[family]
    world.server.namespace.sh(f"ip neigh replace {address} lladdr {mac(world.client)} nud reachable dev eth0")
    time.sleep(0.05)  # an entry of the current tick is not overwritten


KNOWN = pytest.mark.parametrize("known", [True, False], ids=["known pod", "unknown pod"])


@KNOWN
def test_arp_for_another_pods_address_is_not_heard(bridged: World, known: bool) -> None:
    stolen, target = bridged.client.addresses[4], bridged.server
    lie = arp_reply(stolen, target.addresses[4], mac(bridged.stranger), mac(target))
    shot = frame(mac(bridged.stranger), mac(target), ARP, lie)
    bare(bridged)
    _knows_the_client(bridged, 4)
    send(bridged.stranger, shot)
    assert eventually(lambda: _believed(target, stolen) == mac(bridged.stranger)), "the attack works without us"
    bridged.apply(bridged.snapshot() if known else without_the_stranger(bridged.snapshot()))
    _knows_the_client(bridged, 4)
    send(bridged.stranger, shot)
    time.sleep(0.2)
    assert _believed(target, stolen) == mac(bridged.client)


@KNOWN
@pytest.mark.parametrize(
    ("bridged", "honest_source"),
    # ebtables cannot match the target of an advertisement (see ipt_bridge).
    [(name, False) for name in BRIDGES] + [(name, True) for name in BRIDGES if "nftables" in name],
    indirect=["bridged"],
    scope="module",
)
def test_an_advertisement_of_another_pods_address_is_not_heard(
    bridged: World, honest_source: bool, known: bool
) -> None:
    stolen, target, liar = bridged.client.addresses[6], bridged.server, bridged.stranger
    lie = advertisement(stolen, target.addresses[6], mac(liar))
    if honest_source:
        lie = with_source(lie, liar.addresses[6])
    shot = frame(mac(liar), mac(target), IPV6, lie)
    bare(bridged)
    _knows_the_client(bridged, 6)
    send(liar, shot)
    assert eventually(lambda: _believed(target, stolen) == mac(liar)), "the attack works without us"
    bridged.apply(bridged.snapshot() if known else without_the_stranger(bridged.snapshot()))
    _knows_the_client(bridged, 6)
    send(liar, shot)
    time.sleep(0.2)
    assert _believed(target, stolen) == mac(bridged.client)


@KNOWN
def test_a_stolen_mac_does_not_move_the_victims_traffic(bridged: World, known: bool) -> None:
    """The bridge learns MACs from any frame: a forged one must be dropped before that."""

    def port_of_the_client() -> str:
        lines = bridged.node.sh("bridge fdb show br cni0").splitlines()
        return next((one.split()[2] for one in lines if one.startswith(mac(bridged.client)) and "master" in one), "")

    def learnt(port: str) -> bool:
        return eventually(lambda: port_of_the_client() == port)

    def stolen(port: str) -> bool:
        send(bridged.stranger, shot)  # each time: what the victim sends, an ARP reply for one, moves its MAC back
        return port_of_the_client() == port

    assert bridged.client.port and bridged.stranger.port
    shot = frame(mac(bridged.client), EVERYBODY, 0x88B5, b"\0" * 46)  # the EtherType for experiments (IEEE 802)
    honest = plain(bridged, bridged.client, bridged.server, 4)
    bare(bridged)
    send(bridged.client, honest)
    assert learnt(bridged.client.port.interface)
    thief = bridged.stranger.port.interface
    assert eventually(lambda: stolen(thief)), "the attack works without us"
    bridged.apply(bridged.snapshot() if known else without_the_stranger(bridged.snapshot()))
    send(bridged.client, honest)
    assert learnt(bridged.client.port.interface)
    send(bridged.stranger, shot)
    time.sleep(0.2)
    assert port_of_the_client() == bridged.client.port.interface
