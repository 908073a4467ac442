"""What the probes are told, and that no client can do harm."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from ipaddress import ip_address

import h11
import pytest

from l7proxy.agent import health
from l7proxy.agent.dataplane.pod_interfaces import PodInterfaces
from l7proxy.agent.dataplane.reconciler import Reconciler
from l7proxy.cluster.state import ClusterState
from l7proxy.errors import ConfigError
from l7proxy.link.messages import PolicySnapshot
from l7proxy.link.server import WorkerState
from l7proxy.model.resources import Node, Pod, Upsert
from l7proxy.settings.address import host_and_port
from l7proxy.sources import objects
from l7proxy.sources.source import SYNCED, SourceHealth
from tproxy_rules.backend import KernelError
from tproxy_rules.desired import Desired, Settings
from tproxy_rules.fake import FakeBackend

LOOPBACK = ip_address("127.0.0.1")
PORTS = {"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": [{"method": "GET"}]}}
WITH_HTTP = objects.policy(
    {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "p", "namespace": "shop"},
        "spec": {"endpointSelector": {}, "ingress": [{"toPorts": [PORTS]}]},
    }
)


class Link:
    """Workers apply what is published when the test says so."""

    def __init__(self) -> None:
        self.connected: list[WorkerState] = []

    async def publish(self, snapshot: PolicySnapshot) -> None: ...

    async def wait_applied(self, revision: int, timeout: float) -> bool:  # noqa: ASYNC109 -- the contract's form
        return True

    def require(self) -> None: ...

    def workers(self) -> list[WorkerState]:
        return self.connected


class Kernel(FakeBackend):
    """Refuses to change anything while `broken`."""

    broken = False

    def apply(self, desired: Desired) -> None:
        if self.broken:
            raise KernelError("no memory for the set")
        super().apply(desired)


class Stage:
    def __init__(self) -> None:
        self.link, self.kernel = Link(), Kernel()
        self.reconciler = Reconciler(
            cluster_state=ClusterState(),
            link=self.link,
            backend=self.kernel,
            node="n1",
            look=PodInterfaces,
            settings=Settings(),
        )

    async def learn(self, *resources: Node | Pod) -> None:
        self.reconciler.submit([*map(Upsert, (*resources, WITH_HTTP)), *SYNCED], SourceHealth())
        await self.reconciler.step()

    def reasons(self) -> list[str]:
        return list(health.not_ready(self.reconciler, self.link.workers()))


async def test_ready_means_enforced() -> None:
    stage = Stage()
    assert stage.reasons() == ["source: not fully read yet"]
    stage.kernel.broken = True
    await stage.learn()
    assert stage.reasons() == ["kernel: no memory for the set"]
    stage.kernel.broken = False
    await stage.reconciler.step()
    assert stage.reasons() == [], "no pod of this node has an L7 rule, so no worker is needed"


async def test_l7_rules_need_a_worker_that_has_them() -> None:
    stage = Stage()
    await stage.learn(Pod("shop", "web", "n1", ("10.0.1.5",), {"app": "web"}))
    assert stage.reasons() == ["workers: none is connected: traffic to ports with L7 rules is refused"]
    stage.link.connected = [WorkerState(100, 0, revision=0), WorkerState(101, 1, revision=0)]
    assert stage.reasons() == ["workers: none has applied revision 1: traffic to ports with L7 rules is refused"]
    stage.link.connected[1] = WorkerState(101, 1, revision=1)
    assert stage.reasons() == []


async def test_a_new_revision_that_the_kernel_refuses() -> None:
    stage = Stage()
    await stage.learn()
    stage.kernel.broken = True
    await stage.learn(Pod("shop", "web", "n1", ("10.0.1.5",), {"app": "web"}))
    assert stage.reasons()[0] == "kernel: no memory for the set"


async def test_a_round_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    await stage.learn()
    entered, release = asyncio.Event(), asyncio.Event()

    async def hung(snapshot: PolicySnapshot) -> None:
        entered.set()
        await release.wait()

    monkeypatch.setattr(stage.link, "publish", hung)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(stage.reconciler.run(), name="reconcile")
        change = Upsert(Pod("shop", "web", "n1", ("10.0.1.5",), {"app": "web"}))
        stage.reconciler.submit([change], SourceHealth())
        await entered.wait()
        assert not list(health.not_alive(stage.reconciler)), "it has just begun"
        monkeypatch.setattr(health, "BEHIND", 0.0)
        assert stage.reasons()[0].startswith("reconciler: a change has been waiting for ")
        monkeypatch.setattr(health, "STUCK", 0.0)
        assert list(health.not_alive(stage.reconciler))
        running.cancel()


@pytest.fixture
async def port() -> AsyncIterator[int]:
    checks: dict[str, health.Check] = {"/livez": lambda: (), "/readyz": lambda: ("kernel: broken\nHTTP/1.1 200", "b")}
    async with health.HealthServer(LOOPBACK, 0, checks).serving() as port:
        yield port


async def ask(port: int, request: bytes) -> tuple[int, str]:
    """(status, body) of the answer; (0, "") when there is none."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    client = h11.Connection(h11.CLIENT)
    client.send(
        h11.Request(method="HEAD" if request.startswith(b"HEAD") else "GET", target="/", headers=[("host", "x")])
    )
    status, body = 0, b""
    try:
        writer.write(request)
        async with asyncio.timeout(10):
            while True:
                event = client.next_event()
                if event is h11.NEED_DATA:
                    client.receive_data(await reader.read(65536))
                elif isinstance(event, h11.Response):
                    status = event.status_code
                elif isinstance(event, h11.Data):
                    body += event.data
                else:
                    return status, body.decode()
    except (h11.RemoteProtocolError, ConnectionError):
        return status, body.decode()
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("request_line", "answer"),
    [
        (b"GET /livez HTTP/1.1", (200, "ok\n")),
        (b"GET /livez?verbose HTTP/1.1", (200, "ok\n")),
        (b"HEAD /livez HTTP/1.1", (200, "")),
        (b"GET /readyz HTTP/1.1", (503, "kernel: broken HTTP/1.1 200\nb\n")),
        (b"GET /metrics HTTP/1.1", (404, "known paths: /livez, /readyz\n")),
        (b"POST /livez HTTP/1.1", (405, "only GET and HEAD are served\n")),
    ],
)
async def test_answers(port: int, request_line: bytes, answer: tuple[int, str]) -> None:
    assert await ask(port, request_line + b"\r\nHost: x\r\n\r\n") == answer


