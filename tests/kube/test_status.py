"""Status in the cluster, on a real API server: agents with the rights of the chart and no more.

Agents of three nodes run in this process: the real source, reconciler and reports, over the fake kernel. l7proxy must
not be installed at the same time, since its agents would write status, too.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
import yaml

from deploy.helm import generate
from l7proxy.agent.cluster_status import election, leases, writer
from l7proxy.agent.cluster_status.service import ClusterStatus, Observed
from l7proxy.agent.dataplane.pod_interfaces import PodInterfaces
from l7proxy.agent.dataplane.reconciler import Reconciler
from l7proxy.cluster.state import ClusterState
from l7proxy.link.server import LinkServer
from l7proxy.sources.kubernetes.connection import Connection
from l7proxy.sources.kubernetes.credentials import Access
from l7proxy.sources.kubernetes.source import KubernetesSource
from tests.kube import handle
from tests.kube.handle import Handle
from tproxy_rules.desired import Settings
from tproxy_rules.fake import FakeBackend

NODES: Final = ("node-1", "node-2", "node-3")
EXTRA: Final = "node-3"
"""A Node object without a machine."""
COLUMNS: Final = ["NAME", "VALID", "ENFORCED", "AGE", "MESSAGE"]


class Counting(Connection):
    """Counts what it asks."""

    asked: Counter[str]

    async def request(self, method: str, path: str, **more: Any) -> bytes:
        self.asked[f"{method} {path}"] += 1
        return await super().request(method, path, **more)

    @asynccontextmanager
    async def stream(self, path: str, *arguments: Any, **more: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        self.asked[f"WATCH {path}"] += 1
        async with super().stream(path, *arguments, **more) as response:
            yield response


class Agent:
    """The agent of one node, as `agent.run` puts it together."""

    def __init__(self, node: str, namespace: str, kubeconfig: Path, run_dir: Path, asked: Counter[str]) -> None:
        self.node, self._kubeconfig, self._asked = node, kubeconfig, asked
        self._link = LinkServer(run_dir / f"{node}.sock", on_flows=lambda flows: None)
        self.reconciler = Reconciler(
            cluster_state=ClusterState(),
            link=self._link,
            backend=FakeBackend(),
            node=node,
            look=PodInterfaces,
            settings=Settings(),
        )
        self.status = ClusterStatus(node=node, namespace=namespace, look=self._look, connect=self._connect)

    def _look(self) -> Observed:
        return Observed(self.reconciler.current, self.reconciler.kernel, ())

    def _connect(self) -> Counting:
        made = Counting(Access(str(self._kubeconfig)))
        made.asked = self._asked
        return made

    async def run(self) -> None:
        async with self._link.serving(), self._connect() as api, asyncio.TaskGroup() as tasks:
            source = KubernetesSource(api)
            tasks.create_task(self._follow(source), name="source")
            tasks.create_task(self.reconciler.run(), name="reconcile")
            tasks.create_task(self.status.run(), name="status")

    async def _follow(self, source: KubernetesSource) -> None:
        async for changes in source.watch():
            self.reconciler.submit(changes, source.health())


class Agents:
    def __init__(self, agents: list[Agent], asked: Counter[str]) -> None:
        self.agents, self.asked = agents, asked
        self.tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def leader(self) -> str:
        leading = [one.node for one in self.agents if one.status.report()["leading"]]
        assert len(leading) <= 1
        return leading[0] if leading else ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            self.tasks = {one.node: tasks.create_task(one.run(), name=one.node) for one in self.agents}
            try:
                yield
            finally:
                for task in self.tasks.values():
                    task.cancel()


@pytest.fixture(scope="module")
def status_cluster(cluster: Handle) -> Iterator[Handle]:
    """With our CRDs and a third Node."""
    installed = cluster.get("daemonsets", "-A", "-l", "app.kubernetes.io/name=l7proxy")["items"]
    assert not installed, "l7proxy is installed: its agents would write status, too"
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(generate.CRDS))
    cluster.kubectl("wait", "--for=condition=Established", "-f", str(generate.CRDS))
    cluster.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": EXTRA}})
    yield cluster
    cluster.kubectl("delete", "node", EXTRA, "--ignore-not-found")


@pytest.fixture
def kubeconfig(status_cluster: Handle, namespace: str, tmp_path: Path) -> Iterator[Path]:
    """That of a ServiceAccount with exactly the rights that the chart gives the agent."""
    cluster = status_cluster
    given = [one for one in yaml.safe_load_all(generate.INSTALL.read_text()) if one is not None]
    rules = {one["kind"]: one["rules"] for one in given if one["kind"] in ("Role", "ClusterRole")}
    subjects = [{"kind": "ServiceAccount", "name": "agent", "namespace": namespace}]
    rbac, name = "rbac.authorization.k8s.io", f"test-{namespace}"
    cluster.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "agent", "namespace": namespace}},
        *(
            {
                "apiVersion": f"{rbac}/v1",
                "kind": kind,
                "metadata": {"name": name, "namespace": namespace},
                "rules": rules[kind],
            }
            for kind in ("Role", "ClusterRole")
        ),
        *(
            {
                "apiVersion": f"{rbac}/v1",
                "kind": f"{kind}Binding",
                "metadata": {"name": name, "namespace": namespace},
                "roleRef": {"apiGroup": rbac, "kind": kind, "name": name},
                "subjects": subjects,
            }
            for kind in ("Role", "ClusterRole")
        ),
    )
    found = yaml.safe_load(cluster.cluster.kubeconfig.read_text())
    token = cluster.kubectl("create", "token", "agent", "-n", namespace).strip()
    found["users"] = [{"name": one["name"], "user": {"token": token}} for one in found["users"]]
    path = tmp_path / "kubeconfig"
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(found))
    yield path
    cluster.kubectl("delete", f"clusterrole/{name}", f"clusterrolebinding/{name}")


@pytest.fixture
def agents(kubeconfig: Path, namespace: str, tmp_path: Path) -> Agents:
    asked: Counter[str] = Counter()
    return Agents([Agent(node, namespace, kubeconfig, tmp_path, asked) for node in NODES], asked)


async def eventually(holds: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Ask kubectl in a thread, so that the agents go on."""
    await asyncio.to_thread(handle.eventually, holds, what, seconds)


