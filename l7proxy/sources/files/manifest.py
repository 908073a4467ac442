"""Parses the bytes of one file into resources, faults and notes. Pure: no file is opened here.

A fault never affects other objects in the file (see `decode`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from l7proxy.errors import SourceError
from l7proxy.model.resources import Resource, SourceLocation
from l7proxy.policy import lang
from l7proxy.policy.lang.options import DEFAULT, Options
from l7proxy.sources import objects
from l7proxy.sources.decode import Decoded, Fault, decode, decoded
from l7proxy.sources.files.yaml_lines import Document, UnparsableDocument, read

_TOP_LEVEL = re.compile(r"""^["']?(apiVersion|kind)["']?:\s*["']?([\w./-]+)""", re.MULTILINE)
_METADATA = re.compile(r"""^metadata:(.*\n(?:[ \t]+.*(?:\n|$)|[ \t]*\n)*)""", re.MULTILINE)
_SECRET = re.compile(r"""["']?kind["']?\s*:\s*["']?Secret(?:List)?\b""")
_NAMED = re.compile(r"""(?:^|[\s{,])["']?(name|namespace)["']?:\s*["']?([\w./-]+)""")


def parse(data: bytes, file: str, options: Options = DEFAULT) -> Decoded:
    """Parse one file. Never raises: errors are in `faults`."""
    try:
        parts = read(data, as_json=file.endswith(".json"))
    except SourceError as error:
        return Decoded(faults=(Fault(_placed(error, file, 1)),))
    found: list[Resource | Fault | SourceError] = []
    for part in parts:
        if isinstance(part, UnparsableDocument):
            found.append(_unparsable(part, file))
            continue
        for line, value in _objects(part):
            found.append(decode(value, SourceLocation(file, line), partial(part.lines, value), options=options))
    return decoded(found)


def _objects(document: Document) -> Iterator[tuple[int, Any]]:
    """(line, value) of each object of a document: itself, or the items of a `kind: List` (and PodList and the like)."""
    value = document.value
    if value is None:
        return
    kind = value.get("kind") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind.endswith("List") and isinstance(value.get("items"), list):
        for index, item in enumerate(value["items"]):
            yield document.line_of(value["items"], index), item
    else:
        yield document.line, value


def _unparsable(part: UnparsableDocument, file: str) -> Fault:
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
