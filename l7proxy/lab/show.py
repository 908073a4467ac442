"""`lab status`: collects the state into one plain value (the JSON output), and makes a table of it."""

from __future__ import annotations

from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table

from l7proxy.errors import SourceError
from l7proxy.lab import agents
from l7proxy.lab.lifecycle import cluster_of, is_up
from l7proxy.lab.sandbox import Status, read_status
from l7proxy.lab.state import Lab
from l7proxy.model.verdict import Protocol


def gather(lab: Lab) -> dict[str, Any]:
    """The JSON of `lab status -o json`."""
    state, cluster = lab.load(), cluster_of(lab)
    settings = state.settings
    pods = {str(pod): pod for pod in cluster.pods}
    return {
        "name": lab.name,
        "up": is_up(lab),
        "directory": str(lab.directory),
        "cni": settings.cni.value,
        "ip_family": settings.ip_family.value,
        "bridge_nf_call": settings.bridge_nf_call,
        "nodes": [
            {
                "name": node.name,
                "addresses": list(node.addresses),
                "pod_cidrs": list(node.pod_cidrs),
                "netns": state.nodes[node.name].namespace,
                "alive": state.nodes[node.name].alive,
                "agent": _agent(lab, node.name) if settings.agent else None,
            }
            for node in cluster.nodes
        ],
        "pods": [
            {
                "name": name,
                "node": box.node,
                "addresses": list(pods[name].addresses),
                "netns": box.namespace or state.nodes[box.node].namespace,
                "interface": box.interface,
                "alive": box.alive,
                **_contents(read_status(lab.pod_directory(pods[name]))),
            }
            for name, box in state.pods.items()
            if name in pods
        ],
        "services": [
            {
                "name": f"{service.namespace}/{service.name}",
                "addresses": list(service.addresses),
                "ports": [f"{port.port}/{Protocol(port.protocol).name}" for port in service.ports],
            }
            for service in cluster.services
        ],
    }


def _contents(status: Status) -> dict[str, Any]:
    containers = [{"name": c.name, "state": c.state, "code": c.code, "reason": c.reason} for c in status.containers]
    return {"containers": containers, "listeners": status.listeners, "error": status.error}


def _agent(lab: Lab, node: str) -> dict[str, Any]:
    """The parts of the agent's own status that show whether the node enforces."""
    answer = agents.status(lab, node)
    if answer is None:
        return {"answers": False, "waiting": "the agent does not respond"}
    parts = ("version", "backend", "revision", "enforced_revision", "workers", "policies")
    problems = (answer.get("source") or {}).get("problems") or []
    answered = {part: answer.get(part) for part in parts}
    return {"answers": True, "waiting": agents.not_enforced(lab, node), "problems": problems, **answered}


WIDE: Final = 220
"""Columns when there is no terminal (files and pipes)."""


def console() -> Console:
    """Standard output."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=WIDE)


def table(*columns: str) -> Table:
    """A plain table. On a narrow terminal text is wrapped, never truncated."""
    return Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)


def render(facts: dict[str, Any], out: Console) -> None:
    out.print(
        f"lab [bold]{facts['name']}[/]: {'up' if facts['up'] else '[red]not running[/]'}, CNI {facts['cni']}, "
        f"IP {facts['ip_family']}, in {facts['directory']}"
    )
    nodes = table("NODE", "ADDRESSES", "PODS IN", "AGENT")
    for node in facts["nodes"]:
        nodes.add_row(node["name"], " ".join(node["addresses"]), " ".join(node["pod_cidrs"]), _agent_words(node))
    pods = table("POD", "NODE", "ADDRESSES", "SERVES", "CONTAINERS")
    for pod in facts["pods"]:
        words = "; ".join(_container_words(container) for container in pod["containers"])
        state = words if pod["alive"] else f"[red]dead[/] {pod['error']}"
        pods.add_row(pod["name"], pod["node"], " ".join(pod["addresses"]), " ".join(pod["listeners"]), state)
    services = table("SERVICE", "ADDRESSES", "PORTS")
    for service in facts["services"]:
        services.add_row(service["name"], " ".join(service["addresses"]) or "headless", " ".join(service["ports"]))
    for each in (nodes, pods, services):
        out.print(each)
    for node in facts["nodes"]:
        for problem in (node["agent"] or {}).get("problems") or []:
            out.print(f"{node['name']}: {SourceError(**problem)}", markup=False, highlight=False, soft_wrap=True)


def _agent_words(node: dict[str, Any]) -> str:
    agent = node["agent"]
    if agent is None:
        return "none (--no-agent)"
    if agent["waiting"]:
        return f"[red]{agent['waiting']}[/]"
    workers = len(agent["workers"])
    served = f"{workers} worker{'' if workers == 1 else 's'}"
    return f"enforces revision {agent['enforced_revision']} ({agent['backend']}, {served})"


def _container_words(container: dict[str, Any]) -> str:
    code = f" {container['code']}" if container["code"] is not None else ""
    reason = f" ({container['reason']})" if container["reason"] else ""
    return f"{container['name']} {container['state']}{code}{reason}"
