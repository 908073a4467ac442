"""How many bytes a worker holds for its clients, and who must stop when that is too much.

Counted where bytes are held: what the kernel has not taken yet (legs), what waits for the server's connection
(session), and what a gate keeps (unfinished heads, HTTP/2 DATA whose receiver has no window, streams that are open).

An endpoint may hold a quarter of the worker's budget; while that is used up, an equal part of it for each endpoint that
holds anything. Beyond that, its connections that hold more than half of an equal part of that are read no more, on both
legs, and new ones are refused. Where that lasts (PATIENCE) the connections that hold most are ended: what they hold may
only go away by frames that we do not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from l7proxy.proxy.server.shares import Holder, Share

BUDGET: Final = 256 << 20
"""Bytes per worker, unless the operator says otherwise."""
READ_WHEN_FULL: Final = 4 << 10
"""Bytes per read of those connections that may still be read."""
PATIENCE: Final = 30.0
"""Seconds that an endpoint may hold too much without a break."""


class Memory:
    """One worker's. `budget` is in bytes. `ended` and `refused` count connections."""

    def __init__(self, budget: int = BUDGET) -> None:
        self.budget = budget
        self.part = budget // 4
        self.held = 0
        self.ended = 0
        self.refused = 0
        self._shares: dict[Share, dict[Holder, None]] = {}
        self._full: dict[Share, float] = {}

    def change(self, share: Share, holder: Holder, before: int) -> None:
        """`holder` holds `holder.held` bytes now, and held `before`."""
        difference = holder.held - before
        self.held += difference
        share.held += difference
        holders = self._shares.setdefault(share, {})
        if holder.held:
            holders[holder] = None
        else:
            holders.pop(holder, None)
            if not holders:
                del self._shares[share]
        if share.full:
            if not self._over(share, 3):
                self._relax(share)
        elif difference > 0 and self._over(share, 4):
            share.full = True
            for pace in (share.requests, share.responses):
                pace.read = min(pace.read, READ_WHEN_FULL)

    def must_stop(self, share: Share, holder: Holder) -> bool:
        """Of an endpoint that holds too much, whether this connection may make that more."""
        return holder.held > self._most() // (2 * max(1, share.sessions))

    def look(self, now: float) -> None:
        """Now and then: end what holds most where an endpoint has held too much for long. `now` is in seconds."""
        for share in list(self._shares):
            if not share.full:
                self._full.pop(share, None)
            elif now - self._full.setdefault(share, now) > PATIENCE:
                self._end_some(share)
        for share in [one for one in self._full if one not in self._shares]:
            del self._full[share]

    def _over(self, share: Share, quarters: int) -> bool:
        """More than so many quarters of what it may hold."""
        return share.held * 4 > self._most() * quarters

    def _most(self) -> int:
        """What one endpoint may hold now."""
        if self.held <= self.budget:
            return self.part
        return min(self.part, self.budget // max(1, len(self._shares)))

    def _end_some(self, share: Share) -> None:
        for holder in self._greediest(share):
            if not share.full:
                return
            self.ended += 1
            holder.too_greedy()

    def _greediest(self, share: Share) -> Iterator[Holder]:
        yield from sorted(self._shares.get(share, ()), key=lambda holder: -holder.held)

    def _relax(self, share: Share) -> None:
        share.full = False
        self._full.pop(share, None)
        stopped, share.stopped = share.stopped, {}
        for holder in stopped:
            holder.read_on()
