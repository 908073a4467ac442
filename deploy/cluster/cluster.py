"""A whole cluster: up, down, and what runs of it."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from deploy.cluster import (
    api,
    cni,
    containerd,
    control_plane,
    dns,
    facts,
    gateway,
    images,
    kube_proxy,
    kubelet,
    lock,
    machine,
    network,
    parts,
    pki,
    shell,
)
from deploy.cluster.parts import Parts
from deploy.cluster.plan import CLUSTERS, MAX_NODES, Cluster, Machine
from deploy.cluster.progress import say
from l7proxy.errors import ConfigError
from l7proxy.lab import processes

CONTROL_PROGRAMS: Final = (gateway.PROGRAM, *control_plane.PROGRAMS)
NODE_PROGRAMS: Final = ("containerd", "kubelet", "kube-proxy")
_API_STARTS_IN: Final = 180.0
_NODES_READY_IN: Final = 180.0


def require_root() -> None:
    if os.geteuid() != 0:
        raise ConfigError("a cluster needs root, for namespaces, mounts and cgroups: sudo make cluster")


def running(name: str) -> Cluster | None:
    """The cluster of this name as it was brought up, or None if it is not up or not whole."""
    try:
        cluster = Cluster(**json.loads(_marker(name).read_text()))
    except FileNotFoundError:
        return None
    return cluster if all(machine.is_running(each) for each in cluster.machines) else None


def _marker(name: str) -> Path:
    """Written when a cluster is complete: what `up` was asked for."""
    return CLUSTERS / name / "cluster.json"


def up(cluster: Cluster, archives: Sequence[Path] = ()) -> bool:
    """Bring a cluster up, unless it is: False then. `archives`: further images for all nodes."""
    require_root()
    if _is_up(cluster):
        return False
    facts.require(cluster)
    for archive in archives:
        if not archive.is_file():
            raise ConfigError(f"--image {archive}: there is no such file")
    made = parts.ready()
    all_archives = (*images.ready(made), *images.built(), *archives)
    with lock.exclusive(cluster.data, 0o700):
        if _is_up(cluster):
            return False
        _remove(cluster.name)
        _build(cluster, made, all_archives)
        _marker(cluster.name).write_text(json.dumps(asdict(cluster)))
    return True


def _is_up(cluster: Cluster) -> bool:
    found = running(cluster.name)
    if found and found != cluster:
        raise ConfigError(
            f"cluster {cluster.name} is up with CNI={found.cni} PROXY={found.proxy} and {found.node_count} nodes:"
            " `make cluster-down` first"
        )
    return found is not None


def _build(cluster: Cluster, made: Parts, archives: Sequence[Path]) -> None:
    pki.create(cluster)
    say("certificates")
    for each in cluster.machines:
        machine.create(each, made.pause, _machine_spec(cluster, each, made))
    network.connect(cluster)
    say(f"{len(cluster.machines)} machines and the network between them")
    with ThreadPoolExecutor() as pool:
        runtimes = [pool.submit(_start_runtime, node, made, archives) for node in cluster.nodes]
        server = _start_control_plane(cluster, made)
        for runtime in runtimes:
            runtime.result()
    for node in cluster.nodes:
        kubelet.start(cluster, node, made)
        kube_proxy.start(cluster, node, made)
    _apply(cluster, made, dns.manifests())
    _wait_until_ready(cluster, server)


def _machine_spec(cluster: Cluster, each: Machine, made: Parts) -> dict[str, object]:
    """What `machine_init` reads: directories to bind (target: source), files to write."""
    owned = {
        "/var/lib/cni": each.data / "cni",
        "/var/log": each.data / "var-log",
        containerd.CNI_CONFIGURATION: each.data / "cni-configuration",
    }
    for directory in owned.values():
        directory.mkdir(parents=True, exist_ok=True)
    if each in cluster.nodes:
        (each.data / "cni-configuration" / cni.FILE).write_text(cni.conflist(cluster, each))
    hosts = [f"{address} {other.name}" for other in cluster.machines for address in other.addresses]
    return {
        "data": str(cluster.data),
        "binds": {target: str(source) for target, source in owned.items()}
        | {containerd.CNI_PLUGINS: str(made.cni_plugins)},
        "in_memory": ["/var/lib/containerd", "/var/lib/kubelet"],
        "files": {
            "/etc/hosts": "\n".join(["127.0.0.1 localhost", "::1 localhost", *hosts]) + "\n",
            kubelet.RESOLV_CONF: "",
        },
    }


def _start_runtime(node: Machine, made: Parts, archives: Iterable[Path]) -> None:
    containerd.start(node, made)
    containerd.load(node, made, archives)
    say(f"{node.name}: containerd and images")


def _start_control_plane(cluster: Cluster, made: Parts) -> api.Api:
    port = gateway.start(cluster)
    pki.write_kubeconfig(cluster.kubeconfig, cluster, "admin", f"https://{pki.LOOPBACK}:{port}")
    for program in control_plane.SERVERS:
        control_plane.start(cluster, program, made)
    client = api.Api(cluster)
    servers = {cluster.control: control_plane.SERVERS}
    api.wait_until(client.is_ready, "the API server", _API_STARTS_IN, _after(3.0, lambda: _check_running(servers)))
    for program in control_plane.CLIENTS:
        control_plane.start(cluster, program, made)
    say("control plane")
    for node in cluster.nodes:
        client.create("/api/v1/nodes", _node_object(node))
    return client


def _node_object(node: Machine) -> dict[str, Any]:
    """A Node with its pod prefixes: they are known before the kubelet registers, and so are CNI and routes."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name, "labels": {"kubernetes.io/hostname": node.name}},
        "spec": {"podCIDR": node.pod_cidrs[0], "podCIDRs": list(node.pod_cidrs)},
    }


