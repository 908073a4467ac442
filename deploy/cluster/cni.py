"""The CNI configuration of a node. Another plugin is one more entry of CONFIGURATIONS."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from deploy.cluster.plan import Cluster, Machine

FILE: Final = "10-cluster.conflist"
NETWORK: Final = "cluster"
BRIDGE: Final = "cni0"
DEFAULT_ROUTES: Final = ("0.0.0.0/0", "::/0")


def conflist(cluster: Cluster, node: Machine) -> str:
    """A configuration list of CNI specification 1.0.0, whose IPAM is host-local on the node's pod prefixes."""
    plugins = [CONFIGURATIONS[cluster.cni](node), {"type": "portmap", "capabilities": {"portMappings": True}}]
    return json.dumps({"cniVersion": "1.0.0", "name": NETWORK, "plugins": plugins}, indent=2) + "\n"


def _bridge(node: Machine) -> dict[str, Any]:
    return {"type": "bridge", "bridge": BRIDGE, "isGateway": True, "hairpinMode": True, "ipam": _ipam(node)}


def _ptp(node: Machine) -> dict[str, Any]:
    return {"type": "ptp", "ipam": _ipam(node)}


CONFIGURATIONS: Final[Mapping[str, Callable[[Machine], dict[str, Any]]]] = {"bridge": _bridge, "ptp": _ptp}


def _ipam(node: Machine) -> dict[str, Any]:
    return {
        "type": "host-local",
        "ranges": [[{"subnet": cidr}] for cidr in node.pod_cidrs],
        "routes": [{"dst": destination} for destination in DEFAULT_ROUTES],
    }
