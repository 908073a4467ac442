"""Tracked connections that a picture in force refuses end: the kernel would go on waving their replies through.

It comes after a picture, never before: the rules of `Desired` judge what begins, this ends what has begun. To list a
table of a hundred thousand connections takes a third of a second, so it is done only when a picture takes something
away, in a thread, and for a fifth of the time at most. What the kernel refuses is tried again and told in `status`.
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
"""Pause after a round, in lengths of that round."""
RESPITE: Final = 5.0
"""Seconds in which the proxy ends by itself what it serves and may not any more."""
RETRY: Final = 10.0
"""Seconds after which a round that failed is tried again, unless a new picture comes before."""


class Revoke(Protocol):
    """`tproxy_rules.revoke.revoke`"""

    def __call__(self, change: Taken, after: Desired, *, spare: bool) -> Outcome: ...


@dataclass(frozen=True, slots=True)
class Revoked:
    """`removed` counts connection tracking entries since the start; `error` is why the last round failed."""

    removed: int = 0
    error: str = ""


class Revocation:
    """Lives in one event loop. A fresh one does not know what was in force before, and looks at every connection."""

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
        """Changes of which the entries have not been looked at yet."""
        self._again = Taken()
        self._due = 0.0
        """When those that the proxy was left to end are looked at again."""
        self.state = Revoked()

    def in_force(self, picture: Desired, *, doubtful: bool = False) -> None:
        """The kernel has it. `doubtful`: for a while it had not, although it should. Returns at once."""
        self._pending.append((picture, doubtful))
        self._came.set()

    async def run(self) -> None:
        """For ever."""
        while True:
            await self._wait()
            began = self._clock()
            await self.step()
            await asyncio.sleep((self._clock() - began) * PAUSE)

    async def step(self) -> None:
        """One round: all that is known to be in force, and what is due."""
        pictures, self._pending = self._pending, []
        try:
            removed = await asyncio.to_thread(self._round, pictures)
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

    def _round(self, pictures: list[tuple[Desired, bool]]) -> int:
        for picture, doubtful in pictures:
            self._owed = self._owed.then(EVERYTHING if doubtful else taken(self._last, picture))
            self._last = picture
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
