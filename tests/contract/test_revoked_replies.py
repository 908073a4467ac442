"""What conntrack would still pass as a reply, although new rules refuse the original direction."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from tests.contract.conftest import IDENTITY, Proxy, World, entry
from tests.contract.test_traffic import NOBODY, SETTINGS, service, table
from tproxy_rules.conntrack import Conntrack, Tracked
from tproxy_rules.desired import Desired, Verdict
from tproxy_rules.evaluate import Connection
from tproxy_rules.revoke import EVERYTHING, Outcome, Taken, revoke, taken

pytestmark = pytest.mark.lab
ALLOW, STEER, DENY = Verdict.ALLOW, Verdict.STEER, Verdict.DENY
CLIENT = (IDENTITY["client"],)
IGMP, UDP, ICMPV6 = 2, 17, 58
ASKED, ANSWERED = 5301, 5302


class Talk:
    """A client and a server that have exchanged UDP; `reply` is what the client receives when the server sends more."""

    def __init__(self, world: World, family: int) -> None:
        self.client = world.client.namespace.socket(family, socket.SOCK_DGRAM)
        self.server = world.server.namespace.socket(family, socket.SOCK_DGRAM)
        self.client.bind((world.client.addresses[family], ANSWERED))
        self.server.bind((world.server.addresses[family], ASKED))

    def ask(self, address: str, port: int = ASKED) -> None:
        self.client.settimeout(1)
        self.client.sendto(b"question", (address, port))
        self.server.settimeout(1)
        _, self._peer = self.server.recvfrom(100)
        assert self.reply(timeout=1) == "answer"

    def reply(self, *, timeout: float = 0.2) -> str:
        self.client.settimeout(timeout)
        for _ in range(3):
            self.server.sendto(b"answer", self._peer)
        heard = "silence"
        try:
            heard = self.client.recv(100).decode()
            self.client.settimeout(0)
            while self.client.recv(100):
                pass
        except (TimeoutError, BlockingIOError):
            pass
        return heard


@contextmanager
def talk(world: World, family: int) -> Iterator[Talk]:
    made = Talk(world, family)
    with made.client, made.server:
        yield made


def change(world: World, before: Desired | None, after: Desired, *, spare: bool = False) -> Outcome:
    """As the agent does it: first the rules, then the conntrack entries."""
    world.apply(after)
    return world.node.do(lambda: revoke(taken(before, after), after, spare=spare))


@pytest.fixture(autouse=True)
def nothing_tracked(world: World) -> None:
    everything = world.snapshot()
    world.apply(everything)

    def flush() -> None:
        with Conntrack() as conntrack:
            for one in list(conntrack.entries()):
                conntrack.delete(one)

    world.node.do(flush)


def open_snapshot(world: World) -> Desired:
    """The client may send queries; no other pod may send to it."""
    return world.snapshot(server_ingress=table(entry(ALLOW, ASKED, protocol=UDP, peers=CLIENT)), client_ingress=NOBODY)


def test_replies_end_when_the_question_is_refused(world: World, family: int) -> None:
    before = open_snapshot(world)
    after = replace(before, endpoints=world.snapshot(server_ingress=NOBODY, client_ingress=NOBODY).endpoints)
    world.apply(before)
    with talk(world, family) as talking:
        talking.ask(world.server.addresses[family])
        world.apply(after)
        assert talking.reply() == "answer", "the rules alone do not end it"
        assert change(world, before, after).removed == 1
        assert talking.reply() == "silence"


def test_replies_end_when_a_fresh_agent_finds_them_refused(world: World, family: int) -> None:
    before = open_snapshot(world)
    world.apply(before)
    with talk(world, family) as talking:
        talking.ask(world.server.addresses[family])
        assert change(world, None, before).removed == 0, "what is allowed stays"
        assert talking.reply() == "answer"
        change(world, None, world.snapshot(client_egress=NOBODY, client_ingress=NOBODY))
        assert talking.reply() == "silence"


def test_replies_do_not_pass_to_the_next_owner_of_an_address(world: World, family: int) -> None:
    """The address's next owner may query the same server, but did not."""
    before = open_snapshot(world)
    here = world.client.addresses[4]
    others = [replace(one, id=9, port=None) if here in one.addresses else one for one in before.endpoints]
    world.apply(before)
    with talk(world, family) as talking:
        talking.ask(world.server.addresses[family])
        assert change(world, before, replace(before, endpoints=tuple(others))).removed == 1
        assert talking.reply() == "silence"
        world.apply(before)
        assert talking.reply() == "silence", "the entry is gone, it is not only refused"
        talking.ask(world.server.addresses[family])


def test_what_is_still_allowed_is_not_cut(world: World, family: int) -> None:
    """The same pod gets another identity and other rules: TCP and UDP go on, also through a Service."""
    before = world.snapshot(
        server_ingress=table(entry(ALLOW, ASKED, protocol=UDP), entry(ALLOW, 8080)),
        client_ingress=NOBODY,
        server_egress=NOBODY,
    )
    renamed = tuple((prefix, 4242 if number == CLIENT[0] else number) for prefix, number in before.identities)
    after = replace(before, identities=renamed)
    world.apply(before)
    with (
        service(world, family) as (address, _),
        talk(world, family) as talking,
        world.client.namespace.socket(family) as tcp,
    ):
        talking.ask(world.server.addresses[family])
        tcp.connect((address, 80))
        assert tcp.recv(100).startswith(b"hello")
        assert taken(before, after)
        assert change(world, before, after) == Outcome(0, 0)
        assert change(world, None, after) == Outcome(0, 0)
        assert talking.reply() == "answer"
        tcp.sendall(b"still")
        assert tcp.recv(100) == b"still"


