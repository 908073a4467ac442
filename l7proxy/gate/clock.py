"""The two clocks that a gate is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clock:
    """`now_ns` is the wall clock, for the times of records only: it may be set at any time, also back. `ticks_ns` never
    goes back: what is limited by time goes by it."""

    now_ns: Callable[[], int]
    ticks_ns: Callable[[], int]
