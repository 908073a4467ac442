"""Counters that outlive what counts: rules and sets are made anew now and then, and then count from nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

Key = TypeVar("Key")


class Tally(Generic[Key]):
    """The sum of all that counters with a key have counted."""

    def __init__(self) -> None:
        self.total: dict[Key, int] = {}
        self._seen: dict[Key, int] = {}

    def saw(self, counters: Mapping[Key, int]) -> None:
        """The counters as they stand. One that stands lower than before has begun anew in between."""
        for key, count in counters.items():
            before = self._seen.get(key, 0)
            self.total[key] = self.total.get(key, 0) + (count - before if count >= before else count)
        self._seen = dict(counters)

    def anew(self, which: Callable[[Key], bool] = lambda key: True) -> None:
        """These counters begin anew now, after what was seen last."""
        self._seen = {key: count for key, count in self._seen.items() if not which(key)}
