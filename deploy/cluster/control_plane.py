"""etcd, API server, controller manager and scheduler, on the control machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from deploy.cluster import machine
from deploy.cluster.parts import Parts
from deploy.cluster.plan import API_PORT, CLUSTER_DOMAIN, POD_CIDRS, SERVICE_CIDRS, Cluster

_ETCD: Final = "http://127.0.0.1:2379"
_ETCD_PEER: Final = "http://127.0.0.1:2380"


def etcd(cluster: Cluster) -> list[str]:
    return [
        "--name=control",
        f"--data-dir={cluster.control.data / 'etcd'}",
        f"--listen-client-urls={_ETCD}",
        f"--advertise-client-urls={_ETCD}",
        f"--listen-peer-urls={_ETCD_PEER}",
        f"--initial-advertise-peer-urls={_ETCD_PEER}",
        f"--initial-cluster=control={_ETCD_PEER}",
        "--unsafe-no-fsync",  # a cluster for trials need not survive a crash of this machine
        "--log-level=warn",
    ]


def api_server(cluster: Cluster) -> list[str]:
    pki = cluster.pki
    return [
        f"--etcd-servers={_ETCD}",
        f"--secure-port={API_PORT}",
        f"--advertise-address={cluster.control.addresses[0]}",
        f"--tls-cert-file={pki}/apiserver.crt",
        f"--tls-private-key-file={pki}/apiserver.key",
        f"--client-ca-file={pki}/ca.crt",
        f"--kubelet-client-certificate={pki}/apiserver-kubelet-client.crt",
        f"--kubelet-client-key={pki}/apiserver-kubelet-client.key",
        f"--kubelet-certificate-authority={pki}/ca.crt",
        "--kubelet-preferred-address-types=InternalIP",
        f"--service-account-issuer=https://kubernetes.default.svc.{CLUSTER_DOMAIN}",
        f"--service-account-key-file={pki}/sa.pub",
        f"--service-account-signing-key-file={pki}/sa.key",
        f"--service-cluster-ip-range={','.join(SERVICE_CIDRS)}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged",
    ]


def controller_manager(cluster: Cluster) -> list[str]:
    pki = cluster.pki
    return [
        f"--kubeconfig={pki}/kube-controller-manager.kubeconfig",
        "--use-service-account-credentials",
        f"--service-account-private-key-file={pki}/sa.key",
        f"--root-ca-file={pki}/ca.crt",
        f"--cluster-signing-cert-file={pki}/ca.crt",
        f"--cluster-signing-key-file={pki}/ca.key",
        f"--cluster-cidr={','.join(POD_CIDRS)}",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
    ]


def scheduler(cluster: Cluster) -> list[str]:
    return [
        f"--kubeconfig={cluster.pki}/kube-scheduler.kubeconfig",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
    ]


PROGRAMS: Final[Mapping[str, Callable[[Cluster], list[str]]]] = {
    "etcd": etcd,
    "kube-apiserver": api_server,
    "kube-controller-manager": controller_manager,
    "kube-scheduler": scheduler,
}
SERVERS: Final = ("etcd", "kube-apiserver")
CLIENTS: Final = ("kube-controller-manager", "kube-scheduler")
"""Started when the API server answers: they end if they wait for it for more than some seconds."""


def start(cluster: Cluster, program: str, parts: Parts) -> None:
    machine.start(cluster.control, program, [parts.kube / program, *PROGRAMS[program](cluster)])
