"""Keeps a worker that was stopped from enforcing an old policy when it continues: a page that agent and workers map.

The agent writes to it the published policy snapshot and, once workers have had time to apply that, the required one.
A worker compares the page with its applied snapshot before it serves any socket. That is one memory load, needs no
message, and works however long the process (or its machine) was stopped. A worker behind the required snapshot serves
no connection until it has read the link.

The page is a file that outlives the agent: without an agent workers keep serving with the last policy; the stamps of a
new agent are greater than all earlier ones. A stamp is the agent's epoch (upper 32 bits) and the snapshot's revision.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from l7proxy.errors import ConfigError
from l7proxy.link.messages import PolicySnapshot

PUBLISHED: Final = 0
REQUIRED: Final = 1
"""Indexes of the two 64-bit words in the page."""
NAME: Final = "fence"
_EPOCH: Final = 32


def beside(link: Path) -> Path:
    """The path of the page of the agent with this socket."""
    return link.with_name(NAME)


def stamp(snapshot: PolicySnapshot) -> int:
    return snapshot.epoch << _EPOCH | snapshot.revision


class Page:
    """The agent's end. ConfigError when the page cannot be created or mapped."""

    def __init__(self, path: Path) -> None:
        self._words = _map(path)
        self.epoch = (max(self._words[PUBLISHED], self._words[REQUIRED]) >> _EPOCH) + 1

    def publish(self, snapshot: PolicySnapshot) -> None:
        """Call it before the snapshot is sent to any worker."""
        self._words[PUBLISHED] = stamp(snapshot)

    def require(self, snapshot: PolicySnapshot) -> None:
        """From now on, a worker that has not applied this snapshot serves no connection."""
        self._words[REQUIRED] = max(self._words[REQUIRED], stamp(snapshot))


class Fence:
    """A worker's end. `applied` is the stamp of the last policy snapshot by which all connections were evaluated."""

    def __init__(self, words: Sequence[int] = (0, 0)) -> None:
        self._words = words
        self.applied = 0

    @classmethod
    def of(cls, path: Path) -> Fence:
        """Map the page at this path. ConfigError when it cannot be created or mapped."""
        return cls(_map(path))

    def up(self) -> bool:
        """A newer snapshot than the applied one is required: no request may be evaluated, no bytes moved."""
        return self._words[REQUIRED] > self.applied

    def outdates(self, stamp: int) -> bool:
        """A newer snapshot than the one with this stamp is required: no verdict by that one counts."""
        return self._words[REQUIRED] > stamp

    def behind(self) -> bool:
        """A newer snapshot than the applied one is published."""
        return self._words[PUBLISHED] > self.applied


def _map(path: Path) -> memoryview[int]:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, mmap.PAGESIZE)  # a write to a sparse page fails on a full disk
            return memoryview(mmap.mmap(descriptor, mmap.PAGESIZE)).cast("Q")
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be created or mapped: {error.strerror or error}") from error
