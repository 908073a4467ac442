"""up, apply, delete, down: the order in which a lab is built, changed and removed. The only file that does all of it.

Up: save the names, make the underlay, the nodes and the pod interfaces, apply the manifests, start agents and pods, and
return when every agent reports that all is enforced. Down: end processes, remove namespaces (with their links, routes
and rules), then files. Any failure of `up`, Ctrl-C included, runs down.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from l7proxy.errors import ConfigError, SourceError
from l7proxy.lab import agents, cni_result, kube_proxy, names, netns, network, processes
from l7proxy.lab.cluster import Cluster, Pod, read_cluster
from l7proxy.lab.manifests import Key, Manifest, read
from l7proxy.lab.plan import Plan, merged, plan
from l7proxy.lab.sandbox import Spec, read_status
from l7proxy.lab.settings import Settings
from l7proxy.lab.state import Box, Lab, State

Report = Callable[[str], None]
START_SECONDS: Final = 15.0
SANDBOX: Final = "l7proxy.lab.sandbox"
DEMO: Final = Path(__file__).resolve().parents[2] / "deploy" / "demo"


def silent(_: str) -> None:
    """Reports nothing."""


def manifests_of(paths: Sequence[Path]) -> list[Manifest]:
    """The manifests given by `-f`, or the demo's."""
    if not paths and not DEMO.is_dir():
        raise ConfigError("-f is required: the demo's manifests (deploy/demo) are not part of this installation")
    return read(paths or [DEMO])


# up


def up(settings: Settings, given: Sequence[Manifest], report: Report = silent) -> Lab:
    """Start a lab. The remains of a crashed one of this name are removed first."""
    lab = Lab(settings.name)
    planned = plan(given, settings.families)
    with lab.locked():
        _clear_stale(lab, report)
        try:
            _build(lab, settings, planned, report)
        except BaseException:
            report("removing what was created")
            _clear(lab)
            raise
    return lab


def _clear_stale(lab: Lab, report: Report) -> None:
    if is_up(lab):
        raise ConfigError(
            f"the lab {lab.name!r} is already running: run `l7proxy lab down --name {lab.name}` first, or set --name"
        )
    if lab.directory.exists():
        report(f"removing the remains of an earlier lab {lab.name!r}")
        _clear(lab)
    if strangers := _namespaces(lab):  # not created from this directory, so not removed
        raise ConfigError(f"the network namespace {strangers[0]} already exists: set another --name")


def is_up(lab: Lab) -> bool:
    """True when it came up completely and a part of it still runs. A damaged lab.json counts as a stale lab."""
    try:
        state = lab.load()
    except ConfigError:
        return False
    return state.up and any(box.alive for box in state.boxes)


def _build(lab: Lab, settings: Settings, planned: Plan, report: Report) -> None:
    lab.make()
    cluster = planned.cluster
    state = State(settings, lab.namespace_name("wire"))
    for node in cluster.nodes:
        state.nodes[node.name] = Box(lab.namespace_name(node.name), node.name)
    lab.save(state)
    network.make_wire(state.wire, settings)
    for index, node in enumerate(cluster.nodes):
        report(f"{node.name}: {', '.join(node.addresses)}, pods in {', '.join(node.pod_cidrs)}")
        network.make_node(state.nodes[node.name].namespace, state.wire, node, index, settings)
        network.route_nodes(state.nodes[node.name].namespace, [other for other in cluster.nodes if other != node])
        lab.cni_directory(node.name).mkdir(mode=0o700, parents=True, exist_ok=True)
        lab.run_directory(node.name).mkdir(mode=0o700, parents=True, exist_ok=True)
    _follow(lab, state, planned, report)
    state.up = True
    lab.save(state)


