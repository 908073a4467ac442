"""Policies learned from the lab's own traffic: they change nothing for it, and a forbidden request does not pass."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.lab.conftest import ROOT, Cluster

pytestmark = pytest.mark.lab

SEEN = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: look, namespace: default}
spec:
  endpointSelector: {}
  enableDefaultDeny: {ingress: false, egress: false}
  ingress:
  - fromEntities: [all]
    toPorts:
    - ports: [{port: "80", protocol: TCP}]
      rules: {http: [{}]}
  - fromEntities: [all]
"""
"""Inspects requests on port 80, and refuses nothing."""
METRICS = "127.0.0.1:9965"
SCRAPE = f"import urllib.request as u; print(u.urlopen('http://{METRICS}/metrics', timeout=10).read().decode())"
PASSED = (
    ("frontend", "http://backend/api/1", "200"),
    ("frontend", "http://backend/api/2", "200"),
    ("frontend", "http://backend/users/7f3c9a10-2fa1-11d2-883f-0016d3cca427/cart", "200"),
    ("frontend-far", "http://backend/api/3?page=2", "200"),
)
REFUSED = (
    ("frontend", "http://backend/admin"),
    ("frontend", "http://backend/users/1/cart/admin"),
    ("frontend", "http://backend/users/1?x=/cart"),
    ("stranger", "http://backend/api/1"),
    ("frontend", "http://backend:9000/"),
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The demo's pods, with a policy that only inspects."""
    manifests = tmp_path_factory.mktemp("look")
    for name in ("cluster.yaml", "pods.yaml"):
        (manifests / name).write_text((ROOT / "deploy" / "demo" / name).read_text())
    (manifests / "look.yaml").write_text(SEEN)
    shadow = tmp_path_factory.mktemp("shadow")
    (shadow / "policy.yaml").write_text((ROOT / "deploy" / "demo" / "policy.yaml").read_text())
    made = Cluster(f"l{os.getpid()}")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("L7PROXY_SHADOW_POLICIES", str(shadow))
        environment.setenv("L7PROXY_METRICS_ADDRESS", METRICS)
        made.run("up", "-f", str(manifests))
    try:
        yield made
    finally:
        made.run("down")


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "l7proxy.cli.main", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=120)


def run_dir(lab: Cluster) -> str:
    directory = json.loads(lab.run("status", "-o", "json", check=False).stdout)["directory"]
    return str(Path(directory) / "nodes" / "node-1" / "run")


def requests(lab: Cluster, status: int) -> int:
    flows = lab.flows("node-1", "--type", "l7", "--http-status", str(status))
    return len(flows)


@pytest.mark.timeout(300)
def test_shadow_policies_are_judged_and_not_enforced(lab: Cluster) -> None:
    """The demo's policy is in the shadow: it would allow GET /api/.* to the frontend alone."""
    assert lab.curl("frontend", "http://backend/api/1") == "200"
    assert lab.curl("frontend", "http://backend/other") == "200"
    assert lab.curl("stranger", "http://backend/api/1") == "200"
    while lab.agent("node-1")["shadow"]["would"].get("denied", 0) < 2:
        time.sleep(0.05)
    assert "allowed" not in lab.agent("node-1")["shadow"]["would"]
    done = lab.exec("node/node-1", sys.executable, "-c", SCRAPE)
    assert 'l7proxy_shadow_verdicts_total{direction="ingress",policy="default/l7-policy",would="denied"}' in done.stdout
    done = cli("policy", "shadow", "--run-dir", run_dir(lab), "--no-follow", "-o", "json")
    assert done.returncode == 1, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    seen = {(one["flow"]["source"]["pod_name"], one["flow"]["Type"], one["shadow"]["would"]) for one in found}
    assert ("frontend", "L7", "denied") in seen
    assert ("stranger", "L3_L4", "denied") in seen
    assert "path does not match /api/.*" in done.stdout


@pytest.mark.timeout(300)
def test_what_was_seen_passes_and_nothing_else(lab: Cluster, tmp_path: Path) -> None:
    since, before = datetime.now(UTC).isoformat(), requests(lab, 200)
    for pod, url, status in PASSED:
        assert lab.curl(pod, url) == status, (pod, url)
    while requests(lab, 200) < before + len(PASSED):
        time.sleep(0.05)
    new, seen = tmp_path / "learned", tmp_path / "seen.jsonl"
    seen.write_text(cli("observe", "--run-dir", run_dir(lab), "--since", since, "-o", "json").stdout)
    done = cli("policy", "learn", "--run-dir", run_dir(lab), "--since", since, "-o", f"{new}/")
    assert done.returncode == 0, done.stderr
    assert cli("policy", "validate", str(new)).returncode == 0
    done = cli("policy", "replay", "--flows", str(seen), "-f", str(new), "-o", "json")
    found = json.loads(done.stdout)
    assert done.returncode == 0, found
    assert (found["changed"], found["unjudged"]) == (0, 0), found
    lab.delete(SEEN, tmp_path)
    lab.apply("---\n".join(path.read_text() for path in new.iterdir()), tmp_path)
    for pod, url, status in PASSED:
        assert lab.curl(pod, url) == status, (pod, url)
    for pod, url in REFUSED:
        assert lab.curl(pod, url) in ("403", "exit 7", "exit 28", "exit 56"), (pod, url)
    while requests(lab, 403) < 3:
        time.sleep(0.05)
    open_again = tmp_path / "open.yaml"
    open_again.write_text(SEEN)
    done = cli("policy", "replay", "--run-dir", run_dir(lab), "-f", str(open_again), "-o", "json")
    would = {(one["source"], one["request"]) for one in json.loads(done.stdout)["changes"]}
    assert done.returncode == 1
    assert ("default/frontend", "GET /admin") in would
    assert all(one["would"] == "allowed" for one in json.loads(done.stdout)["changes"])
