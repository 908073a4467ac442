"""Incremental identities equal those built from scratch: the cache never changes the result."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy_rules.desired import Prefixes
from tproxy_rules.digest import identities_digest
from tproxy_rules.identity_cache import IdentityCache, page

PREFIXES = (
    *(f"10.0.0.{number}/32" for number in range(1, 9)),
    *("0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/30", "10.1.0.0/16"),
    *("::/0", "fd00::/8", "fd00::/32", "fd00::1/128", "fd00::2/128"),
    *("FD00::3/128", "10.0.0.1/8", "pods"),  # not canonical, and not a prefix at all
)
PAIRS = [(prefix, number) for prefix in PREFIXES for number in (0, 7, 8, 1 << 32)]
"""The same objects in each desired state, as callers have them."""
GOOD = [pair for pair in PAIRS if pair[1] < 1 << 32 and pair[0] not in ("FD00::3/128", "10.0.0.1/8", "pods")]


def snapshots(pairs: list[tuple[str, int]]) -> st.SearchStrategy[Prefixes]:
    """Mostly in order, as callers have them; sometimes one prefix twice."""
    some = st.lists(st.sampled_from(pairs), max_size=12)
    unique = some.map(lambda found: tuple(sorted({pair[0]: pair for pair in found}.values())))
    return st.one_of(unique, unique, some.map(tuple))


@given(st.lists(st.one_of(snapshots(GOOD), snapshots(GOOD), snapshots(PAIRS)), min_size=2, max_size=6))
def test_whatever_came_before(some: list[Prefixes]) -> None:
    roll = IdentityCache()
    for prefixes in some:
        assert roll(prefixes) == page(prefixes)
        assert roll.examined(prefixes) == (page(prefixes).problem, page(prefixes).canonical)
        assert roll.split(page(prefixes).canonical) == page(prefixes).nets
        if not page(prefixes).problem:
            assert roll.digest(page(prefixes).canonical) == identities_digest(page(prefixes).canonical)


BASE = tuple(sorted((f"10.{high}.{low}.1/32", high + low) for high in range(40) for low in range(40)))


def having(come: dict[str, int], gone: tuple[str, ...] = ()) -> Prefixes:
    known = {pair[0]: pair for pair in BASE if pair[0] not in gone}
    return tuple(sorted((known | {text: (text, number) for text, number in come.items()}).values()))


@pytest.mark.parametrize(
    "after",
    [
        pytest.param(having({"10.7.7.1/32": 99}), id="a host changed"),
        pytest.param(having({"10.7.7.2/32": 99}), id="a host came"),
        pytest.param(having({}, gone=("10.7.7.1/32",)), id="a host went"),
        pytest.param(having({}, gone=(BASE[0][0],)), id="the first went"),
        pytest.param(having({}, gone=(BASE[-1][0],)), id="the last went"),
        pytest.param(having({"10.7.7.0/24": 99}), id="a range came"),
        pytest.param(having({"0.0.0.0/0": 2}), id="a default came"),
        pytest.param((*BASE, BASE[-1]), id="one is there twice"),
        pytest.param((*BASE, ("10.0.0.1/8", 3)), id="one is not a valid CIDR"),
        pytest.param((BASE[0], *BASE), id="the first is there twice"),
        pytest.param(having({"10.7.7.1/32": 1 << 32}), id="a number is none"),
        pytest.param(BASE[::-1], id="turned around"),
        pytest.param((), id="nobody is left"),
    ],
)
def test_of_many_one_changes(after: Prefixes) -> None:
    roll = IdentityCache()
    assert roll(BASE) == page(BASE)
    assert roll(after) == page(after)
    assert roll(BASE) == page(BASE)
