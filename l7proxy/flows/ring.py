"""The flow ring: a buffer of the newest flows, with one writer that never waits and many readers.

Each reader has its own position. A reader that the writer overtakes loses the oldest events and gets one event with
their number instead. Lives in one event loop; blocking readers (files, terminals) run in a thread of their own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Final, cast

from l7proxy.errors import ConfigError
from l7proxy.flows.event import Event, Losses

DEFAULT_CAPACITY: Final = 4095
LARGEST_CAPACITY: Final = 65535
OVERTAKEN: Final = "HUBBLE_RING_BUFFER"
NOT_DELIVERED: Final = "OBSERVER_EVENTS_QUEUE"
RATE_LIMITED: Final = "PERF_EVENT_RING_BUFFER"
"""Hubble's source for events that the kernel had but the agent did not get: here, those over the rate limit."""
LOSSES_EVERY: Final = 1.0
"""Seconds between two lost events of one source, and of one reader: what is lost in between is summed."""
BATCH: Final = 256
"""Events that a reader gets at once; between two batches the event loop runs other tasks."""


class Ring:
    """Holds the newest `capacity` events: 2ⁿ-1 with n from 1 to 16, as in Hubble."""

    def __init__(
        self,
        capacity: int = DEFAULT_CAPACITY,
        *,
        node_name: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 1 <= capacity <= LARGEST_CAPACITY or capacity & (capacity + 1):
            raise ConfigError(
                f"flow buffer capacity {capacity}: must be a power of two minus one, from 1 to {LARGEST_CAPACITY}"
            )
        self.capacity = capacity
        self.node_name = node_name
        self.seen = 0
        """Flows written since the start."""
        self.lost = 0
        """Flows that a reader, or this ring itself, missed."""
        self._slots: list[Event | None] = [None] * (capacity + 1)
        self._written = 0
        self._arrival = asyncio.Event()
        self.clock = clock
        self._losses: dict[str, Losses] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return self._written - self.oldest

    @property
    def oldest(self) -> int:
        """The number of the oldest event held. Events are numbered from 0 in order of arrival."""
        return max(0, self._written - self.capacity)

    @property
    def end(self) -> int:
        """The number of the next event."""
        return self._written

    def append(self, flow: Event) -> None:
        """Never waits and never fails: a slow reader detects its own losses."""
        self.seen += 1
        self._put(flow)

    def extend(self, flows: Sequence[Event]) -> None:
        """Append many flows at once."""
        self.seen += len(flows)
        skipped = max(0, len(flows) - len(self._slots))
        start = (self._written + skipped) & self.capacity
        before_the_end = flows[skipped : skipped + len(self._slots) - start]
        behind_it = flows[skipped + len(before_the_end) :]
        self._slots[start : start + len(before_the_end)] = before_the_end
        self._slots[: len(behind_it)] = behind_it
        self._written += len(flows)
        self._arrival.set()

    def append_lost(self, count: int, *, time_ns: int, source: str = NOT_DELIVERED) -> None:
        """Report flows lost before the ring. `source` is one of Hubble's LostEventSource."""
        if count > 0:
            self.lost += count
            losses = self._losses.get(source)
            if losses is None:
                losses = Losses(source, self.node_name, every=LOSSES_EVERY, clock=self.clock)
                self._losses[source] = losses
            losses.add(count, time_ns)
            self._tell_losses()

    def _tell_losses(self) -> None:
        """Put those whose time has come, and look again when that of the others has."""
        for losses in self._losses.values():
            if lost := losses.take():
                self._put(lost)
        waits = [losses.due for losses in self._losses.values() if losses.pending]
        if waits and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(min(waits), self._later)

    def _later(self) -> None:
        self._timer = None
        self._tell_losses()

    def _put(self, event: Event) -> None:
        self._slots[self._written & self.capacity] = event
        self._written += 1
        self._arrival.set()

    def at(self, number: int) -> Event:
        """The event with this number, which must be held."""
        event = self._slots[number & self.capacity]
        if not self.oldest <= number < self._written or event is None:
            raise IndexError(number)
        return event

    def between(self, start: int, end: int) -> list[Event]:
        """The events from number `start` up to `end` (exclusive), all of which must be held."""
        if not self.oldest <= start <= end <= self._written:
            raise IndexError(start, end)
        first, last = start & self.capacity, end & self.capacity
        found = self._slots[first:last] if first <= last else self._slots[first:] + self._slots[:last]
        return cast(list[Event], found)  # the entries of held events are set

    def newest_first(self) -> Iterator[tuple[int, Event]]:
        """Ends early if the writer has overtaken it."""
        for number in range(self._written - 1, self.oldest - 1, -1):
            if number < self.oldest:
                return
            yield number, self.at(number)

    async def more(self, number: int) -> None:
        """Wait until the event with this number exists."""
        while self._written <= number:
            self._arrival.clear()
            await self._arrival.wait()


class Reader:
    """A position in the ring. `batch()` returns what is available, `await next_batch()` waits for more."""

    def __init__(self, ring: Ring, *, start: int | None = None) -> None:
        self._ring = ring
        self._next = ring.end if start is None else start
        self.lost = 0
        """Events that the writer overwrote before they were read."""
        self._losses = Losses(OVERTAKEN, ring.node_name, every=LOSSES_EVERY, clock=ring.clock)

    @property
    def position(self) -> int:
        """The number of the next event to read."""
        return self._next

    def batch(self, limit: int = BATCH) -> list[Event]:
        """The new events, oldest first, at most `limit`; preceded by the number of lost events, at most once a second.
        After the last batch, `rest` has those not told yet."""
        ring = self._ring
        if self._next < ring.oldest:
            self._overtaken()
        last = min(self._next + limit, ring.end)
        found = ring.between(self._next, last)
        self._next = last
        if self._losses.pending and (lost := self._losses.take()):
            found.insert(0, lost)
        return found

    def rest(self) -> list[Event]:
        """The lost events that were held back."""
        lost = self._losses.take(last=True)
        return [lost] if lost else []

    async def next_batch(self, limit: int = BATCH) -> list[Event]:
        """May be empty of flows: lost events are told in time even when no flow follows."""
        if not self._losses.pending:
            await self._ring.more(self._next)
        else:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._losses.due):
                    await self._ring.more(self._next)
        return self.batch(limit)

    def _overtaken(self) -> None:
        ring = self._ring
        count = ring.oldest - self._next
        ring.lost += count
        self.lost += count
        self._next = ring.oldest
        self._losses.add(count, ring.at(ring.oldest).time_ns)
