"""`python -m deploy.cluster`: a real Kubernetes on this machine."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import get_args

from deploy.cluster import cluster as clusters
from deploy.cluster import facts, images, machine, parts, preflight
from deploy.cluster.plan import Cluster, Cni, ProxyMode
from l7proxy.errors import ConfigError

DEFAULT_NAME = "kube"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploy.cluster", description="A real Kubernetes on this machine.")
    parser.add_argument("--name", default=DEFAULT_NAME, help="which cluster (default: %(default)s)")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="bring a cluster up, and leave it up")
    check = commands.add_parser("check", help="say what a cluster needs, and what of it this machine has not")
    for one in (up, check):
        one.add_argument("--cni", choices=get_args(Cni), default="bridge")
        one.add_argument("--proxy", choices=get_args(ProxyMode), default="nftables", help="mode of kube-proxy")
        one.add_argument("--nodes", type=int, default=2)
    up.add_argument("--image", type=Path, action="append", default=[], help="an OCI archive for all nodes")
    commands.add_parser("down", help="end it and remove all of it")
    commands.add_parser("status", help="what runs")
    commands.add_parser(
        "parts",
        help="build and download all that a cluster needs; prints the directory of etcd, kubectl and Kubernetes",
    )
    load = commands.add_parser("load", help="import OCI archives into all nodes")
    load.add_argument("archive", nargs="+", type=Path)
    for name in ("stop", "kill", "start"):
        one = commands.add_parser(name, help=f"{name} one program: `{name} control kube-apiserver`")
        one.add_argument("machine")
        one.add_argument("program")
    enter = commands.add_parser("enter", help="run a command (default: a shell) in the namespaces of a machine")
    enter.add_argument("machine")
    enter.add_argument("arguments", nargs=argparse.REMAINDER)
    for name in ("kubectl", "helm"):
        passed = commands.add_parser(name, help=f"run {name} on the cluster", add_help=False)
        passed.add_argument("arguments", nargs=argparse.REMAINDER)
    return parser


def _existing(name: str) -> Cluster:
    found = clusters.running(name)
    if not found:
        raise ConfigError(f"no cluster {name} is up: make cluster")
    return found


def _asked_for(given: argparse.Namespace) -> Cluster:
    return Cluster(given.name, given.cni, given.proxy, given.nodes)


def _check(given: argparse.Namespace) -> int:
    found = facts.check(_asked_for(given))
    print(preflight.table(found))
    wrong = preflight.faults(found)
    print(f"\nThis machine cannot run a cluster: {len(wrong)} missing." if wrong else "\nIt can run a cluster.")
    return 1 if wrong else 0


def _up(given: argparse.Namespace) -> None:
    cluster = _asked_for(given)
    if not clusters.up(cluster, given.image):
        print(f"Cluster {cluster.name} is up already.")
    print(_how_to_play(cluster))


def _how_to_play(cluster: Cluster) -> str:
    kubectl = parts.ready().kubectl
    option = "" if cluster.name == DEFAULT_NAME else f" NAME={cluster.name}"
    return f"""
Kubernetes with {cluster.node_count} nodes, CNI {cluster.cni}, kube-proxy {cluster.proxy}:

  export KUBECONFIG={cluster.kubeconfig}
  export PATH={kubectl.parent}:{parts.ready().helm.parent}:$PATH        # kubectl, helm
  kubectl get nodes,pods -A
  kubectl run client --image={images.NETSHOOT}
  kubectl exec -it client -- curl -k https://kubernetes.default/version
  kubectl logs -n kube-system deploy/coredns
  ip netns exec {cluster.nodes[0].netns} nft list ruleset          # in the network of a node
  make cluster-down{option}
"""


def _status(name: str) -> None:
    cluster = _existing(name)
    for where, programs in clusters.components(cluster).items():
        states = (f"{program} {'runs' if runs else 'DOES NOT RUN'}" for program, runs in programs.items())
        print(f"{where}: {', '.join(states)}")
    sys.stdout.flush()
    _exec(cluster, parts.ready().kubectl, ["get", "nodes", "-o", "wide"])


def _exec(cluster: Cluster, program: Path, arguments: list[str]) -> None:
    os.execve(program, [program.name, *arguments], {**os.environ, "KUBECONFIG": str(cluster.kubeconfig)})


def _enter(cluster: Cluster, name: str, arguments: list[str]) -> None:
    shell = os.environ.get("SHELL", "/bin/sh")
    command = machine.entering(clusters.machine_named(cluster, name), arguments or [shell])
    os.execvp(command[0], command)


def _run(given: argparse.Namespace) -> int:
    """The exit code."""
    match given.command:
        case "check":
            return _check(given)
        case "up":
            _up(given)
        case "down":
            print(
                f"Cluster {given.name} is gone." if clusters.down(given.name) else f"There is no cluster {given.name}."
            )
        case "status":
            _status(given.name)
        case "parts":
            facts.require(Cluster(given.name))
            made = parts.ready()
            images.ready(made)
            print(made.kube)
        case "load":
            clusters.load(_existing(given.name), parts.ready(), given.archive)
        case "stop" | "kill" | "start":
            getattr(clusters, given.command)(_existing(given.name), given.machine, given.program)
        case "enter":
            _enter(_existing(given.name), given.machine, given.arguments)
        case "kubectl":
            _exec(_existing(given.name), parts.ready().kubectl, given.arguments)
        case "helm":
            _exec(_existing(given.name), parts.ready().helm, given.arguments)
    return 0


def main() -> int:
    given = _parser().parse_args()
    try:
        return _run(given)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted. `make cluster` begins anew; `make cluster-down` removes what is there", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
