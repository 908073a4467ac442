"""What every sink can be told. A sink never stops what it watches: what it cannot keep it counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from l7proxy.flows.event import Event


class Sink(Protocol):
    """Takes events as they come. `lost` counts those it could not keep, `problem` says why, "" when all is well."""

    lost: int
    problem: str

    def write(self, items: Sequence[Event]) -> None:
        """May block; must not raise. One thread at a time."""

    def hurry(self) -> None:
        """From another thread: wait for nobody any more."""

    def close(self, items: Sequence[Event] = ()) -> None:
        """Write the last ones, and no more."""
