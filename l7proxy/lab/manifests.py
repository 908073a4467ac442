"""Kubernetes manifests as the lab reads and stores them: one object, one file in the lab's manifest directory.

Only fields that every object has are read here (kind, name, namespace); `cluster` reads the kinds that the lab uses.
Policies are stored unchanged, errors included: checking them is the agent's task, and it must see the original text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from l7proxy.errors import SourceError
from l7proxy.sources import objects
from l7proxy.sources.files import yaml_lines
from l7proxy.sources.files.scan import SUFFIXES

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?\Z")
"""DNS subdomain (RFC 1123), as Kubernetes requires of names; also keeps `/` and `..` out of file names."""
_DIVIDER = re.compile(r"---(?=\s|$)")
_KIND = re.compile(r"[A-Za-z]{1,63}\Z")

Document = dict[str, Any]


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Identifies one object. `group` distinguishes Calico's NetworkPolicy from Kubernetes' own."""

    kind: str
    group: str
    namespace: str
    name: str

    @property
    def file(self) -> str:
        return "_".join(part for part in (self.kind, self.group, self.namespace, self.name) if part).lower() + ".yaml"

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """One object: the parsed document and its stored text."""

    key: Key
    document: Document
    text: str
    file: str = ""
    line: int = 0

    def error(self, message: str, field: str = "") -> SourceError:
        return SourceError(f"{self.key}: {message}", file=self.file, line=self.line or None, field=field)

    def rewritten(self, document: Document) -> Manifest:
        text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
        return Manifest(self.key, document, text, self.file, self.line)


def read(paths: Iterable[Path]) -> list[Manifest]:
    """The objects of these files and directories, in order. SourceError at the first invalid one."""
    found: list[Manifest] = []
    for path in paths:
        for file in _files(path):
            try:
                text = file.read_text()
            except (OSError, UnicodeDecodeError) as error:
                raise SourceError(f"cannot be read: {error}", file=str(file)) from error
            found.extend(parse(text, str(file)))
    return _unique(found)


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise SourceError("no such file or directory", file=str(path))
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and not file.name.startswith("."))
    if not found:
        raise SourceError("contains no .yaml, .yml or .json file", file=str(path))
    return found


def parse(text: str, file: str) -> list[Manifest]:
    """The objects of one YAML stream (JSON is YAML)."""
    found: list[Manifest] = []
    try:
        parts = yaml_lines.read(text.encode())
    except SourceError as error:
        raise SourceError(error.message, file=file, line=error.line, field=error.field) from error
    for part in parts:
        if isinstance(part, yaml_lines.UnparsableDocument):
            raise SourceError(part.error.message, file=file, line=part.error.line or part.line, field=part.error.field)
        if part.value is not None:
            found.extend(_manifests(part.value, _text_of(text, part.line), file, part.line))
    return found


def _text_of(text: str, line: int) -> str:
    """The text of the document that begins in this line: up to the next line that begins with `---`."""
    lines = text.splitlines(keepends=True)[line - 1 :]
    end = next((index for index, one in enumerate(lines) if index and _DIVIDER.match(one)), len(lines))
    return "".join(lines[:end]).rstrip() + "\n"


def _manifests(document: object, text: str, file: str, line: int) -> Iterator[Manifest]:
    if not isinstance(document, dict):
        raise SourceError("a manifest must be a mapping with kind and metadata", file=file, line=line)
    kind = document.get("kind")
    if kind == "List" or (isinstance(kind, str) and kind.endswith("List") and isinstance(document.get("items"), list)):
        for item in document.get("items") or []:
            yield from _manifests(item, yaml.safe_dump(item, sort_keys=False, allow_unicode=True), file, line)
        return
    yield Manifest(_key(document, file, line), document, text, file, line)


def _key(document: Document, file: str, line: int) -> Key:
    def wrong(field: str, message: str) -> SourceError:
        return SourceError(message, file=file, line=line, field=field)

    kind, version, metadata = document.get("kind"), document.get("apiVersion"), document.get("metadata")
    if not isinstance(kind, str) or not _KIND.match(kind):
        raise wrong("kind", "must be the name of a kind")
    if not isinstance(version, str) or not version:
        raise wrong("apiVersion", "missing")
    if not isinstance(metadata, dict):
        raise wrong("metadata", "must be a mapping")
    name, namespace = metadata.get("name"), metadata.get("namespace") or "default"
    if not isinstance(name, str) or not _NAME.match(name):
        raise wrong("metadata.name", f"{name!r} is not a valid name (lower case letters, digits, '-' and '.')")
    if not isinstance(namespace, str) or not _NAME.match(namespace):
        raise wrong("metadata.namespace", f"{namespace!r} is not a valid name")
    group = version.rpartition("/")[0]
    if not re.fullmatch(r"[a-z0-9.-]*", group):
        raise wrong("apiVersion", f"{version!r} must be GROUP/VERSION")
    return Key(kind, group, "" if kind in objects.CLUSTER_SCOPED else namespace, name)


def _unique(manifests: list[Manifest]) -> list[Manifest]:
    first: dict[Key, Manifest] = {}
    for manifest in manifests:
        if (other := first.setdefault(manifest.key, manifest)) is not manifest:
            raise manifest.error(f"is defined twice, first at {other.file}:{other.line}", "metadata.name")
    return manifests


class Store:
    """The lab's manifest directory, which each node's agent watches."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def load(self) -> dict[Key, Manifest]:
        found = read([self.directory]) if any(self.directory.glob("*.yaml")) else []
        return {manifest.key: manifest for manifest in found}

    def save(self, manifests: Iterable[Manifest]) -> None:
        """Make the directory contain exactly these. Unchanged files are not written; each change is atomic."""
        wanted = {manifest.key.file: manifest.text for manifest in manifests}
        for name, text in wanted.items():
            path = self.directory / name
            if not path.exists() or path.read_text() != text:
                fresh = self.directory / f".{name}.new"
                fresh.write_text(text)
                fresh.replace(path)
        for path in self.directory.glob("*.yaml"):
            if path.name not in wanted:
                path.unlink()
