"""Rings of flows that are one second apart."""

from __future__ import annotations

from l7proxy.flows import timestamp
from l7proxy.flows.event import Event
from l7proxy.flows.flow import Flow
from l7proxy.flows.ring import Ring

SECOND = timestamp.SECOND


def flow(number: int) -> Flow:
    return Flow(
        uuid=str(number), time=timestamp.text(number * SECOND), verdict="DROPPED" if number % 3 == 0 else "FORWARDED"
    )


def ring_of(count: int, capacity: int = 15) -> Ring:
    ring = Ring(capacity, node_name="node")
    for number in range(count):
        ring.append(flow(number))
    return ring


def numbers(items: list[Event]) -> list[int]:
    return [int(item.uuid) for item in items if isinstance(item, Flow)]
