"""Maps addresses and identity numbers to the names that flows show. One object per view."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from l7proxy.model.endpoint import NamedPod
from l7proxy.model.identity import Identity
from l7proxy.model.resources import Pod


@dataclass(frozen=True, slots=True)
class Names:
    """`owned`: address → pod. `ids`: (namespace, name) → endpoint number, local pods only. `node_labels`: of this node,
    sorted `key=value`."""

    owned: Mapping[str, Pod] = field(default_factory=dict)
    ids: Mapping[tuple[str, str], int] = field(default_factory=dict)
    services: Mapping[tuple[str, int, int], tuple[str, str]] = field(default_factory=dict)
    identities: Mapping[int, Identity] = field(default_factory=dict)
    node_labels: tuple[str, ...] = ()

    def pod(self, address: str) -> NamedPod | None:
        pod = self.owned.get(address)
        if pod is None:
            return None
        return NamedPod(self.ids.get((pod.namespace, pod.name), 0), pod.namespace, pod.name, pod.workload)

    def identity_labels(self, identity: int) -> tuple[str, ...]:
        """Sorted `source:key=value`; empty for an unknown number."""
        found = self.identities.get(identity)
        return found.labels.text if found else ()

    def service(self, address: str, port: int, protocol: int) -> tuple[str, str] | None:
        """(namespace, name) of the Service with this frontend."""
        return self.services.get((address, port, protocol))
