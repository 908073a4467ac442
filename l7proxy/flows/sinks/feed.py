"""Feeds a sink from the ring, in a task and a thread of its own: it delays neither the flow path nor other sinks.

A sink that is too slow loses what the ring overwrites. One that raises loses the batch, and gets the next one. Both
are counted, and shown in `status` and in the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from l7proxy.flows.event import Event
from l7proxy.flows.ring import Reader, Ring
from l7proxy.flows.sinks.sink import Sink

LOG: Final = logging.getLogger(__name__)
BATCH: Final = 1024
"""Events handed to the thread at once: each handing over costs as much as dozens of lines."""


class Feed:
    """`name` is that of the sink in `status`. `written` and `lost` count events since the start. `start`: the number of
    the first event; by default the oldest one that is there."""

    def __init__(self, name: str, sink: Sink, ring: Ring, *, start: int | None = None) -> None:
        self.name = name
        self.written = 0
        self._sink = sink
        self._ring = ring
        self._reader = Reader(ring, start=ring.oldest if start is None else start)
        self._given = 0
        self._failed = 0
        self._error = ""
        self._reported = ""

    @property
    def lost(self) -> int:
        """Overwritten before the sink had time for them, or not kept by the sink."""
        return self._reader.lost + self._failed + self._sink.lost

    @property
    def position(self) -> int:
        """The number of the next event to read."""
        return self._reader.position

    @property
    def problem(self) -> str:
        return self._error or self._sink.problem

    async def run(self) -> None:
        """Serve until cancelled; what is in the ring by then is still written."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix=self.name) as thread:
            try:
                while True:
                    batch = await self._reader.next_batch(BATCH)
                    # Shielded: otherwise a batch that waits for the thread is forgotten when the task is cancelled.
                    await asyncio.shield(loop.run_in_executor(thread, self._consume, batch))
            finally:
                self._sink.hurry()
                last = [*self._reader.batch(self._ring.capacity), *self._reader.rest()]
                await loop.run_in_executor(thread, self._close, last)

    def _consume(self, events: Sequence[Event]) -> None:
        before, error = self._sink.lost, None
        try:
            self._sink.consume(events)
        except Exception as raised:  # noqa: BLE001  (a fault of one sink must not end the agent)
            error = raised
            self._failed += len(events) - (self._sink.lost - before)
        self._error = f"{self.name}: {type(error).__name__}: {error}" if error else ""
        self._given += len(events)
        self._count()
        if self.problem != self._reported:
            self._reported = self.problem
            LOG.warning(
                "%s; %d events lost so far", self.problem or f"{self.name}: recovered", self.lost, exc_info=error
            )

    def _close(self, last: Sequence[Event]) -> None:
        self._consume(last)
        try:
            self._sink.close()
        except Exception:
            LOG.exception("%s: cannot be closed", self.name)
        self._count()

    def _count(self) -> None:
        self.written = self._given - self._failed - self._sink.lost
