"""The kubelet of a node."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

from deploy.cluster import cgroups, containerd, machine
from deploy.cluster.parts import Parts
from deploy.cluster.plan import CLUSTER_DOMAIN, DNS_ADDRESS, Cluster, Machine

RESOLV_CONF: Final = "/etc/resolv.conf"


def configuration(node: Machine, pki: Path, *, cgroup_version: int) -> dict[str, Any]:
    """A KubeletConfiguration."""
    settings: dict[str, Any] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{containerd.SOCKET}",
        "cgroupDriver": "cgroupfs",
        "failSwapOn": False,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(pki / f"{node.name}-serving.crt"),
        "tlsPrivateKeyFile": str(pki / f"{node.name}-serving.key"),
        "clusterDomain": CLUSTER_DOMAIN,
        "clusterDNS": [DNS_ADDRESS],
        "resolvConf": RESOLV_CONF,
        "seccompDefault": True,
        "nodeStatusUpdateFrequency": "5s",
        # A changed ConfigMap is in the pods' files within seconds: the default is a minute, and tests wait for it.
        "syncFrequency": "5s",
        # The disk is the host's: a full one is not for this node to mend by removing images that no registry has.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
        },
    }
    if cgroup_version == 1:
        settings["failCgroupV1"] = False
    return settings


def start(cluster: Cluster, node: Machine, parts: Parts) -> None:
    version = 2 if any(each.unified for each in cgroups.own()) else 1
    file = node.data / "kubelet.yaml"
    file.write_text(yaml.safe_dump(configuration(node, cluster.pki, cgroup_version=version)))
    command: list[str | Path] = [
        parts.kube / "kubelet",
        f"--config={file}",
        f"--kubeconfig={cluster.pki / node.name}.kubeconfig",
        f"--hostname-override={node.name}",
        f"--node-ip={','.join(node.addresses)}",
    ]
    machine.start(node, "kubelet", command, path=parts.runtime_path)
