"""Agents that tell a real HTTP server what they enforce: conditions, Events, one writer, and no request at rest."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from l7proxy.agent.cluster_status import election, follow, leader, leases, plan, service, writer
from l7proxy.agent.cluster_status.service import ClusterStatus, Observed
from l7proxy.agent.dataplane.pod_interfaces import PodInterfaces
from l7proxy.agent.dataplane.reconciler import Reconciler
from l7proxy.cluster.state import ClusterState
from l7proxy.errors import SourceError
from l7proxy.link.messages import PolicySnapshot
from l7proxy.link.server import WorkerState
from l7proxy.model.resources import Change, Delete, Node, Pod, SourceLocation, Upsert
from l7proxy.sources.source import SYNCED, SourceHealth
from tests.unit.agent.cluster_status.api_server import ApiServer
from tests.unit.agent.cluster_status.policies import cnp, document, network_policy
from tproxy_rules.backend import KernelError
from tproxy_rules.desired import Desired, Settings
from tproxy_rules.fake import FakeBackend

NODES = ("n1", "n2", "n3")
CNPS = "/apis/cilium.io/v2/namespaces/shop/ciliumnetworkpolicies"
OUR_LEASES = "/apis/coordination.k8s.io/v1/namespaces/l7proxy/leases"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fast paces, in proportion to the real ones."""
    for module, names in (
        (election, ("RETRY", "SPREAD")),
        (follow, ("FIRST_PAUSE", "LAST_PAUSE")),
        (leader, ("LOOK", "PASS")),
        (service, ("LOOK", "RESTART")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, getattr(module, name) / 50)
    for name, seconds in (("NEW_VERSION", 1.0), ("WORSE", 0.5), ("NUMBERS", 1.5)):
        monkeypatch.setattr(plan, name, seconds)


class Link:
    def __init__(self) -> None:
        self.connected = [WorkerState(100, 0, revision=1 << 30)]

    async def publish(self, snapshot: PolicySnapshot) -> None: ...

    async def wait_applied(self, revision: int, timeout: float) -> bool:  # noqa: ASYNC109 -- the contract's form
        return True

    def require(self) -> None: ...

    def workers(self) -> list[WorkerState]:
        return self.connected


class Kernel(FakeBackend):
    broken = False

    def apply(self, desired: Desired) -> None:
        if self.broken:
            raise KernelError("no memory for the set")
        super().apply(desired)


class Agent:
    """One node: the real reconciler over the fake kernel, and what tells the cluster."""

    def __init__(self, node: str, server: ApiServer, directory: Path) -> None:
        self.node = node
        self.link, self.kernel = Link(), Kernel()
        self.reconciler = Reconciler(
            cluster_state=ClusterState(),
            link=self.link,
            backend=self.kernel,
            node=node,
            look=PodInterfaces,
            settings=Settings(),
        )
        connect = partial(server.connect, directory)
        self.status = ClusterStatus(node=node, namespace="l7proxy", look=self.look, connect=connect)

    def look(self) -> Observed:
        workers = tuple(worker.revision for worker in self.link.workers())
        return Observed(self.reconciler.current, self.reconciler.kernel, workers)

    async def learn(self, *changes: Change, health: SourceHealth | None = None) -> None:
        self.reconciler.submit(changes, health or SourceHealth())
        await self.reconciler.step()

    async def begin(self) -> None:
        nodes = (Node(node, (f"192.0.2.{number}",)) for number, node in enumerate(NODES, 1))
        pod = Pod("shop", "web", self.node, (f"10.0.{NODES.index(self.node)}.5",), {"app": "web"})
        await self.learn(*map(Upsert, nodes), Upsert(pod), *SYNCED)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(self.status.run(), name=self.node)
            try:
                yield
            finally:
                task.cancel()


class World:
    def __init__(self, server: ApiServer, directory: Path) -> None:
        self.server = server
        self.agents = [Agent(node, server, directory) for node in NODES]
        for node in NODES:
            server.put(f"/api/v1/nodes/{node}", {"metadata": {"name": node, "uid": f"uid-of-{node}"}})

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            self.tasks = {one.node: tasks.create_task(self._run(one), name=one.node) for one in self.agents}
            try:
                yield
            finally:
                for task in self.tasks.values():
                    task.cancel()

    async def _run(self, agent: Agent) -> None:
        await agent.begin()
        async with agent.running():
            await asyncio.Event().wait()

    async def apply(self, found: dict[str, Any]) -> None:
        """A user applies a policy: the server has it, and the agents learn of it."""
        path = f"{CNPS}/{found['metadata']['name']}"
        if found["kind"] == "CiliumNetworkPolicy":
            before = self.server.objects.get(path, {})
            self.server.put(path, json.loads(json.dumps(found | {"status": before.get("status", {})})))
        for agent in self.agents:
            await agent.learn(Upsert(document(found)))

    def condition(self, name: str, kind: str = "l7proxy.io/Enforced") -> dict[str, Any]:
        conditions = self.server.objects[f"{CNPS}/{name}"].get("status", {}).get("conditions", [])
        return next((one for one in conditions if one["type"] == kind), {})

    def message(self, name: str) -> str:
        return str(self.condition(name).get("message", ""))

    @property
    def leader(self) -> str:
        lease = self.server.objects.get(f"{OUR_LEASES}/{leases.LEADER}", {})
        return str(lease.get("spec", {}).get("holderIdentity", "")).rpartition("_")[0]


@pytest.fixture
async def server() -> AsyncIterator[ApiServer]:
    found = ApiServer()
    async with found.serving():
        yield found


@pytest.fixture
async def world(server: ApiServer, tmp_path: Path) -> AsyncIterator[World]:
    found = World(server, tmp_path)
    async with found.running():
        yield found


async def eventually(holds: Callable[[], object]) -> None:
    for _ in range(2000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to that")


async def test_a_policy_that_all_nodes_enforce(world: World) -> None:
    await world.apply(cnp("web", 1, http=True))
    await eventually(lambda: world.message("web") == "enforced on 3 of 3 nodes at generation 1, L7 live")
    enforced, valid = world.condition("web"), world.condition("web", "Valid")
    assert (enforced["status"], enforced["reason"], enforced["observedGeneration"]) == ("True", "Enforced", 1)
    assert valid["status"] == "True"
    await world.apply(cnp("web", 2, http=True))
    await eventually(lambda: world.message("web") == "enforced on 3 of 3 nodes at generation 2, L7 live")
    assert world.condition("web")["lastTransitionTime"] == enforced["lastTransitionTime"], "it is true as before"
    lease = world.server.objects[f"{OUR_LEASES}/node.n2"]
    assert lease["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Node", "name": "n2", "uid": "uid-of-n2"}
    ]
    assert lease["spec"]["holderIdentity"] == "n2"


async def test_one_writer_and_no_request_at_rest(world: World) -> None:
    for number in range(5):
        await world.apply(cnp(f"p{number}"))
    await eventually(lambda: all("3 of 3" in world.message(f"p{number}") for number in range(5)))
    holders = [agent.node for agent in world.agents if agent.status.report()["leading"]]
    assert holders == [world.leader]
    world.server.requests.clear()
    await asyncio.sleep(1.0)  # 50 seconds at the real pace
    assert set(world.server.count()) <= {"PUT leases"}, "the leader renews its Lease, and nothing else happens"


async def test_a_node_that_cannot_enforce_is_named(world: World) -> None:
    await world.apply(cnp("web", http=True))
    await eventually(lambda: "3 of 3" in world.message("web"))
    world.agents[1].kernel.broken = True
    await world.apply(cnp("web", 2))
    await eventually(lambda: "2 of 3" in world.message("web"))
    assert world.message("web").endswith("not on n2 (kernel: no memory for the set)")
    assert world.condition("web")["status"] == "False"
    world.agents[1].kernel.broken = False
    await world.agents[1].reconciler.step()
    await eventually(lambda: "3 of 3" in world.message("web"))


async def test_a_node_without_workers_and_one_without_an_agent(world: World) -> None:
    await world.apply(cnp("web", http=True))
    await eventually(lambda: "3 of 3" in world.message("web"))
    world.agents[2].link.connected = []
    await eventually(lambda: "L7 not live on n3 (no worker runs)" in world.message("web"))
    for agent in world.agents:
        await agent.learn(Upsert(Node("n4", ("192.0.2.4",))))
    await eventually(lambda: "not on n4 (its agent has not reported yet)" in world.message("web"))


async def test_a_bad_policy_names_its_field(world: World) -> None:
    await world.apply(cnp("bad", 3, ingress=[{"fromEndpoints": 5}]))
    await eventually(lambda: world.condition("bad", "Valid"))
    valid = world.condition("bad", "Valid")
    assert (valid["status"], valid["reason"], valid["observedGeneration"]) == ("False", "Invalid", 3)
    assert "spec.ingress[0].fromEndpoints" in valid["message"]


async def test_the_leader_dies_and_another_takes_over(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed: it cannot give its Lease up. The new one writes nothing that is there already."""
    for name, seconds in (("DURATION", 3), ("RENEW", 0.5), ("STEP_DOWN", 2.0)):
        monkeypatch.setattr(election, name, seconds)
    await world.apply(cnp("web"))
    await eventually(lambda: "3 of 3" in world.message("web"))
    killed = world.leader
    monkeypatch.setattr(election.Election, "release", lambda self: None)
    world.tasks[killed].cancel()
    world.server.requests.clear()
    await eventually(lambda: world.leader not in ("", killed))
    await eventually(lambda: next(one for one in world.agents if one.node == world.leader).status.report()["leading"])
    await world.apply(cnp("other"))
    await eventually(lambda: "2 of 3" in world.message("other"))
    assert f"not on {killed} (it still enforces another version)" in world.message("other"), "nobody reports for it"
    assert world.server.count()["PATCH ciliumnetworkpolicies/status"] <= 2, "only about the new policy"
    assert world.condition("web")["status"] == "True"


async def test_a_leader_that_stops_hands_over(world: World) -> None:
    await world.apply(cnp("web"))
    await eventually(lambda: "3 of 3" in world.message("web"))
    stopped = world.leader
    world.tasks[stopped].cancel()
    await eventually(lambda: world.leader not in ("", stopped))


async def test_a_burst_of_changes_is_written_at_a_bounded_rate(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer.Bucket.__init__, "__defaults__", (100.0, 10.0))
    await eventually(lambda: world.leader)
    names = [f"p{number}" for number in range(60)]
    for generation in range(1, 6):
        for name in names:
            path = f"{CNPS}/{name}"
            before = world.server.objects.get(path, {})
            world.server.put(path, cnp(name, generation) | {"status": before.get("status", {})})
        for agent in world.agents:
            await agent.learn(*(Upsert(document(cnp(name, generation))) for name in names))
    await eventually(lambda: all("3 of 3 nodes at generation 5" in world.message(name) for name in names))
    counted = world.server.count()
    assert counted["PATCH ciliumnetworkpolicies/status"] <= 3 * len(names), "not one for each of 5 changes on 3 nodes"
    assert counted["PATCH leases"] <= 3 * 12


async def test_a_crd_that_drops_fields_causes_no_loop(world: World) -> None:
    world.server.drops_unknown = True
    await world.apply(cnp("web"))
    await eventually(lambda: "3 of 3" in world.message("web"))
    world.server.requests.clear()
    await asyncio.sleep(0.5)
    assert "PATCH ciliumnetworkpolicies/status" not in world.server.count()


async def test_conditions_of_others_stay(world: World) -> None:
    theirs = {"type": "example.com/Reviewed", "status": "True"}
    await world.apply(cnp("web") | {"status": {"conditions": [theirs]}})
    world.server.put(f"{CNPS}/web", cnp("web") | {"status": {"conditions": [theirs]}})
    await eventually(lambda: "3 of 3" in world.message("web"))
    assert world.condition("web", "example.com/Reviewed") == theirs


async def test_events_for_other_kinds(world: World) -> None:
    await world.apply(cnp("web"))
    await eventually(lambda: "3 of 3" in world.message("web"))
    await world.apply(network_policy("np"))

    def events() -> list[dict[str, Any]]:
        return [one for path, one in world.server.objects.items() if "/events/" in path]

    await eventually(events)
    (event,) = events()
    assert (event["type"], event["reason"]) == ("Normal", "Enforced")
    assert event["note"] == "enforced on 3 of 3 nodes at generation 1"
    assert event["regarding"]["apiVersion"] == "networking.k8s.io/v1"
    assert event["metadata"]["namespace"] == event["regarding"]["namespace"] == "shop"
    await world.apply(network_policy("np", 2, ingress=5))
    await eventually(lambda: len(events()) == 2)
    assert {one["type"] for one in events()} == {"Normal", "Warning"}
    assert any("spec.ingress" in one["note"] for one in events())


async def test_a_deleted_and_recreated_policy_gets_its_own_status(world: World) -> None:
    await world.apply(cnp("web"))
    await eventually(lambda: "3 of 3" in world.message("web"))
    world.server.remove(f"{CNPS}/web")
    for agent in world.agents:
        await agent.learn(Delete(document(cnp("web")).key))
    await world.apply(cnp("web", uid="another"))
    await eventually(lambda: "3 of 3" in world.message("web"))


async def test_a_version_that_cannot_be_used(world: World) -> None:
    """The source keeps the last good version, and names the fault by the place of the object."""
    await world.apply(cnp("web", 4))
    await eventually(lambda: "3 of 3" in world.message("web"))
    there = replace(document(cnp("web", 4)), origin=SourceLocation("CiliumNetworkPolicy shop/web"))
    fault = SourceError("must be a list", file="CiliumNetworkPolicy shop/web", field="spec.ingress")
    for agent in world.agents:
        await agent.learn(Upsert(there), health=SourceHealth(problems=(fault,)))
    await eventually(lambda: world.condition("web")["reason"] == "OlderVersion")
    assert world.condition("web", "Valid")["message"] == "spec.ingress: must be a list"


async def test_forbidden_is_said_once_and_tried_again(
    server: ApiServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    forbidden = True
    server.refuse = lambda method, path: 403 if forbidden and "leases" in path else 0
    world = World(server, tmp_path)
    caplog.set_level(logging.INFO)
    async with world.running():
        await eventually(lambda: len(world.agents[0].status.report()["problems"]) == 2)
        await asyncio.sleep(0.3)
        assert len([one for one in caplog.messages if one.endswith("node.n1: 403 refused by the test")]) == 1
        forbidden = False
        await world.apply(cnp("web"))
        await eventually(lambda: "3 of 3" in world.message("web"))
        await eventually(lambda: not any(agent.status.report()["problems"] for agent in world.agents))


async def test_status_that_may_not_be_written(server: ApiServer, tmp_path: Path) -> None:
    """Retried ever more slowly; nothing else stops."""
    server.refuse = lambda method, path: 403 if path.endswith("/status") else 0
    world = World(server, tmp_path)
    async with world.running():
        await world.apply(cnp("web"))
        await eventually(lambda: server.count()["PATCH ciliumnetworkpolicies/status"])
        await eventually(lambda: any(agent.status.report()["problems"] for agent in world.agents))
        server.refuse = lambda method, path: 0
        await eventually(lambda: "3 of 3" in world.message("web"))


async def test_the_api_server_is_gone_for_a_while(world: World) -> None:
    await world.apply(cnp("web"))
    await eventually(lambda: "3 of 3" in world.message("web"))
    world.server.refuse = lambda method, path: 500
    world.server.end_watches()
    await asyncio.sleep(1.0)
    world.server.refuse = lambda method, path: 0
    await world.apply(cnp("web", 2))
    await eventually(lambda: "3 of 3 nodes at generation 2" in world.message("web"))


async def test_a_bug_does_not_end_the_agent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    @asynccontextmanager
    async def fails() -> AsyncIterator[Any]:
        if not caplog.messages:
            raise RuntimeError("a bug")
        yield

    status = ClusterStatus(node="n1", namespace="l7proxy", look=Agent("n1", ApiServer(), tmp_path).look, connect=fails)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(status.run(), name="n1")
        await eventually(lambda: "an internal error; enforcement is not affected" in caplog.text)
        assert not task.done()
        task.cancel()
    with suppress(asyncio.CancelledError):
        await task
