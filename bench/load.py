"""The loads, run in the client pod: wrk at full speed, and `bench.paced` at a fixed rate."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

SCRIPT: Final = Path(__file__).with_name("load.lua")
CONNECTIONS: Final = 16


class Place(Protocol):
    """The source of a load, and its target address."""

    server: str

    def from_client(self, *argv: str, seconds: float) -> str: ...


@dataclass(frozen=True, slots=True)
class Seen:
    """The result of a load, latencies in microseconds."""

    requests: int
    seconds: float
    p50_us: float
    p99_us: float

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


def full_rate(
    place: Place,
    *,
    seconds: float,
    count: int = 10,
    port: int = 80,
    close: bool = False,
    connections: int = CONNECTIONS,
) -> Seen:
    """As many requests as possible. Every one must be answered with 200."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{_duration(seconds)}", "--timeout", "10s", "-s", str(SCRIPT)]
    command += [f"http://{place.server}:{port}", "--", str(count), "close" if close else "keep"]
    result = json.loads(place.from_client(*command, seconds=seconds + 30).rstrip().rpartition("\n")[2])
    if result["bad_status"] or result["broken"] or not result["requests"]:
        raise SystemExit(f"the load met errors: {result}")
    return Seen(result["requests"], result["seconds"], result["p50_us"], result["p99_us"])


def fixed_rate(place: Place, *, rate: float, seconds: float, count: int = 10, port: int = 80) -> Seen:
    """Sends requests at a fixed rate, even if responses are late."""
    command = [sys.executable, "-m", "bench.paced", place.server, str(port), "--rate", f"{rate:.0f}"]
    command += ["--seconds", str(seconds), "--rules", str(count), "--connections", str(CONNECTIONS)]
    result = json.loads(place.from_client(*command, seconds=seconds + 30))
    if result["errors"]:
        raise SystemExit(f"the paced load met errors: {result}")
    return Seen(result["requests"], result["seconds"], result["p50_us"], result["p99_us"])


def _duration(seconds: float) -> str:
    """wrk accepts whole seconds only."""
    return f"{max(1, round(seconds))}s"