def _apply(cluster: Cluster, made: Parts, documents: Sequence[dict[str, Any]]) -> None:
    document = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(documents)})
    shell.run([made.kubectl, "--kubeconfig", cluster.kubeconfig, "apply", "-f", "-"], stdin=document)


def _wait_until_ready(cluster: Cluster, server: api.Api) -> None:
    names = {node.name for node in cluster.nodes}
    programs = {each: _programs(cluster, each) for each in cluster.machines}
    check = _after(5.0, lambda: _check_running(programs))
    api.wait_until(lambda: server.ready_nodes() >= names, "all nodes Ready", _NODES_READY_IN, check)
    say("nodes are Ready")
    api.wait_until(lambda: server.available(dns.NAMESPACE, dns.NAME), "CoreDNS available", _NODES_READY_IN, check)
    say("cluster DNS answers")


def _check_running(programs: Mapping[Machine, Sequence[str]]) -> None:
    """ConfigError if one has ended: nothing starts it again."""
    for each, names in programs.items():
        for name in names:
            machine.check_running(each, name)


def _after(seconds: float, check: Callable[[], None]) -> Callable[[], None]:
    """A check that begins after a time: a program that is about to start does not run yet."""
    begin = time.monotonic() + seconds
    return lambda: check() if time.monotonic() > begin else None


def down(name: str) -> bool:
    """End a cluster and remove all of it. False if there was none. What a killed `up` left is removed, too."""
    require_root()
    directory = CLUSTERS / name
    existed = directory.exists()
    with lock.exclusive(directory, 0o700):
        existed = _remove(name) or existed
        directory.rmdir()
    with contextlib.suppress(OSError):  # another cluster is in it
        CLUSTERS.rmdir()
    return existed


def _remove(name: str) -> bool:
    """End all machines and remove all data; the cluster's directory stays, since it is the lock."""
    destroyed = machine.destroy(Cluster(name, node_count=MAX_NODES).machines)
    return lock.empty(CLUSTERS / name) or destroyed


def load(cluster: Cluster, made: Parts, archives: Sequence[Path]) -> None:
    """Import OCI archives into all nodes."""
    with ThreadPoolExecutor() as pool:
        for loaded in [pool.submit(containerd.load, node, made, archives) for node in cluster.nodes]:
            loaded.result()


def components(cluster: Cluster) -> dict[str, dict[str, bool]]:
    """machine → program → does it run."""
    return {
        each.name: {program: bool(machine.find(each, program)) for program in _programs(cluster, each)}
        for each in cluster.machines
    }


def stop(cluster: Cluster, where: str, program: str, *, grace: float = 10.0) -> None:
    """End one program (SIGTERM, after `grace` seconds SIGKILL); `start` brings it back."""
    processes.end(_running(cluster, where, program), grace=grace)


def kill(cluster: Cluster, where: str, program: str) -> None:
    """End one program as a failure would. When this returns, its ports are free."""
    processes.kill(_running(cluster, where, program))


def start(cluster: Cluster, where: str, program: str) -> None:
    """Start one program, unless it runs."""
    if _running(cluster, where, program):
        return
    each, made = machine_named(cluster, where), parts.ready()
    match program:
        case gateway.PROGRAM:
            gateway.start(cluster, int(api.server_of(cluster).rpartition(":")[2]))
        case "containerd":
            containerd.start(each, made)
        case "kubelet":
            kubelet.start(cluster, each, made)
        case "kube-proxy":
            kube_proxy.start(cluster, each, made)
        case _:
            control_plane.start(cluster, program, made)


def _running(cluster: Cluster, where: str, program: str) -> list[processes.Process]:
    each = machine_named(cluster, where)
    known = _programs(cluster, each)
    if program not in known:
        raise ConfigError(f"no program {program} on {where}: there are {', '.join(known)}")
    return machine.find(each, program)


def _programs(cluster: Cluster, each: Machine) -> tuple[str, ...]:
    return CONTROL_PROGRAMS if each == cluster.control else NODE_PROGRAMS


def machine_named(cluster: Cluster, name: str) -> Machine:
    for each in cluster.machines:
        if each.name == name:
            return each
    raise ConfigError(f"no machine {name}: there are {', '.join(each.name for each in cluster.machines)}")
