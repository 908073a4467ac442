"""The wall clock as the API server writes times. For people: nothing is decided by it."""

from __future__ import annotations

from datetime import UTC, datetime


def micro_time() -> str:
    """MicroTime, of Leases and Events."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def second_time() -> str:
    """Time, of conditions."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
