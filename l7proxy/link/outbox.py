"""The bounded queue of records for the agent. `put` never waits; records without room are dropped and counted.

For use in one event loop. `put` is the hot path: an append and two comparisons.
"""

from __future__ import annotations

import asyncio
from typing import Final

from l7proxy.flows.batch import Flows
from l7proxy.flows.pack import pack
from l7proxy.flows.records import Record

BATCH: Final = 256
"""Records per frame: encoding it takes a million instructions, a fraction of a millisecond. What its records share is
sent, and looked up, once per frame."""
PLENTY: Final = 128
"""This many records are sent without waiting for more. The agent processes them in one go, perhaps on a worker's core:
this many delay requests by a third of a millisecond."""
BATCH_SECONDS: Final = 0.02
"""Most time that a record waits for others. Much shorter, and at a low rate each request costs turns of both loops."""
CAPACITY: Final = 1 << 16
"""Records. When the agent is away or slow: 20 MB at some 300 bytes each; some hundred MB with the longest URLs."""


class Outbox:
    """Filled by sessions, emptied by the link."""

    def __init__(self, *, capacity: int = CAPACITY, batch: int = BATCH) -> None:
        self._records: list[Record] = []
        self._capacity = capacity
        self._batch = batch
        self.lost = 0
        """All records dropped since the start."""
        self._reported = 0
        """Those of them that batches have reported."""
        self._some = asyncio.Event()
        self._plenty = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()

    def __len__(self) -> int:
        return len(self._records)

    def put(self, record: Record) -> None:
        held = len(self._records)
        if held >= self._capacity:
            self.lost += 1
            return
        self._records.append(record)
        if not held:
            self._some.set()
            self._settled.clear()
        elif held + 1 == PLENTY:
            self._plenty.set()

    async def filled(self, seconds: float = BATCH_SECONDS) -> None:
        """Return when there are PLENTY records, or `seconds` after the first one."""
        await self._some.wait()
        try:
            async with asyncio.timeout(seconds):
                await self._plenty.wait()
        except TimeoutError:
            return

    def take(self) -> Flows | None:
        """The oldest batch; None when there are neither records nor losses to report."""
        if not self._records and self.lost == self._reported:
            return None
        taken = self._records[: self._batch]
        del self._records[: self._batch]
        lost, self._reported = self.lost - self._reported, self.lost
        if not self._records:
            self._some.clear()
        if len(self._records) < PLENTY:
            self._plenty.clear()
        return pack(taken, lost)

    def put_back(self, flows: Flows) -> None:
        """Return a batch that could not be sent. If there is no room, the newest records are dropped."""
        records = [*flows.records(), *self._records]
        self._records = records[: self._capacity]
        self._reported -= flows.lost
        self.lost += len(records) - len(self._records)
        if self._records:
            self._some.set()

    def sent(self) -> None:
        """The batches taken have been sent."""
        if not self._records:
            self._settled.set()

    async def settled(self) -> None:
        """Return when every record put so far has been sent."""
        await self._settled.wait()
