from __future__ import annotations

from itertools import combinations, product

from tests.support.pairwise import Row, cover


def rows(**values: int) -> list[Row]:
    return [dict(zip(values, row, strict=True)) for row in product(*(range(count) for count in values.values()))]


def pairs(chosen: list[Row]) -> set[object]:
    return {pair for row in chosen for pair in combinations(row.items(), 2)}


def test_every_pair_of_values_is_kept_and_most_of_the_product_is_not() -> None:
    product = rows(world=6, known=2, source=2, target=2)
    chosen = cover(product)
    assert pairs([product[index] for index in chosen]) == pairs(product)
    assert len(chosen) == 12, "no pair of values needs more than the two longest parameters"


def test_two_parameters_are_kept_whole() -> None:
    assert cover(rows(world=6, family=2)) == list(range(12))


def test_pairs_that_do_not_occur_are_not_asked_for() -> None:
    product = [row for row in rows(world=3, known=2, source=2) if (row["world"], row["known"]) != (0, 0)]
    chosen = [product[index] for index in cover(product)]
    assert pairs(chosen) == pairs(product)
    assert len(chosen) < len(product)


def test_no_rows_need_none() -> None:
    assert cover([]) == []
