"""All figures, in the order of the table."""

from __future__ import annotations

from typing import Final

from bench.figures import (
    Figure,
    bulk,
    changes,
    cold_compile,
    connections,
    direct,
    flow_cost,
    flows,
    grpc_unary,
    hostile,
    keep_alive,
    latency,
    many_rules,
    memory,
    packet_cost,
    pod_start,
    scale,
    unread,
)

FIGURES: Final[tuple[Figure, ...]] = (
    keep_alive.FIGURE,
    flow_cost.FIGURE,
    latency.FIGURE,
    bulk.FIGURE,
    connections.FIGURE,
    many_rules.FIGURE,
    grpc_unary.FIGURE,
    memory.FIGURE,
    unread.FIGURE,
    direct.FIGURE,
    packet_cost.FIGURE,
    changes.FIGURE,
    pod_start.FIGURE,
    scale.FIGURE,
    cold_compile.FIGURE,
    flows.FIGURE,
    hostile.FIGURE,
)
