"""Which Secrets the policies name and may use: only these are read of the cluster, each by its name. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

from l7proxy.model.resources import Delete, PolicyDocument, ResourceKey, Upsert
from l7proxy.policy.headers import SecretName
from l7proxy.policy.lang import Read
from l7proxy.policy.lang.http import foreign_secrets

MOST: Final = 256
"""Secrets that are read: each costs the server a watch."""


class NamedSecrets:
    """`namespace`: the one whose Secrets policies may use besides those of their own."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._by_policy: dict[ResourceKey, frozenset[SecretName]] = {}

    def follow(self, changes: Iterable[Upsert | Delete]) -> None:
        for change in changes:
            match change:
                case Delete(key):
                    self._by_policy.pop(key, None)
                case Upsert(PolicyDocument() as document):
                    names = _names(document, self._namespace)
                    if names:
                        self._by_policy[document.key] = names
                    else:
                        self._by_policy.pop(document.key, None)

    @property
    def wanted(self) -> list[SecretName]:
        """The first of each namespace, then the second of each: many names in one do not crowd out others."""
        turns: Counter[str] = Counter()
        ranked = []
        for name in sorted(frozenset[SecretName]().union(*self._by_policy.values()), key=str):
            turns[name.namespace] += 1
            ranked.append((turns[name.namespace], name.namespace, name.name))
        return [SecretName(namespace, name) for _, namespace, name in sorted(ranked)]


def _names(document: PolicyDocument, namespace: str) -> frozenset[SecretName]:
    found = document.parsed
    if not isinstance(found, Read) or foreign_secrets(found.rules, namespace):
        return frozenset()
    return frozenset(
        SecretName(match.secret.namespace or namespace, match.secret.name)
        for rule in found.rules
        for item in rule.http
        for match in item.header_matches
        if match.secret is not None
    )
