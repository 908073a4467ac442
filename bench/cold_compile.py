"""The cold compile of a big cluster, in its own process: python -m bench.cold_compile PODS POLICIES LOCAL

Reads the manifests first (timed separately), then measures from resources to both results: the PolicySnapshot of the
workers and the Desired state of the kernel. Prints one JSON object: read_s, compile_s, before_mib, peak_mib and counts.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from bench import big_world
from bench.cpu import peak_mib, rss_mib
from l7proxy.agent.dataplane.pod_interfaces import PodInterfaces
from l7proxy.agent.dataplane.render import render
from l7proxy.cluster.state import ClusterState
from l7proxy.policy.compile import compile_policies
from l7proxy.sources.files.scan import load
from l7proxy.sources.source import SYNCED
from tproxy_rules.desired import Settings

NODE = "node-1"
OWN = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": NODE},
    "spec": {"podCIDR": "10.244.1.0/24"},
    "status": {"addresses": [{"type": "InternalIP", "address": "172.18.0.11"}]},
}


def main() -> None:
    size = big_world.Size(*map(int, sys.argv[1:4]))
    with tempfile.TemporaryDirectory() as name:
        big_world.write(size, Path(name), NODE)
        (Path(name) / "node.yaml").write_text(json.dumps(OWN))
        start = time.perf_counter()
        changes, problems = load([Path(name)])
        read = time.perf_counter() - start
    if problems:
        sys.exit(f"the world has problems: {problems[0]}")
    gc.collect()
    before = rss_mib(os.getpid())
    start = time.perf_counter()
    cluster_state = ClusterState()
    cluster_state.apply([*changes, *SYNCED])
    view = cluster_state.view(NODE)
    policies = compile_policies(view.rules, view.endpoints, view.identities)
    snapshots = render(view, policies, PodInterfaces(), settings=Settings(), resolve_services=False)
    spent = time.perf_counter() - start
    result = {
        "read_s": read,
        "compile_s": spent,
        "before_mib": before,
        "peak_mib": peak_mib(os.getpid()),
        "identities": len(view.identities),
        "endpoints": len(view.endpoints),
        "rules": len(view.rules),
        "kernel_entries": sum(
            sum(1 for _ in table.entries)
            for one in snapshots.kernel.endpoints
            for table in (one.ingress, one.egress)
            if table is not None
        ),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
