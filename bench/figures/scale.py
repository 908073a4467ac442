"""A very large cluster: time to ready from cold, memory, CPU under churn, time from a policy to its enforcement.

The real agent and worker read an API server that holds all objects (`api_servers`); kernel and packets are real. Ready:
the worker answers by a policy that came from the server. Churn: pods are replaced ten at a time, as rollouts do it,
each by the three updates that an agent sees: the old one is deleted, the new one comes without an address, and then has
the address of the old one. While requests are timed, API server, etcd and churn are SCHED_IDLE: the latency with churn
is that of our agent and worker, and the rate of updates that was reached is told. Applied: from the request to the
server (kubectl's own start is not in it) to the first connections that kernel and worker both treat by the new policy.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from queue import Queue
from typing import Final, TypeVar

import yaml

from bench import api_servers, load, rules, scale_world, scheduling
from bench.cpu import children, peak_mib, rss_mib, used
from bench.figures import Effort, OnStage, Report
from bench.figures.changes import timed
from bench.row import Goal, Row, compared, percentile
from bench.scale_world import Size
from bench.stage import BULK, DIRECT, GRPC, HTTP, NODE, Stage, stop, tail
from l7proxy.lab import netns

T = TypeVar("T")

READY_SECONDS: Final = 180.0
SETTLE_SECONDS: Final = 10.0
"""Before the loads: time for the agent to save all objects and to write the status of the policies."""
UPDATES: Final = 100
"""Updates of pods per second."""
BURST: Final = 10
"""Updates at once, in one transaction of etcd."""
STEPS: Final = 3
"""Updates for one replaced pod."""
RATE: Final = 100
"""Requests per second, for the worker's latency."""
CHANGES: Final = 40
PORTS: Final = (91, 92)


def measure(place: Stage, effort: Effort, report: Report) -> list[Row]:
    size = Size(500, 15_000, 1_000, 100) if effort.quick else Size()
    with tempfile.TemporaryDirectory(prefix="l7proxy-scale-") as scratch, contextlib.ExitStack() as stack:
        report(f"an API server gets {size}")
        server = stack.enter_context(_server(place, Path(scratch), size))
        for port in PORTS:
            stack.enter_context(place.serving(port, sys.executable, "-m", "bench.bulk_server", str(port)))
        report(f"{server.name}: filled")
        began = time.monotonic()
        agent, worker = stack.enter_context(_agent(place, Path(scratch), server.kubeconfig))
        ready = time.monotonic() - began
        report(f"ready after {ready:.1f} s; agent: RSS {rss_mib(agent):.0f} MiB, peak {peak_mib(agent):.0f} MiB")
        time.sleep(SETTLE_SECONDS)
        churn = Churn(place, server, size)
        stack.enter_context(scheduling.one_group())
        edits = timed(place, 6 if effort.quick else CHANGES, partial(_edit, place, server), _edited, report)
        seconds = 2 * effort.seconds
        with scheduling.idle(server.pids):
            calm = _loaded(place, seconds)
        with churn.running() as thread:
            with scheduling.idle(server.pids, [thread]):
                before, since, made = used(agent), time.monotonic(), churn.made
                busy = _loaded(place, seconds)
                took = time.monotonic() - since
                share, rate = (used(agent) - before).total / took, (churn.made - made) / took
            count = 3 if effort.quick else CHANGES // 2
            in_churn = timed(place, count, partial(_edit, place, server), _edited, report)
        peak, worker_peak = peak_mib(agent), peak_mib(worker)
        report(f"agent: {share:.2f} of a core; RSS {rss_mib(agent):.0f} MiB, peak {peak:.0f} MiB; {rate:.0f} updates/s")
    note = f"{size}; {server.name}"
    return [
        compared("a large cluster listed and enforced, from cold", "s", [ready], goal=_at_most(60), note=note),
        compared("agent's peak RSS in it, start and churn", "MiB", [peak], goal=_at_most(300), note=note),
        compared("worker's peak RSS in it", "MiB", [worker_peak]),
        compared(
            f"agent's share of a core, {UPDATES} pod updates/s wanted", "%", [100 * share], goal=_at_most(20),
            note=f"{rate:.0f} updates/s made",
        ),
        compared(
            "p99 of requests through the worker, with churn ÷ without", "µs", [busy.p99_us], [calm.p99_us],
            against="without", goal=Goal(1.05), note=f"at {RATE}/s for {seconds:.0f} s",
        ),
        *_applied("a policy applied in it → enforced", edits),
        *_applied("the same under churn", in_churn),
    ]  # fmt: skip


def _applied(name: str, found: list[float]) -> list[Row]:
    note = f"{len(found)} changes"
    return [
        compared(f"{name}, p50", "ms", [percentile(found, 0.5)], goal=_at_most(100), note=note),
        compared(f"{name}, p99", "ms", [percentile(found, 0.99)], goal=_at_most(300), note=note),
    ]


def _at_most(value: float) -> Goal:
    return Goal(value, absolute=True)


def _loaded(place: Stage, seconds: float) -> load.Seen:
    return load.fixed_rate(place, rate=RATE, seconds=seconds)


# what changes


