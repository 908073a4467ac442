"""Observe requests: one JSON object from a socket, checked here and answered with flows from the ring.

`{"last": 20, "first": 0, "since": "2025-11-23T20:00:00Z", "until": …, "follow": true, "filters": {…}}`, all optional;
`filters` as in `filters.build`. An empty request returns the whole ring.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from l7proxy.errors import ConfigError
from l7proxy.flows import filters, timestamp
from l7proxy.flows import ring as flow_ring
from l7proxy.flows.template import Item

FIELDS: Final = frozenset({"method", "last", "first", "since", "until", "follow", "filters"})


@dataclass(frozen=True, slots=True)
class Request:
    """A checked request."""

    keep: filters.Predicate
    last: int = 0
    first: int = 0
    since_ns: int | None = None
    until_ns: int | None = None
    follow: bool = False


def parse(request: Mapping[str, Any]) -> Request:
    """ConfigError names the invalid field."""
    unknown = sorted(str(name) for name in request if name not in FIELDS)
    if unknown:
        raise ConfigError(f"observe: unknown field {unknown[0]!r}")
    asked = Request(
        keep=filters.build(request.get("filters")),
        last=_count(request, "last"),
        first=_count(request, "first"),
        since_ns=_moment(request, "since"),
        until_ns=_moment(request, "until"),
        follow=bool(request.get("follow")),
    )
    if asked.first and (asked.last or asked.follow):
        raise ConfigError("observe: first cannot be specified with last or follow")
    return asked


def observe(ring: flow_ring.Ring, request: Mapping[str, Any]) -> AsyncIterator[Item]:
    """The requested events. Errors in the request are raised here, before the first event."""
    asked = parse(request)
    return flow_ring.observe(
        ring,
        asked.keep,
        last=asked.last,
        first=asked.first,
        since_ns=asked.since_ns,
        until_ns=asked.until_ns,
        follow=asked.follow,
    )


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
