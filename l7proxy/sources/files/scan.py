"""Reads files and directories of manifests: one version of each file, and all of them combined.

Symbolic links to files are followed, links to directories are not (they may form a loop); a dangling link is a broken
file. Hidden names are skipped, so that a mounted ConfigMap, whose `..data` link is swapped, is read once. If an object
is defined twice, the first file by path counts, and both locations are reported.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from l7proxy.errors import SourceError
from l7proxy.model.resources import Change, Resource, ResourceKey
from l7proxy.policy.lang.options import DEFAULT, Options
from l7proxy.sources.decode import Decoded, Fault
from l7proxy.sources.files.manifest import parse
from l7proxy.sources.files.yaml_lines import MAX_BYTES
from l7proxy.sources.last_good import settle
from l7proxy.sources.source import SYNCED, differences

SUFFIXES: Final = (".yaml", ".yml", ".json")
QUIET: Final = 0.02
"""Seconds without a change before a file is read."""

Signature = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class ReadFile:
    """One version of a file, and its active objects: good resources, and placeholders of faulty policies."""

    signature: Signature
    mtime_ns: int
    manifest: Decoded
    good: Mapping[ResourceKey, Resource]
    placeholders: Mapping[ResourceKey, Resource]


@dataclass(frozen=True, slots=True)
class DirectoryScan:
    """The combined content of all files."""

    resources: Mapping[ResourceKey, Resource] = field(default_factory=dict)
    problems: tuple[SourceError, ...] = ()
    notes: tuple[SourceError, ...] = ()
    files: Mapping[str, int] = field(default_factory=dict)


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
        for part in (read.placeholders, read.good):
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
        for key, resource in {**read.placeholders, **read.good}.items():
            resources.setdefault(key, resource)
            claimed.setdefault(key, resource)
    return resources, problems


def _twice(resource: Resource, first: Resource) -> SourceError:
    place = f"{first.origin.file}:{first.origin.line}"
    message = f"{resource.key} is already defined in {place}, which stays in force"
    return SourceError(message, file=resource.origin.file, line=resource.origin.line, field="metadata.name")


def read_version(
    path: str, name: str, before: ReadFile | None, options: Options, *, patient: bool
) -> tuple[ReadFile | None, bool]:
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
    return _read(parse(data, name, options), _signature(status), status.st_mtime_ns, before), False


def _read(manifest: Decoded, signature: Signature, mtime_ns: int, before: ReadFile | None) -> ReadFile:
    good, placeholders = settle(manifest, before.good if before else {})
    return ReadFile(signature, mtime_ns, manifest, good, placeholders)


def _unreadable(name: str, error: OSError, before: ReadFile | None) -> ReadFile:
    fault = Fault(SourceError(f"cannot be read: {error.strerror}", file=name))
    return _read(Decoded(faults=(fault,)), (0, 0, 0, 0), 0, before)


def _signature(status: os.stat_result) -> Signature:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def list_files(root: Path, watch: Callable[[Path], None]) -> tuple[dict[str, str], list[SourceError], list[str]]:
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


def load(paths: Sequence[Path], options: Options = DEFAULT) -> tuple[list[Change], list[SourceError]]:
    """Read files and directories once, for `policy test` and `policy trace`. `-` is standard input.

    Messages name the files as the user gave them.
    """
    found = look(paths, options)
    return changes_of(found), list(found.problems)


def changes_of(seen: DirectoryScan) -> list[Change]:
    """The changes from an empty state to this one."""
    return [*differences({}, seen.resources), *SYNCED]


def look(paths: Sequence[Path], options: Options = DEFAULT) -> DirectoryScan:
    """Like `load`, but returns the whole scan, including notes."""
    read: dict[str, ReadFile] = {}
    troubles: list[SourceError] = []
    for root in paths:
        if str(root) == "-":
            read["-"] = _read(parse(sys.stdin.buffer.read(MAX_BYTES + 1), "-", options), (0, 0, 0, 0), 0, None)
            continue
        if not root.exists():
            troubles.append(SourceError("no such file or directory", file=str(root)))
            continue
        found, errors, _ = list_files(root, lambda folder: None)
        troubles += errors
        for path in found.values():
            shown = path if root.is_dir() else str(root)
            read[shown] = _once(Path(path), shown, options, asked_for=not root.is_dir())
    return gather(read, troubles)


def _once(path: Path, name: str, options: Options, *, asked_for: bool) -> ReadFile:
    """Read one file. A pipe is read only if the user named it: otherwise the read might block forever."""
    try:
        if not asked_for and not path.is_file():
            raise OSError(0, "not a regular file")
        with path.open("rb") as file:
            return _read(parse(file.read(MAX_BYTES + 1), name, options), (0, 0, 0, 0), 0, None)
    except OSError as error:
        return _unreadable(name, error, None)
