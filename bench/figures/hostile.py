"""The effect of another pod's flood on an innocent client: its p99, and the time until a policy edit is enforced.

The innocent client sends at a modest fixed rate, open loop; a hostile pod, allowed by a policy of its own, sends each
input of FLOODS on many connections at once. The edit denies the innocent client one path and allows another one; the
time is from the file's change to the first response by the new policy, on a new connection.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.figures import Effort, OnStage, Report
from bench.hostile import ATTACKS
from bench.row import Goal, Row, compared
from bench.scheduling import one_group
from bench.stage import HTTP, OURS, Stage

RATE = 100
CONNECTIONS = 4
SETTLE_SECONDS = 0.7
H2C = 84
"""The port on which the server pod serves HTTP/2 without TLS."""
EDITS = 3


@dataclass(frozen=True, slots=True)
class Flood:
    """An input of bench.hostile (or `connections`) on this number of connections."""

    name: str
    connections: int
    port: int = HTTP


FLOODS = (
    Flood("h2 path of 4 KB from the table", 3, H2C),
    Flood("h1 escapes", 20),
    Flood("h1 Upgrade list", 20),
    Flood("h2 denied, varied", 300, H2C),
    Flood("h1 smallest, in a row", 100),
    Flood("h1 denied, one by one", 300),
    Flood("h2 rapid reset", 100, H2C),
    Flood("connections", 200),
)


@dataclass(frozen=True, slots=True)
class Seen:
    """Milliseconds."""

    p50: float
    p99: float
    edit: float


def measure(place: Stage, effort: Effort, report: Report) -> list[Row]:
    with one_group(), _policies(place), place.proxy(OURS):
        alone = _seen(place, effort)
        report(f"alone: {alone}")
        rows = [
            compared("an innocent client alone, p99", "ms", [alone.p99]),
            compared("an edit of policy → enforced, alone", "ms", [alone.edit]),
        ]
        worst = alone.edit
        for flood in FLOODS:
            with _flooding(place, flood):
                seen = _seen(place, effort)
            report(f"{flood.name}, {flood.connections} connections: {seen}")
            worst = max(worst, seen.edit)
            rows.append(
                compared(
                    f"its p99 while another pod floods: {flood.name}",
                    "ms",
                    [seen.p99],
                    [alone.p99],
                    against="alone",
                    goal=Goal(5),
                    note=f"{flood.connections} connections; p50 {seen.p50:.2f} ms, an edit {seen.edit:.0f} ms",
                )
            )
        extra = compared(
            "an edit of policy → enforced, during the worst of them", "ms", [worst], goal=Goal(300, absolute=True)
        )
        return [*rows, extra]


def _seen(place: Stage, effort: Effort) -> Seen:
    argv = [sys.executable, "-m", "bench.paced", place.server, str(HTTP), "--rate", str(RATE)]
    argv += ["--seconds", str(effort.seconds * 2), "--connections", str(CONNECTIONS)]
    result = json.loads(place.from_client(*argv, seconds=effort.seconds * 2 + 60))
    if result["requests"] < result["errors"]:
        raise SystemExit(f"requests of the innocent client were refused or lost: {result}")
    return Seen(result["p50_us"] / 1000, result["p99_us"] / 1000, max(_edits(place)))


def _edits(place: Stage) -> Iterator[float]:
    with place.start(
        "client", sys.executable, "-m", "bench.probe", place.server, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as probe:
        assert probe.stdin is not None and probe.stdout is not None
        for number in range(EDITS + 1):
            now, before = number % 2, 1 - number % 2
            probe.stdin.write(f"200 {HTTP} /edit/{now}/x;403 {HTTP} /edit/{before}/x\n".encode())
            probe.stdin.flush()
            time.sleep(0.3)
            _write(_directory(place) / "hostile-edit.yaml", _policy("edit", "frontend", f"/edit/{now}/.*", HTTP))
            start = time.monotonic_ns()
            moment = int(probe.stdout.readline())
            if not moment:
                raise SystemExit(f"edit {number} was not enforced")
            if number:  # the first one only sets the initial state
                yield (moment - start) / 1e6
        probe.stdin.close()


@contextlib.contextmanager
def _flooding(place: Stage, flood: Flood) -> Iterator[None]:
    argv = [sys.executable, "-m", "bench.flood", place.server, str(flood.port), flood.name]
    argv += ["--connections", str(flood.connections)]
    command = place.cores.pin_other(argv)
    with place.start("hostile", *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None and child.stdout is not None
        if child.stdout.readline() != b"ready\n":
            raise SystemExit(f"the flood {flood.name!r} did not begin")
        time.sleep(SETTLE_SECONDS)
        try:
            yield
        finally:
            child.stdin.close()


@contextlib.contextmanager
def _policies(place: Stage) -> Iterator[None]:
    """The hostile pod's policy, and the one that is edited."""
    assert all(flood.name in (*ATTACKS, "connections") for flood in FLOODS)
    directory = _directory(place)
    _write(directory / "hostile.yaml", _policy("hostile", "hostile", "/api/.*", HTTP, H2C))
    _write(directory / "hostile-edit.yaml", _policy("edit", "frontend", "/edit/1/.*", HTTP))
    try:
        yield
    finally:
        for name in ("hostile.yaml", "hostile-edit.yaml"):
            (directory / name).unlink()


def _directory(place: Stage) -> Path:
    return place.lab.store.directory


def _write(path: Path, document: dict[str, Any]) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(document))
    fresh.replace(path)


def _policy(name: str, who: str, path: str, *ports: int) -> dict[str, Any]:
    http = [{"method": "GET|POST", "path": path}]
    judged = {"ports": [{"port": str(port), "protocol": "TCP"} for port in ports], "rules": {"http": http}}
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name},
        "spec": {
            "endpointSelector": {"matchLabels": {"app": "backend"}},
            "ingress": [{"fromEndpoints": [{"matchLabels": {"app": who}}], "toPorts": [judged]}],
        },
    }


FIGURE = OnStage("hostile", "an innocent pod's p99 and a policy edit's time while another pod floods", measure)