def _edit(place: Stage, server: api_servers.Server, number: int) -> None:
    """One path and one port are allowed for all pods of the node in one state, others in the other."""
    state = number % 2
    ports = [
        {"ports": [_port(HTTP)], "rules": {"http": [{"method": "GET", "path": f"/edit/{state}/.*"}]}},
        {"ports": [_port(PORTS[state])]},
    ]
    peers = [{"matchLabels": {"k8s:io.kubernetes.pod.namespace": "default", "app": "frontend"}}]
    spec = {
        "endpointSelector": {"matchLabels": scale_world.HERE},
        "ingress": [{"fromEndpoints": peers, "toPorts": ports}],
    }
    kind = {"apiVersion": "cilium.io/v2", "kind": "CiliumClusterwideNetworkPolicy"}
    _in_node(place, partial(server.apply, kind | {"metadata": {"name": "edit"}, "spec": spec}))


def _edited(number: int) -> str:
    now, other = number % 2, 1 - number % 2
    paths = f"200 {HTTP} /edit/{now}/x;403 {HTTP} /edit/{other}/x"
    return f"{paths};open {PORTS[now]};closed {PORTS[other]}"


def _port(number: int) -> dict[str, str]:
    return {"port": str(number), "protocol": "TCP"}


class Churn:
    """Replaces pods of other nodes, UPDATES updates each second."""

    def __init__(self, place: Stage, server: api_servers.Server, size: Size) -> None:
        self.made = 0
        self._place, self._server, self._size = place, server, size
        self._stop = threading.Event()
        self._number: Queue[int] = Queue()

    @contextlib.contextmanager
    def running(self) -> Iterator[int]:
        """The number of the thread that makes the updates (gettid(2))."""
        thread = threading.Thread(target=lambda: _in_node(self._place, self._run), name="churn")
        thread.start()
        try:
            yield self._number.get()
        finally:
            self._stop.set()
            thread.join()

    def _run(self) -> None:
        self._number.put(threading.get_native_id())
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            self._update(*divmod(self.made // BURST, STEPS))
            self.made += BURST
            due += BURST / UPDATES

    def _update(self, group: int, step: int) -> None:
        pods = range(group * BURST, (group + 1) * BURST)
        if step == 0:
            self._server.change([], [self._pod(number, replaced=0) for number in pods])
            return
        new = [self._pod(number, replaced=1) for number in pods]
        self._server.change(new if step == 2 else [one | {"status": {"phase": "Pending"}} for one in new])

    def _pod(self, number: int, replaced: int) -> scale_world.Document:
        generation, index = divmod(number * 7, self._size.pods - 1)
        index += not index % self._size.nodes  # no pod of our node
        return scale_world.pod(self._size, index, NODE, generation + replaced)


# what runs


@contextlib.contextmanager
def _server(place: Stage, folder: Path, size: Size) -> Iterator[api_servers.Server]:
    """The API server, in the node's namespace, beside client and server."""
    documents = [yaml.safe_load(path.read_text()) for path in place.lab.store.directory.glob("*.yaml")]
    here = [one for one in documents if one["kind"] in ("Node", "Pod")]
    for pod in (one for one in here if one["kind"] == "Pod"):
        pod["metadata"].setdefault("labels", {}).update(scale_world.HERE)
    chosen = rules.policy(rules.rules(10), http_ports=(HTTP, BULK, GRPC), open_ports=(DIRECT,))
    here.append(json.loads(chosen))
    for one in here:
        if one["kind"] != "Node":
            one["metadata"].setdefault("namespace", "default")
    serving = api_servers.serving(folder, [*here, *scale_world.objects(size, NODE)], place.cores.others)
    server = _in_node(place, serving.__enter__)
    try:
        yield server
    finally:
        _in_node(place, partial(serving.__exit__, None, None, None))


@contextlib.contextmanager
def _agent(place: Stage, folder: Path, kubeconfig: Path) -> Iterator[tuple[int, int]]:
    """The pids of agent and worker, once they enforce what the server has."""
    run_dir, config, log = place.lab.run_directory(NODE), folder / "l7proxy.json", folder / "l7proxy.log"
    settings = {
        "source": "kubernetes", "kubeconfig": str(kubeconfig), "state-dir": str(folder / "state"), "node": NODE,
        "run-dir": str(run_dir), "cni-results": str(place.lab.cni_directory(NODE)), "workers": 1,
        "backend": "nftables", "namespace": "default", "drain": 1.0,
    }  # fmt: skip
    config.write_text(json.dumps(settings))
    command = [sys.executable, "-m", "l7proxy.cli.main", "run", "--config", str(config)]
    with log.open("wb") as err:
        child = place.start(f"node/{NODE}", *place.cores.pin_proxy(command), stdout=subprocess.DEVNULL, stderr=err)
    try:
        worker = _ready(place, child, log)
        yield next(pid for pid in children(child.pid) if pid != worker), worker
    finally:
        stop(child)


def _ready(place: Stage, child: subprocess.Popen[bytes], log: Path) -> int:
    """The worker's pid, once it answers by the policy."""
    end = time.monotonic() + READY_SECONDS
    while not ((status := place.status()).get("workers") and place.answers()):
        if child.poll() is not None:
            raise SystemExit(f"it ended with exit code {child.returncode}: {tail(log)}")
        if time.monotonic() > end:
            raise SystemExit(f"not ready after {READY_SECONDS:.0f} s: {status} {tail(log)}")
        time.sleep(0.05)
    return int(status["workers"][0]["pid"])


def _in_node(place: Stage, function: Callable[[], T]) -> T:
    return netns.inside(place.lab.load().nodes[NODE].namespace, function)


FIGURE = OnStage("scale", "a cluster of 5 000 nodes and 150 000 pods: ready, memory, churn, policy → enforced", measure)
