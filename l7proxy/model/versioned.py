"""A mapping in versions: a new version costs as much as its changes, and knows what differs from an earlier one.

A cluster has a hundred thousand prefixes of which few change at a time. Each layer that gets such a mapping asks
`changes` for the keys that differ from the version it had last, and does the work for those alone. Its result is the
same as from the whole mapping, so nobody has to see every version: a part that comes late gets all changes since its
own last version.

Only the newest version has a dict. Each earlier one has the values that its successor replaced, and finds all others
through it. Versions may be read in other threads while new ones are made, but only one thread makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, ItemsView, Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar, cast

K = TypeVar("K")
V = TypeVar("V")

LEAST: Final = 1024
"""Changes that are remembered of any mapping; of a large one a quarter of its size. Then the next version is a copy
without history, so that memory stays bounded while somebody keeps an old version."""
_NONE: Final[Any] = object()


class VersionedMap(Mapping[K, V]):
    """One version; it never changes. Values are not None."""

    __slots__ = ("_data", "_newer", "_remembered", "_replaced", "_size")

    def __init__(self, entries: Mapping[K, V] | Iterable[tuple[K, V]] = ()) -> None:
        self._data: dict[K, V] = dict(entries)
        self._begin(0)

    def _begin(self, remembered: int) -> None:
        self._size = len(self._data)
        self._remembered = remembered
        self._newer: VersionedMap[K, V] | None = None
        self._replaced: dict[K, V] = {}

    def updated(self, keys: Iterable[K], value: Callable[[K], V | None]) -> VersionedMap[K, V]:
        """The version in which these keys have these values, and those with None do not exist; this one if that is no
        difference."""
        come, replaced = {}, {}
        for key in keys:
            now, before = value(key), self.get(key)
            if now is not before and now != before:
                come[key], replaced[key] = now, before
        if not come:
            return self
        remembered = self._remembered + len(come)
        newer: VersionedMap[K, V] = VersionedMap.__new__(VersionedMap)
        if self._newer is not None or remembered > max(LEAST, self._size // 4):
            newer._data = self.copy()
            newer._begin(0)
        else:
            newer._data = self._data
            newer._begin(remembered)
            # Before the dict changes: another thread that reads this version looks here after it has read the dict.
            self._replaced = {key: _NONE if old is None else old for key, old in replaced.items()}
            self._newer = newer
        for key, now in come.items():
            if now is None:
                del newer._data[key]
            else:
                newer._data[key] = now
        newer._size = len(newer._data)
        return newer

    def changed_since(self, before: object) -> Collection[K] | None:
        """The keys that may differ between two versions, in whichever order they were made. None: nothing is known."""
        if not isinstance(before, VersionedMap) or before._data is not self._data:
            return None
        found = _between(before, self)
        return _between(self, before) if found is None else found

    def copy(self) -> dict[K, V]:
        """All of it, as a dict of its own."""
        found = self._data.copy()
        for version in reversed([*self._successors()]):
            for key, value in version._replaced.items():
                if value is _NONE:
                    found.pop(key, None)
                else:
                    found[key] = value
        return found

    def pairs(self) -> Pairs[K, V]:
        return Pairs(self)

    def __getitem__(self, key: K) -> V:
        found = self.get(key, _NONE)
        if found is _NONE:
            raise KeyError(key)
        return cast("V", found)

    def get(self, key: K, default: Any = None) -> Any:
        found = self._data.get(key, _NONE)
        if self._newer is not None:
            found = next((one._replaced[key] for one in self._successors() if key in one._replaced), found)
        return default if found is _NONE else found

    def __contains__(self, key: object) -> bool:
        return self.get(cast("K", key), _NONE) is not _NONE

    def __iter__(self) -> Iterator[K]:
        return iter(self.copy())

    def items(self) -> ItemsView[K, V]:
        return self.copy().items()

    def __len__(self) -> int:
        return self._size

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Mapping):
            return NotImplemented
        if len(self) != len(other):
            return False
        changed = self.changed_since(other)
        if changed is None:
            return self.copy() == (other.copy() if isinstance(other, VersionedMap) else other)
        return all(self.get(key, _NONE) == other.get(key, _NONE) for key in changed)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"VersionedMap({self.copy()!r})"

    def _successors(self) -> Iterator[VersionedMap[K, V]]:
        """This version and later ones, but for the newest: those with something replaced."""
        version: VersionedMap[K, V] = self
        while version._newer is not None:
            yield version
            version = version._newer


class Pairs(Collection[tuple[K, V]]):
    """The (key, value) pairs of one version, which also tell what has changed."""

    __slots__ = ("mapping",)

    def __init__(self, mapping: VersionedMap[K, V]) -> None:
        self.mapping = mapping

    def changed_since(self, before: object) -> Collection[K] | None:
        return self.mapping.changed_since(before.mapping) if isinstance(before, Pairs) else None

    def get(self, key: K) -> V | None:
        return cast("V | None", self.mapping.get(key))

    def __iter__(self) -> Iterator[tuple[K, V]]:
        return iter(self.mapping.items())

    def __len__(self) -> int:
        return len(self.mapping)

    def __contains__(self, pair: object) -> bool:
        return isinstance(pair, tuple) and len(pair) == 2 and self.mapping.get(pair[0], _NONE) == pair[1]

    def __eq__(self, other: object) -> bool:
        return self.mapping == other.mapping if isinstance(other, Pairs) else NotImplemented

    __hash__ = None  # type: ignore[assignment]


def changes(before: Mapping[K, V], after: Mapping[K, V]) -> Collection[K]:
    """The keys that may differ. Fast for two versions of one mapping; else all pairs are compared."""
    if before is after:
        return ()
    known = after.changed_since(before) if isinstance(after, VersionedMap) else None
    return {key for key, _ in before.items() ^ after.items()} if known is None else known


def _between(older: VersionedMap[K, V], newer: VersionedMap[K, V]) -> set[K] | None:
    """The keys that changed from one version to the other; None if the second one does not follow the first."""
    found: set[K] = set()
    version = older
    while version is not newer:
        found.update(version._replaced)
        if version._newer is None:
            return None
        version = version._newer
    return found
