"""A client and the proxy's connection on its behalf may have the same ports: two connections, not one."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.contract.conftest import Namespace, World, entry, transparent
from tests.contract.test_traffic import SETTINGS, table
from tproxy_rules.desired import Verdict

pytestmark = [pytest.mark.lab, pytest.mark.pairwise]
STEER = Verdict.STEER
PATIENCE = 1.5
PORTS = itertools.count(20_001)
"""Each is used by one test only: conntrack keeps a reset connection and its translation for a while."""


class Relay(threading.Thread):
    """A transparent proxy that uses a given source port upstream, and passes bytes both ways until the end."""

    def __init__(self, node: Namespace, family: int) -> None:
        super().__init__(name="relay", daemon=True)
        self._node, self._family = node, family
        self.port = 0
        self._listener = self._socket()
        self._listener.bind(("127.0.0.1" if family == 4 else "::1", dict(SETTINGS.listeners)[6]))
        self._listener.listen(16)
        self._listener.settimeout(None)
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, peer = self._listener.accept()
                threading.Thread(target=self._serve, args=(client, peer[0]), daemon=True).start()

    def _socket(self) -> socket.socket:
        made = self._node.socket(self._family)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        transparent(made, self._family)
        return made

    def _serve(self, client: socket.socket, peer: str) -> None:
        with client, self._socket() as server, contextlib.suppress(OSError):
            server.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, SETTINGS.mark_upstream)
            server.bind((peer, self.port))
            server.connect(client.getsockname()[:2])
            threading.Thread(target=_pump, args=(server, client), daemon=True).start()
            _pump(client, server)

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.join(3)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        source.settimeout(30)
        while data := source.recv(4096):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def connected(world: World, family: int, own: int, server: str) -> Iterator[socket.socket]:
    """The client, from its own source port."""
    with world.client.namespace.socket(family) as client:
        client.settimeout(PATIENCE)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # leave nothing behind
        client.bind((world.client.addresses[family], own))
        client.connect((server, 80))
        yield client


def greeting(client: socket.socket) -> str:
    return client.recv(200).decode()


def echoes(client: socket.socket) -> bool:
    """Both ways, and more than one segment."""
    sent, heard = b"x" * 100_000, b""
    threading.Thread(target=client.sendall, args=(sent,), daemon=True).start()
    while len(heard) < len(sent) and (more := client.recv(65536)):
        heard += more
    return heard == sent


@pytest.fixture(params=["the server pod", "the outside", "the outside, masqueraded"])
def server(request: pytest.FixtureRequest, world: World, family: int) -> Iterator[tuple[str, str]]:
    """The destination, and the client's address as the server sees it."""
    world.apply(world.snapshot(client_egress=table(entry(STEER, 80))))
    client, tool = world.client.addresses[family], "iptables" if family == 4 else "ip6tables"
    if request.param == "the server pod":
        yield world.server.addresses[family], client
    elif request.param == "the outside":
        yield world.outside.addresses[family], client
    else:
        world.node.sh(f"{tool} -t nat -A POSTROUTING -o uplink -j MASQUERADE")
        try:
            yield world.outside.addresses[family], "10.9.0.1" if family == 4 else "fd00:9::1"
        finally:
            world.node.sh(f"{tool} -t nat -D POSTROUTING -o uplink -j MASQUERADE")


def test_the_proxy_takes_the_clients_port(world: World, family: int, server: tuple[str, str]) -> None:
    address, seen = server
    with Relay(world.node, family) as relay:
        relay.port = port = next(PORTS)
        with connected(world, family, port, address) as client:
            assert greeting(client) == f"hello {seen}"
            assert echoes(client)


def test_a_client_takes_the_proxys_port(world: World, family: int, server: tuple[str, str]) -> None:
    """All four go on: the client's two, and the proxy's upstream one for each."""
    address, seen = server
    with Relay(world.node, family) as relay:
        relay.port = port = next(PORTS)
        with connected(world, family, next(PORTS), address) as first:
            assert greeting(first) == f"hello {seen}"
            relay.port = next(PORTS)
            with connected(world, family, port, address) as second:
                assert greeting(second) == f"hello {seen}"
                assert echoes(first)
                assert echoes(second)
                assert echoes(first)
