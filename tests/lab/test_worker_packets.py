"""A real worker process behind real TPROXY rules, between a client's and a server's namespace. The test is the agent.

The rules here are the minimum that redirects port 80; those of the product are tested elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from l7proxy.flows.records import Connection, HttpRequest, Record
from l7proxy.link.messages import PolicySnapshot
from l7proxy.link.server import LinkServer
from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import Action, Verdict
from l7proxy.policy.rules import HttpRule, HttpRules
from l7proxy.policy.tables import DirectionPolicy, EndpointPolicy, Entry, LocalEndpoint, union
from l7proxy.proxy.server.steering import PORTS
from tests.unit.proxy.netns import Namespace

pytestmark = pytest.mark.lab

CLIENT = {4: "10.9.1.2", 6: "fd09:1::2"}
GATEWAY = {4: "10.9.1.1", 6: "fd09:1::1"}
SERVER = {4: "10.9.2.2", 6: "fd09:2::2"}
REF = RuleRef("CiliumNetworkPolicy", "default", "web", "spec.ingress[0]")
GETS = union((Entry(Action.REDIRECT, REF, None, 6, 80, 80, l7=HttpRules((HttpRule(REF, method="GET"),))),), (REF,))
ANYTHING = union((Entry(Action.ALLOW, REF),), (REF,))
NOTHING = union((), (REF,))

RULES = """
table inet steer {
  chain pre {
    type filter hook prerouting priority -90;
    iifname "lo" accept
    ct direction reply ct mark and 0x2000000 != 0 meta mark set meta mark or 0x1000000 accept
    meta l4proto tcp socket transparent 1 socket wildcard 0 meta mark set meta mark or 0x1000000 accept
    iifname "client" tcp dport 80 meta mark set meta mark or 0x1000000
    meta mark and 0x1000000 != 0 meta nfproto ipv4 meta l4proto tcp tproxy ip to 127.0.0.1:15001 accept
    meta mark and 0x1000000 != 0 meta nfproto ipv6 meta l4proto tcp tproxy ip6 to [::1]:15001 accept
    meta mark and 0x1000000 != 0 meta l4proto tcp reject with tcp reset
  }
  chain out {
    type filter hook output priority -150;
    meta mark and 0x2000000 != 0 ct mark set ct mark or 0x2000000
  }
}
"""

WORKER = """
import logging, sys
from pathlib import Path
from l7proxy.proxy.worker import run_worker
from l7proxy.setting_definitions import WorkerSettings
logging.basicConfig(level=logging.INFO)
sys.exit(run_worker(WorkerSettings(run_dir=Path(sys.argv[1]).parent, drain=float(sys.argv[2]))))
"""


@dataclass
class Net:
    """Client, node and server, routed, both families."""

    client: Namespace
    node: Namespace
    server: Namespace

    def dial(self, family: int, address: str, port: int) -> socket.socket:
        """A connected client socket (blocks until connected, 5 s at most)."""
        sock = self.client.socket(socket.AF_INET6 if family == 6 else socket.AF_INET)
        sock.settimeout(5)
        try:
            sock.connect((address, port))
        except OSError:
            sock.close()
            raise
        sock.setblocking(False)
        return sock


@pytest.fixture
def net() -> Iterator[Net]:
    try:
        made = Net(Namespace(), Namespace(), Namespace())
    except PermissionError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    made.node.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
    for number, (name, other) in enumerate((("client", made.client), ("server", made.server)), 1):
        made.node.run(
            f"ip link add {name} type veth peer name eth0 netns {other.path}",
            f"ip addr add 10.9.{number}.1/24 dev {name}",
            f"ip -6 addr add fd09:{number}::1/64 dev {name} nodad",
            f"ip link set {name} up",
        )
        other.run(
            f"ip addr add 10.9.{number}.2/24 dev eth0",
            f"ip -6 addr add fd09:{number}::2/64 dev eth0 nodad",
            "ip link set eth0 up",
            f"ip route add default via 10.9.{number}.1",
            f"ip -6 route add default via fd09:{number}::1",
        )
    for family in ("-4", "-6"):
        made.node.run(
            f"ip {family} rule add fwmark 0x1000000/0x1000000 lookup 7777 pref 100",
            f"ip {family} route add local default dev lo table 7777",
        )
    made.node.run("nft -f -", text=RULES)
    yield made
    for namespace in (made.client, made.node, made.server):
        namespace.close()


def snapshot(revision: int, ingress: DirectionPolicy) -> PolicySnapshot:
    return PolicySnapshot(
        revision=revision,
        endpoints=(LocalEndpoint(2, "default/server", tuple(SERVER.values()), EndpointPolicy(2, ingress=ingress)),),
        identities={f"{CLIENT[4]}/32": 300, f"{CLIENT[6]}/128": 300, f"{SERVER[4]}/32": 301, f"{SERVER[6]}/128": 301},
        node_addresses=(GATEWAY[4], GATEWAY[6]),
    )


@dataclass
class Agent:
    """The agent's side: publishes policy snapshots, keeps records, starts workers in the node's namespace."""

    net: Net
    link: Path
    server: LinkServer
    records: list[Record] = field(default_factory=list)
    revision: int = 0
    workers: list[asyncio.subprocess.Process] = field(default_factory=list)

    async def publish(self, ingress: DirectionPolicy) -> None:
        self.revision += 1
        await self.server.publish(snapshot(self.revision, ingress))
        assert await self.server.wait_applied(self.revision, 10)

    async def worker(self, drain: float = 5) -> asyncio.subprocess.Process:
        """A worker that has applied the policy snapshot and listens."""
        before = len(self.server.workers())
        words = self.net.node.command(f"{sys.executable} -c")
        process = await asyncio.create_subprocess_exec(*words, WORKER, os.fspath(self.link), str(drain))
        self.workers.append(process)
        async with asyncio.timeout(20):
            while len([w for w in self.server.workers() if w.revision == self.revision]) <= before:
                assert process.returncode is None
                await asyncio.sleep(0.02)
        return process

    async def until(self, count: int) -> list[Record]:
        async with asyncio.timeout(10):
            while len(self.records) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return self.records


@contextlib.asynccontextmanager
async def agent(net: Net, place: Path) -> AsyncIterator[Agent]:
    records: list[Record] = []
    server = LinkServer(place / "link.sock", on_flows=lambda flows: records.extend(flows.records()))
    made = Agent(net, place / "link.sock", server, records)
    async with server.serving():
        try:
            yield made
        finally:
            for process in made.workers:
                if process.returncode is None:
                    process.kill()
                await process.wait()


@contextlib.asynccontextmanager
async def web(net: Net, family: int) -> AsyncIterator[None]:
    """Answers with the client address it sees."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                peer = writer.get_extra_info("peername")[0].encode()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(peer), peer))
        writer.transport.abort()

    sock = net.server.socket(socket.AF_INET6 if family == 6 else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((SERVER[family], 80))
    server = await asyncio.start_server(serve, sock=sock)
    try:
        yield
    finally:
        server.close()


async def ask(sock: socket.socket, method: str = "GET") -> tuple[int, str]:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, f"{method} / HTTP/1.1\r\nHost: server\r\n\r\n".encode())
    return await hear(sock)


