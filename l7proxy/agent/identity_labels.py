"""Which labels a pod's identity has: Cilium's generated ones and its default filter over the pod's own.

The generated labels say where a pod is and as whom it runs; a pod that could write them itself would be whoever it
likes, so its own labels under those keys are dropped before anything else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from l7proxy.model.facts import Pod
from l7proxy.model.labels import (
    ACCOUNT,
    CLUSTER_KEY,
    GENERATED,
    K8S,
    NAMESPACE_KEY,
    NAMESPACE_LABELS_PREFIX,
    OWN,
    SERVICE_ACCOUNT_KEY,
    Label,
    LabelSet,
)

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


@dataclass(frozen=True, slots=True)
class Asked:
    """Keys of labels beyond these that policies select on: of pods' own labels, and of their ServiceAccounts'."""

    own: frozenset[str] = frozenset()
    account: frozenset[str] = frozenset()

    @classmethod
    def among(cls, keys: frozenset[tuple[str, str]]) -> Asked:
        own = frozenset(key for source, key in keys if source == OWN and not in_identity(key))
        return cls(own, frozenset(key for source, key in keys if source == ACCOUNT))


NOTHING: Final = Asked()
_NO_LABELS: Final[Mapping[str, str]] = {}


def in_identity(key: str) -> bool:
    """True for a key that a pod's identity has in any case, when the pod has it."""
    return not key.startswith(GENERATED) and relevant(key)


def labels_of(
    pod: Pod,
    namespace: Mapping[str, str],
    *,
    cluster: str,
    asked: Asked = NOTHING,
    account: Mapping[str, str] = _NO_LABELS,
) -> LabelSet:
    """All labels of a pod's identity. Every namespace has its own name as a label, as the API server sees to it.

    `account` are its ServiceAccount's.
    """
    labels = {key: value for key, value in pod.labels.items() if in_identity(key)}
    for key, value in {METADATA_NAME: pod.namespace, **namespace}.items():
        labels[NAMESPACE_LABELS_PREFIX + key] = value
    labels[NAMESPACE_KEY] = pod.namespace
    labels[SERVICE_ACCOUNT_KEY] = pod.service_account
    labels[CLUSTER_KEY] = cluster
    found = [Label(K8S, key, value) for key, value in labels.items()]
    found += [Label(OWN, key, pod.labels[key]) for key in asked.own if key in pod.labels]
    found += [Label(ACCOUNT, key, account[key]) for key in asked.account if key in account]
    return LabelSet.of(found)
