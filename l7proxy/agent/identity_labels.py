"""Which labels a pod's identity has: Cilium's generated ones and its default filter over the pod's own.

The generated labels say where a pod is and as whom it runs; a pod that could write them itself would be whoever it
likes, so its own labels under those keys are dropped before anything else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from l7proxy.model.facts import Pod
from l7proxy.model.labels import (
    CLUSTER_KEY,
    K8S,
    NAMESPACE_KEY,
    NAMESPACE_LABELS_PREFIX,
    SERVICE_ACCOUNT_KEY,
    Label,
    LabelSet,
)

GENERATED: Final = ("io.cilium.k8s.", NAMESPACE_KEY)
METADATA_NAME: Final = "kubernetes.io/metadata.name"

INCLUDED: Final = tuple(
    re.compile(pattern)
    for pattern in (
        r"io\.kubernetes\.pod\.namespace",
        r"io\.cilium\.k8s\.namespace\.labels",
        r"app\.kubernetes\.io",
        r"io\.cilium\.k8s\.policy\.cluster",
        r"io\.cilium\.k8s\.policy\.serviceaccount",
    )
)
IGNORED: Final = tuple(
    re.compile(pattern)
    for pattern in (
        r"io\.kubernetes",
        r"kubernetes\.io",
        r".*beta\.kubernetes\.io",
        r"k8s\.io",
        r"statefulset\.kubernetes\.io/pod-name",
        r"apps\.kubernetes\.io/pod-index",
        r"batch\.kubernetes\.io/job-completion-index",
        r"batch\.kubernetes\.io/controller-uid",
        r"controller-uid",
        r"pod-template-generation",
        r"pod-template-hash",
        r"controller-revision-hash",
        r"annotation.*",
        r"etcd_node",
        r"topology\.kubernetes\.io",
    )
)
"""Cilium's default label filter. Patterns hold from the key's start."""


@lru_cache(maxsize=4096)
def relevant(key: str) -> bool:
    """True when a label counts for identity: nothing ignores it, or a longer pattern includes it.

    A label per pod (`pod-template-hash`) would give each pod an identity of its own; a policy that selects on such a
    label selects nothing, as with Cilium.
    """
    ignored = [match.end() for pattern in IGNORED if (match := pattern.match(key))]
    if not ignored:
        return True
    included = [match.end() for pattern in INCLUDED if (match := pattern.match(key))]
    return max(included, default=0) > min(ignored)


def labels_of(pod: Pod, namespace: Mapping[str, str], *, cluster: str) -> LabelSet:
    """All labels of a pod's identity. Every namespace has its own name as a label, as the API server sees to it."""
    labels = {key: value for key, value in pod.labels.items() if not key.startswith(GENERATED) and relevant(key)}
    for key, value in {METADATA_NAME: pod.namespace, **namespace}.items():
        labels[NAMESPACE_LABELS_PREFIX + key] = value
    labels[NAMESPACE_KEY] = pod.namespace
    labels[SERVICE_ACCOUNT_KEY] = pod.service_account
    labels[CLUSTER_KEY] = cluster
    return LabelSet.of(Label(K8S, key, value) for key, value in labels.items())
