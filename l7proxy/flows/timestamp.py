"""Timestamps of flows: RFC 3339 text in UTC with nanoseconds, in the form of protobuf's JSON mapping."""

from __future__ import annotations

import re
from calendar import timegm
from datetime import UTC, datetime
from typing import Final

from l7proxy.model.cache import remember

SECOND: Final = 1_000_000_000
REMEMBERED: Final = 16
_SECONDS: Final[dict[int, str]] = {}
"""The newest seconds and their texts, shared by all threads."""

RFC3339: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?(?:[Zz]|([+-])(\d\d):?(\d\d))\Z", re.ASCII
)


def text(time_ns: int) -> str:
    """As protobuf writes it: no fraction, or 3, 6 or 9 digits."""
    seconds, nanos = time_ns // SECOND, time_ns % SECOND
    fraction = str(SECOND + nanos)[1:]  # with leading zeros; faster than a format
    if nanos % 1000:
        return f"{_second(seconds)}.{fraction}Z"  # the usual case: clocks have nanoseconds
    if not nanos:
        return f"{_second(seconds)}Z"
    while fraction.endswith("000"):
        fraction = fraction[:-3]
    return f"{_second(seconds)}.{fraction}Z"


def parse(value: str) -> int:
    """Nanoseconds since 1970. ValueError if the text is not an RFC 3339 time."""
    found = RFC3339.match(value)
    if found is None:
        raise ValueError(f"not an RFC 3339 time: {value!r}")
    day, clock, fraction, sign, hours, minutes = found.groups()
    moment = datetime.strptime(f"{day} {clock}", "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    offset = (int(hours) * 3600 + int(minutes) * 60) * (-1 if sign == "-" else 1) if sign else 0
    return (timegm(moment.timetuple()) - offset) * SECOND + int((fraction or "").ljust(9, "0"))


def _second(seconds: int) -> str:
    """Cached: flows come in bursts, and many share the same second."""
    known = _SECONDS.get(seconds)
    if known is None:
        text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        known = remember(_SECONDS, seconds, text, REMEMBERED)
    return known
