"""An attacker in a pod, and legitimate neighbours that must not be affected: on both CNIs and both kernel backends."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.lab.conftest import Cluster

pytestmark = pytest.mark.lab

SMUGGLED = """
import socket
s = socket.create_connection(("backend", 80)); s.settimeout(5)
s.sendall(b"POST /api/data HTTP/1.1\\r\\nHost: backend\\r\\nX-Token: a\\r\\nContent-Length: 4\\r\\n"
          b"Transfer-Encoding: chunked\\r\\n\\r\\n0\\r\\n\\r\\nGET /admin HTTP/1.1\\r\\nHost: backend\\r\\n\\r\\n")
data = b""
while more := s.recv(4096):
    data += more
print(data.count(b"HTTP/1.1 "), data.split(b" ")[1].decode())
"""


@pytest.fixture(scope="module", params=["bridge nftables", "bridge iptables", "ptp nftables", "ptp iptables"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    cni, backend = request.param.split()
    lab = Cluster(f"x{os.getpid()}")
    lab.run("up", "--cni", cni, "--backend", backend)
    try:
        yield lab
    finally:
        lab.run("down")


def address(cluster: Cluster, pod: str) -> str:
    done = cluster.exec(pod, "ip", "-4", "-o", "addr", "show", "dev", "eth0")
    return done.stdout.split()[3].partition("/")[0]


def test_a_borrowed_address_gets_nowhere(cluster: Cluster) -> None:
    frontend, backend = address(cluster, "frontend"), address(cluster, "backend")
    assert cluster.exec("stranger", "ip", "addr", "add", f"{frontend}/32", "dev", "eth0").returncode == 0
    try:
        assert cluster.curl("stranger", "-m", "1", "--interface", frontend, f"http://{backend}/api/x") == "exit 28"
    finally:
        cluster.exec("stranger", "ip", "addr", "del", f"{frontend}/32", "dev", "eth0")
    assert cluster.curl("frontend", f"http://{backend}/api/x") == "200"


@pytest.mark.parametrize("node", ["node-1", "node-2"])
def test_the_proxy_itself_cannot_be_dialled(cluster: Cluster, node: str) -> None:
    own = address(cluster, f"node/{node}")
    assert cluster.curl("stranger", "-m", "1", f"http://{own}:15001/") in {"exit 7", "exit 28"}


def test_a_smuggled_request_is_refused_with_what_carried_it(cluster: Cluster) -> None:
    assert cluster.exec("frontend", "python3", "-c", SMUGGLED).stdout.split() == ["1", "400"]


def test_a_pod_reaches_itself_through_its_own_service(cluster: Cluster) -> None:
    assert cluster.curl("backend", "http://backend/anything") == "200"


def test_the_pods_own_node_may_probe_it_and_no_other_node(cluster: Cluster) -> None:
    url = f"http://{address(cluster, 'backend')}/healthz"
    assert cluster.curl("node/node-1", url) == "200"
    assert cluster.curl("node/node-2", url) == "exit 7"
