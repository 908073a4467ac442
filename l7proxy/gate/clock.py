"""The two clocks of a gate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clock:
    """`now_ns` is the wall clock, only for the times of records: it may be set at any time, also back. `ticks_ns` is
    monotonic: rate limits use it."""

    now_ns: Callable[[], int]
    ticks_ns: Callable[[], int]
