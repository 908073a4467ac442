"""Observe requests: one JSON object from a socket, checked here and answered with flows from the ring.

`{"last": 20, "first": 0, "since": "2025-11-23T20:00:00Z", "until": …, "follow": true, "filters": {…}}`, all optional;
`filters` as in `event_filter.build`. An empty request returns the whole ring.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from l7proxy.errors import ConfigError
from l7proxy.flows import event_filter, timestamp
from l7proxy.flows.event import Event
from l7proxy.flows.ring import BATCH, Reader, Ring

FIELDS: Final = frozenset({"method", "last", "first", "since", "until", "follow", "filters"})


@dataclass(frozen=True, slots=True)
class Request:
    """A checked request."""

    keep: event_filter.Keep = event_filter.everything
    last: int = 0
    first: int = 0
    since_ns: int | None = None
    until_ns: int | None = None
    follow: bool = False
    batch: int = BATCH
    """Events between two turns of the event loop: fewer where `keep` is costly."""


def parse(request: Mapping[str, Any]) -> Request:
    """ConfigError names the invalid field."""
    unknown = sorted(str(name) for name in request if name not in FIELDS)
    if unknown:
        raise ConfigError(f"observe: unknown field {unknown[0]!r}")
    asked = Request(
        keep=event_filter.build(request.get("filters")),
        last=_count(request, "last"),
        first=_count(request, "first"),
        since_ns=_moment(request, "since"),
        until_ns=_moment(request, "until"),
        follow=bool(request.get("follow")),
    )
    if asked.first and (asked.last or asked.follow):
        raise ConfigError("observe: first cannot be specified with last or follow")
    return asked


def observe(ring: Ring, request: Mapping[str, Any]) -> AsyncIterator[Event]:
    """The requested events. Errors in the request are raised here, before the first event."""
    return events(ring, parse(request))


async def events(ring: Ring, asked: Request) -> AsyncGenerator[Event, None]:
    """The events that an observer asked for, in order of arrival."""
    async with aclosing(batches(ring, asked)) as found:
        async for batch in found:
            for event in batch:
                yield event


async def batches(ring: Ring, asked: Request) -> AsyncGenerator[list[Event], None]:
    """The same, as many at once as were read at once.

    As in Hubble: `last` N means the newest N matching events; with `since`, reading starts there and `last` is only a
    limit; `follow` alone starts with the next event; `until` ends the stream, also with `follow`. Lost events are
    always reported, and do not count for `last` and `first`.
    """
    limit = 0 if asked.follow else asked.first or asked.last
    end = ring.end
    reader = Reader(ring, start=await _start(ring, asked))
    sent = 0
    ended = False
    while not ended and (asked.follow or reader.position < end):
        limit_of_batch = asked.batch if asked.follow else min(asked.batch, end - reader.position)
        batch = await reader.next_batch(limit_of_batch) if asked.follow else reader.batch(limit_of_batch)
        found, ended = _wanted(batch, asked, limit - sent if limit else 0)
        if found:
            yield found
        if limit:
            sent += sum(not event.lost for event in found)
        ended = ended or bool(limit and sent == limit)
        await asyncio.sleep(0)
    if rest := reader.rest():
        yield rest


def _wanted(batch: list[Event], asked: Request, limit: int) -> tuple[list[Event], bool]:
    """The events to send, and whether a flow after `until` has been met. `limit` of flows; 0: none. Hot."""
    keep, since_ns, until_ns = asked.keep, asked.since_ns, asked.until_ns
    if since_ns is None and until_ns is None and not limit:
        if keep is event_filter.everything:
            return batch, False
        return [event for event in batch if keep(event)], False
    found: list[Event] = []
    flows = 0
    for event in batch:
        if event.lost:
            found.append(event)
            continue
        time_ns = event.time_ns
        if until_ns is not None and time_ns > until_ns:
            return found, True
        if (since_ns is not None and time_ns < since_ns) or not keep(event):
            continue
        found.append(event)
        flows += 1
        if flows == limit:
            break
    return found, False


async def _start(ring: Ring, asked: Request) -> int:
    """The number of the first event to read."""
    if asked.since_ns is not None or asked.first:
        return ring.oldest
    if asked.last:
        return await _start_of_last(ring, asked)
    return ring.end if asked.follow else ring.oldest


async def _start_of_last(ring: Ring, asked: Request) -> int:
    """The number of the oldest of the newest `last` matching flows."""
    start, found = ring.end, 0
    for number, event in ring.newest_first():
        if found >= asked.last:
            break
        if number % asked.batch == 0:
            await asyncio.sleep(0)
        if event.lost or (asked.until_ns is not None and event.time_ns > asked.until_ns):
            continue
        if asked.keep(event):
            start, found = number, found + 1
    return start


def _count(request: Mapping[str, Any], name: str) -> int:
    value = request.get(name) or 0
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(f"observe: {name}: expected a number from 0 up, not {value!r}")
    return value


def _moment(request: Mapping[str, Any], name: str) -> int | None:
    value = request.get(name)
    if value is None:
        return None
    try:
        return timestamp.parse(value) if isinstance(value, str) else int(value)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"observe: {name}: expected a time as 2025-11-23T20:00:00Z, not {value!r}") from error
