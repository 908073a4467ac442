"""Thousands of patterns are still one set: the cost of a request must not grow with the rules of its port."""

from __future__ import annotations

import pytest

from l7proxy.policy.match.pattern import PatternSet


def patterns(count: int) -> list[str]:
    return [f"/api/s{number}/users/[0-9]+/.*" for number in range(count)]


@pytest.mark.parametrize("count", [10, 1000, 10_000])
def test_any_number_of_ordinary_patterns_is_one_set(count: int) -> None:
    found = PatternSet(patterns(count))
    assert not found.broken
    assert not found.one_by_one
    assert found.find(b"/api/s7/users/12/items") == [7]
    assert found.find(f"/api/s{count - 1}/users/1/".encode()) == [count - 1]
    assert found.find(f"/api/s{count}/users/1/".encode()) == []
