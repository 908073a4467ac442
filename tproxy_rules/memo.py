"""A cache by object identity, kept from one desired state to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Memo(Generic[Key, Value]):
    """A function that caches its results by object identity, as long as they are requested in each round.

    Keys must be frozen. The cache holds a reference to each key, so that its `id` is not reused.
    """

    def __init__(self, make: Callable[[Key], Value]) -> None:
        self._make = make
        self._before: dict[int, tuple[Key, Value]] = {}
        self._now: dict[int, tuple[Key, Value]] = {}

    def __call__(self, key: Key) -> Value:
        known = self._now.get(id(key))
        if known is None:
            known = self._before.get(id(key)) or (key, self._make(key))
            self._now[id(key)] = known
        return known[1]

    def turn(self) -> None:
        """End a round: drop the results that were not requested in it."""
        self._before, self._now = self._now, {}
