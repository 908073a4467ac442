"""Accounts for the use of a worker: one share for each endpoint, over all its addresses and connections.

A source that is not a pod of this node has one share per address: which addresses belong to the same remote pod is not
known here. IPv6 addresses outside the cluster have one share per /64: a host usually gets a whole /64.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, Protocol

READ: Final = 64 << 10
"""Bytes per read. From 128 KiB on, malloc would call mmap for each one (mallopt(3), M_MMAP_THRESHOLD)."""
FIRST_READ: Final = 4 << 10
LEAST_READ: Final = 64
LONG: Final = 1_000_000
"""Most nanoseconds for one read and its processing; above this, reads become smaller."""
SHORT: Final = LONG >> 2
"""Below this, the read size doubles if the last read was full."""
CAREFUL: Final = 112
"""Periods (see HALVED; 15 s in all) after a long call during which a read is at most CAREFUL_READ bytes."""
CAREFUL_READ: Final = 4 << 10
HALVED: Final = 27
"""Recorded use is halved every 2**27 ns (134 ms), one period."""
IDLE_SHARES: Final = 4096
"""Shares kept, including those of sources without connections: a source that reconnects keeps its share."""


class Holder(Protocol):
    """A connection that holds bytes."""

    held: int

    def read_on(self) -> None:
        """There is room again: resume reading. Must not raise."""

    def too_greedy(self) -> None:
        """End now: it holds the most of an endpoint that is above its limit. Must not raise."""


class Pace:
    """The read size, `read` in bytes, of one direction of an endpoint's connections. `got` is the last read's size."""

    __slots__ = ("careful", "got", "grown", "read")

    def __init__(self) -> None:
        self.read = FIRST_READ
        self.got = 0
        self.careful = 0
        self.grown = 0

    def took(self, nanoseconds: int, period: int, *, may_grow: bool) -> None:
        """Processing the last read took `nanoseconds` of CPU."""
        if nanoseconds > LONG:
            self.read = min(self.read, max(LEAST_READ, self.got * LONG // nanoseconds))
            self.careful, self.grown = period + CAREFUL, period
        elif self.got == self.read < READ and nanoseconds < SHORT and may_grow:
            self._grow(period)

    def _grow(self, period: int) -> None:
        """Grow slowly after a long call: cheap bytes must not lead to a large read of expensive ones."""
        if period >= self.careful:
            self.read <<= 1
        elif self.read < CAREFUL_READ and period > self.grown:
            self.read <<= 1
            self.grown = period


class Share:
    """The use of one endpoint. `used`: nanoseconds of the loop, recently; `requests` and `responses`: the pace of reads
    from its clients and from their servers; `reading`: the one of the two that the current call has read from;
    `sessions`: its connections; `arriving`: those not yet sessions. `held`, `full` and `stopped` belong to `memory`:
    bytes held, whether they exceed the limit, and the connections that are not read until they do not."""

    __slots__ = (
        "arriving",
        "full",
        "held",
        "period",
        "reading",
        "requests",
        "responses",
        "sessions",
        "stopped",
        "used",
    )

    def __init__(self) -> None:
        self.used = 0
        self.period = 0
        self.requests = Pace()
        self.responses = Pace()
        self.reading: Pace | None = None
        self.sessions = 0
        self.arriving = 0
        self.held = 0
        self.full = False
        self.stopped: dict[Holder, None] = {}

    def age(self, now: int) -> None:
        """Halve the recorded use once per period passed. `now` is in nanoseconds."""
        period = now >> HALVED
        if period != self.period:
            self.used >>= min(period - self.period, 63)
            self.period = period

    def lately(self, now: int) -> int:
        """The recent use as of `now`."""
        self.age(now)
        return self.used

    def spent(self, nanoseconds: int) -> None:
        """One call took `nanoseconds` of CPU."""
        self.used += nanoseconds
        pace, self.reading = self.reading, None
        if pace is not None:
            pace.took(nanoseconds, self.period, may_grow=not self.full)


class Shares:
    """The share of each owner: an endpoint's ID, or the address or prefix of another source."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Share] = {}

    def of(self, owner: Hashable) -> Share:
        share = self._known.get(owner)
        if share is None:
            if len(self._known) >= IDLE_SHARES:
                self._known = {one: kept for one, kept in self._known.items() if kept.sessions or kept.arriving}
            share = self._known[owner] = Share()
        return share

    @property
    def sessions(self) -> int:
        """Connections of all shares."""
        return sum(share.sessions for share in self._known.values())
