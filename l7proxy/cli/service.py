"""The commands that run on a node: all of it, the agent alone, one worker alone; and taking everything away again."""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

from l7proxy.cli.flags import flag, with_flags

if TYPE_CHECKING:
    from l7proxy.agent.settings import Settings

Config = Annotated[
    Path | None,
    typer.Option("--config", envvar="L7PROXY_CONFIG", help="YAML file of settings; flags win over it.", metavar="FILE"),
]

FLAGS: Final[Mapping[str, tuple[type, str, str]]] = {
    "source": (str, "DIR", "Directory of Kubernetes manifests (or `kubernetes`), followed live."),
    "node": (str, "NAME", "Name of this node, as in its manifest [default: $NODE_NAME, else the host's name]."),
    "cluster": (str, "NAME", "Name of the cluster, for the labels of identities [default: default]."),
    "backend": (str, "NAME", "auto, nftables or iptables [default: auto]."),
    "workers": (int, "N", "Proxy processes [default: one per core]."),
    "run-dir": (Path, "DIR", "Directory of the sockets [default: /run/l7proxy]."),
    "cni-results": (Path, "DIR", "Where the container runtime writes CNI results [default: /var/lib/cni/results]."),
    "flow-log": (str, "FILE", "Write flows there as JSON lines; `stdout` for standard output [default: not written]."),
    "audit": (bool, "", "Refuse nothing by policy: let it pass and tell it as AUDIT [default: no]."),
    "refuse": (str, "HOW", "What a refused TCP connection sees: reset or drop [default: reset]."),
    "deny-header": (bool, "", "Tell refused requests why, in the header x-l7proxy-denied of their 403 [default: no]."),
    "connect": (bool, "", "Judge CONNECT by method and host; its tunnel is not judged [default: refuse it, 405]."),
    "matrix-parameters": (
        str,
        "HOW",
        "Paths with `;`, which servers read in two ways: refuse, or pass what rules allow in both [default: refuse].",
    ),
    "escaped-slashes": (
        str,
        "HOW",
        "Paths with %2F, %5C: redirect to the normal form or refuse [default: redirect].",
    ),
    "enable-node-selector-labels": (bool, "", "Know nodes by their labels: policies may use fromNodes [default: no]."),
    "enable-extended-ip-protocols": (bool, "", "Policies may name VRRP, IGMP, GRE, IPIP, ESP and AH [default: no]."),
    "policy-enforcement-mode": (str, "MODE", "default, or always: refuse what no policy allows [default: default]."),
    "policy-cidr-match-mode": (
        str,
        "WHOM",
        "Whom Cilium's CIDRs mean besides the outside: nodes, or nodes,pods [default: nobody].",
    ),
    "proxy-port": (int, "PORT", "Port that connections are steered to [default: 15001]."),
    "mark-proxy": (str, "BIT", "Packet mark of steered packets, one bit [default: 0x1000000]."),
    "mark-upstream": (str, "BIT", "Packet mark of the proxy's own connections, one bit [default: 0x2000000]."),
    "route-table": (int, "N", "Routing table that is ours [default: 7777]."),
    "rule-priority": (int, "N", "Priority of our routing rules [default: 100]."),
    "nflog-group": (int, "N", "NFLOG group of verdict events [default: 77]."),
    "worker-connections": (int, "N", "Connections per worker; one endpoint may have half [default: 16384]."),
    "worker-memory": (int, "MIB", "Memory per worker for bytes that clients or servers do not take [default: 256]."),
    "drain": (float, "SECONDS", "How long a worker's connections may take to end when it is stopped [default: 30]."),
    "log-level": (str, "LEVEL", "debug, info, warning or error [default: info]."),
}
"""Settings that have a flag: their type, what stands for the value, and what help says. All settings fit the file."""

MARKS: Final = ("mark_proxy", "mark_upstream")


def _flags() -> Iterator[inspect.Parameter]:
    for name, (kind, metavar, text) in FLAGS.items():
        yield flag(name, kind, typer.Option(f"--{name}", help=text, metavar=metavar or None, show_default=False))


