"""Decides when to offer bytes for splicing: bytes that need no inspection, if there are many."""

from __future__ import annotations

from typing import Final

from l7proxy.gate.actions import Action, Side, Splice
from l7proxy.wire.body import ENDLESS

WORTHWHILE: Final = 512 << 10
"""Bytes still to come, where their number is known: fewer are not worth setting up a splice."""
IN_BULK: Final = 64 << 10
"""Bytes in one read, where the number to come is not known: such a stream carries bulk data now."""


def offer(source: Side, plain: int, read: int, actions: list[Action]) -> None:
    """The next `plain` bytes need no inspection (ENDLESS: until EOF); the last read had `read` bytes."""
    if read >= IN_BULK if plain == ENDLESS else plain >= WORTHWHILE:
        actions.append(Splice(source, plain))
