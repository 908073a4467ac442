"""Commands that run on a node: agent and workers, the agent alone, one worker alone, and cleanup."""

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
    from l7proxy.settings import Settings

Config = Annotated[
    Path | None,
    typer.Option("--config", envvar="L7PROXY_CONFIG", help="YAML file of settings; flags override it.", metavar="FILE"),
]

FLAGS: Final[Mapping[str, tuple[type, str, str]]] = {
    "source": (str, "DIR", "Directory of Kubernetes manifests, watched for changes."),
    "node": (str, "NAME", "Name of this node's Node object [default: $NODE_NAME, else the host's name]."),
    "cluster": (str, "NAME", "Cluster name, used in identity labels [default: default]."),
    "backend": (str, "NAME", "Kernel backend: auto, nftables or iptables [default: auto]."),
    "workers": (int, "N", "Number of proxy workers [default: one per core]."),
    "run-dir": (Path, "DIR", "Directory of the Unix sockets [default: /run/l7proxy]."),
    "cni-results": (Path, "DIR", "Directory of cached CNI results [default: /var/lib/cni/results]."),
    "flow-log": (str, "FILE", "File to write flows to as JSON lines, or `stdout` [default: none]."),
    "audit": (bool, "", "Audit mode: allow what policy denies, and report it as AUDIT [default: no]."),
    "refuse": (str, "ACTION", "How to refuse TCP connections: reset or drop [default: reset]."),
    "deny-header": (
        bool,
        "",
        "Put the reason of a denial in the header x-l7proxy-denied of the 403 response [default: no].",
    ),
    "connect": (
        bool,
        "",
        "Allow CONNECT where method and host match; its tunnel is not inspected [default: refuse with 405].",
    ),
    "matrix-parameters": (
        str,
        "MODE",
        "Paths with `;`, which servers parse differently: refuse, or allow if both readings match [default: refuse].",
    ),
    "escaped-slashes": (
        str,
        "MODE",
        "Paths with %2F or %5C: redirect to the normalised path, or refuse [default: redirect].",
    ),
    "enable-node-selector-labels": (
        bool,
        "",
        "Give nodes identities by their labels: enables fromNodes and toNodes [default: no].",
    ),
    "enable-extended-ip-protocols": (bool, "", "Allow VRRP, IGMP, GRE, IPIP, ESP and AH in policies [default: no]."),
    "policy-enforcement-mode": (
        str,
        "MODE",
        "default, or always: deny what no policy allows, also for unselected pods [default: default].",
    ),
    "policy-cidr-match-mode": (
        str,
        "PEERS",
        "What CIDR rules match besides external addresses: nodes, or nodes,pods [default: none].",
    ),
    "proxy-port": (int, "PORT", "TCP port of the proxy, the TPROXY target [default: 15001]."),
    "mark-proxy": (str, "BIT", "Packet mark of redirected packets, one bit [default: 0x1000000]."),
    "mark-upstream": (str, "BIT", "Packet mark of the proxy's own connections, one bit [default: 0x2000000]."),
    "route-table": (int, "N", "Routing table for l7proxy [default: 7777]."),
    "rule-priority": (int, "N", "Priority of l7proxy's routing rules [default: 100]."),
    "nflog-group": (int, "N", "NFLOG group for verdict events [default: 77]."),
    "worker-connections": (int, "N", "Maximum connections per worker; one endpoint may use half [default: 16384]."),
    "worker-memory": (int, "MIB", "Memory per worker for buffered data [default: 256]."),
    "drain": (float, "SECONDS", "Time for open connections to finish when a worker stops [default: 30]."),
    "log-level": (str, "LEVEL", "Log level: debug, info, warning or error [default: info]."),
}
"""Settings with a flag: type, metavar and help. The configuration file accepts all settings."""

MARKS: Final = ("mark_proxy", "mark_upstream")


def _flags() -> Iterator[inspect.Parameter]:
    for name, (kind, metavar, text) in FLAGS.items():
        yield flag(name, kind, typer.Option(f"--{name}", help=text, metavar=metavar or None, show_default=False))


def _settings(config: Path | None, chosen: Mapping[str, Any]) -> Settings:
    """Settings from file and flags, checked. Marks may be written as 0x…"""
    from l7proxy.settings import load

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
        raise typer.BadParameter(f"{text!r} must be a number, as 0x1000000", param_hint=f"--{option}") from error


def _run(*, chosen: Mapping[str, Any], config: Config = None) -> None:
    """Run the agent and its workers on this node; restart them when they exit.

    The kernel rules stay in place when it stops: L4 rules remain enforced, ports with L7 rules are refused.
    `l7proxy cleanup` removes them.

    \b
    l7proxy run --source /etc/l7proxy/manifests
    l7proxy run --config /etc/l7proxy/config.yaml --flow-log /var/log/l7proxy/flows.jsonl
    """
    from l7proxy.agent.supervise import run_all

    raise typer.Exit(run_all(_settings(config, chosen)))


def _agent(*, chosen: Mapping[str, Any], config: Config = None) -> None:
    """Run only the agent: it reads manifests, programs the kernel and the workers, and collects flows."""
    from l7proxy.agent.run import run_agent

    raise typer.Exit(run_agent(_settings(config, chosen)))


def _proxy(
    *,
    chosen: Mapping[str, Any],
    config: Config = None,
    worker: Annotated[int, typer.Option(min=0, help="Index of this worker on its node.")] = 0,
    checked: Annotated[bool, typer.Option("--checked", hidden=True)] = False,
) -> None:
    """Run only one proxy worker: it serves redirected connections with the policy of the agent.

    Without an agent the worker keeps enforcing the last policy it received; before the first one it refuses
    everything.
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
    """Loading the settings imports modules that a worker does not need (YAML, kernel tables), so exec a new program.

    The pid stays the same for the parent process, and so does the signal requested for the parent's death.
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
    """Remove all rules, sets, tables and routes of l7proxy from the kernel. Safe to repeat.

    Run it after `l7proxy run` has stopped. Nothing is enforced afterwards: all traffic is allowed.
    """
    from l7proxy.agent.run import cleanup as remove

    for line in remove(_settings(config, chosen)) or ():
        print(line)


run = with_flags(_run, "chosen", _flags())
agent = with_flags(_agent, "chosen", _flags())
proxy = with_flags(_proxy, "chosen", _flags())
cleanup = with_flags(_cleanup, "chosen", _flags())
