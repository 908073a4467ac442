"""One coarse timer wheel for all connections of a worker. Time is a parameter: whoever owns the wheel advances it.

Arming again costs two comparisons while the new deadline is not earlier than the slot that the thing already sits in
(the usual case: an idle timeout that every read renews). Things are in one slot at most, so that a closed connection
leaves nothing behind.
"""

from __future__ import annotations

import math
from typing import Final, Protocol

NEVER: Final = math.inf
RESOLUTION: Final = 0.25
"""Seconds. Deadlines are late by no more than this (and what the owner's ticks are late)."""


class Timed(Protocol):
    """What can be armed. The wheel owns both attributes; they start as NEVER and 0."""

    deadline: float
    slot: int

    def expired(self) -> None:
        """The deadline has passed. May arm again; must not raise."""


class Wheel:
    """Slots by number; slot n fires when `now` reaches n × resolution."""

    def __init__(self, now: float, *, resolution: float = RESOLUTION) -> None:
        self.now = now
        self._resolution = resolution
        self._fired = int(now / resolution)
        self._slots: dict[int, dict[Timed, None]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._slots.values()))

    def arm(self, timed: Timed, seconds: float) -> None:
        """Call `expired` in `seconds` from now, and not at any deadline before."""
        timed.deadline = deadline = self.now + seconds
        held = timed.slot
        if not held or deadline < (held - 1) * self._resolution:
            self._move(timed, int(deadline / self._resolution) + 1)

    def disarm(self, timed: Timed) -> None:
        timed.deadline = NEVER
        self._move(timed, 0)

    def advance(self, now: float) -> None:
        """It is `now`: fire what is due."""
        self.now = now
        newest = int(now / self._resolution)
        for slot in range(self._fired + 1, newest + 1):
            for timed in list(self._slots.get(slot, ())):
                if timed.slot == slot:  # else one that fired before it has moved or disarmed it
                    self._fire(timed)
        self._fired = newest

    def _fire(self, timed: Timed) -> None:
        if timed.deadline > self.now:  # was armed again since, for later
            self._move(timed, int(timed.deadline / self._resolution) + 1)
            return
        self.disarm(timed)
        timed.expired()

    def _move(self, timed: Timed, slot: int) -> None:
        """From its slot to another; slot 0 is none."""
        if timed.slot:
            held = self._slots[timed.slot]
            del held[timed]
            if not held:
                del self._slots[timed.slot]
        timed.slot = slot
        if slot:
            self._slots.setdefault(slot, {})[timed] = None
