"""Versions of a mapping: each stays what it was, and knows what differs from any other."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from l7proxy.model import versioned
from l7proxy.model.versioned import VersionedMap, changes

CHANGES = st.lists(st.dictionaries(st.integers(0, 9), st.none() | st.integers(0, 3), max_size=4), max_size=12)


def made(steps: list[dict[int, int | None]]) -> list[tuple[VersionedMap[int, int], dict[int, int]]]:
    """Every version, with the dict that it must equal."""
    version, plain = VersionedMap[int, int](), dict[int, int]()
    found = [(version, plain)]
    for step in steps:
        version = version.updated(step, step.get)
        plain = {key: value for key, value in {**plain, **step}.items() if value is not None}
        found.append((version, plain))
    return found


@given(CHANGES, st.integers(0, 12))
def test_every_version_stays_as_it_was(steps: list[dict[int, int | None]], least: int) -> None:
    before, versioned.LEAST = versioned.LEAST, least  # type: ignore[misc]  # copies in between
    try:
        found = made(steps)
    finally:
        versioned.LEAST = before  # type: ignore[misc]
    for version, plain in found:
        assert dict(version.items()) == version.copy() == plain == version
        assert len(version) == len(plain) and set(version) == set(plain)
        assert all(version.get(key) == plain.get(key) for key in range(10))
        assert all((key in version) == (key in plain) for key in range(10))


@given(CHANGES, st.integers(0, 12))
def test_changes_hold_all_that_differs(steps: list[dict[int, int | None]], least: int) -> None:
    before, versioned.LEAST = versioned.LEAST, least  # type: ignore[misc]
    try:
        found = made(steps)
    finally:
        versioned.LEAST = before  # type: ignore[misc]
    for one, plain in found:
        for other, others in found:
            differing = {key for key, _ in plain.items() ^ others.items()}
            assert differing <= set(changes(one, other))
            assert (one == other) == (plain == others)
            assert (one.pairs() == other.pairs()) == (plain == others)


def test_no_difference_is_the_same_version() -> None:
    version = VersionedMap({1: 2})
    assert version.updated([1, 3], {1: 2}.get) is version


def test_a_version_from_an_old_one_is_a_mapping_of_its_own() -> None:
    old = VersionedMap({1: 1})
    new = old.updated([1], {1: 2}.get)
    other = old.updated([1], {1: 3}.get)
    assert [one.copy() for one in (old, new, other)] == [{1: 1}, {1: 2}, {1: 3}]
    assert other.changed_since(new) is None


def test_history_is_bounded() -> None:
    first = version = VersionedMap({1: 0})
    for number in range(2 * versioned.LEAST):
        version = version.updated([1], {1: number + 1}.get)
    assert version.changed_since(first) is None, "the first one does not keep all later ones alive"
    assert (first[1], version[1]) == (0, 2 * versioned.LEAST)


class Key:
    """A key that calls `hook` whenever it is hashed: in the middle of a change."""

    hook: Callable[[], None] | None = None

    def __hash__(self) -> int:
        if Key.hook is not None:
            hook, Key.hook = Key.hook, None
            hook()
            Key.hook = hook
        return 1


def test_a_version_is_read_while_the_next_one_is_made() -> None:
    """As another thread may do it, at every point where the interpreter may change threads."""
    kept, gone, new = Key(), Key(), Key()
    version = VersionedMap({kept: 1, gone: 1})
    seen = []
    Key.hook = lambda: seen.append(([*version.copy().items()], len(version), version.get(new), version.get(gone)))
    version.updated([kept, gone, new], {kept: 2, new: 3}.get)
    Key.hook = None
    assert len(seen) > 6
    assert all(one == ([(kept, 1), (gone, 1)], 2, None, 1) for one in seen)
