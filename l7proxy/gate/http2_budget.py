"""What one HTTP/2 peer may cost us: points, spent by frames that further nothing, refilled by time and by work.

Frames that carry a message cost nothing: flow control and the number of streams bound those. All others are cheap to
send and not free to take, and each has been a weapon: resets (CVE-2023-44487), PING, SETTINGS, empty DATA, windows
opened by the byte, priorities (CVE-2019-9511 to 9518). Well-behaved peers are far below these rates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from l7proxy.wire.http2_frames import Code, Http2Error

CAPACITY: Final = 2000
PER_SECOND: Final = 500
_NS: Final = 1_000_000_000

FRAME: Final = 1
"""Any frame that carries nothing of a message."""

REFUSED: Final = 5
"""A request that is turned away before it is judged."""

DENIED: Final = 10
"""A request that policy refuses: as in HTTP/1 (options.MAX_DENIED), it costs us more than it costs its client."""

RESET: Final = 20
"""A request that is begun and cancelled, or made such that we must: it was judged, and the server has worked for it."""

FINISHED: Final = 20
"""Earned by each answer of the server's that came to its end, so that cancelling every second request is never a fault.
Not by ours: a denial costs its client nothing to have, and would pay for the reset of another stream."""

DELIVERED: Final = 2
"""Earned by DATA that went out: its receiver may open two windows for each frame that its own windows did not cut off,
and for every 4 KiB, as Go's library does when it is read so."""

REFRESH: Final = 12
"""The power of two that 4 KiB are."""


class Budget:
    __slots__ = ("_left", "_then", "_ticks_ns")

    def __init__(self, ticks_ns: Callable[[], int]) -> None:
        self._ticks_ns = ticks_ns
        self._left = CAPACITY
        self._then = ticks_ns()

    def spend(self, points: int, what: str) -> None:
        """Http2Error when the peer has been too much."""
        self._left -= points
        if self._left < 0:
            self._refill()
            if self._left < 0:
                raise Http2Error(f"too many frames without progress, the last: {what}", Code.ENHANCE_YOUR_CALM)

    def earn(self, points: int) -> None:
        if self._left < CAPACITY:
            self._left = min(CAPACITY, self._left + points)

    def _refill(self) -> None:
        now = self._ticks_ns()
        passed, self._then = max(0, now - self._then), now
        self._left = min(CAPACITY, self._left + passed * PER_SECOND // _NS)
