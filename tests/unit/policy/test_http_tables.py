"""The cache of compiled HTTP rules: who shares a table, what is evicted, and that lookups cost little."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import Action
from l7proxy.policy import decide
from l7proxy.policy.http_table import KEPT, KEPT_TABLES, TABLES, HttpTables, Rules
from l7proxy.policy.rules import HttpRule, HttpRules
from l7proxy.policy.tables import Entry, union

REF = RuleRef("CiliumNetworkPolicy", "default", "p", "1", "p.yaml", 1)


def rules(*paths: str) -> Rules:
    return tuple(HttpRule(REF, method="GET", path=path) for path in paths)


def test_equal_rules_share_a_table_and_doubles_are_dropped() -> None:
    tables = HttpTables()
    one = tables.of(rules("/a", "/b"), rules("/b", "/c"))
    assert one.rules == rules("/a", "/b", "/c")
    assert tables.of(rules("/a", "/b"), rules("/c")) is one
    assert tables.of(rules("/a")) is not one


def test_what_is_asked_for_outlives_generations_and_the_rest_is_forgotten() -> None:
    tables = HttpTables()
    much = rules(*(f"/kept/{number}" for number in range(KEPT)))
    kept, left = tables.of(much), tables.of(rules("/left"))
    for _ in range(2):
        tables = tables.following()
        assert tables.of(much) is kept
    assert tables.of(rules("/left")) is not left


def test_a_policy_that_comes_back_finds_its_table() -> None:
    tables = HttpTables()
    one, other = tables.of(rules("/one")), tables.of(rules("/other"))
    for _ in range(10):
        tables = tables.following()
        assert tables.of(rules("/one")) is one
        tables = tables.following()
        assert tables.of(rules("/other")) is other


def test_rules_that_never_come_again_are_not_held() -> None:
    tables = HttpTables()
    peaks = []
    tracemalloc.start()
    try:
        for number in range(6 * TABLES):
            tables.of(rules(*(f"/{number}/{place}" for place in range(2))))
            if number + 1 in (3 * TABLES, 6 * TABLES):
                peaks.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.1


def test_rules_that_were_asked_for_are_not_read_again() -> None:
    """However many they are: a worker looks them up for each new pair of addresses, while all clients wait."""

    class Watched(tuple[HttpRule, ...]):
        read = 0

        def __iter__(self) -> Iterator[HttpRule]:
            Watched.read += 1
            return super().__iter__()

        def __hash__(self) -> int:
            Watched.read += 1
            return super().__hash__()

    policy = union((Entry(Action.REDIRECT, REF, (300, 301), 6, 80, 80, HttpRules(Watched(rules("/a", "/b")))),))
    tables = HttpTables()
    first = decide.port(policy, 300, 6, 80, tables)
    before = Watched.read
    assert before
    assert decide.port(policy, 301, 6, 80, tables).tables == first.tables
    assert Watched.read == before


def test_small_policies_that_never_come_again_are_not_held_either() -> None:
    tables = HttpTables()
    first = tables.of(rules("/first"))
    for number in range(2 * KEPT_TABLES):
        tables = tables.following()
        tables.of(rules(f"/{number}"))
    tables = tables.following()
    assert tables.of(rules("/first")) is not first


def test_the_tables_of_a_snapshot_do_not_change_those_of_the_one_before() -> None:
    tables = HttpTables()
    one = tables.of(rules("/one"))
    after = tables.following()
    other = after.of(rules("/other"))
    assert after.of(rules("/one")) is one
    assert tables.of(rules("/other")) is not other
