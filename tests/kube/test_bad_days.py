"""Bad days of a real cluster under traffic: what is allowed goes on, what is forbidden never passes.

Clients ask without an end (`steady_load`), an attacker among them chooses old and new connections. What arrived is
judged at the server, which notes every request but the allowed one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import pytest

from deploy.cluster.plan import Machine
from deploy.helm.generate import CHART
from tests.kube.handle import Handle, eventually
from tests.kube.test_helm import IMAGE, POLICY, RELEASE, SYSTEM, pod

LOAD: Final = (Path(__file__).parent / "steady_load.py").read_text()
FOUND: Final = "/tmp/found"
SERVER: Final = """
from http.server import *
class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if (self.command, self.path) != ("GET", "/api/x"):
            open("/tmp/arrived", "a").write(f"{self.command} {self.path}\\n")
        self.send_response(200); self.send_header("Content-Length", "3"); self.end_headers(); self.wfile.write(b"yes")
    do_POST = do_GET
    def log_message(self, *given): pass
class Server(ThreadingHTTPServer):
    request_queue_size = 512
open("/tmp/arrived", "w").close()
Server(("", 8080), Answer).serve_forever()
"""
CLIENTS: Final = ("client-1", "client-2")
SEEN: Final = (*CLIENTS, "stranger-1", "stranger-2")
NARROWER: Final = [{"op": "replace", "path": "/spec/ingress/0/toPorts/0/rules/http/0/path", "value": "/api/y"}]
PROBED: Final = {"readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}}


def asking(name: str, node: str, role: str, kind: str) -> dict[str, Any]:
    command = ["sh", "-c", f'exec python3 -c "$LOAD" {kind} $WEB_SERVICE_HOST 80 {FOUND}']
    return pod(name, node, {"role": role}, command, env=[{"name": "LOAD", "value": LOAD}])


@pytest.fixture(scope="module")
def release(cluster: Handle) -> Iterator[None]:
    """The chart; what is installed already is used, and stays."""
    if RELEASE in cluster.helm("list", "-n", SYSTEM, "-q").split():
        yield
        return
    assert IMAGE.exists(), "make image"
    cluster.load(IMAGE)
    cluster.helm("install", RELEASE, str(CHART), "-n", SYSTEM, "--set=image.tag=dev", "--wait", "--timeout=2m")
    yield
    cluster.helm("uninstall", RELEASE, "-n", SYSTEM)


@pytest.fixture(scope="module")
def traffic(cluster: Handle, release: None) -> Iterator[None]:
    """A server on the first node, with a policy; on each node a client and a stranger that ask for ever."""
    first, second = (node.name for node in cluster.nodes)
    service = {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}
    named = {"name": "web", "namespace": "default"}
    cluster.apply({"apiVersion": "v1", "kind": "Service", "metadata": named, "spec": service}, POLICY)
    cluster.apply(pod("web", first, {"app": "web"}, ["python3", "-c", SERVER], **PROBED))
    cluster.kubectl("wait", "--for=condition=Ready", "--timeout=90s", "pod/web")
    eventually(lambda: "enforced on 2 of 2 nodes" in json.dumps(cluster.get("cnp", "web")), "the policy is enforced")
    cluster.exec("web", "curl", "-s", "-X", "POST", "http://127.0.0.1:8080/api/x")
    assert arrived(cluster) == ["POST /api/x"], "the server notes what should not arrive"
    cluster.exec("web", "truncate", "--size=0", "/tmp/arrived")
    asked = [asking(f"client-{1 + at}", name, "client", "client") for at, name in enumerate((first, second))]
    asked += [asking(f"stranger-{1 + at}", name, "other", "stranger") for at, name in enumerate((first, second))]
    cluster.apply(*asked)
    cluster.kubectl("wait", "--for=condition=Ready", "--timeout=90s", *(f"pod/{name}" for name in SEEN))
    eventually(lambda: all(counts(cluster, name) for name in SEEN), "all ask")
    yield
    cluster.kubectl("delete", "cnp/web", "service/web", "pod/web", *(f"pod/{name}" for name in SEEN), "--wait=true")


def counts(cluster: Handle, name: str) -> Counter[str]:
    return Counter(json.loads(content(cluster, name, FOUND)))


def arrived(cluster: Handle) -> list[str]:
    """All that reached the server and should not."""
    return content(cluster, "web", "/tmp/arrived").splitlines()


def content(cluster: Handle, name: str, path: str) -> str:
    """A file in a pod. kubectl is asked again when it fails: an overloaded API server ends `exec` by a timeout."""
    found: list[str] = []

    def read() -> bool:
        found.append(cluster.exec(name, "cat", path))
        return True

    eventually(read, f"{name}: {path} can be read")
    return found[0]


@contextmanager
def under_traffic(cluster: Handle, *, may_fail: bool = False) -> Iterator[None]:
    """What is allowed went on, and did not fail (unless it may); nothing forbidden has passed."""
    before = {name: counts(cluster, name) for name in SEEN}
    yield
    eventually(lambda: all(progress(cluster, name, before[name]) for name in CLIENTS), "requests go on")
    new = {name: counts(cluster, name) - before[name] for name in SEEN}
    assert arrived(cluster) == []
    for name in SEEN:
        assert new[name]["forbidden: 200"] == 0
        assert sum(number for what, number in new[name].items() if what.startswith("forbidden")) > 3
    for name in CLIENTS:
        failed = {what: number for what, number in new[name].items() if what.startswith("allowed")}
        failed.pop("allowed: 200")
        assert may_fail or not failed, (name, new[name])
        assert new[name]["forbidden: 403"] > 3, (name, new[name])


def progress(cluster: Handle, name: str, before: Counter[str]) -> bool:
    """And a moment of it, so that a request that hangs has failed by then."""
    return (counts(cluster, name) - before)["allowed: 200"] > 100


def pod_on(cluster: Handle, node: Machine, component: str) -> dict[str, Any]:
    """The running pod of a DaemonSet of the chart on a node."""
    selected = ("-l", f"app.kubernetes.io/component={component}", f"--field-selector=spec.nodeName={node.name}")
    (found,) = cluster.get("pods", "-n", SYSTEM, *selected)["items"]
    return dict(found)


def kill_container(cluster: Handle, node: Machine, component: str) -> str:
    """SIGKILL for the first process of the container, as the kernel does when memory is short. Its id."""
    task = container_of(pod_on(cluster, node, component))
    ctr(cluster, node, "tasks", "kill", "--signal", "SIGKILL", task)
    return task


def container_of(found: dict[str, Any]) -> str:
    (status,) = found["status"]["containerStatuses"]
    return str(status["containerID"]).removeprefix("containerd://")


def ctr(cluster: Handle, node: Machine, *arguments: str) -> str:
    return cluster.in_node(node, str(cluster.parts.debian / "usr/bin/ctr"), "--namespace", "k8s.io", *arguments)


def ready_again(cluster: Handle, node: Machine, component: str, former: str) -> None:
    def holds() -> bool:
        (status,) = pod_on(cluster, node, component)["status"]["containerStatuses"]
        return bool(status["ready"]) and former not in status["containerID"]

    eventually(holds, f"the {component} of {node.name} is ready again", 120)


def starters(cluster: Handle, node: Machine, number: int) -> list[str]:
    """Pods whose first act is a forbidden request, without waiting for them."""
    names = [f"starter-{at}" for at in range(number)]
    cluster.apply(*(asking(name, node.name, "other", "stranger") for name in names))
    return names


def have_asked_in_vain(cluster: Handle, names: list[str]) -> None:
    cluster.kubectl("wait", "--for=condition=Ready", "--timeout=120s", *(f"pod/{name}" for name in names))
    for name in names:
        eventually(lambda name=name: sum(counts(cluster, name).values()) > 3, f"{name} has asked")  # type: ignore[misc]
        assert counts(cluster, name)["forbidden: 200"] == 0
    cluster.kubectl("delete", "--wait=true", *(f"pod/{name}" for name in names))


def agent_status(cluster: Handle, node: Machine) -> str:
    """`l7proxy status` without the API server: by our own command line, in the namespaces of the node."""
    return cluster.in_node(node, "sh", "-c", f"{sys.executable} -m l7proxy status 2>&1; true")


def counts_on(cluster: Handle, node: Machine, task: str) -> Counter[str]:
    """The counts of a pod by its container, without the API server."""
    (line,) = (line for line in ctr(cluster, node, "tasks", "list").splitlines() if line.startswith(task))
    return Counter(json.loads(cluster.in_node(node, "cat", f"/proc/{line.split()[1]}/root{FOUND}")))


@pytest.mark.usefixtures("traffic")
class TestBadDay:
    def test_the_api_server_is_killed_and_comes_back(self, cluster: Handle) -> None:
        with under_traffic(cluster):
            cluster.kill("control", "kube-apiserver")
            time.sleep(12)
            cluster.start("control", "kube-apiserver")
            eventually(lambda: cluster.kubectl("get", "--raw", "/readyz") == "ok", "the API server is back")
        for node in cluster.nodes:
            agent = pod_on(cluster, node, "agent")["metadata"]["name"]
            eventually(
                lambda agent=agent: "all enforced" in cluster.exec(agent, "l7proxy", "status", namespace=SYSTEM),  # type: ignore[misc]
                "the agent reads again",
            )

    def test_the_kubelet_is_killed_and_comes_back(self, cluster: Handle) -> None:
        node = cluster.nodes[0]
        with under_traffic(cluster):
            cluster.kill(node.name, "kubelet")
            names = starters(cluster, node, 2)
            time.sleep(3)
            cluster.start(node.name, "kubelet")
            have_asked_in_vain(cluster, names)

    def test_containerd_is_killed_and_comes_back(self, cluster: Handle) -> None:
        node = cluster.nodes[0]
        with under_traffic(cluster):
            cluster.kill(node.name, "containerd")
            names = starters(cluster, node, 2)
            time.sleep(3)
            cluster.start(node.name, "containerd")
            have_asked_in_vain(cluster, names)

    def test_agents_are_killed_while_pods_start(self, cluster: Handle) -> None:
        with under_traffic(cluster):
            for node in cluster.nodes:
                names = starters(cluster, node, 6)
                former = kill_container(cluster, node, "agent")
                have_asked_in_vain(cluster, names)
                ready_again(cluster, node, "agent", former)

    def test_a_worker_is_killed(self, cluster: Handle) -> None:
        """Its connections end, as those of any process; its successor judges as it did."""
        node = cluster.nodes[0]
        workers = pod_on(cluster, node, "workers")["metadata"]["name"]
        script = (
            "import os; pids = [int(p) for p in os.listdir('/proc') if p.isdigit()"
            " and b'l7proxy.proxy' in open(f'/proc/{p}/cmdline', 'rb').read()]; os.kill(pids[0], 9)"
        )
        with under_traffic(cluster, may_fail=True):
            for _ in range(3):
                cluster.exec(workers, "python3", "-c", script, namespace=SYSTEM)
                time.sleep(2)

    def test_all_workers_are_killed(self, cluster: Handle) -> None:
        node = cluster.nodes[0]
        with under_traffic(cluster, may_fail=True):
            former = kill_container(cluster, node, "workers")
            ready_again(cluster, node, "workers", former)

    def test_an_agent_starts_without_the_api_server_after_a_policy_changed(self, cluster: Handle) -> None:
        """It enforces what it knew last, never less; what has changed holds as soon as the server is back."""
        node = cluster.nodes[0]
        agent = container_of(pod_on(cluster, node, "agent"))
        client = container_of(cluster.get("pod", "client-1"))
        with under_traffic(cluster, may_fail=True):
            ctr(cluster, node, "tasks", "pause", agent)
            cluster.kubectl("patch", "cnp", "web", "--type=json", "-p", json.dumps(NARROWER))
            cluster.kill("control", "kube-apiserver")
            ctr(cluster, node, "tasks", "kill", "--signal", "SIGKILL", agent)
            with suppress(Exception):  # a newer runc has done it
                ctr(cluster, node, "tasks", "resume", agent)
            eventually(lambda: "source: not reached" in agent_status(cluster, node), "an agent without server", 120)
            before = counts_on(cluster, node, client)
            eventually(lambda: (counts_on(cluster, node, client) - before)["allowed: 200"] > 100, "policy as it was")
            assert [what for what in counts_on(cluster, node, client) - before if what.startswith("allowed")] == [
                "allowed: 200"
            ]
            cluster.start("control", "kube-apiserver")
            eventually(lambda: cluster.kubectl("get", "--raw", "/readyz") == "ok", "the API server is back")
            eventually(lambda: (counts(cluster, "client-1") - before)["allowed: 403"] > 10, "the new policy holds")
            cluster.apply(POLICY)

    def test_the_clocks_of_the_agents_are_hours_off(self, cluster: Handle, skewed_clock: str) -> None:
        """By them the API server's certificate is not valid yet: what was known last holds, and `status` says why."""
        with under_traffic(cluster):
            settings = (f"LD_PRELOAD={skewed_clock}", f"CLOCK_OFFSET={-6 * 3600}")
            cluster.kubectl("set", "env", "-n", SYSTEM, "ds/l7proxy", *settings)
            cluster.kubectl("rollout", "status", "-n", SYSTEM, "ds/l7proxy", "--timeout=120s")
            for node in cluster.nodes:
                eventually(lambda node=node: "not yet valid" in agent_status(cluster, node), "status says why")  # type: ignore[misc]
                have_asked_in_vain(cluster, starters(cluster, node, 2))
        with under_traffic(cluster):
            cluster.kubectl("set", "env", "-n", SYSTEM, "ds/l7proxy", "LD_PRELOAD-", "CLOCK_OFFSET-")
            cluster.kubectl("rollout", "status", "-n", SYSTEM, "ds/l7proxy", "--timeout=120s")
        for node in cluster.nodes:
            eventually(lambda node=node: "all enforced" in agent_status(cluster, node), "the agent reads again")  # type: ignore[misc]

    def test_a_pod_gets_the_address_of_one_that_was_deleted_unseen(self, cluster: Handle) -> None:
        """The agent may not read pods any more, and knows the address as a client's. The CNI result names another."""
        node = cluster.nodes[0]
        cluster.apply(pod("trusted", node.name, {"role": "client"}, ["sleep", "infinity"]))
        cluster.kubectl("wait", "--for=condition=Ready", "--timeout=60s", "pod/trusted")
        addresses = addresses_of(cluster, "trusted")
        known = "cat /var/lib/l7proxy/objects/Pod.jsonl"
        eventually(lambda: addresses[0] in cluster.in_node(node, "sh", "-c", known), "the pod is saved")
        with rights_revoked(cluster):
            former = kill_container(cluster, node, "agent")
            ready_again(cluster, node, "agent", former)
            eventually(lambda: "grant it list and watch" in agent_status(cluster, node), "the agent may not read")
            cluster.kubectl("delete", "pod/trusted", "--wait=true")
            for address in addresses:
                give_next(cluster, node, address)
            cluster.apply(asking("starter-0", node.name, "other", "stranger"))
            cluster.kubectl("wait", "--for=condition=Ready", "--timeout=60s", "pod/starter-0")
            assert addresses_of(cluster, "starter-0") == addresses
            eventually(lambda: sum(counts(cluster, "starter-0").values()) > 5, "it has asked")
            assert counts(cluster, "starter-0")["forbidden: 200"] == 0
            assert arrived(cluster) == []
        eventually(lambda: "all enforced" in agent_status(cluster, node), "the agent reads again", 90)
        have_asked_in_vain(cluster, ["starter-0"])


