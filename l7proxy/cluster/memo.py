"""Caches results as long as their inputs are the same objects (compared by identity).

Only pure functions of frozen values are cached, so a cache never changes a result, only its cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


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


def same(some: Sequence[object], others: Sequence[object]) -> bool:
    """Whether both hold the same objects, in the same order."""
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))
