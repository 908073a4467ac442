"""The changes between two states of a source."""

from __future__ import annotations

from l7proxy.model.resources import Delete, Pod, Upsert
from l7proxy.sources.source import differences


def test_differences_name_removals_first() -> None:
    a, b = Pod("x", "a"), Pod("x", "b")
    changed = Pod("x", "b", node="n")
    assert differences({a.key: a, b.key: b}, {b.key: changed}) == [Delete(a.key), Upsert(changed)]
    assert differences({a.key: a}, {a.key: Pod("x", "a")}) == []
