"""Answers kept as long as what they were made from stays: the same values, told apart by identity.

Only pure functions of frozen values are remembered here, so that a memory never changes an answer, only its price.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

T = TypeVar("T")
V = TypeVar("V")


class Memory:
    """One answer per name. A name belongs to one call site: that is what makes the answer's type right."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[tuple[object, ...], Any]] = {}

    def of(self, name: str, made_from: tuple[object, ...], make: Callable[[], T]) -> T:
        """`make()`, or what it gave the last time if that was from these very values."""
        known = self._made.get(name)
        if known is not None and same(known[0], made_from):
            kept: T = known[1]
            return kept
        made = make()
        self._made[name] = made_from, made
        return made

    def equal(self, name: str, value: T) -> T:
        """The equal value that this name had before, if it had: what hangs on it is remembered then."""
        known = self._made.get(name)
        if known is not None and known[1] == value:
            kept: T = known[1]
            return kept
        self._made[name] = (), value
        return value


class Each(Generic[V, T]):
    """One answer for each of many values, kept for as long as the value is among those that are asked about."""

    def __init__(self, make: Callable[[V], T]) -> None:
        self._make = make
        self._made: dict[int, tuple[V, T]] = {}

    def of(self, values: Iterable[V]) -> list[T]:
        """By identity: what is remembered is kept alive, so that no identity is used twice."""
        before, self._made = self._made, {}
        return [self._one(value, before)[1] for value in values]

    def _one(self, value: V, before: dict[int, tuple[V, T]]) -> tuple[V, T]:
        known = self._made[id(value)] = before.get(id(value)) or (value, self._make(value))
        return known


def same(some: Sequence[object], others: Sequence[object]) -> bool:
    """The very same values, one by one."""
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))
