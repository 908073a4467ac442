"""What the kernel logs for each verdict, with real packets: once per connection, once per refusal, and in time."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.contract.conftest import IDENTITY, Pod, Proxy, World, entry
from tproxy_rules.desired import Settings, Verdict, union
from tproxy_rules.marks import LogDirection, LogEvent
from tproxy_rules.nflog import NflogEvent, NflogReader

pytestmark = pytest.mark.lab

ALLOW, STEER, DENY = Verdict.ALLOW, Verdict.STEER, Verdict.DENY
SETTINGS = Settings(nflog_group=78)
SYN = 2
CLIENT_ID, SERVER_ID = 1, 2


@pytest.fixture
def reader(world: World) -> Iterator[NflogReader]:
    made = world.node.do(lambda: NflogReader(SETTINGS.nflog_group))
    yield made
    made.close()


def told(reader: NflogReader, *, quiet: float = 0.25) -> list[NflogEvent]:
    """All events until no more come for a while."""
    events: list[NflogEvent] = []
    while select.select([reader], [], [], quiet)[0]:
        events += reader.read()
    return events


def words(events: list[NflogEvent]) -> list[tuple[LogEvent, LogDirection, int]]:
    return [(event.kind, event.way, event.endpoint) for event in events]


def _is_the_first_of(event: NflogEvent, source: Pod, target: str, port: int, family: int) -> None:
    assert (event.source, event.destination) == (source.addresses[family], target)
    assert (event.protocol, event.destination_port, event.tcp_flags) == (6, port, SYN)
    assert event.source_port > 0 and event.length >= 40 and event.interface > 0


def test_an_allowed_connection_is_told_once_in_each_direction(world: World, family: int, reader: NflogReader) -> None:
    target = world.server.addresses[family]
    world.apply(world.snapshot(client_egress=union((entry(ALLOW, 80),)), server_ingress=union((entry(ALLOW, 80),))))
    told(reader)
    with world.client.namespace.socket(family) as client:
        client.connect((target, 80))
        client.recv(100)
        for _ in range(5):
            client.sendall(b"more of the same connection")
            client.recv(100)
    events = told(reader)
    assert words(events) == [
        (LogEvent.ALLOW, LogDirection.EGRESS, CLIENT_ID),
        (LogEvent.ALLOW, LogDirection.INGRESS, SERVER_ID),
    ]
    for event in events:
        _is_the_first_of(event, world.client, target, 80, family)
    assert (reader.lost, reader.foreign) == (0, 0)


def test_a_steered_connection_is_told_with_what_each_direction_said(
    world: World, family: int, reader: NflogReader
) -> None:
    target = world.server.addresses[family]
    world.apply(world.snapshot(client_egress=union((entry(ALLOW, 80),)), server_ingress=union((entry(STEER, 80),))))
    told(reader)
    with Proxy(world.node, family, SETTINGS) as proxy:
        assert world.client.connect(target, 80).startswith("proxy"), proxy.failures
    events = told(reader)
    assert words(events) == [
        (LogEvent.ALLOW, LogDirection.EGRESS, CLIENT_ID),
        (LogEvent.STEER, LogDirection.INGRESS, SERVER_ID),
    ]
    for event in events:
        _is_the_first_of(event, world.client, target, 80, family)


def test_a_refusal_says_whether_an_entry_or_the_lack_of_one_refuses(
    world: World, family: int, reader: NflogReader
) -> None:
    target = world.server.addresses[family]
    entries = union((entry(DENY, 80, peers=(IDENTITY["client"],)), entry(ALLOW, 80)))
    world.apply(world.snapshot(server_ingress=entries))
    told(reader)
    assert world.client.connect(target, 80) == "refused"
    assert world.client.connect(target, 9000) == "refused"
    events = told(reader)
    assert words(events) == [
        (LogEvent.DENY, LogDirection.INGRESS, SERVER_ID),
        (LogEvent.NONE, LogDirection.INGRESS, SERVER_ID),
    ]
    for event, port in zip(events, (80, 9000), strict=True):
        _is_the_first_of(event, world.client, target, port, family)


def test_a_refused_ping_is_told_with_its_type(world: World, family: int, reader: NflogReader) -> None:
    world.apply(world.snapshot(server_ingress=union((entry(ALLOW, 80),))))
    told(reader)
    assert not world.client.ping(world.server.addresses[family])
    (event,) = told(reader)
    assert (event.kind, event.protocol) == (LogEvent.NONE, 1 if family == 4 else 58)
    assert (event.icmp_type, event.icmp_code) == (8 if family == 4 else 128, 0)


def test_whoever_sees_an_effect_of_a_packet_finds_its_event(world: World, family: int, reader: NflogReader) -> None:
    """No event waits for others in the kernel, so no flow of a request comes before that of its connection."""
    world.apply(world.snapshot(server_ingress=union(())))
    told(reader)
    for _ in range(20):
        before = time.time_ns()
        assert world.client.connect(world.server.addresses[family], 80) == "refused"
        (event,) = reader.read()
        assert (event.kind, event.way, event.endpoint) == (LogEvent.NONE, LogDirection.INGRESS, SERVER_ID)
        assert event.time_ns == 0 or before // 1000 <= event.time_ns // 1000 <= time.time_ns() // 1000


def test_what_is_over_the_rate_is_refused_and_not_told(world: World, family: int, reader: NflogReader) -> None:
    quiet = replace(SETTINGS, log_rate=40 + 5 * family)  # another desired state for each: buckets start full
    world.apply(world.snapshot(settings=quiet, server_ingress=union(())))
    told(reader)
    answers = {world.client.connect(world.server.addresses[family], 80) for _ in range(60)}
    assert answers == {"refused"}
    assert 5 <= len(told(reader)) < 30, "an endpoint's share is a tenth of the node's"


def test_what_is_not_told_is_counted_through_all_changes(world: World, family: int, reader: NflogReader) -> None:
    """Incremental update, recreated table (other settings), and a table that is deleted externally after the count."""
    quiet = replace(SETTINGS, log_rate=50 + family)
    snapshots = (
        world.snapshot(settings=quiet, server_ingress=union(())),
        world.snapshot(settings=quiet, server_ingress=union(()), stranger_ingress=union((entry(ALLOW, 80),))),
        world.snapshot(settings=replace(quiet, log_rate=60 + family), server_ingress=union(())),
    )

    def suppressed() -> int:
        counts = world.node.do(world.backend.suppressed)
        return sum(
            n
            for one, n in counts.items()
            if (one.kind, one.way, one.endpoint) == (LogEvent.NONE, LogDirection.INGRESS, 2)
        )

    world.apply(snapshots[0])
    told(reader)
    before = suppressed()
    sent = 0
    with world.client.namespace.socket(family, socket.SOCK_DGRAM) as client:
        for snapshot in snapshots:
            world.apply(snapshot)
            for _ in range(100):
                client.sendto(b"refuse me", (world.server.addresses[family], 53))
                sent += 1
    events = [event for event in told(reader) if event.kind is LogEvent.NONE]
    assert suppressed() - before > sent / 2
    assert len(events) + suppressed() - before == sent
    sources = {one.source for one in world.node.do(world.backend.suppressed) if one.kind is LogEvent.NONE}
    assert world.backend.name == "iptables" or world.client.addresses[family] in sources


def test_one_sender_does_not_use_up_the_limit_of_another(world: World, family: int, reader: NflogReader) -> None:
    quiet = replace(SETTINGS, log_rate=100 + family)
    world.apply(world.snapshot(settings=quiet, server_ingress=union(())))
    told(reader)
    target = (world.server.addresses[family], 53)
    with (
        world.client.namespace.socket(family, socket.SOCK_DGRAM) as flooder,
        world.stranger.namespace.socket(family, socket.SOCK_DGRAM) as innocent,
    ):
        for number in range(400):
            flooder.sendto(b"refuse me", target)
            if number % 50 == 0:
                innocent.sendto(b"refuse me", target)
    sources = [event.source for event in told(reader)]
    assert sources.count(world.stranger.addresses[family]) == 8
    assert 10 <= sources.count(world.client.addresses[family]) < 50
