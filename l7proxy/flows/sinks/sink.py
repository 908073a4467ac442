"""What a sink is. How it is fed is in `feed`, which sinks there are in `registry`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from l7proxy.flows.event import Event


class Sink(Protocol):
    """Takes events in their order, each once. Opens what it writes to when the first ones come.

    A sink has a thread of its own: `consume` and `close` may block there without delaying flows or other sinks. What
    it cannot keep it counts in `lost`; `problem` says why, and is "" when all is well.
    """

    @property
    def lost(self) -> int: ...
    @property
    def problem(self) -> str: ...

    def consume(self, events: Sequence[Event]) -> None:
        """Write the events. An exception loses those not counted yet, and is reported by the feed."""

    def hurry(self) -> None:
        """From another thread: from now on `consume` and `close` must not wait for a reader. Must not raise."""

    def close(self) -> None:
        """Flush and release. The last call."""
