"""UDP through the proxy, with real datagrams: the listener sees both addresses, replies come from the original one."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.contract.conftest import IDENTITY, World, entry, transparent
from tproxy_rules.desired import Desired, Frontend, Settings, Table, Verdict, union
from tproxy_rules.marks import LogDirection, LogEvent
from tproxy_rules.nflog import NflogEvent, NflogReader

pytestmark = pytest.mark.lab

UDP = 17
ALLOW, STEER, DENY = Verdict.ALLOW, Verdict.STEER, Verdict.DENY
WITH_UDP = Settings(nflog_group=78, listeners=((6, 15001), (UDP, 15053)))
TCP_ONLY = Settings(nflog_group=78)
IP_RECVORIGDSTADDR, IPV6_RECVORIGDSTADDR = 20, 74
REDIRECT = union((entry(STEER, 53, protocol=UDP), entry(ALLOW, 54, protocol=UDP)))


class UdpProxy(threading.Thread):
    """Answers each datagram from its original destination: with the server's answer if `forwards`, else its own."""

    def __init__(self, node_socket: socket.socket, world: World, family: int, *, forwards: bool) -> None:
        super().__init__(name="udp-proxy", daemon=True)
        self._world, self._family, self._forwards = world, family, forwards
        self.seen: list[tuple[str, str, int, bytes]] = []
        """(client, original destination, its port, data)"""
        self._listener = node_socket
        level, option = (socket.SOL_IP, IP_RECVORIGDSTADDR) if family == 4 else (41, IPV6_RECVORIGDSTADDR)
        transparent(node_socket, family)
        node_socket.setsockopt(level, option, 1)
        node_socket.bind(("127.0.0.1" if family == 4 else "::1", dict(WITH_UDP.listeners)[UDP]))
        self._ended = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._ended.is_set():
            if select.select([self._listener], [], [], 0.05)[0]:
                data, found, _, client = self._listener.recvmsg(2000, 200)
                target, port = _address(found[0][2], self._family)
                self.seen.append((client[0], target, port, data))
                answer = self._asked(client[0], target, port, data) if self._forwards else b"proxy " + data
                with self._socket() as replies:
                    replies.bind((target, port))
                    replies.sendto(answer, client[:2])

    def _asked(self, client: str, target: str, port: int, data: bytes) -> bytes:
        """The server's answer to the client's address."""
        with self._socket() as upstream:
            upstream.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, WITH_UDP.mark_upstream)
            upstream.bind((client, 0))
            upstream.connect((target, port))
            upstream.send(data)
            return b"proxy " + upstream.recv(2000)

    def _socket(self) -> socket.socket:
        made = self._world.node.socket(self._family, socket.SOCK_DGRAM)
        transparent(made, self._family)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return made

    def close(self) -> None:
        self._ended.set()
        self.join(3)
        self._listener.close()


def _address(data: bytes, family: int) -> tuple[str, int]:
    """A sockaddr_in or sockaddr_in6."""
    port = struct.unpack_from(">H", data, 2)[0]
    return (
        (socket.inet_ntop(socket.AF_INET, data[4:8]), port)
        if family == 4
        else (socket.inet_ntop(socket.AF_INET6, data[8:24]), port)
    )


@contextlib.contextmanager
def proxied(world: World, family: int, *, forwards: bool = False) -> Iterator[UdpProxy]:
    made = UdpProxy(world.node.socket(family, socket.SOCK_DGRAM), world, family, forwards=forwards)
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def server(world: World, family: int, *ports: int) -> Iterator[list[tuple[str, bytes]]]:
    """A UDP server in the server pod, which answers `server <data>`; the list is (client, data)."""
    seen: list[tuple[str, bytes]] = []
    stop = threading.Event()
    sockets = [world.server.namespace.socket(family, socket.SOCK_DGRAM) for _ in ports]
    for made, port in zip(sockets, ports, strict=True):
        made.bind(("::" if family == 6 else "0.0.0.0", port))

    def serve() -> None:
        while not stop.is_set():
            for made in select.select(sockets, [], [], 0.05)[0]:
                data, client = made.recvfrom(2000)
                seen.append((client[0], data))
                made.sendto(b"server " + data, client)

    thread = threading.Thread(target=serve, name="udp-server")
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join(3)
        for made in sockets:
            made.close()