@pytest.mark.parametrize(
    "hostile",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nbroken\r\n\r\n",
    ],
)
async def test_hostile_bytes(port: int, hostile: bytes) -> None:
    assert (await ask(port, hostile))[0] in (400, 0)
    assert await ask(port, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n") == (200, "ok\n")


async def test_slow_clients_do_not_keep_others_out(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "PATIENCE", 60.0)
    slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(health.MAX_CLIENTS + 10)]
    try:
        for _, writer in slow:
            writer.write(b"GET /livez HTTP/1.1\r\n")
        for _ in range(5):
            assert await ask(port, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n") == (200, "ok\n")
        with suppress(ConnectionError):
            async with asyncio.timeout(10):
                assert await slow[0][0].read() == b"", "the oldest made room"
    finally:
        for _, writer in slow:
            writer.close()


async def test_a_slow_client_is_disconnected(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "PATIENCE", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /livez")
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    writer.close()


async def test_an_address_in_use(port: int) -> None:
    with pytest.raises(ConfigError, match=r"health-address: cannot listen at 127\.0\.0\.1:"):
        async with health.HealthServer(LOOPBACK, port, {}).serving():
            pass


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("localhost:80", "must be ADDRESS:PORT"),
        ("127.0.0.1", "must be ADDRESS:PORT"),
        ("127.0.0.1:0", "port must be"),
        ("127.0.0.1:65536", "port must be"),
        ("127.0.0.1:٣", "port must be"),
        ("::1:80", "needs brackets"),
        ("[127.0.0.1]:80", "needs brackets"),
    ],
)
def test_addresses_that_are_none(text: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        host_and_port(text)


def test_addresses() -> None:
    assert host_and_port("127.0.0.1:9878") == (LOOPBACK, 9878)
    assert host_and_port("[::1]:80") == (ip_address("::1"), 80)


@pytest.mark.parametrize(
    ("peer", "listening", "served"),
    [
        (("127.0.0.1", 4444), "127.0.0.1", True),
        (("10.0.1.5", 4444), "127.0.0.1", False),
        (("10.0.1.5", 4444), "192.0.2.1", True),
        (("::1", 4444, 0, 0), "::1", True),
        (None, "127.0.0.1", False),
    ],
)
def test_loopback_serves_loopback_only(peer: tuple[str, int] | None, listening: str, served: bool) -> None:
    """With route_localnet a neighbour can send to 127.0.0.1; its own address shows it."""
    assert health.may_ask(peer, ip_address(listening)) is served
