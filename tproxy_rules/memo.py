"""What was worked out for an object of the last picture need not be worked out for the same object in this one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Memo(Generic[Key, Value]):
    """A function that remembers its answers about objects, by identity, for as long as they are asked for.

    Keys must be frozen. They are kept alive while they are remembered, so that no identity is used twice.
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
        """A round is over: what was not asked for in it is forgotten."""
        self._before, self._now = self._now, {}
