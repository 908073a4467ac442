"""What the ring holds and its readers get: an event is a flow, or says how many flows were lost at its place."""

from __future__ import annotations

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
    """Flows that a reader or the ring missed. `source` is one of Hubble's LostEventSource."""

    lost: int
    source: str
    time_ns: int
    node_name: str = ""

    def flow(self) -> None:
        return None

    def line(self) -> bytes:
        time = timestamp.text(self.time_ns)
        lost = LostEvents(source=self.source, num_events_lost=str(self.lost), first=time, last=time)
        return Response(lost_events=lost, node_name=self.node_name, time=time).line()
