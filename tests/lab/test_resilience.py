"""While processes die and policies change, nothing forbidden passes and nothing allowed at L4 is cut."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.conftest import Cluster

pytestmark = pytest.mark.lab

URL = "http://backend/api/x"
RAW = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: raw}
spec:
  endpointSelector: {matchLabels: {app: backend}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: frontend}}]
    toPorts: [{ports: [{port: "9000", protocol: TCP}]}]
"""
NO_GETS = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: l7-policy}
spec:
  endpointSelector: {matchLabels: {app: backend}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: frontend}}]
    toPorts:
    - ports: [{port: "80", protocol: TCP}]
      rules: {http: [{method: POST, path: "/api/data"}]}
"""
DEMO_POLICY = (Path(__file__).resolve().parents[2] / "deploy" / "demo" / "policy.yaml").read_text()

KEEP_ALIVE = """
import http.client, sys
connection = http.client.HTTPConnection("backend", 80, timeout=5)
connection.auto_open = False
connection.connect()
for line in sys.stdin:
    connection.request("GET", line.strip())
    answer = connection.getresponse()
    answer.read()
    print(answer.status, flush=True)
"""
TCP_ECHO = """
import socket, sys
s = socket.create_connection(("%s", 9000), timeout=5)
for line in sys.stdin:
    try:
        s.sendall(line.encode())
        data = s.recv(4096)
        while b"\\n" in data and not data.endswith(line.encode()):
            data += s.recv(4096)
        print("echo" if data else "closed", flush=True)
    except ConnectionResetError:
        print("reset", flush=True)
    except TimeoutError:
        print("timeout", flush=True)
"""


def ask(process: Any, line: str) -> str:
    process.stdin.write(line + "\n")
    process.stdin.flush()
    answer: str = process.stdout.readline().strip()
    return answer


@contextlib.contextmanager
def talking(cluster: Cluster, pod: str, script: str) -> Iterator[Callable[[str], str]]:
    with cluster.talk(pod, script) as process:  # on exit its stdin closes, and the script ends
        yield lambda line: ask(process, line)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def until(holds: Callable[[], bool], what: str, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def workers(cluster: Cluster) -> list[int]:
    return [int(worker["pid"]) for worker in cluster.agent("node-1")["workers"]]


def backend_address(cluster: Cluster) -> str:
    done = cluster.exec("backend", "ip", "-4", "-o", "addr", "show", "dev", "eth0")
    return done.stdout.split()[3].partition("/")[0]


@pytest.fixture
def raw(cluster: Cluster, tmp_path: Path) -> Iterator[None]:
    """The frontend may also use plain TCP to port 9000."""
    cluster.apply(RAW, tmp_path)
    yield
    cluster.run("delete", "-f", str(tmp_path / "manifest.yaml"), check=False)


def test_kill_9_of_every_worker_closes_l7_and_leaves_l4(cluster: Cluster, raw: None) -> None:
    pids = workers(cluster)
    supervisor = parent(pids[0])
    with talking(cluster, "frontend", TCP_ECHO % backend_address(cluster)) as say:
        assert say("before") == "echo"
        os.kill(supervisor, signal.SIGSTOP)  # so that nothing is restarted yet
        try:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            until(lambda: cluster.curl("frontend", URL) == "exit 7", "the L7 port still answers without a worker")
            assert cluster.curl("frontend", "http://backend/admin") == "exit 7"
            assert cluster.curl("stranger", URL.replace("backend", "backend.default")) == "exit 7"
            assert say("while they are dead") == "echo"
        finally:
            os.kill(supervisor, signal.SIGCONT)
        until(lambda: cluster.curl("frontend", URL) == "200", "service did not return")
        assert say("after") == "echo"
    assert cluster.curl("frontend", "http://backend/admin") == "403"


def test_kill_9_of_the_agent_changes_nothing_for_traffic(cluster: Cluster, raw: None) -> None:
    worker = workers(cluster)[0]
    supervisor = parent(worker)
    agent = next(pid for pid in children(supervisor) if pid != worker)
    with (
        talking(cluster, "frontend", TCP_ECHO % backend_address(cluster)) as say,
        talking(cluster, "frontend", KEEP_ALIVE) as get,
    ):
        assert (say("before"), get("/api/x")) == ("echo", "200")
        os.kill(supervisor, signal.SIGSTOP)
        try:
            os.kill(agent, signal.SIGKILL)
            assert (say("without agent"), get("/api/x"), get("/admin")) == ("echo", "200", "403")
            assert cluster.curl("frontend", URL) == "200"
            assert cluster.curl("stranger", URL.replace("backend", "backend.default")) == "exit 7"
        finally:
            os.kill(supervisor, signal.SIGCONT)
        until(lambda: children(supervisor) != [] and agent not in children(supervisor), "no new agent")
        until(lambda: cluster.run("status", check=False).returncode == 0, "the new agent does not enforce")
        assert (say("after"), get("/api/x"), get("/admin")) == ("echo", "200", "403")


def test_the_next_request_of_an_open_connection_obeys_the_new_policy(cluster: Cluster, tmp_path: Path) -> None:
    with talking(cluster, "frontend", KEEP_ALIVE) as get:
        assert get("/api/x") == "200"
        cluster.apply(NO_GETS, tmp_path)
        try:
            assert get("/api/x") == "403"
        finally:
            cluster.apply(DEMO_POLICY, tmp_path)
        assert get("/api/x") == "200"


def test_an_open_l4_connection_that_became_forbidden_is_reset(cluster: Cluster, tmp_path: Path) -> None:
    cluster.apply(RAW, tmp_path)
    with talking(cluster, "frontend", TCP_ECHO % backend_address(cluster)) as say:
        assert say("allowed") == "echo"
        cluster.delete(RAW, tmp_path)
        assert say("forbidden") == "reset"


def test_a_broken_edit_is_reported_and_the_last_good_version_stays(cluster: Cluster) -> None:
    path = _policy_file(cluster)
    good = path.read_text()
    path.write_text(good.replace("method: GET", "method: '['").replace('method: "GET"', 'method: "["'))
    try:
        until(lambda: bool(cluster.agent("node-1")["source"]["problems"]), "nobody reports the broken file")
        (problem, *_) = cluster.agent("node-1")["source"]["problems"]
        assert problem["file"].endswith(path.name)
        assert problem["line"] > 0
        assert problem["field"] == "spec.ingress[0].toPorts[0].rules.http[0].method"
        assert (cluster.curl("frontend", URL), cluster.curl("frontend", "http://backend/admin")) == ("200", "403")
    finally:
        path.write_text(good)
    until(lambda: not cluster.agent("node-1")["source"]["problems"], "the problem is still reported")


def test_an_unsupported_policy_closes_those_it_selects(cluster: Cluster, tmp_path: Path) -> None:
    manifest = RAW.replace("name: raw", "name: later").replace(
        'toPorts: [{ports: [{port: "9000", protocol: TCP}]}]', "authentication: {mode: required}"
    )
    cluster.apply(manifest, tmp_path)
    try:
        (policy,) = [p for p in cluster.agent("node-1")["policies"] if p["name"] == "later"]
        assert policy["state"] == "partly enforced"
        assert "authentication" in policy["reason"]
        assert cluster.curl("frontend", URL) == "exit 7"
    finally:
        cluster.delete(manifest, tmp_path)
    assert cluster.curl("frontend", URL) == "200"


def _policy_file(cluster: Cluster) -> Path:
    status = cluster.agent("node-1")
    (policy,) = status["policies"]
    return Path(status["source"]["location"], policy["file"])