def cnp(name: str, namespace: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"endpointSelector": {}, "ingress": [{"toPorts": [{"ports": [{"port": "80"}]}]}], **spec},
    }


def message(cluster: Handle, name: str, namespace: str) -> str:
    found = cluster.get("cnp", name, "-n", namespace).get("status", {}).get("conditions", [])
    return next((one["message"] for one in found if one["type"] == "l7proxy.io/Enforced"), "")


def told(cluster: Handle, name: str, namespace: str) -> bool:
    return "3 of 3" in message(cluster, name, namespace)


async def test_what_kubectl_shows(status_cluster: Handle, agents: Agents, namespace: str) -> None:
    cluster = status_cluster
    cluster.apply(
        cnp("good", namespace),
        cnp("part", namespace, egress=[{"toFQDNs": [{"matchName": "example.com"}]}]),
        cnp("bad", namespace, ingress=[{"fromCIDR": ["10.0.0.0/99"]}]),
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "np", "namespace": namespace},
            "spec": {"podSelector": {}, "ingress": [{"ports": [{"port": 80, "endPort": 90}]}]},
        },
    )
    async with agents.running():
        await eventually(lambda: "3 of 3" in message(cluster, "good", namespace), "the good one")
        await eventually(lambda: message(cluster, "bad", namespace), "the bad one")
        table = cluster.kubectl("get", "cnp", "-n", namespace)
        head, *rows = table.splitlines()
        assert head.split() == COLUMNS
        shown = {row.split()[0]: row.split(maxsplit=4) for row in rows}
        assert shown["good"][1:3] == ["True", "True"]
        assert shown["good"][4].strip() == "enforced on 3 of 3 nodes at generation 1"
        assert shown["part"][1:3] == ["True", "False"]
        assert "spec.egress[0].toFQDNs" in shown["part"][4]
        assert shown["bad"][1:3] == ["False", "False"]
        assert "spec.ingress[0].fromCIDR[0]" in shown["bad"][4]
        cluster.kubectl("patch", "cnp", "good", "-n", namespace, "--type=merge", "-p", '{"spec":{"ingress":[{}]}}')
        await eventually(lambda: "3 of 3 nodes at generation 2" in message(cluster, "good", namespace), "generation 2")
        cluster.apply(cnp("good", namespace, ingress=[{"fromCIDR": ["10.0.0.0/99"]}]))
        await eventually(lambda: "generation 2 stays in force" in message(cluster, "good", namespace), "the last good")


async def test_events_for_other_kinds(status_cluster: Handle, agents: Agents, namespace: str) -> None:
    cluster = status_cluster
    np = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "np", "namespace": namespace},
        "spec": {"podSelector": {}},
    }
    async with agents.running():
        await eventually(lambda: agents.leader, "a leader")
        await asyncio.sleep(2)  # so that it has looked at what was there before
        cluster.apply(np)
        await eventually(
            lambda: (
                "enforced on 3 of 3" in cluster.kubectl("describe", "netpol", "np", "-n", namespace)
                or "enforced on 3 of 3" in cluster.kubectl("events", "-n", namespace)
            ),
            "an Event",
        )
        found = cluster.get("events.events.k8s.io", "-n", namespace)["items"]
        (event,) = (one for one in found if one["regarding"]["name"] == "np")
        assert (event["type"], event["reason"], event["reportingController"]) == (
            "Normal",
            "Enforced",
            "l7proxy.io/agent",
        )


