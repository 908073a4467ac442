"""A directory of Kubernetes manifests as a source of facts, watched live.

Laws of this room:
  - A file is read when it has been quiet for a moment, so that a half-written one is never believed; while some file
    is not quiet nothing disappears that another one said, so that a policy that moves between files is in force
    throughout. What only a file said that is gone stays for such a moment, too: many editors take the old one away
    before the new one comes. Whoever is never quiet is waited for no longer than PATIENCE.
  - A file that breaks is reported, and the last good version of each object in it stays in force; where a fault
    cannot be given to one object, nothing of that file disappears until it is mended. This is the one place with a
    memory.
  - A policy at fault that never was good stands in, to be refused by the world.
  - One object said twice: the first file by path has it, and both places are named.
  - A directory that cannot be listed keeps what was last read of it.
Symbolic links to files are followed, to directories not (they may go round); one that leads nowhere is a file that
broke. Hidden names are skipped, so that a mounted ConfigMap, whose `..data` link is swapped, is read once.
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
"""Seconds a file must not have changed before it is read."""
TICK: Final = 0.001
"""So much later we look again: clocks have ticks."""
LOOK_AGAIN: Final = 2.0
"""Seconds between looks when nothing nudges: for file systems without inotify and links that lead elsewhere."""
LOOK_SHARE: Final = 20
"""At least so many times as long as a look took: with 100 000 files one takes half a second of a core."""
PATIENCE: Final = 2.0
"""Seconds that a file may be moving before it is read as it is, and that others may hold up what is taken away."""

Signature = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class ReadFile:
    """One version of one file, and what of it is in force: good facts, or the stand-ins of faulty policies."""

    signature: Signature
    mtime_ns: int
    manifest: Manifest
    good: Mapping[ResourceKey, Resource]
    stand_ins: Mapping[ResourceKey, Resource]


@dataclass(frozen=True, slots=True)
class DirectoryScan:
    """What all files together say."""

    resources: Mapping[ResourceKey, Resource] = field(default_factory=dict)
    problems: tuple[SourceError, ...] = ()
    notes: tuple[SourceError, ...] = ()
    files: Mapping[str, int] = field(default_factory=dict)


def settle(
    version: Manifest, before: Mapping[ResourceKey, Resource]
) -> tuple[dict[ResourceKey, Resource], dict[ResourceKey, Resource]]:
    """(good, stand-ins) of a file, given what was last good in it."""
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
    """The object of the last good version that a fault is about. A policy whose name is torn is one that is missing."""
    named = fault.key or (fault.stand_in.key if fault.stand_in else None)
    if named is None or named in before:
        return named
    if not fault.blind:
        return None
    return next((key for key in sorted(before) if key.kind == named.kind and key not in good), None)


def gather(files: Mapping[str, ReadFile], troubles: Iterable[SourceError] = ()) -> DirectoryScan:
    """All files into one: a pure function of what is in force in each."""
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
    """The common case, at the price of merging dictionaries; None when something is said twice."""
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
    """The first file by path has an object; the others are told so."""
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
    """What to say to someone who knows `before`: removals first, in the order of names."""
    others = [key for key, resource in after.items() if before.get(key) is not resource]
    kept = len(after) - sum(key not in before for key in others)
    gone = [key for key in before if key not in after] if kept < len(before) else []
    changed = [key for key in others if before.get(key) != after[key]]
    return [*map(Delete, sorted(gone)), *(Upsert(after[key]) for key in sorted(changed))]


class FileSource:
    """Watches one directory (or one file). What the properties say is as of the batch that `watch` yielded last."""

    kind = "files"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.synced = False
        self._look = DirectoryScan()
        self._read: dict[str, ReadFile] = {}
        self._moving: dict[str, float] = {}
        self._gone: dict[str, float] = {}
        self._poor: dict[str, float] = {}
        """Files that move, are gone, say less while others move: since when."""

    @property
    def problems(self) -> tuple[SourceError, ...]:
        return self._look.problems

    @property
    def notes(self) -> tuple[SourceError, ...]:
        return self._look.notes

    @property
    def files(self) -> Mapping[str, int]:
        """Path below the directory → mtime in nanoseconds of the version that was read."""
        return self._look.files

    async def watch(self) -> AsyncIterator[list[Change]]:
        """Batches of changes, for ever. The first ends with Synced. An empty one: only problems or mtimes moved."""
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
                # What was seen moving had changed before we began; looking took its time, too.
                looked = time.monotonic() - began
                pause = max(QUIET + TICK - looked, 0.0) if unsettled else max(LOOK_AGAIN, LOOK_SHARE * looked)
                if _same(look, self._look):
                    continue
                changes = differences(self._look.resources, look.resources)
                self._look = look
                yield changes

    async def _first(self, notifier: ChangeNotifier) -> tuple[DirectoryScan, bool]:
        """When all is quiet, or each file that was there at first has been or was waited for."""
        look, unsettled = await asyncio.to_thread(self._scan, notifier.watch)
        began = now = time.monotonic()
        while unsettled and now - began < PATIENCE:
            await asyncio.sleep(QUIET)
            now = time.monotonic()
            look, unsettled = await asyncio.to_thread(self._scan, notifier.watch)
        return look, unsettled

    def _scan(self, watch: Callable[[Path], None]) -> tuple[DirectoryScan, bool]:
        """Look at everything; read what is new. True when some file was still moving and is to be read later."""
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
        """Files that are gone or say less than they did, as they were, for as long as others move and we are patient.

        They are read again at the next look. One that moves itself meanwhile has still been waiting.
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
        """Files that went away a moment ago, and with them what no other says."""
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
    """The version of a file that counts now: while it moves and we are patient, the one before (then also True)."""
    try:
        status = os.stat(path)  # noqa: PTH116 - at every look, of every file
        if before is not None and before.signature == _signature(status):
            return before, False
        if not stat.S_ISREG(status.st_mode):  # reading a pipe could hold us up for ever
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
    """(name → path of every manifest, troubles, folders that could not be listed). Each folder is watched first.

    There may be thousands of files, so paths are texts here.
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

    Files are named in messages as they were given.
    """
    found = look(paths)
    return changes_of(found), list(found.problems)


def changes_of(seen: DirectoryScan) -> list[Change]:
    """What to say to someone who knows nothing."""
    return [*differences({}, seen.resources), Synced()]


def look(paths: Sequence[Path]) -> DirectoryScan:
    """The same, with the notes on what is no error."""
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
    """A pipe is read only when it was asked for by its name: nobody may ever write to it."""
    try:
        if not asked_for and not path.is_file():
            raise OSError(0, "not a regular file")
        with path.open("rb") as file:
            return _read(parse(file.read(MAX_BYTES + 1), name), (0, 0, 0, 0), 0, None)
    except OSError as error:
        return _unreadable(name, error, None)
