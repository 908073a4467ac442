"""ICMP errors: a pod may send errors about packets that were sent to it, never about connections of others."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.contract.conftest import IDENTITY, Pod, World, entry
from tests.contract.test_frames import without_the_stranger
from tests.contract.test_revoked_replies import ASKED, UDP, Talk, nothing_tracked, talk
from tests.contract.test_traffic import NOBODY, table
from tests.support.frames import checksum, udp
from tproxy_rules.desired import Desired, Verdict

pytestmark = pytest.mark.lab
__all__ = ["nothing_tracked"]

ALLOW = Verdict.ALLOW
ICMP = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
PORT_UNREACHABLE = {4: (3, 3), 6: (1, 4)}
ENDING = {
    4: {
        "port unreachable": (3, 3),
        "protocol unreachable": (3, 2),
        "prohibited": (3, 13),
        "parameter problem": (12, 0),
    },
    6: {"port unreachable": (1, 4), "prohibited": (1, 1), "parameter problem": (4, 0)},
}


def snapshot(world: World) -> Desired:
    """The client may send to the server; no other pod may send to the client. The stranger is under no policy."""
    return world.snapshot(
        server_ingress=table(entry(ALLOW, ASKED, protocol=UDP, peers=(IDENTITY["client"],))), client_ingress=NOBODY
    )


def about(sender: socket.socket, receiver: tuple[str, int]) -> bytes:
    """The packet that the sender would have sent to the receiver."""
    source, port = sender.getsockname()[:2]
    packet = udp(source, receiver[0])
    ports = struct.pack(">HH", port, receiver[1])
    head = 20 if "." in source else 40
    return packet[:head] + ports + packet[head + 4 :]


def tell(teller: Pod, target: str, kind: tuple[int, int], packet: bytes) -> None:
    """An ICMP error with this packet in it, from the reporter's own address."""
    family = 6 if ":" in target else 4
    body = struct.pack(">BBHI", *kind, 0, 0) + packet
    if family == 4:  # the kernel fills in the checksum on an IPv6 socket
        body = body[:2] + struct.pack(">H", checksum(body)) + body[4:]
    with teller.namespace.socket(family, socket.SOCK_RAW, ICMP[family]) as raw:
        raw.sendto(body, (target, 0))


@contextmanager
def connected(world: World, family: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Client and server that have exchanged UDP and receive errors: their sockets are connected."""
    with talk(world, family) as talking:
        talking.ask(world.server.addresses[family])
        yield ends(talking)


def ends(talking: Talk) -> tuple[socket.socket, socket.socket]:
    one, other = talking.client, talking.server
    there, here = one.getsockname(), other.getsockname()
    one.connect(here)
    other.connect(there)
    return one, other


def failed(one: socket.socket) -> bool:
    """Whether the socket received an error."""
    one.settimeout(0.15)
    try:
        one.recv(100)
    except TimeoutError:
        return False
    except OSError:
        return True
    return False


@pytest.mark.parametrize("victim", ["client", "server"])
def test_a_third_pod_ends_no_connection(world: World, family: int, victim: str) -> None:
    with connected(world, family) as (client, server):
        target, other = (client, server) if victim == "client" else (server, client)
        inner, address = about(target, other.getsockname()[:2]), target.getsockname()[0]
        world.node.do(world.backend.remove)
        tell(world.stranger, address, PORT_UNREACHABLE[family], inner)
        assert failed(target), "the attack works without us"
        world.apply(snapshot(world))
        other.send(b"so that it is tracked") if victim == "server" else target.send(b"so that it is tracked")
        for name, kind in ENDING[family].items():
            tell(world.stranger, address, kind, inner)
            assert not failed(target), name


def test_a_port_whose_pod_is_not_known_ends_no_connection(world: World, family: int) -> None:
    if not world.bridge:
        pytest.skip("on a routed port without a pod nothing is known, and nothing is judged")
    world.apply(without_the_stranger(snapshot(world)))
    with connected(world, family) as (client, server):
        for target, other in ((client, server), (server, client)):
            inner = about(target, other.getsockname()[:2])
            tell(world.stranger, target.getsockname()[0], PORT_UNREACHABLE[family], inner)
            assert not failed(target)
        tell(world.server, client.getsockname()[0], PORT_UNREACHABLE[family], about(client, server.getsockname()[:2]))
        assert failed(client)


def test_either_end_may_tell_the_other(world: World, family: int) -> None:
    """In both directions: about a query to a closed port, and about an answer to a closed one."""
    world.apply(snapshot(world))
    with world.client.namespace.socket(family, socket.SOCK_DGRAM) as client:
        client.connect((world.server.addresses[family], ASKED))
        client.send(b"nobody is there")
        assert failed(client)
    with connected(world, family) as (client, server):
        client.close()
        server.send(b"late")
        assert failed(server)


def test_the_pod_behind_a_service_may_tell_its_client(world: World, family: int) -> None:
    address, target = ("10.96.0.9", f"10.1.0.12:{ASKED}") if family == 4 else ("fd00:96::9", f"[fd00:1::c]:{ASKED}")
    tool = "iptables" if family == 4 else "ip6tables"
    rule = f"PREROUTING -d {address} -p udp --dport 53 -j DNAT --to-destination {target}"
    world.node.sh(f"{tool} -t nat -A {rule}")
    try:
        world.apply(snapshot(world))
        with world.client.namespace.socket(family, socket.SOCK_DGRAM) as client:
            client.connect((address, 53))
            client.send(b"nobody is there")
            assert failed(client)
    finally:
        world.node.sh(f"{tool} -t nat -D {rule}")


def test_a_router_outside_may_tell(world: World, family: int) -> None:
    world.apply(snapshot(world))
    far = ("10.77.0.1" if family == 4 else "fd00:77::1", 9)
    with world.client.namespace.socket(family, socket.SOCK_DGRAM) as client:
        client.connect(far)
        client.send(b"hello")
        tell(world.outside, client.getsockname()[0], PORT_UNREACHABLE[family], about(client, far))
        assert failed(client)