async def hear(sock: socket.socket) -> tuple[int, str]:
    got = b""
    async with asyncio.timeout(10):
        while True:
            data = await asyncio.get_running_loop().sock_recv(sock, 65536)
            if not data:
                raise ConnectionResetError("closed")
            got += data
            head, end, body = got.partition(b"\r\n\r\n")
            if end and len(body) == int(head.lower().partition(b"content-length: ")[2].split()[0]):
                return int(head.split()[1]), body.decode()


async def dial(net: Net, family: int, address: str = "", port: int = 80) -> socket.socket:
    return await asyncio.to_thread(net.dial, family, address or SERVER[family], port)


@pytest.mark.parametrize("family", [4, 6])
async def test_the_server_sees_the_client_and_policy_is_enforced(net: Net, tmp_path: Path, family: int) -> None:
    async with agent(net, tmp_path) as on, web(net, family):
        await on.publish(GETS)
        await on.worker()
        sock = await dial(net, family)
        assert await ask(sock) == (200, CLIENT[family])
        assert (await ask(sock, "POST"))[0] == 403
        assert await ask(sock) == (200, CLIENT[family])
        records = await on.until(6)
        first = records[0]
        assert isinstance(first, HttpRequest)
        assert (first.conn.source, first.conn.destination, first.conn.destination_port) == (
            CLIENT[family],
            SERVER[family],
            80,
        )
        await on.publish(NOTHING)
        with pytest.raises(ConnectionResetError):
            await ask(sock)
        sock.close()
        refused = (await on.until(7))[6]
        assert isinstance(refused, Connection)
        assert refused.policy_verdict.verdict is Verdict.DROPPED


