"""The CNI result of a pod, as libcni caches it for the agent to read (CNI spec 1.0.0, "ADD Success"). Pure."""

from __future__ import annotations

import hashlib
from ipaddress import ip_network
from typing import Any

from l7proxy.lab.cluster import Pod
from l7proxy.lab.netns import path_of
from l7proxy.lab.network import POD_BRIDGE, Veth, bridge_mac
from l7proxy.lab.settings import Cni
from l7proxy.model.net import family_of
from l7proxy.model.resources import Node


def file_name(pod: Pod) -> str:
    return f"lab-{container_id(pod)}-eth0"


def container_id(pod: Pod) -> str:
    return hashlib.sha256(str(pod).encode()).hexdigest()


def cached(pod: Pod, node: Node, veth: Veth, cni: Cni, namespace: str) -> dict[str, Any]:
    """The content of the cache file."""
    interfaces = [
        {"name": veth.host_interface, "mac": veth.host_mac},
        {"name": "eth0", "mac": veth.pod_mac, "sandbox": str(path_of(namespace))},
    ]
    if cni is Cni.BRIDGE:  # the bridge plugin lists its bridge first
        interfaces.insert(0, {"name": POD_BRIDGE, "mac": bridge_mac(node)})
    inner = len(interfaces) - 1
    ips = [{"address": f"{a}/{_prefix(a, node, cni)}", "interface": inner} for a in pod.addresses]
    return {
        "kind": "cniCacheV1",
        "containerId": container_id(pod),
        "ifName": "eth0",
        "networkName": "lab",
        "cniArgs": [["K8S_POD_NAMESPACE", pod.namespace], ["K8S_POD_NAME", pod.name]],
        "result": {"cniVersion": "1.0.0", "interfaces": interfaces, "ips": ips, "dns": {}},
    }


def _prefix(address: str, node: Node, cni: Cni) -> int:
    """The prefix length of a pod address: the node's on a bridge, that of a single address if routed."""
    networks = [ip_network(cidr) for cidr in node.pod_cidrs if family_of(cidr) == family_of(address)]
    return networks[0].prefixlen if cni is Cni.BRIDGE else networks[0].max_prefixlen
