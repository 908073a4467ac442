"""Labels with a source, and selectors over them, with Cilium's semantics.

A label is `source:key=value`. A selector key without a source means `any`: the key under every source.

Cilium excludes some labels from identities (a label unique to each pod would make one identity per pod); Kubernetes and
Calico select on any label. Excluded labels get the sources `OWN` and `ACCOUNT` and are added only when a policy uses
their keys. Cilium's selectors never match them: they cannot name these sources, and `any` excludes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from operator import attrgetter
from typing import Protocol

ANY = "any"
K8S = "k8s"
RESERVED = "reserved"
CIDR = "cidr"
CIDR_GROUP = "cidrgroup"
NODE = "node"
OWN = "k8s-pod"
"""In selectors: a label of the pod object itself, not one generated for it."""
ACCOUNT = "k8s-account"
"""A label of the pod's ServiceAccount."""

NAMESPACE_KEY = "io.kubernetes.pod.namespace"
NAMESPACE_LABELS_PREFIX = "io.cilium.k8s.namespace.labels."
SERVICE_ACCOUNT_KEY = "io.cilium.k8s.policy.serviceaccount"
CLUSTER_KEY = "io.cilium.k8s.policy.cluster"
GENERATED = ("io.cilium.k8s.", NAMESPACE_KEY)
"""Prefixes of `k8s` keys that are generated, never the pod's own."""


@dataclass(frozen=True, slots=True, order=True)
class Label:
    """One label. `str()` gives Cilium's spelling: `k8s:app=web`, `reserved:world`."""

    source: str
    key: str
    value: str = ""

    def __str__(self) -> str:
        return f"{self.source}:{self.key}={self.value}" if self.value else f"{self.source}:{self.key}"


@dataclass(frozen=True, slots=True)
class LabelSet:
    """An immutable set of labels, at most one of each source and key. A large cluster has tens of thousands of them, so
    it is small: a sorted tuple, and what is derived from it when somebody asks."""

    labels: tuple[Label, ...]
    _by_source: Mapping[str, Mapping[str, str]] | None = field(default=None, init=False, repr=False, compare=False)
    _text: tuple[str, ...] | None = field(default=None, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, labels: Iterable[Label]) -> LabelSet:
        return cls(tuple(sorted(frozenset(labels), key=_order)))

    @classmethod
    def reserved(cls, *names: str) -> LabelSet:
        return cls.of(Label(RESERVED, name) for name in names)

    @property
    def by_source(self) -> Mapping[str, Mapping[str, str]]:
        """source → key → value."""
        if self._by_source is None:
            found: dict[str, dict[str, str]] = {}
            for label in self.labels:
                found.setdefault(label.source, {})[label.key] = label.value
            object.__setattr__(self, "_by_source", found)
            return found
        return self._by_source

    def values(self, source: str, key: str) -> frozenset[str]:
        """The values of a key under `source`, or under all sources when it is `any`; empty when absent."""
        if source == ANY:
            every = self.by_source.items()
            return frozenset(inside[key] for name, inside in every if key in inside and name not in (OWN, ACCOUNT))
        value = self.get(source, key)
        if value is None and source == OWN and not key.startswith(GENERATED):
            value = self.get(K8S, key)
        return frozenset() if value is None else frozenset((value,))

    def get(self, source: str, key: str) -> str | None:
        inside = self.by_source.get(source)
        return None if inside is None else inside.get(key)

    @property
    def text(self) -> tuple[str, ...]:
        """Sorted text form, as flows and `identity list` show it; kept for the few sets that are shown."""
        if self._text is None:
            object.__setattr__(self, "_text", self.spelled())
        return self._text or ()

    def spelled(self) -> tuple[str, ...]:
        """The same, made anew."""
        return tuple(sorted(map(_spelled, self.labels)))


_order = attrgetter("source", "key", "value")
SHARED = 1 << 15
"""Parts of label sets that are one object in memory: most labels of a pod are those of its namespace, too."""


@lru_cache(maxsize=SHARED)
def _spelled(label: Label) -> str:
    return str(label)


class Operator(Enum):
    """The four set operators of Kubernetes. NotIn and DoesNotExist are true when the key is absent."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"

    __hash__ = object.__hash__
    """Enum's own hash is written in Python and too slow: selectors are looked up very often."""


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
    """A predicate over labels: a hashable value with equality by content. `str()` is for people."""

    def matches(self, labels: LabelSet) -> bool: ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Selector:
    """A conjunction of requirements. Without requirements it selects everything."""

    requirements: tuple[Requirement, ...] = ()
    _hash: int = field(init=False, repr=False, compare=False)
    """Computed once, because selectors are lookup keys of policies."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash(self.requirements))

    def __hash__(self) -> int:
        return self._hash

    def matches(self, labels: LabelSet) -> bool:
        return all(requirement.matches(labels) for requirement in self.requirements)

    def __str__(self) -> str:
        return ",".join(str(requirement) for requirement in self.requirements) or "everything"


EVERYTHING = Selector()