@pytest.mark.parametrize("family", [4, 6])
async def test_a_pod_cannot_reach_the_proxys_port(net: Net, tmp_path: Path, family: int) -> None:
    async with agent(net, tmp_path) as on, web(net, family):
        await on.publish(GETS)
        await on.worker()
        with contextlib.closing(await dial(net, family)) as sock:
            assert (await ask(sock))[0] == 200  # it does listen
        with pytest.raises(ConnectionRefusedError):
            await dial(net, family, GATEWAY[family], 15001)


async def test_without_a_worker_and_before_its_first_snapshot_the_client_is_refused(net: Net, tmp_path: Path) -> None:
    async with agent(net, tmp_path) as on, web(net, 4):
        with pytest.raises(ConnectionRefusedError):
            await dial(net, 4)
        words = net.node.command(f"{sys.executable} -c")
        process = await asyncio.create_subprocess_exec(*words, WORKER, os.fspath(on.link), "5")
        on.workers.append(process)
        async with asyncio.timeout(20):
            while not on.server.workers():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        with pytest.raises(ConnectionRefusedError):
            await dial(net, 4)
        await on.publish(GETS)
        sock = await dial(net, 4)
        assert (await ask(sock))[0] == 200
        sock.close()


async def test_a_killed_worker_resets_and_its_successor_serves(net: Net, tmp_path: Path) -> None:
    async with agent(net, tmp_path) as on, web(net, 4):
        await on.publish(GETS)
        worker = await on.worker()
        sock = await dial(net, 4)
        assert (await ask(sock))[0] == 200
        worker.kill()
        await worker.wait()
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            for _ in range(3):
                await ask(sock)
        sock.close()
        with pytest.raises(ConnectionRefusedError):
            await dial(net, 4)
        await on.worker()
        sock = await dial(net, 4)
        assert (await ask(sock))[0] == 200
        sock.close()


async def test_a_worker_drains_while_its_successor_takes_over(net: Net, tmp_path: Path) -> None:
    async with agent(net, tmp_path) as on, web(net, 4):
        await on.publish(GETS)
        old = await on.worker()
        idle, fresh = await dial(net, 4), await dial(net, 4)
        assert (await ask(idle))[0] == 200
        await on.worker()
        old.send_signal(signal.SIGTERM)
        assert await asyncio.get_running_loop().sock_recv(idle, 1) == b""  # it was served: its end is a FIN
        for _ in range(20):
            sock = await dial(net, 4)
            assert (await ask(sock))[0] == 200
            sock.close()
        assert (await ask(fresh))[0] == 200  # every accepted connection is answered
        idle.close()
        fresh.close()
        async with asyncio.timeout(10):
            assert await old.wait() == 0
        assert sum(isinstance(r, HttpRequest) for r in await on.until(44)) == 22


async def test_our_own_connections_take_no_port_that_clients_take(net: Net, tmp_path: Path) -> None:
    """If the upstream connection had the client's ports, both would share one conntrack entry."""
    async with agent(net, tmp_path) as on, web(net, 4):
        second = "10.9.2.3"
        net.server.run(f"ip addr add {second}/24 dev eth0")
        other = net.server.socket()
        other.bind((second, 80))
        other.listen(64)
        other.setblocking(False)
        await on.publish(ANYTHING)
        await on.worker()
        socks = [await dial(net, 4, second) for _ in range(10)]
        async with asyncio.timeout(10):
            for _ in socks:
                taken, peer = await asyncio.get_running_loop().sock_accept(other)
                assert peer[0] == CLIENT[4]
                assert peer[1] in PORTS
                taken.close()
        for sock in [*socks, other]:
            sock.close()


async def test_a_second_proxy_without_the_shared_port_is_told_so(net: Net, tmp_path: Path) -> None:
    blocker = net.node.socket()
    blocker.bind(("127.0.0.1", 15001))
    words = net.node.command(f"{sys.executable} -c")
    process = await asyncio.create_subprocess_exec(
        *words, WORKER, os.fspath(tmp_path / "link.sock"), "5", stderr=asyncio.subprocess.PIPE
    )
    _, err = await process.communicate()
    assert process.returncode == 1
    assert b"port 15001 is in use on 127.0.0.1" in err
    blocker.close()
