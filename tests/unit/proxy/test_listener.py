"""Errors that prevent listening are reported in words an operator can act on."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys

import pytest

from l7proxy.errors import ConfigError, UpstreamError
from l7proxy.model.net import HostPort
from l7proxy.proxy.server import listener
from l7proxy.proxy.server.poller import Poller
from l7proxy.proxy.server.steering import PORTS, Plain, Transparent
from l7proxy.proxy.server.upstream import UpstreamConnector
from tests.unit.proxy.netns import Namespace

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_NET_ADMIN")


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} is in use on 127.0.0.1"):
            listener.bound("127.0.0.1", port)


def test_workers_share_a_port() -> None:
    first = listener.bound("127.0.0.1", 0)
    second = listener.bound("127.0.0.1", first.getsockname()[1])
    first.close()
    second.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become nobody")
def test_without_the_capability_it_says_which() -> None:
    program = (
        "import os; os.setuid(65534)\n"
        "from l7proxy.proxy.server import listener\n"
        "try: listener.transparent(0)\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    words = [sys.executable, "-c", "import l7proxy.proxy.server.listener\n" + program]
    out = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert out.startswith("ConfigError")
    assert "CAP_NET_ADMIN" in out


@pytest.mark.sandbox
@root
def test_no_ipv6_is_told_when_it_was_asked_for_and_left_out_when_not() -> None:
    space = Namespace()
    space.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1")

    def inside() -> list[str]:
        with pytest.raises(ConfigError, match="IPv6 is disabled"):
            listener.bound("::1", 15001)
        sockets = listener.transparent(15001)
        names = [sock.getsockname()[0] for sock in sockets]
        for sock in sockets:
            sock.close()
        return names

    assert space.do(inside) == ["127.0.0.1"]
    space.close()


@pytest.mark.sandbox
@root
def test_a_worker_says_that_its_queue_is_lost_only_when_it_stops(caplog: pytest.LogCaptureFixture) -> None:
    """The agent sets the sysctl, and may start after its workers."""
    caplog.set_level("INFO")
    space = Namespace()
    for sock in space.do(Transparent(15001, mark_upstream=0x2000000).listen):
        sock.close()
    assert caplog.text == ""
    assert space.do(lambda: listener.MIGRATE.read_text()) == "0\n"
    space.do(listener.warn_if_queues_are_lost)
    assert "tcp_migrate_req is not 1: connections that this worker has not accepted yet are reset" in caplog.text
    caplog.clear()
    space.do(lambda: listener.MIGRATE.write_text("1"))
    space.do(listener.warn_if_queues_are_lost)
    assert caplog.text == ""
    space.close()


@pytest.mark.sandbox
@root
def test_a_transparent_socket_bears_the_clients_address_but_never_the_servers_own() -> None:
    space = Namespace()
    way = Transparent(15001, mark_upstream=0x2000000)

    def inside() -> list[tuple[str, int]]:
        seen = []
        for client, server in (("192.0.2.7", "192.0.2.8"), ("2001:db8::7", "2001:db8::8"), ("192.0.2.7", "192.0.2.7")):
            with way.dial(HostPort(client, 1), HostPort(server, 80)) as sock:
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == 0x2000000
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                seen.append(sock.getsockname()[:2])
        return seen

    (address, port), (address6, port6), own = space.do(inside)
    assert (address, address6, own) == ("192.0.2.7", "2001:db8::7", ("0.0.0.0", 0))
    assert port in PORTS and port6 in PORTS, "not among those that clients take"
    space.close()


class Caller:
    """Gets the socket of a successful connect."""

    def __init__(self) -> None:
        self.told = asyncio.Event()
        self.sock: socket.socket | None = None

    def reached(self, sock: socket.socket) -> None:
        self.sock = sock
        self.told.set()

    def unreachable(self, reason: str) -> None:
        self.told.set()


def test_a_port_is_used_towards_every_server_and_when_all_are_taken_the_kernel_has_more() -> None:
    space = Namespace()
    few = range(20000, 20003)
    client = HostPort("127.0.0.5", 1)
    way = Transparent(15001, mark_upstream=0x2000000, ports=few)

    async def ports_towards(address: str) -> list[int]:
        loop, poller = asyncio.get_running_loop(), Poller()
        with socket.create_server((address, 8080), backlog=16) as server:
            callers = [Caller() for _ in range(5)]
            for caller in callers:
                UpstreamConnector(caller, poller, way, client, HostPort(address, 8080))
                async with asyncio.timeout(5):
                    await caller.told.wait()
            server.setblocking(False)
            taken = [await loop.sock_accept(server) for _ in callers]
            for sock in [caller.sock for caller in callers] + [sock for sock, _ in taken]:
                assert sock is not None
                sock.close()
            return sorted(peer[1] for _, peer in taken)

    def inside() -> list[list[int]]:
        async def both() -> list[list[int]]:
            return [await ports_towards("127.0.0.1"), await ports_towards("127.0.0.2")]

        return asyncio.run(both())

    for found in space.do(inside):
        assert found[:3] == list(few)
        assert all(port >= 32768 for port in found[3:])
    space.close()


def test_plain_steering_serves_one_destination() -> None:
    server = HostPort("127.0.0.3", 80)
    way = Plain(HostPort("127.0.0.1", 0), server)
    (bound,) = way.listen()
    assert way.destination(HostPort("127.0.0.1", bound.getsockname()[1])) == server
    with way.dial(HostPort("192.0.2.7", 1), server) as sock:
        assert not sock.getblocking()
    bound.close()


@root
def test_a_client_of_another_family_than_the_server_is_an_upstream_error() -> None:
    way = Transparent(15001, mark_upstream=0)
    with pytest.raises(UpstreamError, match="cannot use the source address"):
        way.dial(HostPort("2001:db8::7", 1), HostPort("192.0.2.8", 80))
