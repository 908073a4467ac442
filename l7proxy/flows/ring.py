"""The flow ring: a buffer of the newest flows, with one writer that never waits and many readers.

Each reader has its own position. A reader that the writer overtakes loses the oldest events and gets one event with
their number instead. Lives in one event loop; blocking readers (files, terminals) run in a thread of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Final, cast

from l7proxy.errors import ConfigError
from l7proxy.flows.event import Event, Lost

DEFAULT_CAPACITY: Final = 4095
LARGEST_CAPACITY: Final = 65535
OVERTAKEN: Final = "HUBBLE_RING_BUFFER"
NOT_DELIVERED: Final = "OBSERVER_EVENTS_QUEUE"
RATE_LIMITED: Final = "PERF_EVENT_RING_BUFFER"
"""Hubble's source for events that the kernel had but the agent did not get: here, those over the rate limit."""
BATCH: Final = 256
"""Events that a reader gets at once; between two batches the event loop runs other tasks."""


class Ring:
    """Holds the newest `capacity` events: 2ⁿ-1 with n from 1 to 16, as in Hubble."""

    def __init__(self, capacity: int = DEFAULT_CAPACITY, *, node_name: str = "") -> None:
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
            self._put(Lost(count, source, time_ns, self.node_name))

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

    @property
    def position(self) -> int:
        """The number of the next event to read."""
        return self._next

    def batch(self, limit: int = BATCH) -> list[Event]:
        """The new events, oldest first, at most `limit`; preceded by the number of lost events, if any."""
        ring = self._ring
        found: list[Event] = []
        if self._next < ring.oldest:
            found.append(self._overtaken())
        last = min(self._next + limit, ring.end)
        found += ring.between(self._next, last)
        self._next = last
        return found

    async def next_batch(self, limit: int = BATCH) -> list[Event]:
        await self._ring.more(self._next)
        return self.batch(limit)

    def _overtaken(self) -> Lost:
        ring = self._ring
        count = ring.oldest - self._next
        ring.lost += count
        self.lost += count
        self._next = ring.oldest
        return Lost(count, OVERTAKEN, ring.at(ring.oldest).time_ns, ring.node_name)
