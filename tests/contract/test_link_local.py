"""Addresses that no table lists: mainly link-local, and frames that the bridge delivers up past its own hooks.

As in test_frames, each attack is first shown to work without our rules.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest

from tests.contract.conftest import BRIDGES, IDENTITY, WORLDS, Pod, World, entry, on_bridges
from tests.contract.test_frames import KNOWN, heard, mac, send, without_the_stranger
from tests.support.frames import ARP, EVERYBODY, IPV4, IPV6, PORT, advertisement, checksum, frame, udp, with_source
from tproxy_rules.desired import Desired, Settings, Verdict, union
from tproxy_rules.marks import LogEvent
from tproxy_rules.nflog import NflogEvent, NflogReader
from tproxy_rules.nft.bridge import link_local

pytestmark = [pytest.mark.lab, pytest.mark.pairwise]

CLOSED = union((entry(Verdict.ALLOW, protocol=-1, peers=(IDENTITY["client"],)),))
SHUT = union(())


@pytest.fixture
def reader(world: World) -> Iterator[NflogReader]:
    made = world.node.do(lambda: NflogReader(Settings(nflog_group=78).nflog_group))
    yield made
    made.close()


def told(reader: NflogReader) -> list[NflogEvent]:
    events: list[NflogEvent] = []
    while select.select([reader], [], [], 0.1)[0]:
        events += reader.read()
    return events


def bare(world: World) -> None:
    world.node.do(world.backend.remove)
    if world.topology == "bridge-nf-1":  # the iptables backend has disabled it
        for name in ("iptables", "ip6tables"):
            world.node.write(f"/proc/sys/net/bridge/bridge-nf-call-{name}", "1")


def node_mac(world: World, pod: Pod | None = None) -> str:
    """The MAC of the node's interface that is the pod's (the stranger's) gateway."""
    port = (pod or world.stranger).port
    assert port
    words = world.node.sh(f"ip -o link show {port.bridge or port.interface}").split()
    return words[words.index("link/ether") + 1]


def at_node(world: World, family: int, shoot: Callable[[], None]) -> list[bytes]:
    """What a UDP socket of the node receives while the frames are sent."""
    with world.node.socket(family, socket.SOCK_DGRAM) as listening:
        listening.bind(("", PORT))
        listening.settimeout(0.15)
        shoot()
        found = []
        try:
            while True:
                found.append(listening.recv(100))
        except TimeoutError:
            return found


def _eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 4
    while not (held := holds()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return held


def snapshot(world: World, *, known: bool, families: tuple[int, ...] = (4, 6)) -> Desired:
    """The stranger, if known, may send nothing; only the client may send to the server."""
    made = world.snapshot(
        settings=Settings(nflog_group=78, families=families), server_ingress=CLOSED, stranger_egress=SHUT
    )
    return made if known else without_the_stranger(made)


# --- IPv6 link-local ------------------------------------------------------------------------------------------------


SOURCES = pytest.mark.parametrize("from_link_local", [True, False], ids=["from link-local", "from own address"])


def _source(pod: Pod, *, local: bool) -> str:
    return link_local(mac(pod)) if local else pod.addresses[6]


@pytest.mark.parametrize(
    ("world", "known"),
    # A routed interface unknown to the agent is not one of our ports.
    [*((name, True) for name in WORLDS), *((name, False) for name in BRIDGES)],
    indirect=["world"],
    scope="module",
)
@SOURCES
@pytest.mark.parametrize("families", [(4, 6), (4,)], ids=["dual", "IPv4-only"])
def test_a_link_local_address_of_the_node_is_no_way_around(
    world: World, reader: NflogReader, known: bool, from_link_local: bool, families: tuple[int, ...]
) -> None:
    target = link_local(node_mac(world))
    shot = frame(
        mac(world.stranger), node_mac(world), IPV6, udp(_source(world.stranger, local=from_link_local), target)
    )
    bare(world)
    assert at_node(world, 6, lambda: send(world.stranger, shot)) == [b"attack"], "the attack works without us"
    world.apply(snapshot(world, known=known, families=families))
    told(reader)
    assert at_node(world, 6, lambda: send(world.stranger, *[shot] * 3)) == []
    assert {(event.kind, event.destination) for event in told(reader)} == {(LogEvent.LINK_LOCAL, target)}


@on_bridges
@KNOWN
@SOURCES
@pytest.mark.parametrize("to_everybody", [False, True], ids=["unicast frame", "frame to everybody"])
def test_a_link_local_address_of_a_pod_is_no_way_around(
    world: World, reader: NflogReader, known: bool, from_link_local: bool, to_everybody: bool
) -> None:
    target = link_local(mac(world.server))
    packet = udp(_source(world.stranger, local=from_link_local), target)
    shot = frame(mac(world.stranger), EVERYBODY if to_everybody else mac(world.server), IPV6, packet)
    bare(world)
    assert heard(world.server, 6, lambda: send(world.stranger, shot)) == [b"attack"], "the attack works without us"
    world.apply(snapshot(world, known=known))
    told(reader)
    assert heard(world.server, 6, lambda: send(world.stranger, *[shot] * 3)) == []
    # A unicast packet in a broadcast frame is a forgery, whatever its addresses.
    reasons = {event.kind for event in told(reader)}
    assert reasons
    assert reasons <= ({LogEvent.LINK_LOCAL, LogEvent.SPOOF} if to_everybody else {LogEvent.LINK_LOCAL})
    world.apply(world.snapshot())  # also without any policy: traffic that no policy can name is dropped
    assert heard(world.server, 6, lambda: send(world.stranger, *[shot] * 3)) == []


def test_to_a_pods_link_local_address_the_node_sends_the_links_own_only(world: World) -> None:
    target, device = link_local(mac(world.server)), world.bridge.name if world.bridge else "vethserver"

    def knock() -> None:
        with world.node.socket(6, socket.SOCK_DGRAM) as client:
            scope = world.node.do(lambda: socket.if_nametoindex(device))
            with contextlib.suppress(PermissionError):  # refused in the output hook
                client.sendto(b"knock", (target, PORT, 0, scope))

    bare(world)
    assert heard(world.server, 6, knock) == [b"knock"], "it works without us"
    world.apply(snapshot(world, known=True))
    assert heard(world.server, 6, knock) == []
    # Neighbour discovery of it still works.
    world.node.sh(f"ip neigh replace {target} lladdr {mac(world.server)} dev {device} nud probe")
    assert _eventually(lambda: "REACHABLE" in world.node.sh(f"ip -6 neigh show {target} dev {device}"))


def test_link_local_neighbours_are_still_found(world: World) -> None:
    """What a pod's own stack asks of its node with an empty cache, from all kinds of source addresses."""
    world.apply(snapshot(world, known=True))
    target = link_local(node_mac(world, world.server))
    for source in (link_local(mac(world.server)), world.server.addresses[6]):
        world.server.namespace.sh("ip -6 neigh flush dev eth0")
        with world.server.namespace.socket(6, socket.SOCK_DGRAM) as client:
            scope = world.server.namespace.do(lambda: socket.if_nametoindex("eth0"))
            client.bind((source, 0, 0, scope))
            client.sendto(b"x", (target, PORT, 0, scope))
        shown = f"ip -6 neigh show {target} dev eth0"
        assert _eventually(lambda: node_mac(world, world.server) in world.server.namespace.sh(shown))  # noqa: B023


# --- other addresses that no table lists ----------------------------------------------------------------------------


SECOND = {4: ("169.254.7.7", "10.1.0.77", "192.0.2.7"), 6: ("fec0::7", "fd00:1::77", "fd00:dead::7")}


@on_bridges
@KNOWN
def test_an_address_that_a_pod_gave_itself_is_no_way_in(world: World, family: int, known: bool) -> None:
    """Even where the node believes that the address is there."""
    target, kind, bits = world.server, IPV4 if family == 4 else IPV6, 32 if family == 4 else 128
    target.namespace.sh(*(f"ip addr add {one}/{bits} dev eth0" for one in SECOND[family]))
    shots = [
        frame(mac(world.stranger), there, kind, udp(world.stranger.addresses[family], one))
        for one in SECOND[family]
        for there in (mac(target), EVERYBODY)
    ]
    try:
        bare(world)
        assert len(heard(target, family, lambda: send(world.stranger, *shots))) == len(shots), "it works without us"
        world.apply(snapshot(world, known=known))
        for one in SECOND[family]:
            world.node.sh(f"ip neigh replace {one} lladdr {mac(target)} dev cni0 nud permanent")
            world.node.sh(f"ip route replace {one}/{bits} dev cni0")
        assert heard(target, family, lambda: send(world.stranger, *shots * 2)) == []
    finally:
        target.namespace.sh(*(f"ip addr del {one}/{bits} dev eth0" for one in SECOND[family]))
        for one in SECOND[family]:
            for line in (f"ip route del {one}/{bits} dev cni0", f"ip neigh del {one} dev cni0"):
                with contextlib.suppress(RuntimeError):
                    world.node.sh(line)


SOURCES_OF_NOBODY = {
    4: ("169.254.7.7", "0.0.0.0", "127.0.0.1", "224.0.0.5", "255.255.255.255", "10.1.0.77", "10.1.0.255"),
    6: ("fec0::7", "::", "::1", "ff02::5", "::ffff:10.1.0.11", "fd00:1::77", "fd00:dead::7", "fe80::77"),
}


@pytest.mark.parametrize(
    ("family", "source"), [(family, one) for family, listed in SOURCES_OF_NOBODY.items() for one in listed]
)
@pytest.mark.parametrize("to", ["pod", "node", "everybody"])
def test_from_an_address_that_is_not_its_own_a_pod_sends_nothing(
    world: World, family: int, source: str, to: str
) -> None:
    """Where the kernel itself drops it as a Martian, the attack does not work without our rules either."""
    kind = IPV4 if family == 4 else IPV6
    address = world.node_address(family) if to == "node" else world.server.addresses[family]
    there = {"pod": mac(world.server), "node": node_mac(world), "everybody": EVERYBODY}[to]
    if world.bridge is None:
        there = node_mac(world)
    shot = frame(mac(world.stranger), there, kind, udp(source, address))
    world.apply(world.snapshot())

    def shoot() -> None:
        send(world.stranger, *[shot] * 2)

    assert (at_node(world, family, shoot) if to == "node" else heard(world.server, family, shoot)) == []


@pytest.mark.parametrize("target", ["::1", "::ffff:10.1.0.12", "::ffff:127.0.0.1", "127.0.0.1", "0.0.0.0"])
def test_to_an_address_that_is_on_no_wire_nothing_goes(world: World, target: str) -> None:
    family = 6 if ":" in target else 4
    shot = frame(
        mac(world.stranger),
        node_mac(world),
        IPV4 if family == 4 else IPV6,
        udp(world.stranger.addresses[family], target),
    )
    for device in world.node.sh("ls /proc/sys/net/ipv4/conf").split():
        world.node.write(f"/proc/sys/net/ipv4/conf/{device}/route_localnet", "1")  # as kube-proxy does
    world.apply(world.snapshot())
    assert at_node(world, family, lambda: send(world.stranger, *[shot] * 2)) == []
    assert at_node(world, 4, lambda: send(world.stranger, *[shot] * 2)) == []
    assert heard(world.server, 4, lambda: send(world.stranger, *[shot] * 2)) == []


# --- frames to the bridge itself ------------------------------------------------------------------------------------


@on_bridges
@KNOWN
@pytest.mark.parametrize("stp", [0, 1], ids=["no STP", "STP"])
def test_a_frame_to_the_bridge_itself_brings_no_packet_to_the_node(
    world: World, family: int, stp: int, known: bool, reader: NflogReader
) -> None:
    """IEEE 802.1Q, 8.6.3. The bridge delivers some of these up before its prerouting hook, some without any hook."""

    def shots(last: int, source: str) -> list[bytes]:
        packet = udp(source, world.node_address(family), b"%x" % last)
        there, kind = f"01:80:c2:00:00:0{last:x}", IPV4 if family == 4 else IPV6
        return [frame(mac(world.stranger), there, kind, packet, tag=tag) for tag in (None, 0)]

    handed_up = [last for last in range(16) if last > 1 or (last == 0 and stp)]
    world.node.sh(f"ip link set cni0 type bridge stp_state {stp} forward_delay 200")
    _forwarding(world)
    try:
        bare(world)
        attacks = [shots(last, SECOND[family][2])[0] for last in handed_up]
        arrived = at_node(world, family, lambda: send(world.stranger, *attacks))
        assert {*arrived} == {b"%x" % last for last in handed_up}, "the attacks work without us"
        world.apply(snapshot(world, known=known))
        told(reader)
        for source in (world.client.addresses[family], world.stranger.addresses[family], SECOND[family][2]):
            every = [one for last in handed_up for one in shots(last, source)]
            assert at_node(world, family, lambda every=every: send(world.stranger, *every)) == []  # type: ignore[misc]
            assert {event.kind for event in told(reader)} == {LogEvent.SPOOF}
            rest = [one for last in {*range(16)} - {*handed_up} for one in shots(last, source)]
            assert at_node(world, family, lambda rest=rest: send(world.stranger, *rest)) == []  # type: ignore[misc]
            told(reader)
    finally:
        world.node.sh("ip link set cni0 type bridge stp_state 0")
        _forwarding(world)


def _forwarding(world: World) -> None:
    deadline = time.monotonic() + 8
    while "state listening" in (shown := world.node.sh("bridge link show")) or "state learning" in shown:
        assert time.monotonic() < deadline, shown
        time.sleep(0.1)


# --- duplicate address detection ------------------------------------------------------------------------------------


def detection(target: str) -> bytes:
    """A neighbour solicitation from the unspecified address (RFC 4862, 5.4.2)."""
    packed = ip_address(target).packed
    group = b"\xff\x02" + bytes(9) + b"\x01\xff" + packed[-3:]
    body = struct.pack(">BBHI", 135, 0, 0, 0) + packed
    pseudo = bytes(16) + group + struct.pack(">IBBH", len(body), 0, 0, 58)
    body = body[:2] + struct.pack(">H", checksum(pseudo + body)) + body[4:]
    return struct.pack(">IHBB", 0x60000000, len(body), 58, 255) + bytes(16) + group + body


def group_mac(address: bytes) -> str:
    return "33:33:" + ":".join(f"{octet:02x}" for octet in address[-4:])


def _tentative(pod: Pod, address: str) -> str:
    """The state of an address that the pod probes while another pod does."""
    return pod.namespace.sh(f"ip -6 -o addr show dev eth0 to {address}")


@KNOWN
@pytest.mark.parametrize(
    ("world", "answer"),
    # ebtables cannot match the target of an advertisement (see ipt_bridge).
    [(name, "solicitation") for name in BRIDGES] + [(n, "advertisement") for n in BRIDGES if "nftables" in n],
    indirect=["world"],
    scope="module",
)
def test_duplicate_detection_by_a_pod_denies_nobody_an_address(world: World, known: bool, answer: str) -> None:
    victim, address = world.server, world.server.addresses[6]
    packet = detection(address)
    if answer == "advertisement":
        packet = with_source(advertisement(address, "ff02::1", mac(world.stranger)), world.stranger.addresses[6])
    shot = frame(mac(world.stranger), group_mac(packet[24:40]), IPV6, packet)

    def detected() -> str:
        """The victim sets its address again while the attacker claims that it is taken."""
        victim.namespace.sh(f"ip addr del {address}/64 dev eth0")
        victim.namespace.sh(f"ip addr add {address}/64 dev eth0")
        for _ in range(12):
            send(world.stranger, shot)
            time.sleep(0.02)
        return _tentative(victim, address)

    victim.namespace.write("/proc/sys/net/ipv6/conf/eth0/accept_dad", "1")
    victim.namespace.write("/proc/sys/net/ipv6/neigh/eth0/retrans_time_ms", "200")
    try:
        bare(world)
        assert "dadfailed" in detected(), "the attack works without us"
        world.apply(world.snapshot() if known else without_the_stranger(world.snapshot()))
        assert "dadfailed" not in detected()
    finally:
        victim.namespace.write("/proc/sys/net/ipv6/conf/eth0/accept_dad", "0")
        victim.namespace.sh(f"ip addr del {address}/64 dev eth0", f"ip addr add {address}/64 dev eth0 nodad")
        victim.namespace.sh("ip -6 route replace default via fd00:1::1")


def probe(sender: Pod, target: str) -> bytes:
    """RFC 5227, 2.1.1: a probe for the target, without a sender address."""
    own = bytes.fromhex(mac(sender).replace(":", ""))
    body = struct.pack(">HHBBH", 1, IPV4, 6, 4, 1) + own + bytes(4) + bytes(6) + ip_address(target).packed
    return frame(mac(sender), EVERYBODY, ARP, body)


@on_bridges
@pytest.mark.parametrize(("whose", "passes"), [("own", True), ("another's", False)])
def test_an_arp_probe_asks_for_ones_own_address_only(world: World, whose: str, passes: bool) -> None:
    """Two pods that probe for one address at the same time both give it up."""
    shot = probe(world.stranger, (world.stranger if whose == "own" else world.server).addresses[4])

    def arrived() -> bool:
        with world.server.namespace.do(
            lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ARP))
        ) as raw:
            raw.bind(("eth0", ARP))
            send(world.stranger, shot)
            raw.settimeout(0.15)
            try:
                while True:
                    if raw.recv(200)[:42] == shot:
                        return True
            except TimeoutError:
                return False

    bare(world)
    assert arrived(), "the attack works without us"
    world.apply(world.snapshot())
    assert arrived() is passes


def test_a_pod_detects_its_own_addresses(world: World) -> None:
    """An address of the pod, with an empty cache and duplicate address detection: nothing of it is refused."""
    world.apply(world.snapshot())
    pod, address = world.stranger, world.stranger.addresses[6]
    for namespace in (world.node, world.server.namespace, pod.namespace):
        namespace.sh("ip -6 neigh flush all")  # entries forged by the attacks shown to work without our rules
    pod.namespace.write("/proc/sys/net/ipv6/conf/eth0/accept_dad", "1")
    bits = 64 if world.bridge else 128
    try:
        pod.namespace.sh(f"ip addr del {address}/{bits} dev eth0", f"ip addr add {address}/{bits} dev eth0")
        assert _eventually(lambda: "tentative" not in _tentative(pod, address))
    finally:
        pod.namespace.write("/proc/sys/net/ipv6/conf/eth0/accept_dad", "0")
    if world.bridge is None:
        pod.namespace.sh("ip -6 route replace fd00:1::1/128 dev eth0")
    pod.namespace.sh("ip -6 route replace default via fd00:1::1 dev eth0")
    assert pod.connect(world.server.addresses[6], 80).startswith("hello")
