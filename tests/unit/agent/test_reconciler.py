"""The loop that makes the enforced state follow the cluster state, with the fake kernel and the real link."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from l7proxy.agent.dataplane import reconciler as module
from l7proxy.agent.dataplane.pod_interfaces import PodInterfaces
from l7proxy.agent.dataplane.reconciler import Published, Reconciler
from l7proxy.cluster.state import ClusterState
from l7proxy.gate.options import HttpOptions
from l7proxy.link import framing
from l7proxy.link.delta import SnapshotDecoder
from l7proxy.link.messages import PROTOCOL_VERSION, Applied, Hello, PolicySnapshot, SnapshotDelta
from l7proxy.link.server import LinkServer
from l7proxy.model.resources import Change, Delete, Node, Pod, PolicyDocument, Resource, Upsert
from l7proxy.sources import objects
from l7proxy.sources.source import SYNCED, SourceHealth
from tproxy_rules.desired import Desired, Port, Settings, Verdict
from tproxy_rules.fake import FakeBackend

WEB = Pod("shop", "web", "n1", ("10.0.1.5",), {"app": "web"})
L7 = [{"toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": [{"method": "GET"}]}}]}]
L4 = [{"toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}]}]}]
REPORT = SourceHealth("files", "/m", {"a.yaml": 1})


def policy(ingress: list[Any]) -> PolicyDocument:
    document = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "p", "namespace": "shop"},
        "spec": {"endpointSelector": {"matchLabels": {"app": "web"}}, "ingress": ingress},
    }
    return objects.policy(document)


def said(*resources: Resource) -> list[Change]:
    return [*(Upsert(resource) for resource in resources), *SYNCED]


async def eventually(holds: Callable[[], bool]) -> None:
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not come to that")


class Worker:
    """The worker's side of the link: it applies a policy snapshot only when the test calls for it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder, self._opener = framing.from_agent(), SnapshotDecoder()
        self.snapshots: list[PolicySnapshot] = []

    async def snapshot(self) -> PolicySnapshot:
        async with asyncio.timeout(5):
            while not self.snapshots:
                heard = self._decoder.feed(await self._reader.read(65536))
                self.snapshots += [self._opener.open(one) for one in heard if isinstance(one, SnapshotDelta)]
        return self.snapshots.pop(0)

    def applied(self, revision: int) -> None:
        self._writer.write(framing.encode(Applied(revision)))

    async def obey(self, count: int = 1_000_000) -> None:
        for _ in range(count):
            self.applied((await self.snapshot()).revision)