def test_what_came_through_a_service_is_judged_by_the_pod_behind_it(world: World, family: int) -> None:
    address, target = ("10.96.0.9", f"10.1.0.12:{ASKED}") if family == 4 else ("fd00:96::9", f"[fd00:1::c]:{ASKED}")
    tool = "iptables" if family == 4 else "ip6tables"
    rule = f"PREROUTING -d {address} -p udp --dport 53 -j DNAT --to-destination {target}"
    before = open_snapshot(world)
    world.node.sh(f"{tool} -t nat -A {rule}")
    try:
        world.apply(before)
        with talk(world, family) as talking:
            talking.ask(address, 53)
            assert change(world, None, before).removed == 0
            after = world.snapshot(client_egress=table(entry(ALLOW, 53, protocol=UDP)), client_ingress=NOBODY)
            assert change(world, before, after).removed == 1, "port 53 is the Service's, not the pod's"
            assert talking.reply() == "silence"
    finally:
        world.node.sh(f"{tool} -t nat -D {rule}")


def test_the_proxys_connections_are_the_proxys_to_end(world: World, family: int) -> None:
    """With `spare`, the client's connections to the proxy stay; the proxy's upstream connections always stay."""
    before = world.snapshot(server_ingress=table(entry(STEER, 80)), client_ingress=NOBODY, server_egress=NOBODY)
    after = world.snapshot(server_ingress=NOBODY, client_ingress=NOBODY, server_egress=NOBODY)
    world.apply(before)
    with Proxy(world.node, family, SETTINGS) as proxy:
        assert world.client.connect(world.server.addresses[family], 80).startswith("proxy hello"), proxy.failures
        assert change(world, before, before) == Outcome(0, 0)
        assert world.node.do(lambda: revoke(EVERYTHING, before, spare=True)) == Outcome(0, 0)
        assert change(world, before, after, spare=True) == Outcome(0, 1)
        assert change(world, before, after) == Outcome(1, 0)
        assert [one.mark for one in tracked(world)] == [SETTINGS.mark_upstream]


def test_all_of_an_address_that_went_goes(world: World, family: int) -> None:
    """As client and as server, over every protocol, and the proxy's own connections on its behalf."""
    before = world.snapshot(server_ingress=table(entry(STEER, 80), entry(ALLOW, protocol=-1)))
    world.apply(before)
    with Proxy(world.node, family, SETTINGS), talk(world, family) as talking:
        assert world.client.connect(world.server.addresses[family], 80).startswith("proxy hello")
        assert world.server.connect(world.node_address(family), 7000).startswith("hello")
        assert world.client.ping(world.server.addresses[family])
        talking.ask(world.server.addresses[family])
        assert world.stranger.connect(world.node_address(family), 7000).startswith("hello")
        wait_until_closed(world)
        held = len(tracked(world))
        gone = frozenset(world.server.addresses.values())
        after = replace(
            before,
            endpoints=tuple(one for one in before.endpoints if not gone & set(one.addresses)),
            identities=tuple((prefix, number) for prefix, number in before.identities if number != IDENTITY["server"]),
        )
        assert change(world, before, after).removed == held - 1
        (other,) = tracked(world)
        assert other.connection.source == world.stranger.addresses[family]


def test_entries_of_any_zone_go(world: World, family: int) -> None:
    """Other software (a CNI, Open vSwitch) may use conntrack zones: an entry is found by its zone, too."""
    before, after = open_snapshot(world), world.snapshot(server_ingress=NOBODY, client_ingress=NOBODY)
    world.apply(before)
    world.node.feed(
        "nft -f -",
        "table inet zones {\n"
        "chain in { type filter hook prerouting priority -300\nct zone set 9\n}\n"
        "chain out { type filter hook output priority -300\nct zone set 9\n}\n}\n",
    )
    try:
        with talk(world, family) as talking:
            talking.ask(world.server.addresses[family])
            assert change(world, before, after).removed == 1
            assert talking.reply() == "silence"
    finally:
        world.node.sh("nft delete table inet zones")


def test_nothing_is_listed_for_nobody(world: World, family: int) -> None:
    world.apply(world.snapshot())
    assert world.client.connect(world.server.addresses[family], 80).startswith("hello")
    assert tracked(world)
    assert world.node.do(lambda: revoke(Taken(), world.snapshot(), spare=False)) == Outcome(0, 0)


def wait_until_closed(world: World) -> None:
    """The FIN of a connection without entry would create a new entry (nf_conntrack_tcp_loose)."""
    places = (world.node, *(pod.namespace for pod in world.pods))
    deadline = time.monotonic() + 5
    while left := "".join(place.sh("ss -tanH state connected exclude time-wait") for place in places):
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


def tracked(world: World) -> list[Tracked]:
    """Without packets that the kernel sends by itself: IGMP, and all of ICMPv6 but echo requests."""

    def wanted(connection: Connection) -> bool:
        return connection.protocol != IGMP and (connection.protocol != ICMPV6 or connection.port >> 8 == 128)

    def listed() -> list[Tracked]:
        with Conntrack() as conntrack:
            return [one for one in conntrack.entries() if wanted(one.connection)]

    return world.node.do(listed)
