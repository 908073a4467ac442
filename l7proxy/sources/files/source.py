"""Watches a directory of Kubernetes manifests (or one file) as a source of resources.

Laws:
  - A file is read when it has not changed for QUIET seconds, so that a partly written file is never used. While a file
    is changing, no object of another file is removed, so that a policy that moves between files stays enforced. Objects
    of a deleted file are also kept for QUIET seconds: many editors delete the old file before they create the new one.
    A file that keeps changing is waited for no longer than PATIENCE.
  - A broken file is reported, and the last good version of each object in it stays active (`last_good`).
  - A directory that cannot be listed keeps its last known content.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from typing import Final

from l7proxy.model.resources import Change, ResourceKey
from l7proxy.policy.lang.options import DEFAULT, Options
from l7proxy.sources.files.notify import ChangeNotifier
from l7proxy.sources.files.scan import QUIET, DirectoryScan, ReadFile, gather, list_files, read_version
from l7proxy.sources.source import NEVER, SYNCED, SourceHealth, differences

TICK: Final = 0.001
"""Seconds added before the next scan, because of the clock's resolution."""
LOOK_AGAIN: Final = 2.0
"""Seconds between scans without a notification: for file systems without inotify, and links to other directories."""
LOOK_SHARE: Final = 20
"""Minimum pause in multiples of a scan's duration: with 100 000 files one takes half a second of CPU time."""
PATIENCE: Final = 2.0
"""Seconds after which a changing file is read as it is, and for which changing files may delay removals."""


class FileSource:
    """A Source. Its health shows the state of the last batch that `watch` yielded."""

    def __init__(self, path: Path, options: Options = DEFAULT) -> None:
        """`options`: how policies are read."""
        self._path = path
        self._options = options
        self._look = DirectoryScan()
        self._contact = NEVER
        self._reachable = True
        self._read: dict[str, ReadFile] = {}
        self._moving: dict[str, float] = {}
        self._gone: dict[str, float] = {}
        self._poor: dict[str, float] = {}
        """File → start time, of files that are changing, deleted, or define fewer objects while others change."""

    def health(self) -> SourceHealth:
        """`detail`: path relative to the directory → mtime in nanoseconds of the version that was read."""
        return SourceHealth(
            "files", str(self._path), self._look.files, self._look.problems, self._reachable, self._contact
        )

    async def watch(self) -> AsyncGenerator[list[Change], None]:
        with ChangeNotifier() as notifier:
            look, unsettled = await self._first(notifier)
            self._look = look
            yield [*differences({}, look.resources), *SYNCED]
            pause = QUIET if unsettled else LOOK_AGAIN
            while True:
                await notifier.wait(pause)
                began = time.monotonic()
                look, unsettled = await asyncio.to_thread(self._scan, notifier.watch)
                # A changing file had changed before the scan began, so the scan's duration counts as waiting.
                looked = time.monotonic() - began
                pause = max(QUIET + TICK - looked, 0.0) if unsettled else max(LOOK_AGAIN, LOOK_SHARE * looked)
                if _same(look, self._look):
                    continue
                changes = differences(self._look.resources, look.resources)
                self._look = look
                yield changes

    async def _first(self, notifier: ChangeNotifier) -> tuple[DirectoryScan, bool]:
        """Scan until no file is changing, for at most PATIENCE seconds."""
        look, unsettled = await asyncio.to_thread(self._scan, notifier.watch)
        began = now = time.monotonic()
        while unsettled and now - began < PATIENCE:
            await asyncio.sleep(QUIET)
            now = time.monotonic()
            look, unsettled = await asyncio.to_thread(self._scan, notifier.watch)
        return look, unsettled

    def _scan(self, watch: Callable[[Path], None]) -> tuple[DirectoryScan, bool]:
        """Scan all files and read changed ones. True if a file was still changing and has to be read later."""
        now = time.monotonic()
        found, troubles, kept = list_files(self._path, watch)
        self._reachable = "" not in kept
        if self._reachable:
            self._contact = now
        read: dict[str, ReadFile] = {
            name: version for name, version in self._read.items() if any(_below(name, folder) for folder in kept)
        }
        moving: dict[str, float] = {}
        for name, path in found.items():
            since = self._moving.get(name, now)
            version, moves = read_version(
                path, name, self._read.get(name), self._options, patient=now - since < PATIENCE
            )
            if moves:
                moving[name] = since
            if version is not None:
                read[name] = version
        held = self._held(read, now)
        read |= self._poorer(read, moving, now)
        self._read, self._moving = {**held, **read}, moving
        return gather(self._read, troubles), bool(moving or held)

    def _poorer(self, read: Mapping[str, ReadFile], moving: Mapping[str, float], now: float) -> dict[str, ReadFile]:
        """Old versions of files that are deleted or define fewer objects, while others change, for at most PATIENCE.

        They are read again at the next scan. A file that changes again meanwhile keeps its start time.
        """
        if not moving:
            self._poor = {}
            return {}
        poorer = {name: old for name, old in self._read.items() if _says_less(read.get(name), old)}
        since = {name: self._poor.get(name, now) for name in poorer.keys() | (moving.keys() & self._poor.keys())}
        late = {name for name in poorer if now - since[name] >= PATIENCE}
        self._poor = {name: began for name, began in since.items() if name not in late}
        return {name: old for name, old in poorer.items() if name not in late}

    def _held(self, read: Mapping[str, ReadFile], now: float) -> dict[str, ReadFile]:
        """Files deleted less than QUIET seconds ago that define objects which no other file defines."""
        self._gone = {name: self._gone.get(name, now) for name in self._read.keys() - read.keys()}
        fresh = {name: self._read[name] for name, since in self._gone.items() if now - since < QUIET}
        if not fresh:
            return {}
        said = {key for version in read.values() for key in _keys(version)}
        return {name: one for name, one in fresh.items() if not said >= _keys(one)}


def _says_less(version: ReadFile | None, before: ReadFile) -> bool:
    return version is not before and (version is None or not _keys(version) >= _keys(before))


def _keys(version: ReadFile) -> set[ResourceKey]:
    return version.good.keys() | version.placeholders.keys()


def _below(name: str, folder: str) -> bool:
    return not folder or name.startswith(f"{folder}/")


def _same(one: DirectoryScan, other: DirectoryScan) -> bool:
    return (one.resources, one.files, [str(error) for error in one.problems], one.notes == other.notes) == (
        other.resources,
        other.files,
        [str(error) for error in other.problems],
        True,
    )
