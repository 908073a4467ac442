"""Caches results as long as their inputs are the same objects (compared by identity).

Only pure functions of frozen values are cached, so a cache never changes a result, only its cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

T = TypeVar("T")
V = TypeVar("V")


class Memory:
    """One cached result per name. Each name is used by one call site only, which keeps the result's type correct."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[tuple[object, ...], Any]] = {}

    def of(self, name: str, made_from: tuple[object, ...], make: Callable[[], T]) -> T:
        """`make()`, or its last result if that was made from the same objects."""
        known = self._made.get(name)
        if known is not None and same(known[0], made_from):
            kept: T = known[1]
            return kept
        made = make()
        self._made[name] = made_from, made
        return made

    def equal(self, name: str, value: T) -> T:
        """The previous value of this name if it is equal, else `value`. So results cached by identity stay valid."""
        known = self._made.get(name)
        if known is not None and known[1] == value:
            kept: T = known[1]
            return kept
        self._made[name] = (), value
        return value


class Each(Generic[V, T]):
    """One cached result per value, kept as long as the value is in every call of `of`."""

    def __init__(self, make: Callable[[V], T]) -> None:
        self._make = make
        self._made: dict[int, tuple[V, T]] = {}

    def of(self, values: Iterable[V]) -> list[T]:
        """Compares by identity. Cached values are kept alive, so that no `id` is reused."""
        before, self._made = self._made, {}
        return [self._one(value, before)[1] for value in values]

    def _one(self, value: V, before: dict[int, tuple[V, T]]) -> tuple[V, T]:
        known = self._made[id(value)] = before.get(id(value)) or (value, self._make(value))
        return known


def same(some: Sequence[object], others: Sequence[object]) -> bool:
    """Whether both hold the same objects, in the same order."""
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))
