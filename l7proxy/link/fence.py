"""Keeps a worker that was stopped from judging by an old policy when it continues: one page that agent and workers map.

The agent writes to it which picture it has published, and, once workers have had the time to apply that, which one is
required. A worker compares the page with what it has applied before it serves any socket; this is one load, needs no
message, and holds however long the process (or the machine it is on) was stopped. A worker that is behind what is
required serves nobody until it has read the link.

The page is a file that outlives its agent: while there is none, workers go on with what they have; the next agent's
stamps are greater than all before. A stamp is the agent's epoch in the upper 32 bits, the picture's revision below.
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
"""Places of the two words of 64 bits in the page."""
NAME: Final = "fence"
_EPOCH: Final = 32


def beside(link: Path) -> Path:
    """The page of the agent that has this socket."""
    return link.with_name(NAME)


def stamp(picture: PolicySnapshot) -> int:
    return picture.epoch << _EPOCH | picture.revision


class Page:
    """The agent's end. ConfigError when there can be no such page."""

    def __init__(self, path: Path) -> None:
        self._words = _map(path)
        self.epoch = (max(self._words[PUBLISHED], self._words[REQUIRED]) >> _EPOCH) + 1

    def publish(self, picture: PolicySnapshot) -> None:
        """Before the picture is sent to anybody."""
        self._words[PUBLISHED] = stamp(picture)

    def require(self, picture: PolicySnapshot) -> None:
        """From now on, who has not applied this picture serves nobody."""
        self._words[REQUIRED] = max(self._words[REQUIRED], stamp(picture))


class Fence:
    """A worker's end. `applied` is the stamp of the picture that it judges by."""

    def __init__(self, words: Sequence[int] = (0, 0)) -> None:
        self._words = words
        self.applied = 0

    @classmethod
    def of(cls, path: Path) -> Fence:
        """The page of this path. ConfigError when there can be no such page."""
        return cls(_map(path))

    def up(self) -> bool:
        """A newer picture is required than the one applied: nothing may be judged or moved."""
        return self._words[REQUIRED] > self.applied

    def behind(self) -> bool:
        """There is a newer picture than the one applied."""
        return self._words[PUBLISHED] > self.applied


def _map(path: Path) -> memoryview[int]:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, mmap.PAGESIZE)  # on a full disk a sparse page would fault when written to
            return memoryview(mmap.mmap(descriptor, mmap.PAGESIZE)).cast("Q")
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be created or mapped: {error.strerror or error}") from error
