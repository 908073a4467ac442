"""Who runs where. The proxy, with all that belongs to it, has one core; client and server have the others.

On a machine with one core everybody shares it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cores:
    proxy: tuple[int, ...]
    others: tuple[int, ...]

    def pin_proxy(self, command: list[str]) -> list[str]:
        return _pinned(self.proxy, command)

    def pin_other(self, command: list[str]) -> list[str]:
        return _pinned(self.others, command)


def pinned() -> Cores:
    """Of those that we may use."""
    usable = sorted(os.sched_getaffinity(0))
    return Cores(tuple(usable[:1]), tuple(usable[1:] or usable))


def unpinned() -> Cores:
    """Everybody anywhere: on a machine that others use, too, a core of one's own may be a busy one."""
    usable = tuple(sorted(os.sched_getaffinity(0)))
    return Cores(usable, usable)


def _pinned(where: tuple[int, ...], command: list[str]) -> list[str]:
    """By taskset(1): what the command starts stays there, too."""
    return ["taskset", "--cpu-list", ",".join(map(str, where)), *command]
