"""One coarse timer wheel for all connections of a worker. Time is a parameter: whoever owns the wheel advances it.

Arming again costs two comparisons while the new deadline is not earlier than the slot that the timer already sits in
(the usual case: an idle timeout that every read renews). A timer is in one slot at most, so that a closed connection
leaves nothing behind.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

NEVER: Final = math.inf
RESOLUTION: Final = 0.25
"""Seconds. Deadlines are late by no more than this (and what the owner's ticks are late)."""


class Timer:
    """What can be armed. `expired` is called when the deadline has passed; it may arm again, and must not raise.

    The rest is the wheel's.
    """

    __slots__ = ("deadline", "expired", "slot")

    def __init__(self, expired: Callable[[], None]) -> None:
        self.expired = expired
        self.deadline = NEVER
        self.slot = 0


def _never() -> None:
    """Of a timer that is retired."""


class TimerWheel:
    """Slots by number; slot n fires when `now` reaches n × resolution."""

    def __init__(self, now: float, *, resolution: float = RESOLUTION) -> None:
        self.now = now
        self._resolution = resolution
        self._fired = int(now / resolution)
        self._slots: dict[int, dict[Timer, None]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._slots.values()))

    def arm(self, timer: Timer, seconds: float) -> None:
        """Call `expired` in `seconds` from now, and not at any deadline before."""
        timer.deadline = deadline = self.now + seconds
        held = timer.slot
        if not held or deadline < (held - 1) * self._resolution:
            self._move(timer, int(deadline / self._resolution) + 1)

    def disarm(self, timer: Timer) -> None:
        timer.deadline = NEVER
        self._move(timer, 0)

    def retire(self, timer: Timer) -> None:
        """Disarm for good. Its owner is let go: the two referred to each other."""
        self.disarm(timer)
        timer.expired = _never

    def advance(self, now: float) -> None:
        """It is `now`: fire what is due."""
        self.now = now
        newest = int(now / self._resolution)
        for slot in range(self._fired + 1, newest + 1):
            for timer in list(self._slots.get(slot, ())):
                if timer.slot == slot:  # else one that fired before it has moved or disarmed it
                    self._fire(timer)
        self._fired = newest

    def _fire(self, timer: Timer) -> None:
        if timer.deadline > self.now:  # was armed again since, for later
            self._move(timer, int(timer.deadline / self._resolution) + 1)
            return
        self.disarm(timer)
        timer.expired()

    def _move(self, timer: Timer, slot: int) -> None:
        """From its slot to another; slot 0 is none."""
        if timer.slot:
            held = self._slots[timer.slot]
            del held[timer]
            if not held:
                del self._slots[timer.slot]
        timer.slot = slot
        if slot:
            self._slots.setdefault(slot, {})[timer] = None
