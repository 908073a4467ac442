"""Limits what one HTTP/2 peer may cost us: points, spent on frames without progress, refilled by time and by work.

Frames that carry a message cost no points: flow control and the number of streams bound them. All others are cheap to
send but not to process, and each has been used for an attack: resets (CVE-2023-44487), PING, SETTINGS, empty DATA, tiny
window updates, priorities (CVE-2019-9511 to 9518). Well-behaved peers stay far below these rates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from l7proxy.wire.http2_frames import Code, Http2Error

CAPACITY: Final = 2000
PER_SECOND: Final = 500
_NS: Final = 1_000_000_000

FRAME: Final = 1
"""Any frame that carries no part of a message."""

REFUSED: Final = 5
"""A request that is refused before it is evaluated."""

DENIED: Final = 10
"""A request that policy denies: as in HTTP/1 (options.MAX_DENIED), it costs us more than the client."""

RESET: Final = 20
"""A request that the client cancels or makes us cancel: it has cost a policy evaluation and work of the server."""

FINISHED: Final = 20
"""Earned by each complete response of the server, so that cancelling every second request is never an error. Not earned
by our own responses: a denial is free for the client, and would pay for the reset of another stream."""

DELIVERED: Final = 2
"""Earned by DATA sent: its receiver may send two window updates for each frame not cut short by its own windows, and
for every 4 KiB, as Go's library does when the application reads in such pieces."""

REFRESH: Final = 12
"""log2 of 4 KiB."""


class Budget:
    __slots__ = ("_left", "_then", "_ticks_ns")

    def __init__(self, ticks_ns: Callable[[], int]) -> None:
        self._ticks_ns = ticks_ns
        self._left = CAPACITY
        self._then = ticks_ns()

    def spend(self, points: int, what: str) -> None:
        """Http2Error when no points are left."""
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