def _follow(lab: Lab, state: State, planned: Plan, report: Report) -> None:
    """Update pods, names, Services and agents to the plan; return when all is enforced."""
    cluster = planned.cluster
    wanted = {str(pod): pod for pod in cluster.pods}
    specs = {name: _pod_spec(lab, state, pod) for name, pod in wanted.items()}
    for name, box in list(state.pods.items()):
        if not box.alive or name not in wanted or _fingerprint(wanted[name], specs[name]) != box.spec:
            report(f"{name}: removing")
            _remove_pod(lab, state, name)
    fresh = [pod for name, pod in wanted.items() if name not in state.pods]
    for pod in fresh:
        _connect(lab, state, cluster, pod, _fingerprint(pod, specs[str(pod)]))
        report(f"{pod}: {', '.join(pod.addresses)} on {pod.node}")
    _write_hosts(lab, cluster)
    for node in cluster.nodes:
        kube_proxy.sync(state.nodes[node.name].namespace, cluster, node, state.settings.families)
    lab.store.save(planned.manifests)
    for node_name, box in state.nodes.items():
        if not box.alive:
            box.process = _start(_node_spec(lab, state, node_name))
            lab.save(state)
    for pod in fresh:
        state.pods[str(pod)].process = _start(specs[str(pod)])
        lab.save(state)
    _wait_ready([Path(specs[str(pod)].directory) for pod in fresh] + [lab.node_directory(n) for n in state.nodes])
    if fresh:
        report(f"{len(fresh)} pods running")
    if state.settings.agent:
        agents.wait_enforced(lab, list(state.nodes), report)


def _connect(lab: Lab, state: State, cluster: Cluster, pod: Pod, fingerprint: str) -> None:
    node = cluster.node(pod.node)
    on = state.nodes[pod.node].namespace
    if pod.host_network:
        state.pods[str(pod)] = Box("", pod.node, spec=fingerprint)
        return
    namespace = lab.namespace_name(pod.namespace, pod.name)
    interface = network.host_interface(pod, state.settings)
    state.pods[str(pod)] = Box(namespace, pod.node, interface, spec=fingerprint)
    lab.save(state)
    veth = network.plug_pod(on, namespace, node, pod, state.settings)
    result = cni_result.cached(pod, node, veth, state.settings.cni, namespace)
    (lab.cni_directory(pod.node) / cni_result.file_name(pod)).write_text(json.dumps(result))


def _remove_pod(lab: Lab, state: State, name: str) -> None:
    box = state.pods[name]
    _end([box], [box.namespace] if box.namespace else [])
    if box.namespace:
        network.unplug_pod(state.nodes[box.node].namespace, box.namespace, box.interface)
    namespace, _, pod = name.partition("/")
    gone = Pod(namespace, pod)
    (lab.cni_directory(box.node) / cni_result.file_name(gone)).unlink(missing_ok=True)
    _remove_tree(lab.pod_directory(gone))
    del state.pods[name]
    lab.save(state)


def _pod_spec(lab: Lab, state: State, pod: Pod) -> Spec:
    directory = lab.pod_directory(pod)
    own = lab.namespace_name(pod.namespace, pod.name)
    return Spec(
        name=pod.name,
        namespace=state.nodes[pod.node].namespace if pod.host_network else own,
        directory=str(directory),
        hosts=str(directory / "hosts"),
        containers=pod.containers,
        listeners=pod.listeners,
        environment={"HOSTNAME": pod.name},
    )


def _node_spec(lab: Lab, state: State, node: str) -> Spec:
    directory = lab.node_directory(node)
    run = (agents.container(lab, state.settings, node),) if state.settings.agent else ()
    return Spec(node, state.nodes[node].namespace, str(directory), str(directory / "hosts"), run)


def _fingerprint(pod: Pod, spec: Spec) -> str:
    """Everything that cannot change in a running pod."""
    return msgspec.json.encode((pod.node, pod.addresses, spec)).decode()


def _write_hosts(lab: Lab, cluster: Cluster) -> None:
    """Written in place: the files are bind-mounted in the pods, which would not see a replaced file."""
    for pod in cluster.pods:
        lab.pod_directory(pod).mkdir(mode=0o755, parents=True, exist_ok=True)
        (lab.pod_directory(pod) / "hosts").write_text(names.hosts_file(cluster, pod))
    for node in cluster.nodes:
        own = Pod("", node.name)
        (lab.node_directory(node.name) / "hosts").write_text(names.hosts_file(cluster, own))


