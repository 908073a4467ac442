"""CPU time of processes, from /proc (proc(5): utime and stime of /proc/PID/stat, in clock ticks)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Used:
    """Seconds of CPU, in our code and in the kernel on our behalf."""

    user: float
    system: float

    @property
    def total(self) -> float:
        return self.user + self.system

    def __sub__(self, other: Used) -> Used:
        return Used(self.user - other.user, self.system - other.system)


def used(*pids: int) -> Used:
    """What these processes have used together, all threads; ended children not."""
    user = system = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        user += int(fields[11])
        system += int(fields[12])
    return Used(user / TICK, system / TICK)


def rss_mb(pid: int) -> float:
    """Resident memory, MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
