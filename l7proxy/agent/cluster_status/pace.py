"""How fast all agents together may ask something of the API server."""

from __future__ import annotations

from typing import Final

REPORTS_PER_SECOND: Final = 100.0


def spread(nodes: int) -> float:
    """Seconds over which the nodes of a cluster spread their reports of one change."""
    return nodes / REPORTS_PER_SECOND