@pytest.fixture
def skewed_clock(cluster: Handle, tmp_path: Path) -> Iterator[str]:
    """A library that agents can load: in a directory of each node that they see."""
    built, seen = tmp_path / "skewed_clock.so", "/var/lib/l7proxy/skewed_clock.so"
    source = Path(__file__).with_name("skewed_clock.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", built, source], check=True)
    for node in cluster.nodes:
        cluster.in_node(node, "cp", str(built), seen)
    yield seen
    for node in cluster.nodes:
        cluster.in_node(node, "rm", "-f", seen)


def addresses_of(cluster: Handle, name: str) -> list[str]:
    return [one["ip"] for one in cluster.get("pod", name)["status"]["podIPs"]]


def give_next(cluster: Handle, node: Machine, address: str) -> None:
    """Wait until the address is free, and let the IPAM of the CNI (host-local) go on with it."""
    kept = "/var/lib/cni/networks/cluster"
    eventually(lambda: address not in cluster.in_node(node, "ls", kept).split(), f"{address} is free")
    last = f"{kept}/last_reserved_ip.{int(':' in address)}"
    cluster.in_node(node, "sh", "-c", f"printf %s {ip_address(address) - 1} >{last}")


@contextmanager
def rights_revoked(cluster: Handle) -> Iterator[None]:
    binding = cluster.get("clusterrolebinding", RELEASE)
    cluster.kubectl("delete", "clusterrolebinding", RELEASE)
    try:
        yield
    finally:
        for key in ("resourceVersion", "uid", "creationTimestamp", "managedFields"):
            binding["metadata"].pop(key, None)
        cluster.apply(binding)
