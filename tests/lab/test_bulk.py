"""Bulk data on real packets: large bodies and tunnels arrive whole, are recorded once, and leave nothing open."""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.conftest import ROOT, Cluster

pytestmark = pytest.mark.lab

SIZE = 48 << 20
ALLOW = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: bulk}
spec:
  endpointSelector: {matchLabels: {app: backend}}
  ingress:
  - toPorts:
    - ports: [{port: "8000", protocol: TCP}]
      rules: {http: [{path: "/bulk/.*"}, {path: /tunnel}]}
"""
DENY = ALLOW.replace("/bulk/.*", "/none").replace("/tunnel", "/none")
BODY = "random.Random(5).randbytes(1 << 20) * 48"
SERVER = f"""
import hashlib, http.server, random
body = {BODY}
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *arguments):
        pass
    def answer(self, data):
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def do_GET(self):
        if self.path != "/tunnel":
            return self.answer(body)
        self.send_response(101)
        self.send_header("Connection", "upgrade")
        self.send_header("Upgrade", "bulk")
        self.end_headers()
        while data := self.rfile.read1(1 << 20):
            self.wfile.write(data)
        self.close_connection = True
    def do_POST(self):
        seen = hashlib.sha256()
        left = int(self.headers["Content-Length"])
        while left:
            data = self.rfile.read(min(left, 1 << 20))
            seen.update(data)
            left -= len(data)
        self.answer(seen.hexdigest().encode())
http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
"""
TUNNEL = f"""
import hashlib, random, socket, sys, threading
body = {BODY}
s = socket.create_connection((sys.argv[1], 8000), timeout=20)
s.sendall(b"GET /tunnel HTTP/1.1\\r\\nHost: h\\r\\nConnection: upgrade\\r\\nUpgrade: bulk\\r\\n\\r\\n")
stream = s.makefile("rb")
while stream.readline() != b"\\r\\n":
    pass
def send():
    s.sendall(body)
    s.shutdown(socket.SHUT_WR)
sending = threading.Thread(target=send)
sending.start()
seen, left = hashlib.sha256(), len(body)
while data := stream.read1(1 << 20):
    seen.update(data)
    left -= len(data)
print(seen.hexdigest())
sys.exit(left != 0)
"""
ENDLESS = TUNNEL.replace(
    "    s.sendall(body)\n    s.shutdown(socket.SHUT_WR)\n", "    while True:\n        s.sendall(body)\n"
)


def digest() -> str:

    return hashlib.sha256(random.Random(5).randbytes(1 << 20) * 48).hexdigest()


class Bulk:
    def __init__(self, cluster: Cluster, address: str) -> None:
        self.cluster = cluster
        self.address = address
        self.url = f"http://{address}:8000"

    def curl(self, pod: str, *arguments: str) -> str:
        return self.cluster.exec(pod, "curl", "-s", "-m", "30", "-H", "Expect:", *arguments).stdout

    def worker(self) -> int:
        """The worker of node-1."""
        workers = self.cluster.agent("node-1")["workers"]
        assert len(workers) == 1
        pid: int = workers[0]["pid"]
        return pid


@pytest.fixture(scope="module")
def bulk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bulk]:
    lab = Cluster(f"bulk{os.getpid()}")
    file = tmp_path_factory.mktemp("bulk") / "policy.yaml"
    file.write_text(ALLOW)
    demo = ROOT / "deploy" / "demo"
    manifests = ("-f", str(demo / "cluster.yaml"), "-f", str(demo / "pods.yaml"), "-f", str(file))
    lab.run("up", *manifests)
    try:
        server = lab.talk("backend", SERVER)
        address = lab.exec("backend", "ip", "-4", "-o", "addr", "show", "dev", "eth0").stdout.split()[3]
        made = Bulk(lab, address.partition("/")[0])
        deadline = time.monotonic() + 10
        while made.curl("frontend", "-o", "/dev/null", "-w", "%{http_code}", f"{made.url}/bulk/0") != "200":
            assert time.monotonic() < deadline, "the server does not answer"
        yield made
        server.terminate()
        server.communicate(timeout=5)
    finally:
        lab.run("down")


def file_of_body(directory: Path) -> Path:

    path = directory / "body"
    path.write_bytes(random.Random(5).randbytes(1 << 20) * 48)
    return path


@pytest.mark.parametrize("pod", ["frontend", "frontend-far"])
def test_bodies_arrive_whole_both_ways(bulk: Bulk, pod: str, tmp_path: Path) -> None:
    got = tmp_path / "got"
    url = f"{bulk.url}/bulk/{pod}-{time.monotonic_ns()}"
    down = bulk.curl(pod, "-o", str(got), "-w", "%{http_code} %{num_connects} ", url, "-o", str(got), url)
    assert down == "200 1 200 0 "  # one connection: the second request came after a splice
    assert hashlib.sha256(got.read_bytes()).hexdigest() == digest()
    assert bulk.curl(pod, "-T", str(file_of_body(tmp_path)), "-X", "POST", url) == digest()
    deadline = time.monotonic() + 5
    while len(told := [flow for flow in bulk.cluster.flows("node-1") if url in str(flow)]) < 6:
        assert time.monotonic() < deadline, told
    assert [flow["l7"]["http"].get("code") for flow in told if flow["l7"]["type"] == "RESPONSE"] == [200] * 3


def test_a_tunnel_carries_both_ways_at_once(bulk: Bulk) -> None:
    done = bulk.cluster.exec("frontend", "python3", "-c", TUNNEL, bulk.address)
    assert done.stdout.strip() == digest(), done.stderr


def test_a_changed_policy_cuts_it_and_nothing_stays_open(bulk: Bulk, tmp_path: Path) -> None:
    before = len(list(Path(f"/proc/{bulk.worker()}/fd").iterdir()))
    pouring = bulk.cluster.talk("frontend", ENDLESS.replace("sys.argv[1]", repr(bulk.address)))
    time.sleep(0.7)
    assert pouring.poll() is None
    bulk.cluster.apply(DENY, tmp_path)
    try:
        pouring.communicate(timeout=10)
        assert pouring.returncode != 0
        deadline = time.monotonic() + 5
        # a few empty pipes are kept for reuse
        while len(list(Path(f"/proc/{bulk.worker()}/fd").iterdir())) > before + 16:
            assert time.monotonic() < deadline, "descriptors stay open"
            time.sleep(0.1)
    finally:
        bulk.cluster.apply(ALLOW, tmp_path)
    assert bulk.curl("frontend", "-o", "/dev/null", "-w", "%{http_code}", f"{bulk.url}/bulk/again") == "200"
