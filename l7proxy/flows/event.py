"""What the ring holds and its readers get: an event is a flow, or says how many flows were lost at its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from l7proxy.flows import timestamp
from l7proxy.flows.flow import Flow, LostEvents, Response


class Event(Protocol):
    """Immutable. Readers use only this; `Flow`, `template.TemplatedFlow` and `Lost` implement it."""

    @property
    def time_ns(self) -> int:
        """Nanoseconds since 1970."""

    @property
    def lost(self) -> int:
        """The number of lost flows; 0 for a flow."""

    def flow(self) -> Flow | None:
        """The flow, None for lost flows. May be costly: a templated flow is made here."""

    def line(self) -> bytes:
        """One JSON object as Hubble exports it, with a line end."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Flows that a reader or the ring missed. `source` is one of Hubble's LostEventSource. `time_ns` is that of the
    last loss; 0 as `first_ns` says that the first one has the same time."""

    lost: int
    source: str
    time_ns: int
    node_name: str = ""
    first_ns: int = 0

    def flow(self) -> None:
        return None

    def line(self) -> bytes:
        time, first = timestamp.text(self.time_ns), timestamp.text(self.first_ns or self.time_ns)
        lost = LostEvents(source=self.source, num_events_lost=str(self.lost), first=first, last=time)
        return Response(lost_events=lost, node_name=self.node_name, time=time).line()


class Losses:
    """Sums losses of one source: at most one event in `every` seconds, as Hubble sends them. `clock` is monotonic."""

    def __init__(self, source: str, node_name: str, *, every: float, clock: Callable[[], float]) -> None:
        self._source = source
        self._node_name = node_name
        self._every = every
        self._clock = clock
        self._count = 0
        self._first_ns = 0
        self._last_ns = 0
        self._next = float("-inf")

    @property
    def pending(self) -> bool:
        return self._count > 0

    @property
    def due(self) -> float:
        """Seconds until what is pending may be told; 0: now."""
        return max(0.0, self._next - self._clock())

    def add(self, count: int, time_ns: int) -> None:
        if not self._count:
            self._first_ns = time_ns
        self._count += count
        self._last_ns = time_ns

    def take(self, *, last: bool = False) -> Lost | None:
        """What is pending, if its time has come, or this is the last chance to tell it."""
        if not self._count or (self.due and not last):
            return None
        first_ns = self._first_ns if self._first_ns != self._last_ns else 0
        lost = Lost(self._count, self._source, self._last_ns, self._node_name, first_ns)
        self._count = 0
        self._next = self._clock() + self._every
        return lost