def _start(spec: Spec) -> processes.Process:
    directory = Path(spec.directory)
    path = directory / "spec.json"
    path.write_bytes(msgspec.json.encode(spec))
    (directory / "status.json").unlink(missing_ok=True)
    with (directory / "sandbox.log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", SANDBOX, str(path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    child.returncode = 0  # it outlives this command; this suppresses Popen's warning
    return processes.identify(child.pid)


def _wait_ready(directories: Iterable[Path]) -> None:
    deadline = time.monotonic() + START_SECONDS
    for directory in directories:
        while not (seen := read_status(directory)).ready:
            if seen.error or time.monotonic() > deadline:
                reason = (
                    seen.error or f"did not start in {START_SECONDS:g} s: {agents.log_tail(directory / 'sandbox.log')}"
                )
                raise ConfigError(f"{directory.name.replace('_', '/')}: {reason}")
            time.sleep(0.01)


# apply and delete


def apply(lab: Lab, given: Sequence[Manifest], report: Report = silent) -> None:
    """As `kubectl apply`: existing objects are changed, new ones are created."""
    with lab.locked():
        state = _loaded(lab)
        _change(lab, state, merged(lab.store.load(), given), report)


def delete(lab: Lab, keys: Sequence[Key], report: Report = silent) -> None:
    """As `kubectl delete`; deleting an object that does not exist is an error."""
    with lab.locked():
        state = _loaded(lab)
        stored = lab.store.load()
        if missing := [str(key) for key in keys if key not in stored]:
            raise ConfigError(f"not in the lab: {', '.join(missing)}")
        _change(lab, state, [m for key, m in stored.items() if key not in set(keys)], report)


def _loaded(lab: Lab) -> State:
    state = lab.load()
    if not state.up:
        raise ConfigError(
            f"the lab {lab.name!r} did not start completely: run `l7proxy lab up --name {lab.name}` to restart it"
        )
    return state


def _change(lab: Lab, state: State, manifests: list[Manifest], report: Report) -> None:
    planned = plan(manifests, state.settings.families)
    if {node.name for node in planned.cluster.nodes} != set(state.nodes):
        raise SourceError("nodes cannot be changed in a running lab: run `l7proxy lab down` first", field="Node")
    _follow(lab, state, planned, report)


# down


def down(lab: Lab, report: Report = silent) -> None:
    """Remove everything. It is not an error if the lab does not exist."""
    with lab.locked():
        if lab.directory.exists():
            report(f"removing {lab.name}")
            _clear(lab)


def _clear(lab: Lab) -> None:
    left = _namespaces(lab)  # also for a damaged lab.json
    boxes: list[Box] = []
    with contextlib.suppress(ConfigError):
        state = lab.load()
        boxes = state.boxes
        left = list(dict.fromkeys([*state.namespaces(), *left]))
    _end(boxes, left)
    inodes = netns.inodes(left)
    for namespace in left:
        netns.remove(namespace)
    # A process that entered meanwhile, or one of an interrupted `up` that is too new to be in its namespace yet.
    processes.end([*processes.inside(inodes), *processes.running(SANDBOX, lab.directory)], grace=0.5)
    lab.remove()


def _namespaces(lab: Lab) -> list[str]:
    """Every named network namespace of a lab of this name."""
    return sorted(path.name for path in netns.NETNS_DIR.glob(f"{lab.namespace_name('')}*"))


def _end(boxes: Sequence[Box], namespaces: Sequence[str]) -> None:
    """End the lab's processes, then all others in these namespaces."""
    processes.end([box.process for box in boxes if box.process], grace=7.0)
    processes.end(processes.inside(netns.inodes(namespaces)), grace=0.5)


def _remove_tree(directory: Path) -> None:
    for path in directory.iterdir() if directory.exists() else ():
        path.unlink()
    with contextlib.suppress(FileNotFoundError):
        directory.rmdir()


def cluster_of(lab: Lab) -> Cluster:
    """The lab's objects in their present state."""
    return read_cluster(list(lab.store.load().values()))