class Stage:
    """One reconciler with everything it uses."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.link = LinkServer(path, on_flows=lambda flows: None)
        self.backend = FakeBackend()
        self.interfaces = PodInterfaces()
        self.published: list[Published] = []
        self.reconciler = Reconciler(
            cluster_state=ClusterState(),
            link=self.link,
            backend=self.backend,
            node="n1",
            look=lambda: self.interfaces,
            settings=Settings(),
            on_published=self.published.append,
            check_every=0.05,
            patience=0.2,
        )

    async def submit(self, *changes: Change, report: SourceHealth = REPORT) -> None:
        self.reconciler.submit(changes, report)
        await self.reconciler.step()

    def installed(self) -> Desired | None:
        return self.backend.kernel.desired

    @asynccontextmanager
    async def worker(self, index: int = 0) -> AsyncIterator[Worker]:
        reader, writer = await asyncio.open_unix_connection(self.path)
        writer.write(framing.encode(Hello(PROTOCOL_VERSION, 1000 + index, index)))
        await eventually(lambda: index in [state.worker for state in self.link.workers()])
        try:
            yield Worker(reader, writer)
        finally:
            writer.close()


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    made = Stage(tmp_path / "link.sock")
    async with made.link.serving():
        yield made


async def test_nothing_is_touched_before_the_source_has_said_all(stage: Stage) -> None:
    await stage.submit(Upsert(WEB), Upsert(policy(L4)))
    assert stage.installed() is None
    assert (stage.reconciler.revision, stage.published) == (0, [])
    await stage.submit(*SYNCED)
    assert stage.installed() is not None
    assert (stage.reconciler.revision, stage.reconciler.enforced_revision) == (1, 1)


async def test_other_settings_are_enforced_in_the_next_round(stage: Stage) -> None:
    """And equal ones make no new revision."""
    await stage.submit(*said(WEB, policy(L7)))
    options = HttpOptions(deny_header=True)
    for _ in range(2):
        stage.reconciler.configure(Settings(refuse_with_reset=False), options, audit=True)
        await stage.reconciler.step()
    current = stage.reconciler.current
    assert current is not None
    assert (stage.reconciler.revision, stage.backend.applied) == (2, 2)
    assert current.snapshots.workers.http.deny_header
    audited = stage.installed()
    assert audited is not None
    assert not audited.settings.refuse_with_reset
    stage.reconciler.configure(Settings(), HttpOptions(), audit=False)
    await stage.reconciler.step()
    assert stage.installed() != audited
    assert all(not one.audit for one in stage.reconciler.current.view.endpoints)  # type: ignore[union-attr]


async def test_a_revision_is_counted_only_when_a_snapshot_differs(stage: Stage) -> None:
    await stage.submit(*said(WEB, policy(L4)))
    await stage.submit(Upsert(WEB), report=SourceHealth("files", "/m", {"a.yaml": 2}))
    assert (stage.reconciler.revision, stage.backend.applied) == (1, 1)
    current = stage.reconciler.current
    assert current is not None
    assert current.source.detail == {"a.yaml": 2}, "what was read is told all the same"
    await stage.submit(Delete(policy(L4).key))
    assert (stage.reconciler.revision, stage.backend.applied) == (2, 2)


async def test_workers_know_a_snapshot_before_the_kernel_has_it(stage: Stage) -> None:
    async with stage.worker() as worker, asyncio.TaskGroup() as tasks:
        tasks.create_task(stage.submit(*said(WEB, policy(L7))), name="submit")
        snapshot = await worker.snapshot()
        assert snapshot.revision == 1
        assert stage.installed() is None
        assert stage.reconciler.enforced_revision == 0
        worker.applied(1)
    desired = stage.installed()
    assert desired is not None
    (endpoint,) = desired.endpoints
    assert endpoint.ingress is not None
    assert Verdict.STEER in {entry.verdict for entry in endpoint.ingress.entries}


async def test_a_worker_that_does_not_answer_holds_nobody_back_but_is_told(stage: Stage) -> None:
    async with stage.worker():
        await stage.submit(*said(WEB, policy(L7)))
        assert stage.backend.kernel.desired is not None
        assert (stage.reconciler.revision, stage.reconciler.enforced_revision) == (1, 0)


async def test_steering_without_any_worker_is_not_called_enforced(stage: Stage) -> None:
    await stage.submit(*said(WEB, policy(L7)))
    assert stage.reconciler.enforced_revision == 0
    async with stage.worker() as worker:
        await worker.obey(1)
        await eventually(lambda: stage.reconciler.enforced_revision == 1)


async def test_what_the_kernel_refuses_leaves_the_old_snapshot_and_is_tried_again(stage: Stage) -> None:
    await stage.submit(*said(WEB, policy(L4)))
    before = stage.backend.kernel.desired
    stage.backend.fails = "no memory"
    await stage.submit(Delete(policy(L4).key))
    assert stage.backend.kernel.desired == before
    assert stage.reconciler.kernel.error == "no memory"
    assert (stage.reconciler.revision, stage.reconciler.enforced_revision) == (2, 1)
    stage.backend.fails = ""
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(stage.reconciler.run(), name="run")
        await eventually(lambda: stage.reconciler.enforced_revision == 2)
        running.cancel()
    assert stage.reconciler.kernel.error == ""


async def test_what_others_remove_is_put_back_and_counted(stage: Stage) -> None:
    await stage.submit(*said(WEB, policy(L4)))
    wanted = stage.backend.kernel.desired
    for damage in (stage.backend.damage, stage.backend.remove):
        damage()
        await stage.reconciler.step()
        assert stage.backend.kernel.intact
        assert stage.backend.kernel.desired == wanted
    assert stage.reconciler.kernel.reasserted == 2


async def test_another_snapshot_in_our_place_is_replaced_even_after_a_failure(stage: Stage) -> None:
    await stage.submit(*said(WEB, policy(L4)))
    wanted = stage.backend.kernel.desired
    stranger = FakeBackend(stage.backend.kernel)
    assert wanted is not None
    stranger.apply(type(wanted)())
    stage.backend.fails = "busy"
    await stage.reconciler.step()
    stage.backend.fails = ""
    await stage.reconciler.step()
    assert stage.backend.kernel.desired == wanted


async def test_a_new_interface_makes_a_new_snapshot(stage: Stage) -> None:
    await stage.submit(*said(WEB, policy(L4)))
    stage.interfaces = PodInterfaces({"10.0.1.5": Port("veth1")})
    await stage.reconciler.step()
    desired = stage.installed()
    assert desired is not None
    assert [endpoint.port for endpoint in desired.endpoints] == [Port("veth1")]
    assert stage.reconciler.revision == 2


async def test_the_agents_own_addresses_are_the_host(stage: Stage) -> None:
    stage.interfaces = PodInterfaces(local_addresses=frozenset({"10.0.1.1"}))
    await stage.submit(*said(WEB, Node("n1", ("192.168.0.1",))))
    desired = stage.installed()
    assert desired is not None
    assert ("10.0.1.1/32", 1) in desired.identities


async def test_a_flood_of_changes_becomes_few_snapshots(stage: Stage) -> None:
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(stage.reconciler.run(), name="run")
        stage.reconciler.submit(said(policy(L4)), REPORT)
        for number in range(200):
            stage.reconciler.submit([Upsert(Pod("shop", f"p{number}", "n1", (f"10.0.3.{number}",)))], REPORT)
            if number % 20 == 0:  # ten times
                await asyncio.sleep(0.001)
        await eventually(lambda: bool(stage.published) and len(stage.published[-1].view.endpoints) == 200)
        running.cancel()
    assert stage.reconciler.revision <= 10 + 1, "at most one for each pause, and one for the rest"


async def test_what_another_backend_left_goes_once_ours_is_in_force(stage: Stage) -> None:
    left = FakeBackend()
    left.apply(Desired())
    successor = Reconciler(
        cluster_state=ClusterState(),
        link=stage.link,
        backend=stage.backend,
        node="n1",
        look=PodInterfaces,
        settings=Settings(),
        others=lambda: [left],
    )
    stage.backend.fails = "not yet"
    successor.submit(said(WEB, policy(L4)), REPORT)
    await successor.step()
    assert left.kernel.desired == Desired()
    stage.backend.fails = ""
    await successor.step()
    assert left.read() is None
    assert successor.enforced_revision == 1


async def test_a_new_agent_finds_what_the_old_one_left_and_changes_nothing(stage: Stage, tmp_path: Path) -> None:
    await stage.submit(*said(WEB, policy(L4)))
    successor = Stage(tmp_path / "next.sock")
    successor.backend = FakeBackend(stage.backend.kernel)
    successor.reconciler = Reconciler(
        cluster_state=ClusterState(),
        link=successor.link,
        backend=successor.backend,
        node="n1",
        look=PodInterfaces,
        settings=Settings(),
    )
    await successor.submit(*said(WEB, policy(L4)))
    assert successor.backend.applied == 0
    assert successor.reconciler.enforced_revision == 1


FAR = Pod("shop", "client", "n2", ("10.0.2.7",), {"app": "client"})


@asynccontextmanager
async def running(reconciler: Reconciler) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(reconciler.run(), name="reconcile")
        yield
        task.cancel()


@pytest.mark.parametrize(
    "urgent",
    [
        pytest.param([Upsert(policy(L7))], id="a policy"),
        pytest.param([Upsert(replace(WEB, labels={"app": "other"}))], id="a pod of this node"),
        pytest.param([Delete(WEB.key)], id="a pod of this node is gone"),
        pytest.param([], id="an interface"),
    ],
)
async def test_pods_elsewhere_wait_until_something_urgent_comes(
    stage: Stage, urgent: list[Change], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is urgent takes along what has waited."""
    monkeypatch.setattr(module, "EASE", 1e9)
    monkeypatch.setattr(module, "LONGEST_EASE", 3600.0)
    reconciler = stage.reconciler
    async with running(reconciler):
        reconciler.submit(said(WEB, policy(L4), FAR), REPORT)
        await eventually(lambda: reconciler.kernel.revision == 1 and not reconciler.busy)
        reconciler.submit([Upsert(replace(FAR, addresses=("10.0.2.8",))), Delete(Pod("shop", "x", "n2").key)], REPORT)
        for _ in range(50):
            await asyncio.sleep(0)
        assert reconciler.revision == 1
        reconciler.submit(urgent, REPORT) if urgent else reconciler.look()
        await eventually(lambda: reconciler.kernel.revision == 2)
        installed = stage.installed()
        assert installed is not None
        assert {"10.0.2.8/32", "10.0.2.7/32"} & {prefix for prefix, _ in installed.identities} == {"10.0.2.8/32"}


async def test_the_first_change_elsewhere_does_not_wait_long(stage: Stage) -> None:
    reconciler = stage.reconciler
    async with running(reconciler):
        reconciler.submit(said(WEB, policy(L4), FAR), REPORT)
        await eventually(lambda: reconciler.kernel.revision == 1)
        reconciler.submit([Upsert(replace(FAR, addresses=("10.0.2.8",)))], REPORT)
        await eventually(lambda: reconciler.kernel.revision == 2)