async def test_no_request_at_rest(status_cluster: Handle, agents: Agents, namespace: str) -> None:
    cluster = status_cluster
    cluster.apply(*(cnp(f"p{number}", namespace) for number in range(20)))
    async with agents.running():
        for number in range(20):
            await eventually(partial(told, cluster, f"p{number}", namespace), f"p{number}")
        await asyncio.sleep(5)
        agents.asked.clear()
        await asyncio.sleep(60)
        renewals = f"PUT {leases.leases(namespace, leases.LEADER)}"
        asked = {what: count for what, count in agents.asked.items() if not what.startswith("WATCH ")}
        assert set(asked) <= {renewals}, asked
        assert agents.asked[renewals] <= 4, "one in 20 seconds, for the whole cluster"


async def test_the_leader_is_killed(
    status_cluster: Handle, agents: Agents, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot give its Lease up; another agent takes over and does not write again what is there."""
    for name, seconds in (("DURATION", 9), ("RENEW", 2.0), ("STEP_DOWN", 6.0), ("SPREAD", 1.0)):
        monkeypatch.setattr(election, name, seconds)
    monkeypatch.setattr(election.Election, "release", lambda self: None)
    cluster = status_cluster
    cluster.apply(cnp("web", namespace))
    async with agents.running():
        await eventually(lambda: "3 of 3" in message(cluster, "web", namespace), "enforced")
        version = cluster.get("cnp", "web", "-n", namespace)["metadata"]["resourceVersion"]
        killed = agents.leader
        agents.tasks[killed].cancel()
        await eventually(lambda: agents.leader not in ("", killed), "another leader")
        cluster.apply(cnp("other", namespace))
        await eventually(lambda: f"not on {killed}" in message(cluster, "other", namespace), "the new one writes")
        assert "2 of 3" in message(cluster, "other", namespace)
        assert cluster.get("cnp", "web", "-n", namespace)["metadata"]["resourceVersion"] == version


async def test_a_burst_of_500_changes(status_cluster: Handle, agents: Agents, namespace: str) -> None:
    cluster, count = status_cluster, 500
    async with agents.running():
        await eventually(lambda: agents.leader, "a leader")
        loop = asyncio.get_running_loop()
        began = loop.time()
        for port in ("80", "81"):
            ports = [{"toPorts": [{"ports": [{"port": port}]}]}]
            many = [cnp(f"p{number}", namespace, ingress=ports) for number in range(count)]
            await asyncio.to_thread(cluster.apply, *many)
        wanted = "enforced on 3 of 3 nodes at generation 2"

        def all_told() -> bool:
            items = cluster.get("cnp", "-n", namespace)["items"]
            return len(items) == count and all(wanted in json.dumps(one.get("status", {})) for one in items)

        await eventually(all_told, "all are told", 240)
        took = loop.time() - began
        written = sum(number for what, number in agents.asked.items() if what.endswith("/status"))
        reports = sum(number for what, number in agents.asked.items() if "/leases/node." in what)
        assert written <= 2 * count
        assert written <= took * writer.RATE + writer.BURST + 1
        assert reports <= len(NODES) * (took / 0.1)


async def test_conditions_of_other_writers_stay(status_cluster: Handle, agents: Agents, namespace: str) -> None:
    cluster = status_cluster
    cluster.apply(cnp("web", namespace))
    theirs = {"type": "example.com/Reviewed", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    patch = json.dumps({"status": {"conditions": [theirs]}})
    cluster.kubectl("patch", "cnp", "web", "-n", namespace, "--subresource=status", "--type=merge", "-p", patch)
    async with agents.running():
        await eventually(lambda: "3 of 3" in message(cluster, "web", namespace), "enforced")
    conditions = cluster.get("cnp", "web", "-n", namespace)["status"]["conditions"]
    assert theirs in conditions
    assert len(conditions) == 3


async def test_a_policy_that_is_created_anew(status_cluster: Handle, agents: Agents, namespace: str) -> None:
    """It has a new uid, and gets its own verdict."""
    cluster = status_cluster
    cluster.apply(cnp("web", namespace))
    async with agents.running():
        await eventually(partial(told, cluster, "web", namespace), "enforced")
        cluster.kubectl("delete", "cnp", "web", "-n", namespace)
        cluster.apply(cnp("web", namespace, egress=[{"toFQDNs": [{"matchName": "example.com"}]}]))
        await eventually(lambda: "toFQDNs" in message(cluster, "web", namespace), "the verdict of the new one")


async def test_the_lease_of_a_node_goes_with_the_node(status_cluster: Handle, agents: Agents, namespace: str) -> None:
    cluster = status_cluster
    cluster.apply(cnp("web", namespace))
    async with agents.running():
        await eventually(lambda: "3 of 3" in message(cluster, "web", namespace), "enforced on three")
        agents.tasks[EXTRA].cancel()
        cluster.kubectl("delete", "node", EXTRA)
        await eventually(lambda: "2 of 2" in message(cluster, "web", namespace), "enforced on two", 120)

        def names() -> list[str]:
            return [one["metadata"]["name"] for one in cluster.get("leases", "-n", namespace)["items"]]

        await eventually(lambda: leases.name_of(EXTRA) not in names(), "the Lease is removed", 120)
    cluster.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": EXTRA}})
