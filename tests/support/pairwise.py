"""Pairwise selection: the rows of a product in which every two values that occur together still do."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations

Row = Mapping[str, Hashable]


def cover(rows: Sequence[Row]) -> list[int]:
    """The indices of rows, in order, whose pairs of values are the pairs of all rows. Greedy, so few and not fewest."""
    pairs = [frozenset(combinations(sorted(row.items(), key=lambda item: item[0]), 2)) for row in rows]
    missing = frozenset[object]().union(*pairs)
    chosen: list[int] = []
    while missing:
        best = max(range(len(rows)), key=lambda index: len(pairs[index] & missing))
        chosen.append(best)
        missing -= pairs[best]
    return sorted(chosen)
