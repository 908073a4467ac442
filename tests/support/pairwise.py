"""Pairwise selection: a subset of the rows of a product that still contains every pair of values."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations

Row = Mapping[str, Hashable]


def cover(rows: Sequence[Row]) -> list[int]:
    """The indices of rows, in order, that contain every pair of values of all rows. Greedy: few, not the fewest."""
    pairs = [frozenset(combinations(sorted(row.items(), key=lambda item: item[0]), 2)) for row in rows]
    missing = frozenset[object]().union(*pairs)
    chosen: list[int] = []
    while missing:
        best = max(range(len(rows)), key=lambda index: len(pairs[index] & missing))
        chosen.append(best)
        missing -= pairs[best]
    return sorted(chosen)
