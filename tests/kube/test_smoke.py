"""deploy/smoke/run.sh on a real cluster, where l7proxy was installed by its chart; and the flows that it leaves."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any, Final

import pytest

from deploy.cluster import images
from tests.kube.handle import ROOT, Handle, eventually

IMAGE: Final = ROOT / "build" / "l7proxy.oci.tar"
SYSTEM: Final = "kube-system"
RELEASE: Final = "l7proxy"
SMOKE: Final = ("/bin/sh", str(ROOT / "deploy" / "smoke" / "run.sh"), "--image", images.NETSHOOT)
ROWS: Final = sum(
    not line.startswith("#") for line in (ROOT / "deploy" / "smoke" / "checks.tsv").read_text().splitlines()
)


@pytest.fixture(scope="module")
def release(cluster: Handle) -> Iterator[None]:
    assert IMAGE.exists(), "make image"
    cluster.load(IMAGE)
    chart, settings = str(ROOT / "deploy" / "helm" / "l7proxy"), "--set=image.tag=dev,settings.log-format=json"
    cluster.helm("install", RELEASE, chart, "-n", SYSTEM, settings, "--wait", "--timeout=2m")
    yield
    cluster.helm("uninstall", RELEASE, "-n", SYSTEM)


def smoke_namespaces(cluster: Handle) -> list[str]:
    return [one["metadata"]["name"] for one in cluster.get("namespaces", "-l", "l7proxy.io/smoke")["items"]]


def lines(cluster: Handle) -> list[dict[str, Any]]:
    """All that the agents of all nodes wrote."""
    pods = cluster.get("pods", "-n", SYSTEM, "-l", "app.kubernetes.io/name=l7proxy")["items"]
    agents = [one["metadata"]["name"] for one in pods if any(c["name"] == "agent" for c in one["spec"]["containers"])]
    assert len(agents) == len(cluster.nodes)
    texts = [cluster.kubectl("logs", "-n", SYSTEM, agent, "-c", "agent", "--tail=-1") for agent in agents]
    return [json.loads(line) for text in texts for line in text.splitlines()]


def test_every_verdict_is_right_and_nothing_is_left(cluster: Handle, release: None) -> None:
    done = subprocess.run(SMOKE, capture_output=True, text=True, env=cluster.environment, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"All {ROWS} verdicts are right." in done.stdout
    assert f"Policy backend: enforced on {len(cluster.nodes)} of {len(cluster.nodes)} nodes" in done.stdout
    assert smoke_namespaces(cluster) == []


def test_kubectl_logs_shows_flows_and_the_log_as_json(cluster: Handle, release: None) -> None:
    """After the requests of the test above."""
    found = lines(cluster)
    flows = [one["flow"] for one in found if "flow" in one]
    log = [one for one in found if "level" in one]
    assert len(flows) + len(log) + sum("lost_events" in one for one in found) == len(found)
    assert {one["node"] for one in log} == {node.name for node in cluster.nodes}
    refused = [one for one in flows if one["verdict"] == "DROPPED" and one["Type"] == "L7"]
    assert {one["destination"]["pod_name"] for one in refused} == {"backend"}
    assert all(one["policy_log"] for one in refused)
    assert not any(one.get("l7", {}).get("http", {}).get("headers") for one in flows), "none was asked for"


def test_a_signal_removes_everything(cluster: Handle, release: None) -> None:
    process = subprocess.Popen(
        [*SMOKE, "--namespace", "interrupted"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=cluster.environment,
    )  # fmt: skip
    with process:
        eventually(lambda: smoke_namespaces(cluster), "the test has made its namespaces")
        time.sleep(1)  # wherever it is by then
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130, process.stdout
    assert smoke_namespaces(cluster) == []
