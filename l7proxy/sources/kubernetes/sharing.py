"""Equal parts of pods are one object in memory: a large cluster has a hundred thousand pods, of few workloads. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from sys import intern
from typing import Any, Final, TypeVar

from l7proxy.model.cache import remember
from l7proxy.model.resources import Pod

V = TypeVar("V", bound=Hashable)

LIMIT: Final = 50_000
"""Parts of each sort that are remembered."""


class SharedParts:
    """Replaces parts of pods by equal ones that came before."""

    def __init__(self) -> None:
        self._values: dict[Any, Any] = {}
        self._labels: dict[tuple[tuple[str, str], ...], Mapping[str, str]] = {}

    def __call__(self, pod: Pod) -> Pod:
        """An equal pod."""
        return replace(
            pod,
            namespace=intern(pod.namespace),
            node=intern(pod.node),
            labels=self._shared_labels(pod.labels),
            named_ports=self._shared(pod.named_ports),
            service_account=intern(pod.service_account),
            workload=self._shared(pod.workload),
            phase=intern(pod.phase),
        )

    def _shared(self, value: V) -> V:
        found: V | None = self._values.get(value)
        return remember(self._values, value, value, LIMIT) if found is None else found

    def _shared_labels(self, labels: Mapping[str, str]) -> Mapping[str, str]:
        key = tuple(labels.items())
        found = self._labels.get(key)
        if found is None:
            found = remember(self._labels, key, {intern(name): intern(text) for name, text in key}, LIMIT)
        return found
