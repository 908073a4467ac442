"""Which agent writes status: a state machine over one Lease, with the time as an argument. Pure.

The holder renews the Lease; all others watch it and take over when it has not changed for its duration. Only the local
monotonic time since the last change seen counts, never the time in the Lease: clocks of nodes differ. A holder that
could not renew steps down well before others may take over. Two writers at once would do no harm, since they write the
same: the election saves requests.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

DURATION: Final = 60
"""Seconds without a renewal after which others take over."""
RENEW: Final = 20.0
"""Seconds between renewals."""
STEP_DOWN: Final = 40.0
"""Seconds after the start of the last successful renewal at which the holder stops to write."""
RETRY: Final = 4.0
"""Seconds between attempts to renew that fail."""
SPREAD: Final = 10.0
"""Seconds over which the agents' attempts to take over are spread."""
LONGEST: Final = 300
"""Seconds that a Lease is left alone at most, whatever it asks for."""


@dataclass(frozen=True, slots=True)
class Record:
    """The Lease. `version`: its resourceVersion, empty when it does not exist. `holder`: empty when it was released."""

    holder: str = ""
    version: str = ""
    duration: int = DURATION
    transitions: int = 0
    acquired: str = ""


@dataclass(frozen=True, slots=True)
class Write:
    """Write this record; `record.version` is the version that it replaces, empty: create it."""

    record: Record


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do until this time, or until the Lease changes."""

    until: float


class Election:
    """`me`: NODE_RANDOM, another one for each process. Call `observe` with each version of the Lease that is seen."""

    def __init__(self, node: str, me: str, *, spread: Callable[[float], float] | None = None) -> None:
        self._node = node
        self._me = me
        self._spread = spread or (lambda most: random.uniform(0, most))
        self._seen: Record | None = None
        self._due = 0.0
        self._renewed: float | None = None

    @property
    def holder(self) -> str:
        """Who holds the Lease, by what was seen last."""
        return self._seen.holder if self._seen is not None else ""

    def observe(self, record: Record, now: float) -> None:
        """The Lease as the API server has it; Record() when it does not exist."""
        if self._seen == record:
            return
        self._seen = record
        if record.holder == self._me:
            return
        self._renewed = None
        self._due = now + self._pause(record)

    def _pause(self, record: Record) -> float:
        """How long a Lease of this holder is left alone from now on."""
        if not record.version or not record.holder:
            return self._spread(SPREAD / 5)
        if record.holder.rpartition("_")[0] == self._node:
            return 0.0  # an earlier process of this node: two cannot run
        return min(max(record.duration, DURATION), LONGEST) + self._spread(SPREAD)

    def next(self, now: float) -> Write | Wait:
        seen = self._seen
        if seen is None:
            return Wait(now + RENEW)
        if now < self._due:
            return Wait(self._due)
        taken = replace(seen, holder=self._me, duration=DURATION)
        if seen.holder != self._me:
            taken = replace(taken, transitions=seen.transitions + bool(seen.version), acquired="")
        return Write(taken)

    def written(self, record: Record, began: float) -> None:
        """A Write succeeded: the Lease is `record` now. `began`: when it was sent."""
        self._seen, self._renewed, self._due = record, began, began + RENEW

    def failed(self, now: float) -> None:
        """A Write did not succeed: another one was faster, or the API server did not answer.

        The Lease of the faster one may have been seen before the answer: it is left alone for its duration.
        """
        self._due = max(self._due, now + RETRY / 2 + self._spread(RETRY))

    def leading(self, now: float) -> bool:
        """Whether this agent may write status now."""
        return self._renewed is not None and now < self._renewed + STEP_DOWN

    def release(self) -> Record | None:
        """The record to write at the end, so that another agent takes over at once; None when this one leads not."""
        if self._renewed is None or self._seen is None:
            return None
        return replace(self._seen, holder="")
