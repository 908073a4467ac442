"""Wrong input of a stranger, a user's typo or an attacker in a pod: each is answered, reported, and opens nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from l7proxy.lab.state import root
from tests.lab.conftest import ROOT, Cluster

pytestmark = pytest.mark.lab

SEND = """
import socket, sys
s = socket.create_connection(("backend", 80), 5)
s.settimeout(5)
s.sendall(bytes.fromhex(sys.argv[1]))
answer = b""
try:
    while chunk := s.recv(65536):
        answer += chunk
except ConnectionResetError:
    pass
print(answer.decode("latin-1"))
"""
"""Sends raw bytes and prints the response until the proxy closes. A connection left open is a failure."""

TLS_HELLO = bytes.fromhex("16030100 2f01 00002b 0303") + bytes(32) + bytes.fromhex("00 0002 1301 0100 0000")


@pytest.fixture(scope="module")
def lab() -> Iterator[Cluster]:
    """A separate lab: these tests leave its state unchanged, but fill its flow log with nonsense."""
    cluster = Cluster(f"bad{os.getpid()}")
    cluster.run("up")
    try:
        yield cluster
    finally:
        cluster.run("down")


def reasons(lab: Cluster) -> list[str]:
    """The drop reasons of node-1's flows."""
    return [" ".join(flow.get("policy_log", ())) for flow in lab.flows("node-1", "--verdict", "DROPPED")]


def until_told(lab: Cluster, word: str, before: int) -> None:
    """Waits for one more flow than `before` that contains `word`."""
    deadline = time.monotonic() + 5
    while (found := sum(word in reason for reason in reasons(lab))) <= before:
        assert time.monotonic() < deadline, f"no new flow says {word!r}: {reasons(lab)[-3:]}"
    assert found == before + 1, "exactly one flow for one refusal"


