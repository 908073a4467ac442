"""Time until a starting pod may send: real agent, worker, nftables and packets, in the lab.

The policy that allows it is in force, and the pod is closed until the agent knows whose its address is. That is so when
the CNI result is there and the Pod object is known without an address, as on a cluster; or when an object with an
address comes, as for runtimes whose results have no UID. A thread tries new connections from the pod's namespace until
one is accepted.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final

from bench.figures import Effort, OnStage, Report
from bench.row import Goal, Row, compared, percentile
from bench.stage import DIRECT, NODE, OURS, Stage, until
from l7proxy.lab import cni_result, lifecycle, netns, network
from l7proxy.lab.cluster import Pod
from l7proxy.model.net import family_of

TOGETHER: Final = 50
SETTLE_SECONDS: Final = 0.5
"""Between two pods: the agent has handled the last one."""
PATIENCE_SECONDS: Final = 10.0
BETWEEN_TRIES: Final = 0.002
"""Seconds between tries of a pod; TOGETHER pods wait ten times as long, so that their refused tries, each of which is
an event for the agent, are not what is measured."""
GOAL: Final = Goal(300, absolute=True)
FIRST_ADDRESS: Final = 150
POLICY: Final = {
    "apiVersion": "cilium.io/v2",
    "kind": "CiliumNetworkPolicy",
    "metadata": {"name": "pod-start"},
    "spec": {
        "endpointSelector": {"matchLabels": {"starts": "here"}},
        "egress": [
            {
                "toEndpoints": [{"matchLabels": {"app": "backend"}}],
                "toPorts": [{"ports": [{"port": str(DIRECT), "protocol": "TCP"}]}],
            }
        ],
    },
}


@dataclass
class Starting:
    """A pod and its moments, in nanoseconds of the monotonic clock: of its interface, of what is to be known last, and
    of its first connection."""

    pod: Pod
    namespace: str
    veth: network.Veth | None = None
    interface: int = 0
    known: int = 0
    passed: int = field(default=0)


class Starts:
    """Creates pods beside those of the stage, and removes them."""

    def __init__(self, place: Stage) -> None:
        self._place = place
        self._state = place.lab.load()
        self._node = next(one for one in lifecycle.cluster_of(place.lab).nodes if one.name == NODE)
        self._network = next(ip_network(cidr) for cidr in self._node.pod_cidrs if family_of(cidr) == 4)
        self._made: list[Starting] = []
        self._count = 0

    def take(self, count: int, *, by_cni: bool) -> list[Starting]:
        """Start pods together; return when each has had a connection. `by_cni`: the CNI result comes last."""
        pods = [self._next() for _ in range(count)]
        for one in pods:
            if by_cni:
                self._write_object(one, addressed=False)
            else:
                self._plug(one)
        time.sleep(SETTLE_SECONDS)
        with trying(pods, self._place.server):
            for one in pods:
                if by_cni:
                    self._plug(one)
                else:
                    self._write_object(one, addressed=True)
            until(lambda: all(one.passed for one in pods) or None, "a pod's first packet", PATIENCE_SECONDS)
        return pods

    def remove(self) -> None:
        """Everything that was made."""
        while self._made:
            one = self._made.pop()
            self._object(one).unlink(missing_ok=True)
            (self._place.lab.cni_directory(NODE) / cni_result.file_name(one.pod)).unlink(missing_ok=True)
            interface = network.host_interface(one.pod, self._state.settings)
            network.unplug_pod(self._state.nodes[NODE].namespace, one.namespace, interface)

    def _next(self) -> Starting:
        self._count += 1
        address = str(self._network.network_address + FIRST_ADDRESS + len(self._made))
        pod = Pod("default", f"starts-{self._count}", NODE, (address,), {"app": "frontend", "starts": "here"})
        one = Starting(pod, self._place.lab.namespace_name(pod.namespace, pod.name))
        self._made.append(one)
        return one

    def _plug(self, one: Starting) -> None:
        settings, node = self._state.settings, self._state.nodes[NODE].namespace
        one.interface = time.monotonic_ns()
        veth = network.plug_pod(node, one.namespace, self._node, one.pod, settings)
        result = cni_result.cached(one.pod, self._node, veth, settings.cni, one.namespace)
        result["cniArgs"].append(["K8S_POD_UID", _uid(one.pod)])
        one.known = time.monotonic_ns()
        _replace(self._place.lab.cni_directory(NODE) / cni_result.file_name(one.pod), result)
        one.veth = veth

    def _write_object(self, one: Starting, *, addressed: bool) -> None:
        document: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": one.pod.name, "labels": dict(one.pod.labels), "uid": _uid(one.pod)},
            "spec": {"nodeName": NODE},
            "status": {"podIP": one.pod.addresses[0]} if addressed else {},
        }
        one.known = time.monotonic_ns()
        _replace(self._object(one), document)

    def _object(self, one: Starting) -> Path:
        return self._place.lab.store.directory / f"{one.pod.name}.yaml"


def _uid(pod: Pod) -> str:
    return f"uid-of-{pod.name}"


def _replace(path: Path, document: dict[str, Any]) -> None:
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(json.dumps(document))
    fresh.replace(path)


@contextlib.contextmanager
def trying(pods: Sequence[Starting], server: str) -> Iterator[None]:
    """Try a connection from each pod in turn, until one is accepted."""
    ended = threading.Event()
    thread = threading.Thread(target=partial(_try, pods, server, ended))
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _try(pods: Sequence[Starting], server: str, ended: threading.Event) -> None:
    pause = BETWEEN_TRIES if len(pods) == 1 else 10 * BETWEEN_TRIES
    while not ended.wait(pause):
        for one in pods:
            if one.veth is not None and not one.passed and _connects(one.namespace, server):
                one.passed = time.monotonic_ns()


def _connects(namespace: str, server: str) -> bool:
    netns.enter(netns.path_of(namespace), netns.CLONE_NEWNET)
    try:
        socket.create_connection((server, DIRECT), timeout=0.2).close()
    except OSError:
        return False
    return True


def measure(place: Stage, effort: Effort, report: Report) -> list[Row]:
    singles = 4 if effort.quick else 30
    rows: list[Row] = []
    policy = place.lab.store.directory / "pod-start.yaml"
    with place.proxy(OURS):
        _replace(policy, POLICY)
        starts = Starts(place)
        try:
            for by_cni, name in ((True, "a pod's CNI result"), (False, "a Pod object with an address")):
                alone = [one for _ in range(singles) for one in _apart(starts, by_cni=by_cni)]
                rows += _rows(f"{name} → first packet", alone, report, by_cni=by_cni)
                starts.remove()
                rows += _rows(
                    f"{name} → first packet, {TOGETHER} at once",
                    starts.take(TOGETHER, by_cni=by_cni),
                    report,
                    by_cni=by_cni,
                )
                starts.remove()
        finally:
            starts.remove()
            policy.unlink()
    return rows


def _apart(starts: Starts, *, by_cni: bool) -> list[Starting]:
    found = starts.take(1, by_cni=by_cni)
    starts.remove()
    return found


def _rows(name: str, pods: Sequence[Starting], report: Report, *, by_cni: bool) -> list[Row]:
    found = [(one.passed - one.known) / 1e6 for one in pods]
    note = f"{len(found)} pods"
    if by_cni:
        since = percentile([(one.passed - one.interface) / 1e6 for one in pods], 0.99)
        note += f"; p99 from the interface's creation {since:.0f} ms"
    report(f"{name}: p50 {percentile(found, 0.5):.0f} ms, p99 {percentile(found, 0.99):.0f} ms; {note}")
    return [
        compared(f"{name}, p50", "ms", [percentile(found, 0.5)]),
        compared(f"{name}, p99", "ms", [percentile(found, 0.99)], goal=GOAL, note=note),
    ]


FIGURE = OnStage("pod-start", "a pod starts → its first packet passes", measure)