def snapshot(world: World, settings: Settings, **policies: Table | None) -> Desired:
    return world.snapshot(settings=settings, **policies)


@pytest.fixture
def reader(world: World) -> Iterator[NflogReader]:
    made = world.node.do(lambda: NflogReader(WITH_UDP.nflog_group))
    yield made
    made.close()


def events(reader: NflogReader) -> list[tuple[LogEvent, LogDirection, int]]:
    found: list[NflogEvent] = []
    while select.select([reader], [], [], 0.25)[0]:
        found += reader.read()
    return [(event.kind, event.way, event.protocol) for event in found]


def exchange(world: World, family: int, address: str, port: int, *lines: bytes) -> list[bytes]:
    """The answers to datagrams from one connected socket, which drops answers from other addresses."""
    answers = []
    with world.client.namespace.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(1.5)
        client.connect((address, port))
        for line in lines:
            client.send(line)
            answers.append(client.recv(2000))
    return answers


@pytest.mark.pairwise
@pytest.mark.parametrize("way", LogDirection)
def test_datagrams_reach_the_listener_and_its_replies_the_client(
    world: World, family: int, way: LogDirection, reader: NflogReader
) -> None:
    target = world.server.addresses[family]
    policy = {"client_egress" if way is LogDirection.EGRESS else "server_ingress": REDIRECT}
    world.apply(snapshot(world, WITH_UDP, **policy))
    events(reader)
    with server(world, family, 53) as arrived, proxied(world, family) as proxy:
        assert exchange(world, family, target, 53, b"one", b"two") == [b"proxy one", b"proxy two"]
    client = world.client.addresses[family]
    assert proxy.seen == [(client, target, 53, b"one"), (client, target, 53, b"two")]
    assert not arrived
    assert events(reader) == [(LogEvent.STEER, way, UDP)]


def test_the_proxy_reaches_the_server_from_the_clients_address(world: World, family: int) -> None:
    world.apply(snapshot(world, WITH_UDP, client_egress=REDIRECT, server_ingress=REDIRECT))
    with server(world, family, 53) as arrived, proxied(world, family, forwards=True):
        answers = exchange(world, family, world.server.addresses[family], 53, b"one", b"two")
    assert answers == [b"proxy server one", b"proxy server two"]
    assert arrived == [(world.client.addresses[family], b"one"), (world.client.addresses[family], b"two")]


def test_what_is_not_redirected_goes_to_the_server(world: World, family: int) -> None:
    world.apply(snapshot(world, WITH_UDP, server_ingress=REDIRECT))
    with server(world, family, 54, 55) as arrived, proxied(world, family) as proxy:
        assert exchange(world, family, world.server.addresses[family], 54, b"plain") == [b"server plain"]
        assert world.client.datagram(world.server.addresses[family], 55) == "silence"
    assert [data for _, data in arrived] == [b"plain"]
    assert not proxy.seen


def test_a_datagram_of_the_node_is_redirected(world: World, family: int) -> None:
    target = world.server.addresses[family]
    world.apply(snapshot(world, WITH_UDP, server_ingress=REDIRECT))
    with (
        server(world, family, 53) as arrived,
        proxied(world, family) as proxy,
        world.node.socket(family, socket.SOCK_DGRAM) as client,
    ):
        client.settimeout(1.5)
        client.connect((target, 53))
        client.send(b"one")
        assert client.recv(200) == b"proxy one"
    assert [one[1:] for one in proxy.seen] == [(target, 53, b"one")]
    assert not arrived


