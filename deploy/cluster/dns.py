"""The cluster's DNS: CoreDNS as a Deployment, behind the Service that the kubelet names to pods."""

from __future__ import annotations

from typing import Any, Final

from deploy.cluster import images
from deploy.cluster.plan import CLUSTER_DOMAIN, DNS_ADDRESS

NAMESPACE: Final = "kube-system"
NAME: Final = "coredns"
_LABELS: Final = {"k8s-app": "kube-dns"}
"""The labels that the cluster DNS of most clusters has, so policies that select it work here, too."""
_COREFILE: Final = f""".:53 {{
    errors
    health {{
        lameduck 1s
    }}
    ready
    kubernetes {CLUSTER_DOMAIN} in-addr.arpa ip6.arpa {{
        pods insecure
        ttl 5
    }}
    cache 5
    loadbalance
}}
"""


def manifests() -> list[dict[str, Any]]:
    return [_account(), _role(), _binding(), _configuration(), _deployment(), _service()]


def _object(api: str, kind: str, name: str, namespace: str = NAMESPACE, **fields: Any) -> dict[str, Any]:
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **fields}


def _account() -> dict[str, Any]:
    return _object("v1", "ServiceAccount", NAME)


def _role() -> dict[str, Any]:
    read = ["list", "watch"]
    rules = [
        {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": read},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": read},
    ]
    return _object("rbac.authorization.k8s.io/v1", "ClusterRole", f"system:{NAME}", "", rules=rules)


def _binding() -> dict[str, Any]:
    return _object(
        "rbac.authorization.k8s.io/v1",
        "ClusterRoleBinding",
        f"system:{NAME}",
        "",
        roleRef={"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": f"system:{NAME}"},
        subjects=[{"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}],
    )


def _configuration() -> dict[str, Any]:
    return _object("v1", "ConfigMap", NAME, data={"Corefile": _COREFILE})


def _deployment() -> dict[str, Any]:
    container = {
        "name": NAME,
        "image": images.COREDNS,
        "imagePullPolicy": "Never",
        "args": ["-conf", "/etc/coredns/Corefile"],
        "ports": [
            {"name": "dns", "containerPort": 53, "protocol": "UDP"},
            {"name": "dns-tcp", "containerPort": 53, "protocol": "TCP"},
        ],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 1},
        "livenessProbe": {"httpGet": {"path": "/health", "port": 8080}, "initialDelaySeconds": 30},
        "resources": {"requests": {"cpu": "20m", "memory": "32Mi"}, "limits": {"memory": "170Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
        },
        "volumeMounts": [{"name": "configuration", "mountPath": "/etc/coredns", "readOnly": True}],
    }
    pod = {
        "serviceAccountName": NAME,
        "priorityClassName": "system-cluster-critical",
        "dnsPolicy": "Default",
        "tolerations": [{"key": "CriticalAddonsOnly", "operator": "Exists"}],
        "containers": [container],
        "volumes": [{"name": "configuration", "configMap": {"name": NAME}}],
    }
    template = {"metadata": {"labels": _LABELS}, "spec": pod}
    return _object(
        "apps/v1", "Deployment", NAME, spec={"replicas": 1, "selector": {"matchLabels": _LABELS}, "template": template}
    )


def _service() -> dict[str, Any]:
    ports = [
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
    ]
    return _object("v1", "Service", "kube-dns", spec={"clusterIP": DNS_ADDRESS, "selector": _LABELS, "ports": ports})
