"""The stock Hubble Relay and `hubble` over the agents of two nodes, by mutual TLS.

Skipped where they were not built: `python -m deploy.cluster.hubble`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from deploy.cluster import hubble
from l7proxy.lab import agents
from l7proxy.lab.state import Lab
from tests.lab.conftest import ROOT, Cluster
from tests.lab.test_logs import until
from tests.support.hubble_cli import HubbleCli, endpoint, http, ids, path, pod
from tests.unit.hubble.authority import Authority

NODES = ("node-1", "node-2")
FAR = "default/frontend-far"
CLOSED = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: closed}
spec:
  endpointSelector: {matchLabels: {app: stranger}}
  ingress: [{fromEndpoints: [{matchLabels: {app: nobody}}]}]
"""


@pytest.fixture(scope="module")
def programs() -> Path:
    recipe = hubble.recipe()
    if recipe.missing:
        pytest.skip("the stock hubble and Relay are not built: python -m deploy.cluster.hubble")
    return recipe.directory


@contextmanager
def running(lab: str, node: str, *command: str, end: signal.Signals = signal.SIGTERM) -> Iterator[None]:
    """`end`: how it is ended. Relay does not end by SIGTERM while it has connections."""
    argv = Cluster.argv("exec", "--name", lab, f"node/{node}", "--", *command)
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, cwd=ROOT) as process:
        try:
            yield
        finally:
            process.send_signal(end)


def agent(lab: Lab, node: str, tls: Path) -> list[str]:
    return [
        sys.executable, "-m", "l7proxy.cli.main", "run", "--node", node, "--workers", "1",
        "--source", f"{lab.store.directory}", "--cni-results", f"{lab.cni_directory(node)}",
        "--run-dir", f"{lab.run_directory(node)}", "--hubble-listen-address", ":4244",
        "--hubble-tls-cert-file", f"{tls}/tls.crt", "--hubble-tls-key-file", f"{tls}/tls.key",
        "--hubble-tls-client-ca-files", f"{tls}/ca.crt",
    ]  # fmt: skip


def relay(program: Path, peer: str, tls: Path) -> list[str]:
    return [
        str(program), "serve", "--gops=false", "--listen-address=127.0.0.1:4245", "--disable-server-tls",
        "--health-listen-address=127.0.0.1:4222", f"--peer-service={peer}:4244", "--retry-timeout=1s",
        f"--tls-hubble-client-cert-file={tls}/tls.crt", f"--tls-hubble-client-key-file={tls}/tls.key",
        f"--tls-hubble-server-ca-files={tls}/ca.crt",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def cli(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubbleCli]:
    """Connected to a Relay that has both nodes, after some traffic."""
    lab = Cluster(f"relay{os.getpid()}")
    directory = tmp_path_factory.mktemp("tls")
    Authority(directory)
    with ExitStack() as stack:
        stack.callback(lab.run, "down", check=False)
        lab.run("up", "--no-agent")
        lab.apply(CLOSED, directory)
        here = Lab(lab.name)
        for node in NODES:
            stack.enter_context(running(lab.name, node, *agent(here, node, directory)))
        (address,) = json.loads(lab.run("status", "-o", "json").stdout)["nodes"][0]["addresses"]
        stack.enter_context(
            running(lab.name, NODES[0], *relay(programs / "hubble-relay", address, directory), end=signal.SIGKILL)
        )
        within = Cluster.argv("exec", "--name", lab.name, f"node/{NODES[0]}", "--")
        found = HubbleCli(programs / "hubble", ("--server", "127.0.0.1:4245"), within)
        for node in NODES:
            until(lambda node=node: agents.not_enforced(here, node) is None, f"{node} does not enforce")  # type: ignore[misc]
        assert lab.curl("frontend", "http://backend/api/one") == "200"
        assert lab.curl("frontend", "http://backend/admin") == "403"
        assert lab.curl("frontend-far", "-X", "POST", "http://backend/api/one") == "403"
        assert lab.curl("frontend", "http://stranger-far:80/").startswith("exit")
        until(lambda: "Connected Nodes: 2/2" in found.run("status", check=False).stdout, "Relay has not both nodes")
        until(lambda: len({one["node_name"] for one in found.flows("--all")}) == 2, "flows of both nodes")
        yield found


def test_relay_has_both_nodes(cli: HubbleCli) -> None:
    listed = json.loads(cli.run("list", "nodes", "-o", "json").stdout)
    assert [(one["name"], one["state"]) for one in listed] == [(node, "NODE_CONNECTED") for node in NODES]
    assert cli.run("list", "namespaces").stdout.split() == ["NAMESPACE", "default"]


def test_flows_are_those_of_both_nodes(cli: HubbleCli) -> None:
    found = cli.flows("--all")
    seen = {(endpoint(one, "source").get("pod_name"), path(one), one["verdict"]) for one in found if http(one)}
    assert {
        ("frontend", "/api/one", "FORWARDED"),
        ("frontend", "/admin", "DROPPED"),
        ("frontend-far", "/api/one", "DROPPED"),
    } <= seen
    refused = {endpoint(one, "destination").get("pod_name") for one in found if one["node_name"] == "node-2"}
    assert "stranger-far" in refused


def test_relay_passes_filters_on(cli: HubbleCli) -> None:
    """All flags: tests/kube/test_hubble.py."""
    expected = ids(one for one in cli.flows("--all") if one["verdict"] == "DROPPED" and pod(one, "source") == FAR)
    assert ids(cli.flows("--all", "--verdict", "DROPPED", "--from-pod", FAR)) == expected != set()
