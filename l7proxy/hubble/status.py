"""What Hubble's clients ask about a node: its ring, its flow rate, the namespaces it has seen."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from typing import Final

from l7proxy import __version__
from l7proxy.flows import timestamp
from l7proxy.flows.flow import DEFAULT_CLUSTER, Endpoint
from l7proxy.flows.ring import BATCH, Ring
from l7proxy.flows.template import TemplatedFlow
from l7proxy.hubble.api.observer import observer_pb2

VERSION: Final = f"l7proxy v{__version__}"
RATE_OVER: Final = 60
"""Seconds."""
NAMESPACES_OVER: Final = 3600
"""Seconds that a namespace is listed after its last flow, if the ring still holds that."""


def server_status(ring: Ring, uptime_ns: int) -> observer_pb2.ServerStatusResponse:
    return observer_pb2.ServerStatusResponse(
        num_flows=len(ring),
        max_flows=ring.capacity,
        seen_flows=ring.seen,
        uptime_ns=uptime_ns,
        version=VERSION,
        flows_rate=flows_rate(ring, time.time_ns()),
    )


def flows_rate(ring: Ring, now_ns: int) -> float:
    """Flows per second during the last minute, or during the time that the ring covers if that is shorter."""
    numbers = range(ring.oldest, ring.end)
    first = bisect_right(numbers, now_ns - RATE_OVER * timestamp.SECOND, key=lambda number: ring.at(number).time_ns)
    recent = len(numbers) - first
    if not recent:
        return 0.0
    whole_minute = first > 0 or ring.oldest == 0  # nothing of this minute was overwritten
    span = RATE_OVER if whole_minute else max(1, now_ns - ring.at(numbers[0]).time_ns) / timestamp.SECOND
    return recent / min(span, RATE_OVER)


async def namespaces(ring: Ring) -> list[tuple[str, str]]:
    """(cluster, namespace) of the ends of recent flows, sorted. The cluster is empty if it is `default`."""
    oldest = time.time_ns() - NAMESPACES_OVER * timestamp.SECOND
    found: set[tuple[str, str]] = set()
    for number, event in ring.newest_first():
        if number % BATCH == 0:
            await asyncio.sleep(0)
        if event.time_ns < oldest:
            break
        flow = event.model if isinstance(event, TemplatedFlow) else event.flow()
        if flow is not None:
            found.update(_namespace(end) for end in (flow.source, flow.destination) if end and end.namespace)
    return sorted(found)


def _namespace(end: Endpoint) -> tuple[str, str]:
    return ("" if end.cluster_name == DEFAULT_CLUSTER else end.cluster_name, end.namespace)
