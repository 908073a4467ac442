"""Reads the agent's flow log from a pipe as fast as it arrives, and counts flows by the names in the requests.

A request names itself in its path, `/soak/KIND/BURST-NUMBER`. Malformed requests have no path: each has its own source
port, MALFORMED_PORT + number. Lines are matched with regular expressions, not decoded, because this process shares
the machine with what it measures.
"""

from __future__ import annotations

import re
import threading
import time
from typing import IO, Final

from bench.soak.ledger import Seen

MALFORMED: Final = "malformed"
MALFORMED_PORT, MALFORMED_PORTS = 60000, 5000
_NAMED: Final = re.compile(rb'"url":"[^"]*?/soak[./](\w+)/(\d+)-(\d+)')
_FAILED: Final = re.compile(rb'"code":50[0-9]')
_REASON: Final = re.compile(rb'"policy_log":\[[^\]]*\]|"Summary":"[^"]*"')
_VERDICT: Final = re.compile(rb'"verdict":"(\w+)"')
_SOURCE_PORT: Final = re.compile(rb'"l4":\{"TCP":\{"source_port":(\d+)')


RATE_LIMITED: Final = b"PERF_EVENT_RING_BUFFER"
"""L3/L4 events over the rate limit of their sender: the kernel counts them, and they are not a loss."""


class FlowReader:
    """A thread that reads until the pipe ends. `take` returns what has arrived so far and starts a new count.

    `lost` are the lines that report lost flows, `failures` the reasons of responses in the 500s.
    """

    def __init__(self, pipe: IO[bytes]) -> None:
        self.lost: list[str] = []
        self.failures: list[str] = []
        self._pipe = pipe
        self._seen = Seen()
        self._burst = 0
        self._last = time.monotonic()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._read, name="flow log", daemon=True)
        self._thread.start()

    def expect(self, burst: int) -> None:
        """Count the flows of this burst from now on; those of other bursts are reported as unexpected."""
        with self._lock:
            self._burst, self._seen = burst, Seen()

    def settle(self, quiet: float = 1.5, patience: float = 20.0) -> None:
        """Wait until nothing has arrived for `quiet` seconds."""
        end = time.monotonic() + patience
        while time.monotonic() < min(end, self._last + quiet):
            time.sleep(0.1)

    def wait_end(self) -> None:
        """Until the pipe has ended."""
        self._thread.join()

    def take(self) -> Seen:
        with self._lock:
            seen, self._seen = self._seen, Seen()
            return seen

    def _read(self) -> None:
        with self._pipe:
            for line in self._pipe:
                self._last = time.monotonic()
                self._look(line)

    def _look(self, line: bytes) -> None:
        if b'"Type":"L7"' in line:
            with self._lock:
                self._count(line)
        elif b'"lost_events"' in line and RATE_LIMITED not in line:
            self.lost.append(line.decode(errors="replace").strip()[:200])

    def _count(self, line: bytes) -> None:
        verdict = _VERDICT.search(line)
        if (named := _NAMED.search(line)) is not None:
            kind = named[1].decode()
            if int(named[2]) != self._burst:
                kind = f"{kind} of burst {int(named[2])}"
            number = int(named[3])
        elif b"malformed request" in line and (port := _malformed_number(line)) is not None:
            kind, number = MALFORMED, port
        else:
            return
        response = b'"type":"RESPONSE"' in line
        if response and _FAILED.search(line) is not None:
            said = _REASON.search(line)
            self.failures.append(f"{kind} {number}: {said[0].decode(errors='replace') if said else 'no reason'}")
        counts = (self._seen.responses if response else self._seen.requests).setdefault(kind, {})
        counts[number] = counts.get(number, 0) + 1
        if not response and verdict is not None:
            key = (kind, verdict[1].decode())
            self._seen.verdicts[key] = self._seen.verdicts.get(key, 0) + 1


def _malformed_number(line: bytes) -> int | None:
    found = _SOURCE_PORT.search(line)
    number = int(found[1]) - MALFORMED_PORT if found else -1
    return number if 0 <= number < MALFORMED_PORTS else None
