"""Sends mixed traffic at full speed while policy is edited, and checks that nothing leaks or is lost.

    python -m bench.soak [--minutes 10] [--burst 30] [--name soak]

Traffic comes in bursts. After each, when all is quiet, it checks that
  - every answered request has exactly one request flow and one response flow, and no request has two;
  - every response was the one that policy requires, and no connection broke unexpectedly;
  - worker and agent have the same open descriptors as before the first burst;
  - neither has grown since the first burst, beyond a margin;
  - no flow was lost on the way.
Prints a table of verdicts. Exit code 1 if a check failed, with the reasons.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.table import Table

from bench import programs
from bench.__main__ import ended_by_signals
from bench.cpu import alive, open_files, rss_mib
from bench.rules import Rule, rules
from bench.soak import ledger
from bench.soak.flows import MALFORMED, FlowReader
from bench.soak.ledger import Line
from bench.soak.talk import BULK, GRPC, H2C, HTTP, WS
from bench.stage import NODE, Running, Stage, stage, tail
from l7proxy.errors import L7ProxyError
from l7proxy.lab import userns
from l7proxy.lab.state import Lab
from l7proxy.proxy.server import pipes

ALLOWED = Rule("GET|POST", "/soak[./](keep|pipe|down|up|chunked|ws|slow|h2|abort|grpc)/.*")
FLIPPED = Rule("GET", "/soak/flip/.*")
PORTS = (HTTP, BULK, GRPC, WS, H2C)
EDIT_SECONDS = 2.0
EXAMPLES = 5
QUIET_SECONDS = 40.0
"""Time limit for connections to end after a burst: a peer that accepts no bytes is closed after 30 s."""
KEPT = Counter({"pipe": 2 * pipes.KEPT, "anon_inode": 1})
"""What a worker may keep for reuse: empty splice pipes, and the epoll descriptor that watches them."""
GROWTH = 1.10
GROWTH_MIB = 6.0
"""Memory may exceed that after the first burst by a tenth plus this: room for pages, not for leaked requests."""

Report = Callable[[str], None]


@dataclass
class Soak:
    """One run. `faults` lists the failed checks."""

    place: Stage
    running: Running
    flows: FlowReader
    log: Path
    report: Report
    over: bool = False
    faults: list[str] = field(default_factory=list)
    tables: list[list[Line]] = field(default_factory=list)
    first_rss: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pids = {"worker": self.running.proxy, "agent": self.running.beside[0]}
        self.open = {name: Counter(open_files(pid)) for name, pid in self.pids.items()}

    def burst(self, number: int, seconds: float) -> None:
        self.flows.expect(number)
        result, outcomes = self._traffic(number, seconds)
        self.flows.settle()
        seen = self.flows.take()
        found = ledger.faults(outcomes, seen, answerless=frozenset({MALFORMED}))
        found += [f"went wrong: {example}" for example in result["examples"]]
        if result["broken"]:
            found.append(f"{len(result['broken'])} connections broke, as {result['broken'][:3]}")
        found += [f"flows were lost: {line}" for line in self.flows.lost]
        found += [f"the server could not be had: {line}" for line in self.flows.failures[:EXAMPLES]]
        found += self._ended() or self._leaks()
        self.faults += (f"burst {number}: {fault}" for fault in found)
        self.tables.append(ledger.lines(outcomes, seen))
        sent = sum(line.sent for line in self.tables[-1])
        self.report(f"burst {number}: {sent} requests, {sent / seconds:.0f} a second{self._sizes()}")
        for fault in found:
            self.report(f"  FAULT {fault}")

    def _traffic(self, number: int, seconds: float) -> tuple[dict[str, Any], dict[str, bytes]]:
        with tempfile.TemporaryDirectory(dir=self.place.directory) as name, self._editing():
            command = [sys.executable, "-m", "bench.soak.traffic", self.place.server, str(number), str(seconds), name]
            result = json.loads(self.place.from_client(*command, seconds=seconds + 90))
            return result, {path.name: path.read_bytes() for path in Path(name).iterdir()}

    @contextmanager
    def _editing(self) -> Iterator[None]:
        """Edits policy continuously: one kind of request is allowed and refused in turn."""
        over = threading.Event()

        def edit() -> None:
            flip = False
            while not over.wait(EDIT_SECONDS):
                flip = not flip
                self.place.write_policy((*rules(1), ALLOWED, *([FLIPPED] if flip else [])), PORTS)

        thread = threading.Thread(target=edit, name="policy edits")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _ended(self) -> list[str]:
        """Processes that died, with their last output; this ends the soak."""
        gone = [name for name, pid in self.pids.items() if not alive(pid)]
        self.over = bool(gone)
        return [f"the {name} ended: {tail(self.log)}" for name in gone]

    def _leaks(self) -> list[str]:
        end = time.monotonic() + QUIET_SECONDS
        while (left := self._left_open()) and time.monotonic() < end:
            time.sleep(0.2)
        found = [f"the {name} has left open: {dict(more)}{self._connections(name)}" for name, more in left.items()]
        for name, pid in self.pids.items():
            now = rss_mib(pid)
            first = self.first_rss.setdefault(name, now)
            if now > first * GROWTH + GROWTH_MIB:
                found.append(f"the {name} grew from {first:.1f} to {now:.1f} MiB")
        return found

    def _left_open(self) -> dict[str, Counter[str]]:
        """Descriptors of each process that were not open before the first burst."""
        extra = {name: Counter(open_files(pid)) - self.open[name] for name, pid in self.pids.items()}
        return {name: more for name, more in extra.items() if more - KEPT}

    def _connections(self, name: str) -> str:
        """The open TCP connections of a process, as ss(8) shows them."""
        listed = self.place.ask(f"node/{NODE}", "ss", "-tanpH", seconds=10).splitlines()
        own = (line for line in listed if f"pid={self.pids[name]}," in line and not line.startswith("LISTEN"))
        return "".join(f"; {' '.join(line.split()[:5])}" for line in own)

    def _sizes(self) -> str:
        return "".join(f", {name} {rss_mib(pid):.1f} MiB" for name, pid in self.pids.items() if alive(pid))


def soak(place: Stage, *, minutes: float, burst: float, report: Report) -> Soak:
    place.write_policy((*rules(1), ALLOWED), PORTS)
    scratch = Path(tempfile.mkdtemp(dir=place.directory))
    with ExitStack() as stack:
        for port, module in ((BULK, ("bench.bulk_server",)), (GRPC, ("bench.grpc_echo", "serve"))):
            stack.enter_context(place.serving(port, sys.executable, "-m", *module, str(port)))
        settings = {"flow_log": "stdout", "flow_ring": 16383}
        read, write = _pipe()
        flows = FlowReader(read)
        with place.l7proxy(settings, scratch, write) as (running, _):
            write.close()
            run = Soak(place, running, flows, scratch / "err.log", report)
            end = time.monotonic() + minutes * 60
            number = 0
            while number == 0 or (time.monotonic() < end and not run.over):
                number += 1
                run.burst(number, burst)
    return run


def _pipe() -> tuple[IO[bytes], IO[bytes]]:
    """A pipe for the agent's flow log. Large, so that no flow is lost when the reader is busy for a moment."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 1 << 20)
    return os.fdopen(read, "rb", buffering=1 << 20), os.fdopen(write, "wb")


