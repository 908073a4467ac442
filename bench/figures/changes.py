"""Time from a file's change to its enforcement, in a big cluster: real agent, worker, nftables and packets.

A pod's probe keeps trying on new connections; the time ends when both the kernel and the worker answer by the new
state. It starts when the new file is in place, so it includes the source's wait until files are quiet.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from bench import big_world
from bench.cpu import peak_mib, rss_mib
from bench.figures import Effort, OnStage, Report
from bench.row import Goal, Row, compared, percentile
from bench.stage import HTTP, NODE, OURS, Stage

EDITED_PORTS = (91, 92)
LABEL_PORT = 93
SETTLE_SECONDS = 0.3
BUDGET_SECONDS = 45.0
"""Time limit for all changes of one kind; when it is reached, fewer are made, and the row says how many."""
Labels = dict[str, str]
LABEL = "a pod's label change → enforced"
EDIT = "a policy edit that touches 110 endpoints → enforced"


def measure(place: Stage, effort: Effort, report: Report) -> list[Row]:
    size = big_world.Size()
    changes = 6 if effort.quick else 60
    with _cluster_state(place, size), _servers(place):
        start = time.monotonic()
        with place.proxy(OURS) as running:
            report(f"{size.pods} pods, {size.policies} policies in force after {time.monotonic() - start:.1f} s")
            labels = timed(place, changes, _label_change(place), _admitted, report)  # touches one endpoint
            edits = timed(place, changes, _policy_edit(place), _edited, report)
            agent = running.beside[0]
            report(f"agent: RSS {rss_mib(agent):.0f} MiB, peak {peak_mib(agent):.0f} MiB")
    note = f"{size.pods} pods, {size.policies} policies, {size.local} endpoints"
    return [*_rows(LABEL, labels, Goal(100, absolute=True), note), *_rows(EDIT, edits, Goal(200, absolute=True), note)]


def _rows(name: str, found: list[float], goal: Goal, note: str) -> list[Row]:
    return [
        compared(f"{name}, p50", "ms", [percentile(found, 0.5)]),
        compared(f"{name}, p99", "ms", [percentile(found, 0.99)], goal=goal, note=f"{note}, {len(found)} changes"),
    ]


def timed(
    place: Stage, count: int, change: Callable[[int], None], wanted: Callable[[int], str], report: Report
) -> list[float]:
    """Milliseconds from each change until the wanted result is seen."""
    found = []
    with place.start(
        "client", sys.executable, "-m", "bench.probe", place.server, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as probe:
        assert probe.stdin is not None and probe.stdout is not None
        end = time.monotonic() + BUDGET_SECONDS
        for number in range(count + 1):
            if time.monotonic() > end:
                break
            probe.stdin.write(f"{wanted(number)}\n".encode())
            probe.stdin.flush()
            if number:  # the first one only sets the initial state
                time.sleep(SETTLE_SECONDS)
            change(number)
            start = time.monotonic_ns()
            moment = int(probe.stdout.readline())
            if not moment:
                raise SystemExit(f"change {number} was not enforced: {wanted(number)}")
            if number:
                found.append((moment - start) / 1e6)
        probe.stdin.close()
    report(f"{len(found)} changes: p50 {percentile(found, 0.5):.0f} ms, the slowest {max(found):.0f} ms")
    return found


# the changes


def _label_change(place: Stage) -> Callable[[int], None]:
    return lambda number: _write_label(place, "yes" if number % 2 else "no")


def _write_label(place: Stage, value: str) -> None:
    path = place.lab.store.directory / "pod_default_client.yaml"
    document = yaml.safe_load(path.read_text())
    document["metadata"]["labels"]["admitted"] = value
    _replace(path, document)


def _admitted(number: int) -> str:
    """The new identity must reach the worker, and the kernel, which alone evaluates the other port."""
    return f"200 {HTTP} /label/x;open {LABEL_PORT}" if number % 2 else f"403 {HTTP} /label/x;closed {LABEL_PORT}"


def _policy_edit(place: Stage) -> Callable[[int], None]:
    return lambda number: _replace(place.lab.store.directory / "big-edit.yaml", _everywhere(number % 2))


def _edited(number: int) -> str:
    """One path and one port are allowed in one state, others in the other."""
    now, other = number % 2, 1 - number % 2
    paths = f"200 {HTTP} /edit/{now}/x;403 {HTTP} /edit/{other}/x"
    return f"{paths};open {EDITED_PORTS[now]};closed {EDITED_PORTS[other]}"


def _replace(path: Path, document: dict[str, Any]) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(document))
    fresh.replace(path)


# the cluster


@contextlib.contextmanager
def _cluster_state(place: Stage, size: big_world.Size) -> Iterator[None]:
    """Writes the big cluster to the lab's manifest directory, and removes it at the end."""
    directory = place.lab.store.directory
    pods = {path: path.read_text() for path in directory.glob("pod_default_*.yaml")}
    try:
        big_world.write(size, directory, NODE)
        label = _policy("label", {"app": "backend"}, {"admitted": "yes"}, _admits("/label/.*", LABEL_PORT))
        _replace(directory / "big-label.yaml", label)
        for path in pods:
            document = yaml.safe_load(path.read_text())
            document["metadata"]["labels"] |= {"where": "here", "asks": "yes", "admitted": "no"}
            _replace(path, document)
        yield
    finally:
        for path in directory.glob("big-*.yaml"):
            path.unlink()
        for path, text in pods.items():
            path.write_text(text)


def _everywhere(state: int) -> dict[str, Any]:
    """Selects every pod of this node. Added after the label changes, which would otherwise affect all pods, too."""
    return _policy("edit", {"where": "here"}, {"asks": "yes"}, _admits(f"/edit/{state}/.*", EDITED_PORTS[state]))


def _admits(path: str, port: int) -> list[dict[str, Any]]:
    return [
        {"ports": [_port(HTTP)], "rules": {"http": [{"method": "GET", "path": path}]}},
        {"ports": [_port(port)]},
    ]


def _policy(name: str, whom: Labels, who: Labels, admits: list[dict[str, Any]]) -> dict[str, Any]:
    peers = [{"matchLabels": {"k8s:io.kubernetes.pod.namespace": "default", **who}}]
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumClusterwideNetworkPolicy",
        "metadata": {"name": name},
        "spec": {
            "endpointSelector": {"matchLabels": whom},
            "ingress": [{"fromEndpoints": peers, "toPorts": admits}],
        },
    }


def _port(number: int) -> dict[str, str]:
    return {"port": str(number), "protocol": "TCP"}


@contextlib.contextmanager
def _servers(place: Stage) -> Iterator[None]:
    """Accept connections on the ports that only the kernel evaluates."""
    with contextlib.ExitStack() as stack:
        for port in (*EDITED_PORTS, LABEL_PORT):
            stack.enter_context(place.serving(port, sys.executable, "-m", "bench.bulk_server", str(port)))
        yield


FIGURE = OnStage("changes", "one pod label, one policy edit → kernel and workers enforcing, in a big world", measure)
