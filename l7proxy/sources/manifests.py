"""Parses the bytes of one file into resources, faults and notes. Pure: no file is opened here.

A fault never affects other objects in the file. `key` names the object it belongs to; if that is unknown the fault is
`blind`. A faulty policy leaves a placeholder (`stand_in`), which the cluster state turns into rules that refuse.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from l7proxy.errors import PolicyError, SourceError
from l7proxy.model.resources import CidrGroup, PolicyDocument, Resource, ResourceKey, SourceLocation
from l7proxy.policy import lang
from l7proxy.policy.lang.options import LENIENT
from l7proxy.sources import objects
from l7proxy.sources.yaml_lines import Document, UnparsableDocument, read

_TOP_LEVEL = re.compile(r"""^["']?(apiVersion|kind)["']?:\s*["']?([\w./-]+)""", re.MULTILINE)
_METADATA = re.compile(r"""^metadata:(.*\n(?:[ \t]+.*(?:\n|$)|[ \t]*\n)*)""", re.MULTILINE)
_SECRET = re.compile(r"""["']?kind["']?\s*:\s*["']?Secret(?:List)?\b""")
_NAMED = re.compile(r"""(?:^|[\s{,])["']?(name|namespace)["']?:\s*["']?([\w./-]+)""")


NOT_READ: Final = " is not used by l7proxy: ignored"
"""End of the note about a kind that l7proxy does not use."""


@dataclass(frozen=True, slots=True)
class Fault:
    """An error, the object it belongs to (if known), and a placeholder for an object without a valid version."""

    error: SourceError
    key: ResourceKey | None = None
    stand_in: PolicyDocument | CidrGroup | None = None

    @property
    def blind(self) -> bool:
        return self.key is None


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of one file. `notes`: remarks that are not errors, e.g. about a kind that is not used."""

    resources: tuple[Resource, ...] = ()
    faults: tuple[Fault, ...] = ()
    notes: tuple[SourceError, ...] = ()


def parse(data: bytes, file: str) -> Manifest:
    """Parse one file. Never raises: errors are in `faults`."""
    resources: list[Resource] = []
    faults: list[Fault] = []
    notes: list[SourceError] = []
    try:
        parts = read(data, as_json=file.endswith(".json"))
    except SourceError as error:
        return Manifest(faults=(Fault(_placed(error, file, 1)),))
    for part in parts:
        if isinstance(part, UnparsableDocument):
            faults.append(_torn(part, file))
            continue
        for document, line, value in _objects(part):
            match _one(document, SourceLocation(file, line), value):
                case Fault() as fault:
                    faults.append(fault)
                case SourceError() as note:
                    notes.append(note)
                case resource:
                    resources.append(resource)
    return Manifest(tuple(resources), tuple(faults), tuple(notes))


def _objects(document: Document) -> Iterator[tuple[Document, int, Any]]:
    """The objects of one document: itself, or the items of a `kind: List` (and PodList and the like)."""
    value = document.value
    if value is None:
        return
    kind = value.get("kind") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind.endswith("List") and isinstance(value.get("items"), list):
        for index, item in enumerate(value["items"]):
            yield document, document.line_of(value["items"], index), item
    else:
        yield document, document.line, value


def _one(document: Document, origin: SourceLocation, value: Any) -> Resource | Fault | SourceError:
    if not isinstance(value, dict):
        return Fault(
            SourceError("a manifest must be a mapping with kind and metadata", file=origin.file, line=origin.line)
        )
    lines = partial(document.lines, value)
    try:
        resource = objects.read(value, origin, lines)
    except SourceError as error:
        policy = objects.placeholder(value, origin, lines(), error) if lang.is_policy(value) else None
        return Fault(error, objects.key_of(value), policy or objects.unread(value, origin))
    if resource is None:
        kind, meant = f"{value.get('apiVersion')} {value.get('kind')}", lang.meant(value)
        if meant:
            what, line = f"{kind} does not exist; did you mean {meant}?", lines().get("kind", origin.line)
            version, _, name = meant.partition(" ")
            slip = SourceError(what, file=origin.file, line=line, field="kind")
            return Fault(slip, objects.key_of({**value, "apiVersion": version, "kind": name}))
        return SourceError(kind + NOT_READ, file=origin.file, line=origin.line, field="kind")
    if isinstance(resource, PolicyDocument):
        return _policy(resource)
    return resource


def _policy(resource: PolicyDocument) -> Resource | Fault:
    """An invalid policy is a fault of the file, since an API server would reject it.

    A policy that is valid but not supported is not a fault: it is kept, and what it selects is refused.
    """
    try:
        lang.parse(resource.document, locate=resource.locate, options=LENIENT)
    except PolicyError as error:
        if not error.unsupported:
            file, line = resource.locate(error.at)
            return Fault(SourceError(error.message, file=file, line=line, field=error.at), resource.key, resource)
    return resource


def _torn(part: UnparsableDocument, file: str) -> Fault:
    """The fault of text that is not valid YAML. If its top-level keys show a policy, the whole namespace is refused.

    Parser messages may quote the text, so they are withheld if it contains a Secret.
    """
    error = _placed(part.error, file, part.line)
    if _SECRET.search(part.text):
        error = SourceError(
            "not valid YAML (details are withheld: the document holds a Secret)", file=file, line=error.line
        )
    top = dict(_TOP_LEVEL.findall(part.text))
    block = _METADATA.search(part.text)
    metadata = dict(reversed(_NAMED.findall(block.group(1)))) if block else {}
    document: Mapping[str, Any] = {**top, "metadata": metadata}
    if not lang.is_policy(document):
        return Fault(error)
    return Fault(error, None, objects.placeholder(document, SourceLocation(file, part.line), {}, error))


def _placed(error: SourceError, file: str, line: int) -> SourceError:
    return SourceError(error.message, file=file, line=error.line or line, field=error.field)
