"""Caches: bounded, and never another result than the function that they cache."""

from __future__ import annotations

import gc

from hypothesis import given
from hypothesis import strategies as st

from l7proxy.model.cache import IdentityMemo, remember


@given(st.lists(st.integers(0, 50)), st.integers(1, 8))
def test_a_bounded_cache_has_the_newest_value_and_at_most_its_limit(keys: list[int], limit: int) -> None:
    cache: dict[int, int] = {}
    for place, key in enumerate(keys):
        assert remember(cache, key, place, limit) == place
        assert cache[key] == place
        assert len(cache) <= limit


def test_a_full_cache_is_emptied() -> None:
    cache = {1: "a", 2: "b"}
    remember(cache, 3, "c", 2)
    assert cache == {3: "c"}


class Counted:
    """A function that counts its calls. Its results are those of `str`."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, value: tuple[int, ...]) -> str:
        self.calls += 1
        return str(value)


@given(st.lists(st.lists(st.integers(0, 3), max_size=6), max_size=6))
def test_a_memo_gives_what_the_function_gives(rounds: list[list[int]]) -> None:
    memo, values = IdentityMemo(str), [(number,) for number in range(4)]
    for asked in rounds:
        assert [memo(values[number]) for number in asked] == [f"({number},)" for number in asked]
        memo.turn()


def test_a_value_is_computed_once_while_every_round_asks_for_it() -> None:
    counted = Counted()
    memo, (value, equal) = IdentityMemo(counted), [tuple(range(2)) for _ in range(2)]
    for _ in range(3):
        memo(value)
        memo(value)
        memo.turn()
    assert counted.calls == 1
    memo(equal)
    assert counted.calls == 2, "an equal value is another one"
    memo.turn()
    memo(value)
    assert counted.calls == 3, "a round did not ask for it"


def test_the_id_of_a_value_that_nobody_else_holds_is_not_mixed_up() -> None:
    memo = IdentityMemo(str)
    for number in range(200):
        assert memo((number,)) == f"({number},)"
        gc.collect(0)


def test_a_copy_has_the_results_and_a_life_of_its_own() -> None:
    counted = Counted()
    memo, value = IdentityMemo(counted), (1,)
    memo(value)
    memo.turn()
    copy = memo.copy()
    memo.turn()
    memo.turn()
    copy(value)
    assert counted.calls == 1
    memo(value)
    assert counted.calls == 2