@pytest.mark.parametrize(
    ("sent", "word"),
    [
        pytest.param(TLS_HELLO, "TLS", id="a TLS handshake"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n", "", id="SSH"),
        pytest.param(b"\x00" * 64, "", id="NULs"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nGET / HTTP/1.1\r\n\r\n", "HTTP/2", id="half of an HTTP/2 preface"),
        pytest.param(b"GET /api/x HTTP/1.1\r\nHost: backend\r\nHost: other\r\n\r\n", "Host", id="two Hosts"),
        pytest.param(
            b"POST /api/data HTTP/1.1\r\nHost: backend\r\nX-Token: a\r\nContent-Length: 5\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /admin HTTP/1.1\r\nHost: backend\r\n\r\n",
            "Transfer-Encoding",
            id="smuggling by two lengths",
        ),
        pytest.param(b"GET /api/x HTTP/1.1\nHost: backend\n\n", "", id="bare line feeds"),
    ],
)
def test_bytes_that_are_no_sound_http_get_one_answer_and_one_flow(lab: Cluster, sent: bytes, word: str) -> None:
    before = sum(word in reason for reason in reasons(lab))
    done = lab.exec("frontend", sys.executable, "-c", SEND, sent.hex())
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("HTTP/1.1 505 " if word == "HTTP/2" else "HTTP/1.1 400 "), done.stdout
    assert done.stdout.count("connection: close") == done.stdout.count("content-length: ") == 1, (
        "closed after it: nothing that followed was served"
    )
    until_told(lab, word, before)


def test_curl_speaking_tls_to_an_l7_port_is_refused(lab: Cluster) -> None:
    before = sum("TLS" in reason for reason in reasons(lab))
    done = lab.exec("frontend", "curl", "-sk", "-m", "5", "--noproxy", "*", "https://backend:80/api/x")
    assert done.returncode == 35, "curl: no TLS was spoken to it"
    until_told(lab, "TLS", before)


def test_a_broken_manifest_is_refused_by_name_and_the_lab_stays_as_it_was(lab: Cluster, tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("apiVersion: v1\nkind: Pod\nmetadata: {name: x\n")
    done = lab.run("apply", "-f", str(broken), check=False)
    assert done.returncode == 2
    assert f"error: {broken}:" in done.stderr
    assert "Traceback" not in done.stderr
    assert lab.curl("frontend", "http://backend/api/x") == "200"


def test_a_policy_with_a_bad_regex_closes_the_pods_it_selects_and_is_named(lab: Cluster, tmp_path: Path) -> None:
    policy = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: bad-regex, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: backend}}
  ingress:
  - toPorts:
    - ports: [{port: "80", protocol: TCP}]
      rules: {http: [{path: "/a("}]}
"""
    file = tmp_path / "bad.yaml"
    file.write_text(policy)
    told = lab.run("apply", "-f", str(file)).stderr.splitlines()
    assert [line for line in told if line.startswith("warning: ") and "http[0].path: error parsing regexp" in line], (
        told
    )
    try:
        assert lab.curl("frontend", "http://backend/api/x") in {"403", "exit 7", "exit 56"}, "undecided means closed"
        (state,) = (one for one in lab.agent("node-1")["policies"] if one["name"] == "bad-regex")
        assert state["state"] == "invalid"
        assert "spec.ingress[0].toPorts[0].rules.http[0].path: error parsing regexp" in state["reason"]
    finally:
        lab.delete(policy, tmp_path)
    assert lab.curl("frontend", "http://backend/api/x") == "200"


@pytest.mark.parametrize("name", ["agent.sock", "link.sock"])
def test_garbage_on_a_socket_of_ours_disturbs_nobody(lab: Cluster, name: str) -> None:
    script = """
import contextlib, socket, sys
for garbage in (b"GET / HTTP/1.1\\r\\n\\r\\n", bytes(99), b"\\xff" * 99, b"[" * 200_000, b'{"method": 7}\\n'):
    with socket.socket(socket.AF_UNIX) as s, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        s.connect(sys.argv[1])
        s.settimeout(5)
        s.sendall(garbage)
        s.shutdown(socket.SHUT_WR)
        while s.recv(65536):
            pass
"""
    path = run_directory(lab) / name
    done = lab.exec("node/node-1", sys.executable, "-c", script, str(path))
    assert done.returncode == 0, done.stderr
    assert lab.curl("frontend", "http://backend/api/x") == "200"
    status = lab.agent("node-1")
    assert status["enforced_revision"] == status["revision"]


def test_a_second_agent_on_the_node_is_refused_and_the_first_goes_on(lab: Cluster, tmp_path: Path) -> None:
    run_dir = run_directory(lab)
    done = on_node(lab, "run", "--source", str(tmp_path), "--node", "node-1", "--run-dir", str(run_dir))
    assert done.returncode == 2
    assert f"error: {run_dir}/agent.sock is in use by another l7proxy process" in done.stderr
    assert lab.curl("frontend", "http://backend/admin") == "403"
    assert lab.curl("frontend", "http://backend/api/x") == "200"


def test_cleanup_under_a_running_agent_is_refused(lab: Cluster) -> None:
    done = on_node(lab, "cleanup", "--run-dir", str(run_directory(lab)))
    assert done.returncode == 2
    assert done.stderr.startswith("error: an agent is running ")
    assert lab.curl("frontend", "http://backend/admin") == "403"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("up",), "is already running: run `l7proxy lab down --name "),
        (("exec", "nobody", "--", "true"), "error: pod 'nobody' not found (pods: default/backend, "),
        (("exec", "node/nope", "--", "true"), "error: node 'nope' not found (nodes: node-1, node-2)"),
        (("apply", "-f", "/nosuch.yaml"), "error: /nosuch.yaml: no such file or directory"),
        (("status", "-o", "xml"), "error: -o xml: must be table or json"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(lab: Cluster, arguments: tuple[str, ...], said: str) -> None:
    done = lab.run(*arguments, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_lab_that_is_not_there() -> None:
    absent = Cluster(f"none{os.getpid()}")
    for command in (("status",), ("logs",), ("exec", "frontend", "--", "true"), ("delete", "-f", "deploy/demo")):
        done = absent.run(*command, check=False)
        assert done.returncode == 2
        assert f"error: lab '{absent.name}' not found" in done.stderr
    for _ in range(2):
        assert absent.run("down", check=False).returncode == 0


def test_a_manifest_that_is_none_makes_no_lab(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("kind: Foo\n")
    absent = Cluster(f"none{os.getpid()}")
    done = absent.run("up", "-f", str(tmp_path), check=False)
    assert done.returncode == 2
    assert f"error: {tmp_path}/a.yaml:1: apiVersion: missing" in done.stderr
    assert absent.run("status", check=False).returncode == 2
    assert list(root().glob(f".{absent.name}*")) == [], "without root: nor the user namespace made for it"


def run_directory(lab: Cluster) -> Path:
    return Path(resources(lab)["directory"]) / "nodes" / "node-1" / "run"


def resources(lab: Cluster) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lab.run("status", "-o", "json", check=False).stdout)
    return found


def on_node(lab: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `l7proxy …` on node-1."""
    return subprocess.run(
        [*lab.argv("exec", "--name", lab.name, "node/node-1", "--"), sys.executable, "-m", "l7proxy", *arguments],
        capture_output=True, text=True, timeout=60, cwd=ROOT, check=False,
    )  # fmt: skip
