"""Times on the command line of `observe`: those that a user writes, and the formats in which flows show theirs."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Final

from l7proxy.errors import ConfigError
from l7proxy.flows import timestamp

DURATION: Final = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
"""Go's form: 1h30m."""
UNITS: Final = {
    "ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6,
    "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9,
}  # fmt: skip
SHORTENED: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d)(:\d\d)?(Z|[+-]\d\d:\d\d)", re.ASCII)
"""RFC 3339 without seconds, or without minutes."""
MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
"""Not strftime's names, which depend on the locale."""


class TimeFormat(StrEnum):
    """Values of `--time-format`."""

    STAMP_MILLI = "StampMilli"
    YEAR_MONTH_DAY = "YearMonthDay"
    YEAR_MONTH_DAY_HOUR = "YearMonthDayHour"
    YEAR_MONTH_DAY_HOUR_MINUTE = "YearMonthDayHourMinute"
    RFC3339 = "RFC3339"
    RFC3339_MILLI = "RFC3339Milli"
    RFC3339_MICRO = "RFC3339Micro"
    RFC3339_NANO = "RFC3339Nano"
    RFC1123Z = "RFC1123Z"


DIGITS: Final = {TimeFormat.RFC3339_MILLI: 3, TimeFormat.RFC3339_MICRO: 6, TimeFormat.RFC3339_NANO: 9}
"""Of the fraction of a second; zeros at its end are not shown."""


def shown(value: str, form: TimeFormat) -> str:
    """The time in UTC; N/A if it is missing or invalid."""
    try:
        nanos = timestamp.parse(value)
        at = datetime.fromtimestamp(nanos // timestamp.SECOND, UTC)
    except (ValueError, OverflowError):
        return "N/A"
    return _formatted(at, nanos % timestamp.SECOND, form)


def _formatted(at: datetime, nanos: int, form: TimeFormat) -> str:
    month = MONTHS[at.month - 1]
    day = f"{at.year:04d}-{at.month:02d}-{at.day:02d}"
    match form:
        case TimeFormat.STAMP_MILLI:
            return f"{month} {at.day:2d} {at:%H:%M:%S}.{nanos // 1_000_000:03d}"
        case TimeFormat.YEAR_MONTH_DAY:
            return day
        case TimeFormat.YEAR_MONTH_DAY_HOUR:
            return f"{day}T{at:%H}Z"
        case TimeFormat.YEAR_MONTH_DAY_HOUR_MINUTE:
            return f"{day}T{at:%H:%M}Z"
        case TimeFormat.RFC1123Z:
            return f"{DAYS[at.weekday()]}, {at.day:02d} {month} {at.year:04d} {at:%H:%M:%S} +0000"
    fraction = f"{nanos:09d}"[: DIGITS.get(form, 0)].rstrip("0")
    return f"{day}T{at:%H:%M:%S}{'.' if fraction else ''}{fraction}Z"


def moment(value: str, *, option: str, now_ns: int | None = None) -> int:
    """A duration before now (in Go's form: 1h30m), RFC 3339 also shortened, a day, or an e-mail date."""
    parts = DURATION.findall(value)
    if parts and "".join(number + unit for number, unit in parts) == value:
        back = sum(int(float(number) * UNITS[unit]) for number, unit in parts)
        return max(0, (time.time_ns() if now_ns is None else now_ns) - back)
    for read in (timestamp.parse, _day, _shortened, _mail_date):
        try:
            return read(value)
        except (ValueError, TypeError, OverflowError):
            continue
    raise ConfigError(
        f"failed to parse the {option} time: --{option} {value}: must be as 5m, 1h30m, 2025-11-23 or "
        "2025-11-23T20:00:00Z"
    )


def _day(value: str) -> int:
    return int(datetime.strptime(value, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()) * timestamp.SECOND


def _shortened(value: str) -> int:
    found = SHORTENED.fullmatch(value)
    if found is None:
        raise ValueError(value)
    hour, minute, zone = found.groups()
    return timestamp.parse(f"{hour}{minute or ':00'}:00{zone}")


def _mail_date(value: str) -> int:
    return int(parsedate_to_datetime(value).timestamp()) * timestamp.SECOND