def test_a_denial_of_the_other_direction_beats_the_redirect(world: World, family: int) -> None:
    denied = union((entry(DENY, 53, protocol=UDP, peers=(IDENTITY["client"],)), entry(ALLOW, protocol=UDP)))
    world.apply(snapshot(world, WITH_UDP, client_egress=REDIRECT, server_ingress=denied))
    with proxied(world, family) as proxy:
        assert world.client.datagram(world.server.addresses[family], 53) == "silence"
    assert not proxy.seen


@pytest.mark.pairwise
@pytest.mark.parametrize("settings", [TCP_ONLY, WITH_UDP], ids=["no listener", "no socket"])
def test_without_a_listener_it_is_refused_and_never_passes(
    world: World, family: int, settings: Settings, reader: NflogReader
) -> None:
    """`no socket`: the listener of the settings is not there. xt_TPROXY then drops without an event."""
    world.apply(snapshot(world, settings, server_ingress=REDIRECT))
    events(reader)
    before = world.node.do(world.backend.suppressed)
    with server(world, family, 53, 54) as arrived:
        assert world.client.datagram(world.server.addresses[family], 53) == "silence"
        assert world.client.datagram(world.server.addresses[family], 54) == "server hello"
    assert [data for _, data in arrived] == [b"hello"]
    refused = [one for one in events(reader) if one[0] is LogEvent.UNSERVED]
    logs = settings is TCP_ONLY or world.backend.name == "nftables"
    assert refused == [(LogEvent.UNSERVED, LogDirection.INGRESS, UDP)] * logs
    assert world.node.do(world.backend.suppressed) == before


def test_a_node_without_a_udp_listener_refuses_its_own_datagrams_to_it(world: World, family: int) -> None:
    world.apply(snapshot(world, TCP_ONLY, server_ingress=REDIRECT))
    with server(world, family, 53) as arrived, world.node.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(0.5)
        client.connect((world.server.addresses[family], 53))
        with contextlib.suppress(OSError):
            client.send(b"one")
            client.recv(200)
    assert not arrived


def test_the_listener_itself_cannot_be_reached(world: World, family: int) -> None:
    world.apply(snapshot(world, WITH_UDP, server_ingress=REDIRECT))
    with proxied(world, family) as proxy:
        assert world.client.datagram(world.node_address(family), dict(WITH_UDP.listeners)[UDP]) == "silence"
    assert not proxy.seen


def test_a_socket_that_replies_does_not_let_others_in(world: World, family: int) -> None:
    """The proxy's transparent socket has the server's address: datagrams of refused clients must not reach it."""
    target = world.server.addresses[family]
    only = union((entry(STEER, 53, protocol=UDP, peers=(IDENTITY["client"],)),))
    world.apply(snapshot(world, WITH_UDP, server_ingress=only))
    with world.node.socket(family, socket.SOCK_DGRAM) as replies:
        transparent(replies, family)
        replies.bind((target, 53))
        replies.settimeout(0.3)
        assert world.stranger.datagram(target, 53) == "silence"
        with pytest.raises(TimeoutError):
            replies.recv(200)


def test_a_service_address_is_redirected_before_its_translation(world: World, family: int) -> None:
    """iptables redirects before DNAT, so the listener sees the Service's address; nftables after it, the pod's."""
    service, target = ("10.96.0.9" if family == 4 else "fd00:96::9"), world.server.addresses[family]
    tool, place = ("iptables", target) if family == 4 else ("ip6tables", f"[{target}]")
    made = snapshot(world, WITH_UDP, client_egress=REDIRECT)
    world.apply(replace(made, frontends=(Frontend(service, UDP, 53, steer=True),)))
    dnat = f"PREROUTING -d {service} -p udp --dport 53 -j DNAT --to-destination {place}:53"
    world.node.sh(f"{tool} -t nat -A {dnat}")
    try:
        with server(world, family, 53) as arrived, proxied(world, family) as proxy:
            assert exchange(world, family, service, 53, b"one") == [b"proxy one"]
    finally:
        world.node.sh(f"{tool} -t nat -D {dnat}")
    assert not arrived
    assert [one[1] for one in proxy.seen] == [service if world.backend.steers_before_dnat else target]
