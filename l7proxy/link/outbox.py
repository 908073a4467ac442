"""Records on their way to the agent: a bounded batch. Whoever puts never waits; what has no room is counted as lost.

Lives on one loop. `put` is the hot path: an append and two comparisons.
"""

from __future__ import annotations

import asyncio
from typing import Final

from l7proxy.flows.batch import Flows
from l7proxy.flows.pack import pack
from l7proxy.flows.records import Record

BATCH: Final = 256
"""Records of one frame: making it takes the worker a million instructions, a fraction of a millisecond. What they share
is sent, and looked up, once per frame."""
PLENTY: Final = 128
"""Records that are sent at once. The agent works off in one go what comes at once, and may share a worker's core: this
many hold requests up for a third of a millisecond."""
BATCH_SECONDS: Final = 0.02
"""No record waits longer for others. Much shorter, and where little happens each call pays for turns of both loops."""
CAPACITY: Final = 1 << 16
"""Records. At some 300 bytes each 20 MB, when the agent is away or slow; with the longest URLs some hundred MB."""


class Outbox:
    """Filled by sessions, emptied by the link."""

    def __init__(self, *, capacity: int = CAPACITY, batch: int = BATCH) -> None:
        self._records: list[Record] = []
        self._capacity = capacity
        self._batch = batch
        self._lost = 0
        self._some = asyncio.Event()
        self._plenty = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()

    def __len__(self) -> int:
        return len(self._records)

    def put(self, record: Record) -> None:
        held = len(self._records)
        if held >= self._capacity:
            self._lost += 1
            return
        self._records.append(record)
        if not held:
            self._some.set()
            self._settled.clear()
        elif held + 1 == PLENTY:
            self._plenty.set()

    async def filled(self, seconds: float = BATCH_SECONDS) -> None:
        """Return when there are plenty, or `seconds` after there is a first record."""
        await self._some.wait()
        try:
            async with asyncio.timeout(seconds):
                await self._plenty.wait()
        except TimeoutError:
            return

    def take(self) -> Flows | None:
        """The oldest batch; None when there is nothing to tell."""
        if not self._records and not self._lost:
            return None
        taken = self._records[: self._batch]
        del self._records[: self._batch]
        lost, self._lost = self._lost, 0
        if not self._records:
            self._some.clear()
        if len(self._records) < PLENTY:
            self._plenty.clear()
        return pack(taken, lost)

    def put_back(self, flows: Flows) -> None:
        """A batch that could not be sent. What has no room any more is lost, the newest first."""
        records = [*flows.records(), *self._records]
        self._records = records[: self._capacity]
        self._lost += flows.lost + len(records) - len(self._records)
        if self._records:
            self._some.set()

    def sent(self) -> None:
        """What was taken has left the process."""
        if not self._records:
            self._settled.set()

    async def settled(self) -> None:
        """Return when every record put so far has left the process."""
        await self._settled.wait()
