"""Sums counters across resets: recreated kernel rules and sets count from zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

Key = TypeVar("Key")


class Tally(Generic[Key]):
    """The total of counters, by key."""

    def __init__(self) -> None:
        self.total: dict[Key, int] = {}
        self._seen: dict[Key, int] = {}

    def saw(self, counters: Mapping[Key, int]) -> None:
        """Add the current values. A value lower than the last one means that the counter was reset."""
        for key, count in counters.items():
            before = self._seen.get(key, 0)
            self.total[key] = self.total.get(key, 0) + (count - before if count >= before else count)
        self._seen = dict(counters)

    def anew(self, which: Callable[[Key], bool] = lambda key: True) -> None:
        """Note that these counters were reset after the last `saw`."""
        self._seen = {key: count for key, count in self._seen.items() if not which(key)}