def table(run: Soak) -> Table:
    shown = Table("traffic", "sent", "answered", "given up", "FORWARDED", "DROPPED")
    for column in shown.columns[1:]:
        column.justify = "right"
    for line in ledger.total(run.tables):
        counts = (line.sent, line.answered, line.given_up, line.forwarded, line.dropped)
        shown.add_row(line.kind, *(str(count) for count in counts))
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--burst", type=float, default=30.0, help="seconds of traffic between two checks")
    parser.add_argument("--name", default="soak", help="of the lab")
    args = parser.parse_args()
    programs.reach()
    progress = Console(stderr=True)

    def report(line: str) -> None:
        progress.print(f"{time.strftime('%H:%M:%S')}  {line}", markup=False, highlight=False, soft_wrap=True)

    try:
        with userns.entered(Lab(args.name)), ended_by_signals(), stage(report, args.name, sysctls={}) as place:
            run = soak(place, minutes=args.minutes, burst=args.burst, report=report)
    except KeyboardInterrupt:
        return 130
    except L7ProxyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    Console().print(table(run))
    for fault in run.faults:
        print(f"FAULT {fault}")
    print(f"{sum(line.sent for line in ledger.total(run.tables))} requests, {len(run.faults)} faults")
    return 1 if run.faults else 0


if __name__ == "__main__":
    sys.exit(main())
