"""Watches a directory of Kubernetes manifests as a source of resources.

Laws:
  - A file is read when it has not changed for QUIET seconds, so that a partly written file is never used. While a file
    is changing, no object of another file is removed, so that a policy that moves between files stays enforced. Objects
    of a deleted file are also kept for QUIET seconds: many editors delete the old file before they create the new one.
    A file that keeps changing is waited for no longer than PATIENCE.
  - A broken file is reported, and the last good version of each object in it stays active. If an error cannot be
    assigned to one object, no object of that file is removed until the file is fixed. This is the only place that
    depends on earlier inputs (law 4).
  - A faulty policy that never had a good version gets a placeholder, which the cluster state turns into a refusal.
  - If an object is defined twice, the first file by path counts, and both locations are reported.
  - A directory that cannot be listed keeps its last known content.
Symbolic links to files are followed, links to directories are not (they may form a loop); a dangling link is a broken
file. Hidden names are skipped, so that a mounted ConfigMap, whose `..data` link is swapped, is read once.
"""

from __future__ import annotations

import asyncio
import os
import stat
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from l7proxy.errors import SourceError
from l7proxy.model.resources import Change, Delete, Resource, ResourceKey, Synced, Upsert
from l7proxy.sources.inotify import ChangeNotifier
from l7proxy.sources.manifests import Fault, Manifest, parse
from l7proxy.sources.yaml_lines import MAX_BYTES

SUFFIXES: Final = (".yaml", ".yml", ".json")
QUIET: Final = 0.02
"""Seconds without a change before a file is read."""
TICK: Final = 0.001
"""Seconds added before the next scan, because of the clock's resolution."""
LOOK_AGAIN: Final = 2.0
"""Seconds between scans without a notification: for file systems without inotify, and links to other directories."""
LOOK_SHARE: Final = 20
"""Minimum pause in multiples of a scan's duration: with 100 000 files one takes half a second of CPU time."""
PATIENCE: Final = 2.0
"""Seconds after which a changing file is read as it is, and for which changing files may delay removals."""

Signature = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class ReadFile:
    """One version of a file, and its active objects: good resources, and placeholders of faulty policies."""

    signature: Signature
    mtime_ns: int
    manifest: Manifest
    good: Mapping[ResourceKey, Resource]
    stand_ins: Mapping[ResourceKey, Resource]


@dataclass(frozen=True, slots=True)
class DirectoryScan:
    """The combined content of all files."""

    resources: Mapping[ResourceKey, Resource] = field(default_factory=dict)
    problems: tuple[SourceError, ...] = ()
    notes: tuple[SourceError, ...] = ()
    files: Mapping[str, int] = field(default_factory=dict)


def settle(
    version: Manifest, before: Mapping[ResourceKey, Resource]
) -> tuple[dict[ResourceKey, Resource], dict[ResourceKey, Resource]]:
    """(good resources, placeholders) of a file version; `before`: the last good resources of the file."""
    good: dict[ResourceKey, Resource] = {}
    stand_ins: dict[ResourceKey, Resource] = {}
    for resource in version.resources:
        good.setdefault(resource.key, resource)
    for fault in version.faults:
        kept = _meant(fault, before, good)
        if kept is not None:
            good.setdefault(kept, before[kept])
        elif fault.stand_in is not None and fault.stand_in.key not in good:
            stand_ins.setdefault(fault.stand_in.key, fault.stand_in)
    if any(fault.blind for fault in version.faults):
        for key, resource in before.items():
            good.setdefault(key, resource)
    return good, stand_ins


def _meant(
    fault: Fault, before: Mapping[ResourceKey, Resource], good: Mapping[ResourceKey, Resource]
) -> ResourceKey | None:
    """The last good object that a fault belongs to. A policy with an unreadable name counts as one that is missing."""
    named = fault.key or (fault.stand_in.key if fault.stand_in else None)
    if named is None or named in before:
        return named
    if not fault.blind:
        return None
    return next((key for key in sorted(before) if key.kind == named.kind and key not in good), None)


def gather(files: Mapping[str, ReadFile], troubles: Iterable[SourceError] = ()) -> DirectoryScan:
    """Combine all files: a pure function of the active objects of each."""
    problems = list(troubles)
    notes: list[SourceError] = []
    for name in sorted(files):
        problems += (fault.error for fault in files[name].manifest.faults)
        notes += files[name].manifest.notes
    resources = _without_doubles(files.values())
    if resources is None:
        resources, doubles = _first_of_doubles(files)
        problems += doubles
    problems.sort(key=lambda error: (error.file, error.line or 0, error.field, error.message))
    return DirectoryScan(
        resources, tuple(problems), tuple(notes), {name: read.mtime_ns for name, read in files.items()}
    )


