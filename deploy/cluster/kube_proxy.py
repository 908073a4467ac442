"""kube-proxy of a node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from deploy.cluster import machine
from deploy.cluster.parts import Parts
from deploy.cluster.plan import POD_CIDRS, Cluster, Machine


def configuration(cluster: Cluster, node: Machine) -> dict[str, Any]:
    """A KubeProxyConfiguration that leaves the limits of conntrack alone: they are the whole host's."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": cluster.proxy,
        "clusterCIDR": ",".join(POD_CIDRS),
        "clientConnection": {"kubeconfig": str(cluster.pki / "kube-proxy.kubeconfig")},
        "hostnameOverride": node.name,
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }


def start(cluster: Cluster, node: Machine, parts: Parts) -> None:
    file: Path = node.data / "kube-proxy.yaml"
    file.write_text(yaml.safe_dump(configuration(cluster, node)))
    machine.start(node, "kube-proxy", [parts.kube / "kube-proxy", f"--config={file}"])
