"""Which bytes are offered to be spliced: those that nobody has to look at, when they are many."""

from __future__ import annotations

from typing import Final

from l7proxy.gate.actions import Action, Side, Splice
from l7proxy.wire.body import ENDLESS

WORTHWHILE: Final = 512 << 10
"""Bytes still to come, where their number is known: fewer are not worth a splice's beginning and end."""
IN_BULK: Final = 64 << 10
"""Bytes that came in one read, where it is not known: such a stream is carrying bulk now."""


def offer(source: Side, plain: int, read: int, actions: list[Action]) -> None:
    """`plain` bytes to come may pass unseen (ENDLESS: until the end); `read` bytes have just come."""
    if read >= IN_BULK if plain == ENDLESS else plain >= WORTHWHILE:
        actions.append(Splice(source, plain))