def _without_doubles(files: Iterable[ReadFile]) -> dict[ResourceKey, Resource] | None:
    """Fast path: merge the dictionaries. None if an object is defined twice."""
    resources: dict[ResourceKey, Resource] = {}
    count = 0
    for read in files:
        if len(read.manifest.resources) > len(read.good):
            return None
        for part in (read.stand_ins, read.good):
            resources.update(part)
            count += len(part)
    return resources if len(resources) == count else None


def _first_of_doubles(files: Mapping[str, ReadFile]) -> tuple[dict[ResourceKey, Resource], list[SourceError]]:
    """The first file by path defines an object; other definitions are reported."""
    resources: dict[ResourceKey, Resource] = {}
    claimed: dict[ResourceKey, Resource] = {}
    problems: list[SourceError] = []
    for name in sorted(files):
        read = files[name]
        for resource in read.manifest.resources:
            first = claimed.setdefault(resource.key, resource)
            if first is not resource:
                problems.append(_twice(resource, first))
        for key, resource in {**read.stand_ins, **read.good}.items():
            resources.setdefault(key, resource)
            claimed.setdefault(key, resource)
    return resources, problems


def _twice(resource: Resource, first: Resource) -> SourceError:
    place = f"{first.origin.file}:{first.origin.line}"
    message = f"{resource.key} is already defined in {place}, which stays in force"
    return SourceError(message, file=resource.origin.file, line=resource.origin.line, field="metadata.name")


def differences(before: Mapping[ResourceKey, Resource], after: Mapping[ResourceKey, Resource]) -> list[Change]:
    """The changes from `before` to `after`: removals first, each part sorted by key."""
    others = [key for key, resource in after.items() if before.get(key) is not resource]
    kept = len(after) - sum(key not in before for key in others)
    gone = [key for key in before if key not in after] if kept < len(before) else []
    changed = [key for key in others if before.get(key) != after[key]]
    return [*map(Delete, sorted(gone)), *(Upsert(after[key]) for key in sorted(changed))]


class FileSource:
    """Watches one directory (or one file). The properties show the state of the last batch that `watch` yielded."""

    kind = "files"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.synced = False
        self._look = DirectoryScan()
        self._read: dict[str, ReadFile] = {}
        self._moving: dict[str, float] = {}
        self._gone: dict[str, float] = {}
        self._poor: dict[str, float] = {}
        """File → start time, of files that are changing, deleted, or define fewer objects while others change."""

    @property
    def problems(self) -> tuple[SourceError, ...]:
        return self._look.problems

    @property
    def notes(self) -> tuple[SourceError, ...]:
        return self._look.notes

    @property
    def files(self) -> Mapping[str, int]:
        """Path relative to the directory → mtime in nanoseconds of the version that was read."""
        return self._look.files

    async def watch(self) -> AsyncIterator[list[Change]]:
        """Yield batches of changes forever. The first ends with Synced. Empty: only problems or mtimes changed."""
        with ChangeNotifier() as notifier:
            look, unsettled = await self._first(notifier)
            changes = differences({}, look.resources)
            self._look, self.synced = look, True
            yield [*changes, Synced()]
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
        found, troubles, kept = _list(self.path, watch)
        read: dict[str, ReadFile] = {
            name: version for name, version in self._read.items() if any(_below(name, folder) for folder in kept)
        }
        moving: dict[str, float] = {}
        for name, path in found.items():
            since = self._moving.get(name, now)
            version, moves = _version(path, name, self._read.get(name), patient=now - since < PATIENCE)
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
    return version.good.keys() | version.stand_ins.keys()


def _version(path: str, name: str, before: ReadFile | None, *, patient: bool) -> tuple[ReadFile | None, bool]:
    """(active version of a file, whether it is still changing: then the previous version, if `patient`)."""
    try:
        status = os.stat(path)  # noqa: PTH116 - at every look, of every file
        if before is not None and before.signature == _signature(status):
            return before, False
        if not stat.S_ISREG(status.st_mode):  # reading a pipe could block forever
            raise OSError(0, "not a regular file")
        if patient and 0 <= time.time() - status.st_mtime < QUIET:
            return before, True
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
            after = os.fstat(file.fileno())
    except FileNotFoundError as error:
        return (_unreadable(name, error, before) if Path(path).is_symlink() else None), False
    except OSError as error:
        return _unreadable(name, error, before), False
    if patient and _signature(after) != _signature(status):
        return before, True
    return _read(parse(data, name), _signature(status), status.st_mtime_ns, before), False


