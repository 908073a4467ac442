"""Protocols other than TCP and UDP: by number, SCTP by port, ICMP by type and code."""

from __future__ import annotations

import socket
import struct

import pytest

from tests.contract.conftest import IDENTITY, Pod, World, entry
from tproxy_rules.desired import Verdict, union

pytestmark = [pytest.mark.lab, pytest.mark.pairwise]

ALLOW, DENY = Verdict.ALLOW, Verdict.DENY
CLIENT, STRANGER = (IDENTITY["client"],), (IDENTITY["stranger"],)
IPIP, IPV6, GRE, ESP, AH, VRRP, SCTP = 4, 41, 47, 50, 51, 112, 132
ICMP = {4: 1, 6: 58}
TIMESTAMP, ECHO = 13, {4: 8, 6: 128}
WORD = b"l7proxy contract"


def arrives(world: World, source: Pod, family: int, protocol: int, payload: bytes, *, timeout: float = 0.15) -> bool:
    """Whether the server's raw socket receives this payload from this client."""
    address = world.server.addresses[family]
    with world.server.namespace.socket(family, socket.SOCK_RAW, protocol) as server:
        server.settimeout(timeout)
        with source.namespace.socket(family, socket.SOCK_RAW, protocol) as client:
            client.sendto(payload, (address, 0))
        try:
            while True:
                seen, peer = server.recvfrom(2000)
                if WORD in seen and peer[0] == source.addresses[family]:
                    return True
        except TimeoutError:
            return False


def icmp(kind: int, code: int) -> bytes:
    """A message of that type; the kernel fills in the checksum on an IPv6 socket."""
    head = struct.pack(">BBHHH", kind, code, 0, 7, 1)
    message = head + WORD
    total = sum(struct.unpack(f">{len(message) // 2}H", message))
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack(">BBHHH", kind, code, ~total & 0xFFFF, 7, 1) + WORD


# In IPv6 AH is an extension header: the protocol behind it is evaluated.
@pytest.mark.parametrize(
    ("family", "protocol"),
    [(4, one) for one in (IPIP, IPV6, GRE, ESP, AH, VRRP)] + [(6, one) for one in (IPIP, IPV6, GRE, ESP, VRRP)],
)
def test_a_protocol_by_its_number(world: World, family: int, protocol: int) -> None:
    payload = bytes(8) + WORD + bytes(24)
    world.apply(world.snapshot(server_ingress=union((entry(ALLOW, protocol=protocol, peers=CLIENT),))))
    assert arrives(world, world.client, family, protocol, payload, timeout=2)
    assert not arrives(world, world.stranger, family, protocol, payload)
    world.apply(world.snapshot(server_ingress=union((entry(ALLOW, protocol=254), entry(ALLOW, 80)))))
    assert not arrives(world, world.client, family, protocol, payload)
    everything = entry(ALLOW, protocol=-1)
    world.apply(world.snapshot(server_ingress=union((everything, entry(DENY, protocol=protocol, peers=CLIENT)))))
    assert not arrives(world, world.client, family, protocol, payload)
    assert arrives(world, world.stranger, family, protocol, payload, timeout=2)


def test_sctp_by_its_port(world: World, family: int) -> None:
    def data(port: int) -> bytes:
        return struct.pack(">HHII", 40000, port, 0, 0) + WORD

    some = union((entry(ALLOW, 3868, protocol=SCTP, peers=CLIENT), entry(ALLOW, range(5000, 6000), protocol=SCTP)))
    world.apply(world.snapshot(server_ingress=some))
    assert arrives(world, world.client, family, SCTP, data(3868), timeout=2)
    assert not arrives(world, world.client, family, SCTP, data(3869))
    assert not arrives(world, world.stranger, family, SCTP, data(3868))
    assert arrives(world, world.stranger, family, SCTP, data(5999), timeout=2)


def test_icmp_by_type_and_code(world: World, family: int) -> None:
    protocol, echo = ICMP[family], ECHO[family] << 8
    few = (
        entry(ALLOW, range(echo, echo + 256), protocol=protocol, peers=CLIENT),
        entry(ALLOW, 200 << 8 | 7, protocol=protocol),
    )
    world.apply(world.snapshot(server_ingress=union(few)))
    assert arrives(world, world.client, family, protocol, icmp(ECHO[family], 0), timeout=2)
    assert arrives(world, world.client, family, protocol, icmp(ECHO[family], 9), timeout=2), "any code"
    assert not arrives(world, world.stranger, family, protocol, icmp(ECHO[family], 0))
    assert arrives(world, world.stranger, family, protocol, icmp(200, 7), timeout=2)
    assert not arrives(world, world.stranger, family, protocol, icmp(200, 8))
    assert not arrives(world, world.client, family, protocol, icmp(TIMESTAMP, 0))
    assert world.client.ping(world.server.addresses[family])
    denied = (entry(ALLOW, protocol=-1), entry(DENY, echo, protocol=protocol, peers=STRANGER))
    world.apply(world.snapshot(server_ingress=union(denied)))
    assert not arrives(world, world.stranger, family, protocol, icmp(ECHO[family], 0))
    assert arrives(world, world.stranger, family, protocol, icmp(ECHO[family], 1), timeout=2)
    assert arrives(world, world.client, family, protocol, icmp(ECHO[family], 0), timeout=2)


def test_ports_and_types_do_not_stand_for_one_another(world: World, family: int) -> None:
    """An echo request's type and code, read as a port, is 2048 or 32768: it must not allow TCP, nor the reverse."""
    protocol, echo = ICMP[family], ECHO[family] << 8
    world.apply(world.snapshot(server_ingress=union((entry(ALLOW, echo, protocol=protocol),))))
    with world.client.namespace.socket(family) as client:
        client.bind((world.client.addresses[family], echo))
        client.settimeout(1)
        with pytest.raises(ConnectionRefusedError):
            client.connect((world.server.addresses[family], 80))
    world.apply(world.snapshot(server_ingress=union((entry(ALLOW, echo), entry(ALLOW, echo, protocol=17)))))
    assert not world.client.ping(world.server.addresses[family], timeout=0.15)


def test_no_policy_cuts_neighbour_discovery_or_errors_of_what_passes(world: World, family: int) -> None:
    """Even one that denies ICMP by name. The error: no socket listens on the UDP port that policy allows."""
    protocol = ICMP[family]
    deny = entry(DENY, protocol=protocol)
    table = union((deny, entry(ALLOW, protocol=17), entry(ALLOW, 80)))
    world.apply(world.snapshot(client_ingress=table, client_egress=table, server_ingress=table, server_egress=table))
    for pod in (world.client, world.server):
        pod.namespace.sh("ip neigh flush dev eth0", "ip -6 neigh flush dev eth0")
    assert world.client.connect(world.server.addresses[family], 80, timeout=3).startswith("hello")
    with world.client.namespace.socket(family, socket.SOCK_DGRAM) as client:
        client.connect((world.server.addresses[family], 4999))
        client.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            client.recv(100)
