"""Long lists in messages: the first entries, and the number of the others."""

from __future__ import annotations

from collections.abc import Sequence


def shortened(texts: Sequence[str], most: int, separator: str = ", ", last: str = " ") -> str:
    """At most so many texts, as `a, b and 3 more`. `last` stands before `and`."""
    more = f"{last}and {len(texts) - most} more" if len(texts) > most else ""
    return separator.join(texts[:most]) + more
