"""Selects the labels of a pod's identity: Cilium's generated labels, and the pod's own labels that pass the filter.

The generated labels state a pod's namespace, cluster and ServiceAccount. A pod that could set them could impersonate
any other pod, so its own labels under those keys are dropped first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from l7proxy.errors import ConfigError
from l7proxy.model.cache import remember
from l7proxy.model.labels import (
    ACCOUNT,
    CLUSTER_KEY,
    GENERATED,
    K8S,
    NAMESPACE_KEY,
    NAMESPACE_LABELS_PREFIX,
    OWN,
    SERVICE_ACCOUNT_KEY,
    SHARED,
    Label,
    LabelSet,
)
from l7proxy.model.resources import Pod

METADATA_NAME: Final = "kubernetes.io/metadata.name"

INCLUDED: Final = (
    r"io\.kubernetes\.pod\.namespace",
    r"io\.cilium\.k8s\.namespace\.labels",
    r"app\.kubernetes\.io",
    r"io\.cilium\.k8s\.policy\.cluster",
    r"io\.cilium\.k8s\.policy\.serviceaccount",
)
IGNORED: Final = (
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
"""Cilium's default label filter. Patterns match from the start of the key."""


class LabelFilter:
    """Which of a pod's own labels count for its identity.

    `patterns`: those of Cilium's option `labels`, added to the defaults: `PATTERN` includes, `!PATTERN` ignores, both
    with an optional prefix `k8s:`. If one includes, keys that none includes are ignored. ConfigError if invalid.
    """

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        own = [text.removeprefix(f"{K8S}:") for text in patterns]
        included = [text for text in own if not text.startswith("!")]
        self._included = _compiled((*INCLUDED, *included))
        self._ignored = _compiled((*IGNORED, *(text[1:] for text in own if text.startswith("!"))))
        self._only = bool(included)
        self._known: dict[str, bool] = {}

    def keeps(self, key: str) -> bool:
        """Whether a pod label with this key belongs to the pod's identity. Never true for generated keys."""
        found = self._known.get(key)
        if found is None:
            found = remember(self._known, key, not key.startswith(GENERATED) and self._counts(key), REMEMBERED)
        return found

    def _counts(self, key: str) -> bool:
        """Whether no pattern ignores the key (and none has to include it), or a longer pattern includes it.

        A label that differs per pod (`pod-template-hash`) would give each pod its own identity. A policy that selects
        on an ignored label selects nothing, as with Cilium.
        """
        ignored = _lengths(self._ignored, key)
        if not ignored and not self._only:
            return True
        return max(_lengths(self._included, key), default=0) > min(ignored, default=0)


def _compiled(patterns: Iterable[str]) -> tuple[re.Pattern[str], ...]:
    found = []
    for text in patterns:
        try:
            found.append(re.compile(text))
        except re.error as error:
            raise ConfigError(f"labels: {text!r} is not a valid regular expression: {error}") from error
        if not text:
            raise ConfigError("labels: empty pattern")
    return tuple(found)


def _lengths(patterns: Iterable[re.Pattern[str]], key: str) -> list[int]:
    return [match.end() for pattern in patterns if (match := pattern.match(key))]


REMEMBERED: Final = 65_536
"""Maximum number of keys in a filter's cache."""
DEFAULT: Final = LabelFilter()


@dataclass(frozen=True, slots=True)
class Asked:
    """Further label keys that policies select on: of pods' own labels, and of their ServiceAccounts."""

    own: frozenset[str] = frozenset()
    account: frozenset[str] = frozenset()

    @classmethod
    def among(cls, keys: frozenset[tuple[str, str]], kept: LabelFilter = DEFAULT) -> Asked:
        own = frozenset(key for source, key in keys if source == OWN and not kept.keeps(key))
        return cls(own, frozenset(key for source, key in keys if source == ACCOUNT))


NOTHING: Final = Asked()
_NO_LABELS: Final[Mapping[str, str]] = {}


_label = lru_cache(maxsize=SHARED)(Label)
"""Most labels of a pod are those of its namespace, too."""


def labels_of(
    pod: Pod,
    namespace: Mapping[str, str],
    *,
    cluster: str,
    asked: Asked = NOTHING,
    account: Mapping[str, str] = _NO_LABELS,
    kept: LabelFilter = DEFAULT,
) -> LabelSet:
    """All labels of a pod's identity. The namespace label `METADATA_NAME` is always set, as by the API server.

    `account`: labels of the pod's ServiceAccount.
    """
    labels = {key: value for key, value in pod.labels.items() if kept.keeps(key)}
    for key, value in {**namespace, METADATA_NAME: pod.namespace}.items():
        labels[NAMESPACE_LABELS_PREFIX + key] = value
    labels[NAMESPACE_KEY] = pod.namespace
    labels[SERVICE_ACCOUNT_KEY] = pod.service_account
    labels[CLUSTER_KEY] = cluster
    found = [_label(K8S, key, value) for key, value in labels.items()]
    found += [Label(OWN, key, pod.labels[key]) for key in asked.own if key in pod.labels]
    found += [Label(ACCOUNT, key, account[key]) for key in asked.account if key in account]
    return LabelSet.of(found)