def _read(manifest: Manifest, signature: Signature, mtime_ns: int, before: ReadFile | None) -> ReadFile:
    good, stand_ins = settle(manifest, before.good if before else {})
    return ReadFile(signature, mtime_ns, manifest, good, stand_ins)


def _unreadable(name: str, error: OSError, before: ReadFile | None) -> ReadFile:
    fault = Fault(SourceError(f"cannot be read: {error.strerror}", file=name))
    return _read(Manifest(faults=(fault,)), (0, 0, 0, 0), 0, before)


def _signature(status: os.stat_result) -> Signature:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _list(root: Path, watch: Callable[[Path], None]) -> tuple[dict[str, str], list[SourceError], list[str]]:
    """(name → path of every manifest, errors, folders that could not be listed). Each folder is watched before listing.

    Paths are strings here for speed: there may be thousands of files.
    """
    troubles: list[SourceError] = []
    kept: list[str] = []
    found: dict[str, str] = {}

    def trouble(error: OSError) -> None:
        folder = os.path.relpath(error.filename or root, root)
        kept.append("" if folder == "." else folder)
        troubles.append(
            SourceError(f"the directory cannot be read: {error.strerror}", file=str(error.filename or root))
        )

    if root.exists() and not root.is_dir():
        watch(root.parent)
        return {root.name: str(root)}, [], []
    for folder, folders, names in _walk(root, watch, trouble):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = "" if folder == str(root) else os.path.relpath(folder, root) + "/"
        for name in names:
            if name.endswith(SUFFIXES) and not name.startswith("."):
                found[below + name] = f"{folder}/{name}"
    return found, troubles, kept


def _walk(
    root: Path, watch: Callable[[Path], None], trouble: Callable[[OSError], None]
) -> Iterable[tuple[str, list[str], list[str]]]:
    watch(root)
    for folder, folders, names in os.walk(root, onerror=trouble):
        for name in folders:
            watch(Path(folder, name))
        yield os.fspath(folder), folders, names


def _below(name: str, folder: str) -> bool:
    return not folder or name.startswith(f"{folder}/")


def _same(one: DirectoryScan, other: DirectoryScan) -> bool:
    return (one.resources, one.files, [str(error) for error in one.problems], one.notes == other.notes) == (
        other.resources,
        other.files,
        [str(error) for error in other.problems],
        True,
    )


def load(paths: Sequence[Path]) -> tuple[list[Change], list[SourceError]]:
    """Read files and directories once, for `policy test` and `policy trace`. `-` is standard input.

    Messages name the files as the user gave them.
    """
    found = look(paths)
    return changes_of(found), list(found.problems)


def changes_of(seen: DirectoryScan) -> list[Change]:
    """The changes from an empty state to this one."""
    return [*differences({}, seen.resources), Synced()]


def look(paths: Sequence[Path]) -> DirectoryScan:
    """Like `load`, but returns the whole scan, including notes."""
    read: dict[str, ReadFile] = {}
    troubles: list[SourceError] = []
    for root in paths:
        if str(root) == "-":
            read["-"] = _read(parse(sys.stdin.buffer.read(MAX_BYTES + 1), "-"), (0, 0, 0, 0), 0, None)
            continue
        if not root.exists():
            troubles.append(SourceError("no such file or directory", file=str(root)))
            continue
        found, errors, _ = _list(root, lambda folder: None)
        troubles += errors
        for path in found.values():
            shown = path if root.is_dir() else str(root)
            read[shown] = _once(Path(path), shown, asked_for=not root.is_dir())
    return gather(read, troubles)


def _once(path: Path, name: str, *, asked_for: bool) -> ReadFile:
    """Read one file. A pipe is read only if the user named it: otherwise the read might block forever."""
    try:
        if not asked_for and not path.is_file():
            raise OSError(0, "not a regular file")
        with path.open("rb") as file:
            return _read(parse(file.read(MAX_BYTES + 1), name), (0, 0, 0, 0), 0, None)
    except OSError as error:
        return _unreadable(name, error, None)
