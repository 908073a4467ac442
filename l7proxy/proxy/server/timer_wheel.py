"""A coarse timer wheel for all connections of a worker. Time is a parameter: the owner advances the wheel.

Re-arming costs two comparisons while the new deadline is not earlier than the timer's current slot (the usual case: an
idle timeout that every read renews). A timer is in at most one slot, so a closed connection leaves nothing behind.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

NEVER: Final = math.inf
RESOLUTION: Final = 0.25
"""Seconds. Deadlines are late by at most this (plus the delay of the owner's ticks)."""


class Timer:
    """A timer. `expired` is called when the deadline has passed; it may arm the timer again, and must not raise.

    `deadline` and `slot` belong to the wheel.
    """

    __slots__ = ("deadline", "expired", "slot")

    def __init__(self, expired: Callable[[], None]) -> None:
        self.expired = expired
        self.deadline = NEVER
        self.slot = 0


def _unheld() -> bool:
    """`held` of a wheel whose timers never wait."""
    return False


def _never() -> None:
    """`expired` of a retired timer."""


class TimerWheel:
    """Slots by number; slot n fires when `now` reaches n × resolution."""

    def __init__(self, now: float, *, resolution: float = RESOLUTION) -> None:
        self.now = now
        self._resolution = resolution
        self._fired = int(now / resolution)
        self._slots: dict[int, dict[Timer, None]] = {}
        self.held: Callable[[], bool] = _unheld
        """Asked before each timer fires; while it is true, none does. They are late then."""

    def __len__(self) -> int:
        return sum(map(len, self._slots.values()))

    def arm(self, timer: Timer, seconds: float) -> None:
        """Call `expired` in `seconds` from now. Replaces an earlier deadline."""
        timer.deadline = deadline = self.now + seconds
        held = timer.slot
        if not held or deadline < (held - 1) * self._resolution:
            self._move(timer, int(deadline / self._resolution) + 1)

    def disarm(self, timer: Timer) -> None:
        timer.deadline = NEVER
        self._move(timer, 0)

    def retire(self, timer: Timer) -> None:
        """Disarm for good, and break the reference cycle with the owner."""
        self.disarm(timer)
        timer.expired = _never

    def advance(self, now: float) -> None:
        """Set the time to `now` and fire the timers that are due, unless they are held."""
        self.now = now
        for slot in range(self._fired + 1, int(now / self._resolution) + 1):
            for timer in list(self._slots.get(slot, ())):
                if timer.slot == slot:  # else a timer fired in this loop has moved or disarmed it
                    if self.held():
                        return
                    self._fire(timer)
            self._fired = slot

    def _fire(self, timer: Timer) -> None:
        if timer.deadline > self.now:  # re-armed for later
            self._move(timer, int(timer.deadline / self._resolution) + 1)
            return
        self.disarm(timer)
        timer.expired()

    def _move(self, timer: Timer, slot: int) -> None:
        """Move the timer to another slot; 0 means no slot."""
        if timer.slot:
            held = self._slots[timer.slot]
            del held[timer]
            if not held:
                del self._slots[timer.slot]
        timer.slot = slot
        if slot:
            self._slots.setdefault(slot, {})[timer] = None
