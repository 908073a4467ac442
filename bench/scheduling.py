"""SCHED_IDLE for programs that load the machine but are not measured: they run only while nothing else wants a core."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

AUTOGROUP: Final = Path("/proc/sys/kernel/sched_autogroup_enabled")


@contextlib.contextmanager
def one_group() -> Iterator[None]:
    """SCHED_IDLE works only within a scheduling group; the kernel makes one per session (sched(7), autogroup)."""
    before = AUTOGROUP.read_text()
    AUTOGROUP.write_text("0")
    try:
        yield
    finally:
        AUTOGROUP.write_text(before)


@contextlib.contextmanager
def idle(processes: Iterable[int], threads: Iterable[int] = ()) -> Iterator[None]:
    """These processes, with all their threads, and these threads of our own."""
    chosen = [*threads, *(number for pid in processes for number in _threads(pid))]
    _set(chosen, os.SCHED_IDLE)
    try:
        yield
    finally:
        _set({*chosen, *(number for pid in processes for number in _threads(pid))}, os.SCHED_OTHER)


def _set(threads: Iterable[int], policy: int) -> None:
    for thread in threads:
        with contextlib.suppress(ProcessLookupError):
            os.sched_setscheduler(thread, policy, os.sched_param(0))


def _threads(pid: int) -> list[int]:
    return [int(each.name) for each in Path(f"/proc/{pid}/task").iterdir()]
