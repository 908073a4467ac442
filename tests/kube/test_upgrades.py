"""Upgrades of a release under traffic, also to another version of the link's protocol and back."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

from deploy.cluster.plan import Machine
from deploy.helm.generate import CHART
from l7proxy.link.messages import PROTOCOL_VERSION
from tests.kube import next_version
from tests.kube.handle import ROOT, Handle, eventually
from tests.kube.next_version import NEXT
from tests.kube.test_bad_days import (
    agent_status,
    counts,
    pod_on,
    release,  # noqa: F401 -- fixtures
    traffic,  # noqa: F401
    under_traffic,
)
from tests.kube.test_helm import BOTH, CLIENTS, IMAGE, RELEASE, SYSTEM

LOAD: Final = (ROOT / "tests" / "kube" / "keep_alive_load.py").read_text()
LOADED: Final = ("client-1", "client-2")
STOP: Final = "/tmp/stop"
NO_WORKER: Final = "no worker is connected: traffic to ports with L7 rules is refused"
NEXT_IMAGE: Final = "docker.io/l7proxy/l7proxy:next"

pytestmark = pytest.mark.usefixtures("traffic")


@contextmanager
def keep_alive_clients(cluster: Handle) -> Iterator[list[dict[str, Any]]]:
    """CLIENTS on each node ask meanwhile. What each pod has found is in the list at the end."""
    found: list[dict[str, Any]] = []
    for name in LOADED:
        cluster.exec(name, "rm", "-f", STOP)
    loads = [
        subprocess.Popen(
            [
                *(str(cluster.parts.kubectl), "exec", name, "--", "sh", "-c"),
                f'exec python3 -c "$0" "$WEB_SERVICE_HOST" 80 {CLIENTS} 600 {STOP}',
                LOAD,
            ],
            env=cluster.environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in LOADED
    ]
    try:
        yield found
    finally:
        for name in LOADED:
            cluster.exec(name, "touch", STOP)
        outputs = [load.communicate(timeout=60)[0] for load in loads]
    found += map(json.loads, outputs)


def pods_of_release(cluster: Handle) -> set[str]:
    listed = cluster.get("pods", "-n", SYSTEM, "-l", f"app.kubernetes.io/instance={RELEASE}")
    return {one["metadata"]["name"] for one in listed["items"] if "deletionTimestamp" not in one["metadata"]}


def upgrade(cluster: Handle, *arguments: str) -> None:
    """`helm upgrade`, until all pods are replaced."""
    former = pods_of_release(cluster)
    cluster.helm("upgrade", RELEASE, str(CHART), "-n", SYSTEM, "--reuse-values", *arguments, "--wait", "--timeout=3m")
    replaced(cluster, former)


def roll_back(cluster: Handle) -> None:
    former = pods_of_release(cluster)
    cluster.helm("rollback", RELEASE, "-n", SYSTEM, "--wait", "--timeout=3m")
    replaced(cluster, former)


def replaced(cluster: Handle, former: set[str]) -> None:
    for one in BOTH:
        cluster.kubectl("rollout", "status", "-n", SYSTEM, one, "--timeout=120s")
    eventually(lambda: not former & pods_of_release(cluster), "all pods are replaced")


def test_an_upgrade_and_a_rollback_fail_no_request(cluster: Handle) -> None:
    """Both replace every agent and every worker."""
    with under_traffic(cluster), keep_alive_clients(cluster) as found:
        upgrade(cluster, "--set=settings.flow-ring=8191,settings.drain=20")
        roll_back(cluster)
    assert [load["failures"] for load in found] == [{}, {}]
    for load in found:
        assert load["requests"] > CLIENTS * 10
        assert load["connections"] >= CLIENTS * 2  # the workers were replaced under these clients


@pytest.fixture(scope="module")
def next_image(cluster: Handle, tmp_path_factory: pytest.TempPathFactory) -> str:
    scratch = tmp_path_factory.mktemp("image")
    next_version.write(IMAGE, scratch / "next.tar", NEXT_IMAGE, scratch)
    cluster.load(scratch / "next.tar")
    return NEXT_IMAGE


def test_an_upgrade_to_another_protocol_and_back_fails_no_request(cluster: Handle, next_image: str) -> None:
    """Requests that take longer than the agent's patience (3 s) would be cut; these are short."""
    with under_traffic(cluster), keep_alive_clients(cluster) as found:
        upgrade(cluster, "--set=image.tag=next")
        assert all("all enforced" in agent_status(cluster, node) for node in cluster.nodes)
        roll_back(cluster)
    assert [load["failures"] for load in found] == [{}, {}]


def test_new_workers_beside_an_old_agent_wait_and_the_old_ones_serve(cluster: Handle, next_image: str) -> None:
    with under_traffic(cluster), keep_alive_clients(cluster) as found:
        cluster.kubectl("set", "image", "-n", SYSTEM, BOTH[1], f"workers={next_image}")
        for node in cluster.nodes:
            eventually(lambda node=node: refused(cluster, node, NEXT, PROTOCOL_VERSION), "new workers say why")  # type: ignore[misc]
            assert "all enforced" in agent_status(cluster, node)
        undo(cluster, BOTH[1])
    assert [load["failures"] for load in found] == [{}, {}]


def test_a_new_agent_beside_old_workers_closes_what_they_served(cluster: Handle, next_image: str) -> None:
    """And is not ready, so the update stops at this node."""
    node = cluster.nodes[0]  # the server's: it needs workers
    with under_traffic(cluster, may_fail=True):
        cluster.kubectl("set", "image", "-n", SYSTEM, BOTH[0], f"agent={next_image}")
        eventually(lambda: NO_WORKER in agent_status(cluster, node), "status says so")
        eventually(lambda: refused(cluster, node, PROTOCOL_VERSION, NEXT), "the workers say why")
        eventually(lambda: served(cluster, 2) == 0, "nothing is served any more")
        assert not pod_on(cluster, node, "agent")["status"]["containerStatuses"][0]["ready"]
        undo(cluster, BOTH[0])


def refused(cluster: Handle, node: Machine, workers: int, agent: int) -> bool:
    """Whether workers of this node have logged why its agent has refused them."""
    text = f"it uses link protocol version {workers}, the agent uses {agent}: restart it"
    selected = ("-l", "app.kubernetes.io/component=workers", f"--field-selector=spec.nodeName={node.name}")
    listed = cluster.get("pods", "-n", SYSTEM, *selected)["items"]
    return any(text in cluster.kubectl("logs", "-n", SYSTEM, one["metadata"]["name"]) for one in listed)


def served(cluster: Handle, seconds: float) -> int:
    """Answers of the server within so many seconds."""
    before = counts(cluster, "client-1")
    time.sleep(seconds)
    return (counts(cluster, "client-1") - before)["allowed: 200"]


def undo(cluster: Handle, daemonset: str) -> None:
    cluster.kubectl("rollout", "undo", "-n", SYSTEM, daemonset)
    cluster.kubectl("rollout", "status", "-n", SYSTEM, daemonset, "--timeout=120s")
