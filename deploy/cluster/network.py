"""The links and routes between machines: the control machine is the switch, and every node's default gateway."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.cluster import shell
from deploy.cluster.plan import Cluster, Machine

BRIDGE = "br0"
UPLINK = "eth0"
_LENGTHS = (24, 64)


def connect(cluster: Cluster) -> None:
    """Make bridge, links, addresses and routes. The machines' network namespaces exist."""
    control = cluster.control
    _ip(control, switch(cluster))
    for node in cluster.nodes:
        _ip(node, port(node, cluster))
    for machine in cluster.machines:
        _ip(machine, routes(machine, cluster))


def switch(cluster: Cluster) -> list[str]:
    """Commands of ip-batch on the control machine: the bridge, and a port for each node."""
    lines = ["link set lo up", f"link add {BRIDGE} type bridge", f"link set {BRIDGE} up"]
    lines += _addresses(cluster.control, BRIDGE)
    for node in cluster.nodes:
        lines += [
            f"link add {node.name} type veth peer name {UPLINK} netns {node.netns}",
            f"link set {node.name} master {BRIDGE} up",
        ]
    return lines


def port(node: Machine, cluster: Cluster) -> list[str]:
    gateways = cluster.control.addresses
    return [
        "link set lo up",
        f"link set {UPLINK} up",
        *_addresses(node, UPLINK),
        *(f"route add default via {gateway}" for gateway in gateways),
    ]


def routes(machine: Machine, cluster: Cluster) -> list[str]:
    """To the pods of every other node."""
    return [
        f"route replace {cidr} via {address}"
        for node in cluster.nodes
        if node != machine
        for cidr, address in zip(node.pod_cidrs, node.addresses, strict=True)
    ]


def _addresses(machine: Machine, link: str) -> list[str]:
    return [
        f"address add {address}/{length} dev {link}" + (" nodad" if ":" in address else "")
        for address, length in zip(machine.addresses, _LENGTHS, strict=True)
    ]


def _ip(machine: Machine, lines: Sequence[str]) -> None:
    shell.run(["ip", "-netns", machine.netns, "-batch", "-"], stdin="\n".join(lines) + "\n")