def _settings(config: Path | None, chosen: Mapping[str, Any]) -> Settings:
    """File and flags, checked. Marks may be written as 0x…"""
    from l7proxy.agent.settings import load

    values = {name: _number(name, value) if name in MARKS else value for name, value in chosen.items()}
    settings = load(config, values)
    _log(settings.log_level)
    return settings


def _log(level: str) -> None:
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)


def _number(name: str, text: str) -> int:
    try:
        return int(text, 0)
    except ValueError as error:
        option = name.replace("_", "-")
        raise typer.BadParameter(f"{text!r} is not a number, as 0x1000000", param_hint=f"--{option}") from error


def _run(*, chosen: Mapping[str, Any], config: Config = None) -> None:
    """Run on this node: the agent and its workers, restarted when they die.

    Stopping it leaves the kernel's rules in place: L4 verdicts stay, L7 ports refuse. `l7proxy cleanup` removes them.

    \b
    l7proxy run --source /etc/l7proxy/manifests
    l7proxy run --config /etc/l7proxy/config.yaml --flow-log /var/log/l7proxy/flows.jsonl
    """
    from l7proxy.agent.supervise import run_all

    raise typer.Exit(run_all(_settings(config, chosen)))


def _agent(*, chosen: Mapping[str, Any], config: Config = None) -> None:
    """Run the agent alone: manifests to policy, to the kernel and to the workers; flows from them."""
    from l7proxy.agent.run import run_agent

    raise typer.Exit(run_agent(_settings(config, chosen)))


def _proxy(
    *,
    chosen: Mapping[str, Any],
    config: Config = None,
    worker: Annotated[int, typer.Option(min=0, help="Number of this worker on its node.")] = 0,
    checked: Annotated[bool, typer.Option("--checked", hidden=True)] = False,
) -> None:
    """Run one worker alone: it serves what the kernel steers, by the policy the agent hands it.

    The agent may come, go and come back: the worker goes on with the last policy it was given, and before it has
    any it refuses.
    """
    if not checked:
        _become_worker(_settings(config, chosen), worker)
    from l7proxy.proxy.worker import WorkerSettings, run_worker

    _log(chosen["log_level"])
    raise typer.Exit(
        run_worker(
            WorkerSettings(
                link=chosen["run_dir"] / "link.sock",
                worker=worker,
                proxy_port=chosen["proxy_port"],
                mark_upstream=_number("mark_upstream", chosen["mark_upstream"]),
                drain_seconds=chosen["drain"],
                max_connections=chosen["worker_connections"],
                memory=chosen["worker_memory"],
            )
        )
    )


def _become_worker(settings: Settings, worker: int) -> NoReturn:
    """Reading settings loads what a worker must not carry (YAML, kernel tables): start afresh with the few it needs.

    The process stays the same to whoever started it, and so does the signal it asked for at its parent's death.
    """
    wanted = {
        "worker": worker,
        "run-dir": settings.run_dir,
        "proxy-port": settings.proxy_port,
        "mark-upstream": settings.mark_upstream,
        "worker-connections": settings.worker_connections,
        "worker-memory": settings.worker_memory,
        "drain": settings.drain,
        "log-level": settings.log_level,
    }
    flags = [part for name, value in wanted.items() for part in (f"--{name}", str(value))]
    os.execv(sys.executable, [sys.executable, "-m", "l7proxy.cli.main", "proxy", "--checked", *flags])


def _cleanup(*, chosen: Mapping[str, Any], config: Config = None) -> None:
    """Remove every rule, set, table and route that is ours from the kernel. Twice is fine.

    Run it after `l7proxy run` has stopped. What was refused before passes afterwards: nothing is enforced any more.
    """
    from l7proxy.agent.run import cleanup as remove

    for line in remove(_settings(config, chosen)) or ():
        print(line)


run = with_flags(_run, "chosen", _flags())
agent = with_flags(_agent, "chosen", _flags())
proxy = with_flags(_proxy, "chosen", _flags())
cleanup = with_flags(_cleanup, "chosen", _flags())
