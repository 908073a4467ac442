"""What is refused to a pod without policy, and only that: all else passes, as without any table."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

import pytest

from tests.contract.conftest import Namespace, World, entry
from tproxy_rules.desired import Settings, Table, Tier, Verdict, union
from tproxy_rules.marks import LogDirection, LogEvent
from tproxy_rules.nflog import NflogEvent, NflogReader

pytestmark = pytest.mark.lab

UDP, IPIP, GRE, TUNNEL = 17, 4, 47, 8472
WORD = b"l7proxy contract"
REFUSALS = Table(
    (Tier(((entry(Verdict.DENY, TUNNEL, protocol=UDP), entry(Verdict.DENY, protocol=IPIP)),), closed=False),),
    governed=False,
)
CLIENT_ID = 1


def told(reader: NflogReader) -> list[NflogEvent]:
    """All events until no more come for a while."""
    events: list[NflogEvent] = []
    while select.select([reader], [], [], 0.25)[0]:
        events += reader.read()
    return events


@pytest.fixture
def reader(world: World) -> Iterator[NflogReader]:
    made = world.node.do(lambda: NflogReader(Settings(nflog_group=78).nflog_group))
    yield made
    made.close()


def arrives(world: World, family: int, protocol: int, target: str, namespace: Namespace, port: int = 0) -> bool:
    """Whether a raw or UDP socket of `namespace` receives a packet from the client to `target`."""
    kind = socket.SOCK_DGRAM if protocol == UDP else socket.SOCK_RAW
    number = 0 if protocol == UDP else protocol
    with (
        namespace.socket(family, kind, number) as server,
        world.client.namespace.socket(family, kind, number) as client,
    ):
        if port:
            server.bind((target, port))
        client.sendto(bytes(8) + WORD, (target, port))
        server.settimeout(0.3)
        try:
            while WORD not in server.recv(2000):
                pass
        except TimeoutError:
            return False
        return True


def test_refusals_without_a_policy(world: World, family: int, reader: NflogReader) -> None:
    world.apply(world.snapshot(client_egress=REFUSALS))
    told(reader)
    for target, namespace in (
        (world.server.addresses[family], world.server.namespace),
        (world.node_address(family), world.node),
    ):
        assert not arrives(world, family, UDP, target, namespace, TUNNEL)
        assert not arrives(world, family, IPIP, target, namespace)
        assert arrives(world, family, UDP, target, namespace, TUNNEL + 1)
        assert arrives(world, family, GRE, target, namespace)
    assert world.client.connect(world.server.addresses[family], 80).startswith("hello")
    events = told(reader)
    assert {(event.kind, event.way, event.endpoint) for event in events} == {
        (LogEvent.DENY, LogDirection.EGRESS, CLIENT_ID)
    }
    assert [(event.protocol, event.destination_port) for event in events if event.protocol == UDP] == [
        (UDP, TUNNEL)
    ] * 2


def test_others_are_not_concerned(world: World, family: int) -> None:
    """The neighbour has no table; the receiver has its own policy."""
    server = world.server.addresses[family]
    world.apply(world.snapshot(stranger_egress=REFUSALS, server_ingress=union((entry(Verdict.ALLOW, protocol=UDP),))))
    assert arrives(world, family, UDP, server, world.server.namespace, TUNNEL)
    assert not arrives(world, family, IPIP, server, world.server.namespace)
    assert world.client.connect(server, 80) == "refused"
