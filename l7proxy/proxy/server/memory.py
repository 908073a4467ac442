"""Limits how many bytes a worker buffers for its clients, and which connections must stop reading above the limit.

Counted where bytes are buffered: what the kernel has not taken yet (socket streams), what waits for the upstream
connection (session), and what a gate keeps (unfinished heads, HTTP/2 DATA whose receiver has no window, open streams).

The limit of an endpoint is a quarter of the worker's budget; while the budget is used up, an equal part of it for each
endpoint that holds any bytes. Above the limit, new connections are refused, and those that hold more than half of an
equal part of the limit are not read, on either socket. If that lasts (PATIENCE) the connections that hold most are
ended: only frames that we do not read may release what they hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from l7proxy.proxy.server.shares import Holder, Share

BUDGET: Final = 256 << 20
"""Bytes per worker; the default."""
READ_WHEN_FULL: Final = 4 << 10
"""Bytes per read of the connections that may still be read."""
PATIENCE: Final = 30.0
"""Seconds that an endpoint may stay above its limit."""


class Memory:
    """The buffered bytes of one worker. `budget` is in bytes. `ended` and `refused` count connections."""

    def __init__(self, budget: int = BUDGET) -> None:
        self.resize(budget)
        self.held = 0
        self.ended = 0
        self.refused = 0
        self._shares: dict[Share, dict[Holder, None]] = {}
        self._full: dict[Share, float] = {}

    def resize(self, budget: int) -> None:
        """What is held already counts against the new limits at the next change."""
        self.budget = budget
        self.part = budget // 4

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
        """Whether this connection of an endpoint above its limit must not be read."""
        return holder.held > self._most() // (2 * max(1, share.sessions))

    def look(self, now: float) -> None:
        """Periodic: end the largest connections of endpoints above the limit for PATIENCE. `now` is in seconds."""
        for share in list(self._shares):
            if not share.full:
                self._full.pop(share, None)
            elif now - self._full.setdefault(share, now) > PATIENCE:
                self._end_some(share)
        for share in [one for one in self._full if one not in self._shares]:
            del self._full[share]

    def _over(self, share: Share, quarters: int) -> bool:
        """Whether it holds more than `quarters`/4 of its limit."""
        return share.held * 4 > self._most() * quarters

    def _most(self) -> int:
        """The current limit of one endpoint, in bytes."""
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
