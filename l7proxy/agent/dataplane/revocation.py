"""Ends tracked connections that the enforced state refuses: otherwise conntrack would let their replies pass.

Runs after a new state is enforced: the rules of `Desired` decide about new connections, this module ends open ones.
Listing a conntrack table with 100 000 entries takes a third of a second, so it is done only when a new state revokes
something, in a thread, and for at most a fifth of the time. Failures are retried and reported in `status`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, Protocol

from tproxy_rules import revoke
from tproxy_rules.backend import KernelError
from tproxy_rules.desired import Desired
from tproxy_rules.revoke import EVERYTHING, Outcome, Taken, taken

log = logging.getLogger(__name__)

PAUSE: Final = 4.0
"""Pause after a round, in multiples of the duration of that round."""
RESPITE: Final = 5.0
"""Seconds for the proxy itself to end sessions that are refused now."""
RETRY: Final = 10.0
"""Seconds after which a failed round is retried, unless a new state arrives earlier."""


class Revoke(Protocol):
    """`tproxy_rules.revoke.revoke`"""

    def __call__(self, change: Taken, after: Desired, *, spare: bool) -> Outcome: ...


@dataclass(frozen=True, slots=True)
class Revoked:
    """`removed`: conntrack entries removed since the start; `error`: why the last round failed."""

    removed: int = 0
    error: str = ""


class Revocation:
    """Used by one event loop. A new instance does not know the previous state, so it checks every connection."""

    def __init__(
        self, *, end: Revoke = revoke.revoke, respite: float = RESPITE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._end = end
        self._respite = respite
        self._clock = clock
        self._pending: list[tuple[Desired, bool]] = []
        self._came = asyncio.Event()
        self._last: Desired | None = None
        self._owed = Taken()
        """Changes whose conntrack entries have not been checked yet."""
        self._again = Taken()
        self._due = 0.0
        """When the connections that were left to the proxy are checked again."""
        self.state = Revoked()

    def in_force(self, snapshot: Desired, *, doubtful: bool = False) -> None:
        """The kernel enforces this state. `doubtful`: its rules were missing for a while. Returns at once."""
        self._pending.append((snapshot, doubtful))
        self._came.set()

    async def run(self) -> None:
        """Loop forever."""
        while True:
            await self._wait()
            began = self._clock()
            await self.step()
            await asyncio.sleep((self._clock() - began) * PAUSE)

    async def step(self) -> None:
        """One round: all states enforced since the last round, and the second check if it is due."""
        snapshots, self._pending = self._pending, []
        try:
            removed = await asyncio.to_thread(self._round, snapshots)
        except KernelError as error:
            if str(error) != self.state.error:
                log.error("cannot end connections that policy now refuses: %s", error)
            self.state = replace(self.state, error=str(error))
            return
        self.state = Revoked(self.state.removed + removed)
        if removed:
            log.info("ended %d tracked connections that policy now refuses or whose address has a new owner", removed)

    async def _wait(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience()):
                await self._came.wait()
        self._came.clear()

    def _patience(self) -> float | None:
        waiting = [max(self._due - self._clock(), 0.0)] if self._again else []
        return min([*waiting, *([RETRY] if self._owed else [])], default=None)

    def _round(self, snapshots: list[tuple[Desired, bool]]) -> int:
        for snapshot, doubtful in snapshots:
            self._owed = self._owed.then(EVERYTHING if doubtful else taken(self._last, snapshot))
            self._last = snapshot
        return self._first() + self._second()

    def _first(self) -> int:
        if not self._owed or self._last is None:
            return 0
        found = self._end(self._owed, self._last, spare=True)
        if found.spared:
            self._again = self._again.then(self._owed)
            self._due = self._clock() + self._respite
        self._owed = Taken()
        return found.removed

    def _second(self) -> int:
        if not self._again or self._last is None or self._clock() < self._due:
            return 0
        found = self._end(replace(self._again, left=frozenset(), moved=frozenset()), self._last, spare=False)
        self._again = Taken()
        return found.removed
