"""Reads the agent's flow log from a pipe as fast as it comes, and counts by the names that the traffic gave itself.

A request names itself in its path, `/soak/KIND/BURST-NUMBER`. What is malformed has no path: it comes from a source
port of its own, MALFORMED_PORT + number. Lines are looked at with one regular expression, not decoded: this shares the
machine with what it watches.
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
"""L3/L4 events over the limit of their sender: counted by the kernel, and no loss."""


class FlowReader:
    """A thread that reads until the pipe ends. `take` hands over what has come so far and starts anew.

    `lost` are the lines that tell of lost flows, `failures` what is said of answers in the 500s.
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
        """Flows of this burst count from now on; those of others are told as unexpected."""
        with self._lock:
            self._burst, self._seen = burst, Seen()

    def settle(self, quiet: float = 1.5, patience: float = 20.0) -> None:
        """Wait until nothing has come for a while."""
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
