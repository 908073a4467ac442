"""Caches of pure functions of immutable values: a cache changes only what a result costs, never the result.

A bounded cache is a plain dict, since its lookups are on the hot path: `found = cache.get(key)`, and where that is
None, `found = remember(cache, key, make(), limit)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


def remember(cache: dict[K, V], key: K, value: V, limit: int) -> V:
    """Add an entry, and return its value. A cache with `limit` entries is emptied first: clients may choose the keys.

    An eviction of single entries would need more work for each lookup, and a client that sends ever new keys would
    still replace all others.
    """
    if len(cache) >= limit:
        cache.clear()
    cache[key] = value
    return value


class IdentityMemo(Generic[K, V]):
    """A function of immutable values that caches its results by the identity of the value.

    A result is kept until a round in which nobody asks for it. Values are kept alive with their results, so that no
    `id` is reused.
    """

    def __init__(self, make: Callable[[K], V]) -> None:
        self._make = make
        self._before: dict[int, tuple[K, V]] = {}
        self._now: dict[int, tuple[K, V]] = {}

    def __call__(self, value: K) -> V:
        number = id(value)
        known = self._now.get(number)
        if known is None:
            known = self._now[number] = self._before.get(number) or (value, self._make(value))
        return known[1]

    def turn(self) -> None:
        """End a round."""
        self._before, self._now = self._now, {}

    def copy(self) -> IdentityMemo[K, V]:
        """A memo that has the results of this one; later calls of one do not affect the other."""
        other = IdentityMemo(self._make)
        other._before, other._now = dict(self._before), dict(self._now)
        return other
