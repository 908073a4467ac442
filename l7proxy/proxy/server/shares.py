"""Who uses a worker how much: a share for each endpoint, whatever addresses it has and however many connections.

A source that is no pod of this node has a share for each of its addresses: which addresses a pod of another node has is
not known here. Of the world's IPv6 addresses those of one /64 have one share together: that is what one host is given.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, Protocol

READ: Final = 64 << 10
"""Bytes per read. From 128 KiB on, malloc would map memory anew for each (mallopt(3), M_MMAP_THRESHOLD)."""
FIRST_READ: Final = 4 << 10
LEAST_READ: Final = 64
LONG: Final = 1_000_000
"""Nanoseconds that one read and what follows from it shall take at most: then less is read at a time."""
SHORT: Final = LONG >> 2
"""Below this, more is read at a time: twice as much, if all that might be read was."""
CAREFUL: Final = 112
"""Periods (see HALVED: 15 s) after a long call in which no more than CAREFUL_READ bytes are read at a time."""
CAREFUL_READ: Final = 4 << 10
HALVED: Final = 27
"""What was used counts half each 2**27 ns (134 ms) later."""
IDLE_SHARES: Final = 4096
"""Kept of sources that have no connection now: who comes back finds its share as it was."""


class Holder(Protocol):
    """A connection that holds bytes."""

    held: int

    def read_on(self) -> None:
        """There is room again. Must not raise."""

    def too_greedy(self) -> None:
        """End now: it holds most of all of an endpoint that holds too much. Must not raise."""


class Pace:
    """How much is read at a time of one direction of an endpoint's connections: `read`, in bytes. `got` were read."""

    __slots__ = ("careful", "got", "grown", "read")

    def __init__(self) -> None:
        self.read = FIRST_READ
        self.got = 0
        self.careful = 0
        self.grown = 0

    def took(self, nanoseconds: int, period: int, *, may_grow: bool) -> None:
        """So long did what was read last have the CPU."""
        if nanoseconds > LONG:
            self.read = min(self.read, max(LEAST_READ, self.got * LONG // nanoseconds))
            self.careful, self.grown = period + CAREFUL, period
        elif self.got == self.read < READ and nanoseconds < SHORT and may_grow:
            self._grow(period)

    def _grow(self, period: int) -> None:
        """Who has sent what takes long may send what takes none, so as to be read in large pieces again."""
        if period >= self.careful:
            self.read <<= 1
        elif self.read < CAREFUL_READ and period > self.grown:
            self.read <<= 1
            self.grown = period


class Share:
    """One endpoint's. `used` are the nanoseconds of the loop that it had lately; `requests` and `responses` are how its
    clients and their servers are read, and `reading` is the one of them that this call has read from; `sessions` are
    its connections, `arriving` those that wait to become one. `held`, `full` and `stopped` are the memory's: bytes,
    whether that is too much, and who is not read until it is less."""

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
        """What was used counts less with time. `now` is in nanoseconds."""
        period = now >> HALVED
        if period != self.period:
            self.used >>= min(period - self.period, 63)
            self.period = period

    def lately(self, now: int) -> int:
        """What was used, by now."""
        self.age(now)
        return self.used

    def spent(self, nanoseconds: int) -> None:
        """So long did one call have the CPU."""
        self.used += nanoseconds
        pace, self.reading = self.reading, None
        if pace is not None:
            pace.took(nanoseconds, self.period, may_grow=not self.full)


class Shares:
    """The share of each owner: an endpoint's number, or an address or prefix of somebody else."""

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
        """Connections of all."""
        return sum(share.sessions for share in self._known.values())
