"""Chooses the labels by which a policy selects pods, as a careful author would: those that name an application.

Labels that differ from pod to pod or from release to release (hashes, revisions, versions) would make a policy that
selects nothing after the next rollout. What is left out makes selectors wider, so it is written into the policy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from l7proxy.cluster.identity_labels import DEFAULT
from l7proxy.learn.observation import End, label
from l7proxy.model.labels import K8S, SERVICE_ACCOUNT_KEY

NAMING: Final = (
    "app.kubernetes.io/name",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/component",
    "app",
    "k8s-app",
    "name",
    "run",
    "component",
    "tier",
    "role",
)
"""Labels that name an application. If a pod has one of them, the others are not used."""
VOLATILE: Final = frozenset(
    (
        "app.kubernetes.io/version",
        "app.kubernetes.io/managed-by",
        "helm.sh/chart",
        "chart",
        "heritage",
        "job-name",
        "batch.kubernetes.io/job-name",
        "pod-template-hash",
        "controller-revision-hash",
        "statefulset.kubernetes.io/pod-name",
    )
)
"""Labels that change with a release, or from pod to pod, besides those that Cilium does not use for identities."""
_NAME: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_PREFIX: Final = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
NAMESPACE: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, order=True)
class Group:
    """The pods that one policy selects: a namespace, and labels with which they are selected, sorted by key."""

    namespace: str
    labels: Pairs

    def __str__(self) -> str:
        return f"{self.namespace}/" + ",".join(f"{key}={value}" if value else key for key, value in self.labels)


@lru_cache(maxsize=4096)
def group_of(end: End) -> Group | None:
    """None for an end that is no pod, or that has no labels to select it by."""
    if end.reserved or not NAMESPACE.fullmatch(end.namespace):
        return None
    known = own_labels(end)
    chosen = {key: value for key, value in known.items() if key in NAMING} or known
    if not chosen:
        account = label(end.labels, SERVICE_ACCOUNT_KEY)
        chosen = {SERVICE_ACCOUNT_KEY: account} if account not in ("", "default") and is_value(account) else {}
    return Group(end.namespace, tuple(sorted(chosen.items()))) if chosen else None


@lru_cache(maxsize=4096)
def own_labels(end: End) -> dict[str, str]:
    """The pod's labels that stay the same over its releases. Labels that Kubernetes would refuse are left out."""
    pairs = (one.removeprefix(f"{K8S}:").partition("=") for one in end.labels if one.startswith(f"{K8S}:"))
    return {
        key: value
        for key, _, value in pairs
        if is_key(key) and is_value(value) and key not in VOLATILE and DEFAULT.keeps(key)
    }


def is_key(text: str) -> bool:
    prefix, slash, name = text.rpartition("/")
    return bool(_NAME.fullmatch(name)) and (not slash or bool(_PREFIX.fullmatch(prefix)))


def is_value(text: str) -> bool:
    return not text or bool(_NAME.fullmatch(text))
