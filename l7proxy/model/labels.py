"""Labels with a source, and selectors over them, with Cilium's semantics.

A label is `source:key=value`. A selector key without a source means `any`: the key under every source.

Cilium keeps some labels out of identities (one per pod would make as many identities); Kubernetes and Calico select on
any. Such labels have the sources `OWN` and `ACCOUNT`, are there only when a policy asks for their keys, and Cilium's
selectors never see them: those cannot spell the sources, and `any` leaves them out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Protocol

ANY = "any"
K8S = "k8s"
RESERVED = "reserved"
CIDR = "cidr"
CIDR_GROUP = "cidrgroup"
NODE = "node"
OWN = "k8s-pod"
"""In selectors: a label that the pod itself carries, and nothing that was generated for it."""
ACCOUNT = "k8s-account"
"""A label of the pod's ServiceAccount."""

NAMESPACE_KEY = "io.kubernetes.pod.namespace"
NAMESPACE_LABELS_PREFIX = "io.cilium.k8s.namespace.labels."
SERVICE_ACCOUNT_KEY = "io.cilium.k8s.policy.serviceaccount"
CLUSTER_KEY = "io.cilium.k8s.policy.cluster"
GENERATED = ("io.cilium.k8s.", NAMESPACE_KEY)
"""Keys under `k8s` that begin so are never the pod's own."""


@dataclass(frozen=True, slots=True, order=True)
class Label:
    """One label. `str()` gives Cilium's spelling: `k8s:app=web`, `reserved:world`."""

    source: str
    key: str
    value: str = ""

    def __str__(self) -> str:
        return f"{self.source}:{self.key}={self.value}" if self.value else f"{self.source}:{self.key}"


@dataclass(frozen=True)
class LabelSet:
    """An immutable set of labels, indexed for selectors. Equal sets are equal values."""

    labels: frozenset[Label]

    @classmethod
    def of(cls, labels: Iterable[Label]) -> LabelSet:
        return cls(frozenset(labels))

    @classmethod
    def reserved(cls, *names: str) -> LabelSet:
        return cls(frozenset(Label(RESERVED, name) for name in names))

    @cached_property
    def by_key(self) -> Mapping[tuple[str, str], str]:
        """(source, key) → value."""
        return {(label.source, label.key): label.value for label in self.labels}

    @cached_property
    def any_source(self) -> Mapping[str, frozenset[str]]:
        """key → every value it has under any source."""
        found: dict[str, set[str]] = {}
        for label in self.labels:
            if label.source not in (OWN, ACCOUNT):
                found.setdefault(label.key, set()).add(label.value)
        return {key: frozenset(values) for key, values in found.items()}

    def values(self, source: str, key: str) -> frozenset[str]:
        """The values of a key under `source`, or under all of them when it is `any`; empty when absent."""
        if source == ANY:
            return self.any_source.get(key, frozenset())
        value = self.by_key.get((source, key))
        if value is None and source == OWN and not key.startswith(GENERATED):
            value = self.by_key.get((K8S, key))
        return frozenset() if value is None else frozenset((value,))

    def get(self, source: str, key: str) -> str | None:
        return self.by_key.get((source, key))

    @cached_property
    def text(self) -> tuple[str, ...]:
        """The sorted spelling that flows and `identity list` show."""
        return tuple(sorted(str(label) for label in self.labels))

    def __hash__(self) -> int:
        return hash(self.labels)


class Operator(Enum):
    """Kubernetes' four set operators. NotIn and DoesNotExist hold when the key is missing."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"

    __hash__ = object.__hash__
    """Enum's own is written in Python, and selectors are looked up all the time."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """One term of a selector."""

    source: str
    key: str
    operator: Operator
    values: tuple[str, ...] = ()

    def matches(self, labels: LabelSet) -> bool:
        found = labels.values(self.source, self.key)
        match self.operator:
            case Operator.IN:
                return not found.isdisjoint(self.values)
            case Operator.NOT_IN:
                return found.isdisjoint(self.values)
            case Operator.EXISTS:
                return bool(found)
            case Operator.DOES_NOT_EXIST:
                return not found

    def __str__(self) -> str:
        name = f"{self.source}:{self.key}"
        match self.operator:
            case Operator.IN if len(self.values) == 1:
                return f"{name}={self.values[0]}"
            case Operator.IN:
                return f"{name} in ({','.join(self.values)})"
            case Operator.NOT_IN:
                return f"{name} notin ({','.join(self.values)})"
            case Operator.EXISTS:
                return name
            case Operator.DOES_NOT_EXIST:
                return f"!{name}"


class Selects(Protocol):
    """A predicate over labels: a value, equal and hashable by what it says. `str()` is how people read it."""

    def matches(self, labels: LabelSet) -> bool: ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Selector:
    """A conjunction of requirements; without any it selects everything."""

    requirements: tuple[Requirement, ...] = ()
    _hash: int = field(init=False, repr=False, compare=False)
    """Worked out once: selectors are what policies are looked up by."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash(self.requirements))

    def __hash__(self) -> int:
        return self._hash

    def matches(self, labels: LabelSet) -> bool:
        return all(requirement.matches(labels) for requirement in self.requirements)

    def __str__(self) -> str:
        return ",".join(str(requirement) for requirement in self.requirements) or "everything"


EVERYTHING = Selector()
