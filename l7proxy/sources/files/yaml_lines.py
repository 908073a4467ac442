"""Parses YAML and JSON into plain values with line numbers. Text that two parsers could read differently is refused.

Uses libyaml's events with a composer of its own, because PyYAML's C composer recurses without a limit. Only the value
types of JSON exist: a timestamp is text, a key is text, any other tag is an error. Duplicate keys are errors. Limits:
bytes, documents, depth, and number of values *after* alias expansion, so a "billion laughs" file is refused by
counting, before the values are walked.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from l7proxy.errors import SourceError

MAX_BYTES: Final = 8 << 20
MAX_DOCUMENTS: Final = 10_000
MAX_VALUES: Final = 1_000_000
MAX_DEPTH: Final = 100
TOO_DEEP: Final = f"nested deeper than {MAX_DEPTH} levels"
"""libyaml has a depth limit of its own since 0.2.6, with another message. It reads ahead, so it may fail first."""

_TAG = "tag:yaml.org,2002:"
_FALSE = frozenset(("false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"))
_DIVIDER = re.compile(r"^---(?=\s|$)", re.MULTILINE)


@dataclass(slots=True)
class Document:
    """One document: its value, its first line, and the line of every field, computed on demand."""

    value: Any
    line: int
    marks: dict[int, dict[Any, int]] = field(default_factory=dict)

    def lines(self, value: Any = None, prefix: str = "") -> dict[str, int]:
        """Field path → line, for all fields inside `value` (default: the whole document)."""
        found: dict[str, int] = {}
        self._collect(self.value if value is None else value, prefix, found)
        return found

    def line_of(self, inside: Any, key: Any) -> int:
        """The line of one child of a mapping or list of this document."""
        return self.marks.get(id(inside), {}).get(key, self.line)

    def _collect(self, value: Any, path: str, found: dict[str, int]) -> None:
        marks = self.marks.get(id(value), {})
        if isinstance(value, dict):
            for key, item in value.items():
                below = f"{path}.{key}" if path else key
                found[below] = marks.get(key, self.line)
                self._collect(item, below, found)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                below = f"{path}[{index}]"
                found[below] = marks.get(index, self.line)
                self._collect(item, below, found)


@dataclass(frozen=True, slots=True)
class UnparsableDocument:
    """A part of a file between two `---` that is not valid YAML: its text and the error."""

    text: str
    line: int
    error: SourceError


def read(data: bytes, *, as_json: bool = False) -> list[Document | UnparsableDocument]:
    """All documents of a file, including unparsable ones. SourceError when the file as a whole cannot be read."""
    if len(data) > MAX_BYTES:
        raise SourceError(f"the file has {len(data)} bytes, the limit is {MAX_BYTES}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SourceError("the file is not UTF-8 text", line=line) from error
    try:
        return list(_read_json(text) if as_json else _read_yaml(text))
    except SourceError as error:
        return [UnparsableDocument(text, 1, error)] if as_json else _read_parts(text)


def read_filled(data: bytes) -> list[Document | UnparsableDocument]:
    """The same without empty documents, of YAML."""
    return [part for part in read(data) if not (isinstance(part, Document) and part.value is None)]


def _read_parts(text: str) -> list[Document | UnparsableDocument]:
    """Parse documents one by one, split at lines that begin with `---`, so that a broken one does not hide others."""
    parts: list[Document | UnparsableDocument] = []
    starts = [0, *(match.start() for match in _DIVIDER.finditer(text))]
    if len(starts) > MAX_DOCUMENTS:
        raise SourceError(f"more than {MAX_DOCUMENTS} documents")
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        first = text.count("\n", 0, start)
        try:
            parts.extend(_read_yaml(text[start:end], first))
        except SourceError as error:
            parts.append(UnparsableDocument(text[start:end], first + 1, error))
    return parts


def _read_yaml(text: str, offset: int = 0) -> Iterator[Document]:
    try:
        yield from _Composer(text, offset).documents()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 + offset if error.problem_mark else None
        said = str(error.problem or error.context)
        raise SourceError(TOO_DEEP if "nesting depth" in said else f"not valid YAML: {said}", line=line) from error
    except yaml.YAMLError as error:
        raise SourceError(f"not valid YAML: {str(error).splitlines()[0]}") from error


def _read_json(text: str) -> Iterator[Document]:
    """JSON has its own parser; line numbers come from the YAML parser, since nearly every JSON text is valid YAML."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(items)
        if len(value) < len(items):
            twice = Counter(key for key, _ in items).most_common(1)[0][0]
            raise SourceError(f"duplicate key {twice!r}", field=twice)
        return value

    def number(text: str) -> float:
        raise SourceError(f"{text} is not a valid JSON number")

    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_constant=number)
    except json.JSONDecodeError as error:
        raise SourceError(f"not valid JSON: {error.msg}", line=error.lineno) from error
    except (RecursionError, ValueError) as error:
        raise SourceError(f"not valid JSON: {error}") from error
    try:
        (document,) = _read_yaml(text)
    except (SourceError, ValueError):
        document = Document(value, 1)
    yield document if document.value == value else Document(value, 1)


class _Composer:
    """Builds values from libyaml's events. One instance per stream."""

    def __init__(self, text: str, offset: int) -> None:
        self._loader: Any = yaml.CSafeLoader(text)
        self._offset = offset
        self._marks: dict[int, dict[Any, int]] = {}
        self._anchors: dict[str, tuple[Any, int] | None] = {}
        self._values = 0

    def documents(self) -> Iterator[Document]:
        count = 0
        while not isinstance(event := self._next(), yaml.StreamEndEvent):
            if not isinstance(event, yaml.DocumentStartEvent):
                continue
            count += 1
            if count > MAX_DOCUMENTS:
                raise SourceError(f"more than {MAX_DOCUMENTS} documents", line=self._line(event))
            self._marks, self._anchors, self._values = {}, {}, 0
            first = self._next()
            yield Document(self._value(first, 0), self._line(first), self._marks)

    def _next(self) -> Any:
        return self._loader.get_event()

    def _line(self, event: Any) -> int:
        return int(event.start_mark.line) + 1 + self._offset

    def _value(self, event: Any, depth: int) -> Any:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        before = self._values
        self._count(1, event)
        if depth > MAX_DEPTH:
            raise SourceError(TOO_DEEP, line=self._line(event))
        if event.anchor:
            self._anchors[event.anchor] = None
        if isinstance(event, yaml.MappingStartEvent):
            value: Any = self._mapping(event, depth)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = self._sequence(event, depth)
        else:
            value = self._scalar(event)
        if event.anchor:
            self._anchors[event.anchor] = value, self._values - before
        return value

    def _count(self, values: int, event: Any) -> None:
        self._values += values
        if self._values > MAX_VALUES:
            raise SourceError(f"more than {MAX_VALUES} values after aliases are expanded", line=self._line(event))

    def _alias(self, event: Any) -> Any:
        if event.anchor not in self._anchors:
            raise SourceError(f"alias *{event.anchor} refers to an anchor that is not defined", line=self._line(event))
        found = self._anchors[event.anchor]
        if found is None:
            raise SourceError(f"alias *{event.anchor} refers to a node that contains it", line=self._line(event))
        value, size = found
        self._count(size, event)
        return value

    def _sequence(self, start: Any, depth: int) -> list[Any]:
        self._refuse_tag(start, "seq")
        items: list[Any] = []
        marks: dict[Any, int] = {}
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            marks[len(items)] = self._line(event)
            items.append(self._value(event, depth + 1))
        self._marks[id(items)] = marks
        return items

    def _mapping(self, start: Any, depth: int) -> dict[str, Any]:
        self._refuse_tag(start, "map")
        items: dict[str, Any] = {}
        marks: dict[Any, int] = {}
        merged: list[tuple[Any, int]] = []
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            line = self._line(event)
            key, merges = self._key(event)
            value = self._value(self._next(), depth + 1)
            if merges:
                merged.append((value, line))
                continue
            if key in items:
                raise SourceError(f"duplicate key {key!r} (first defined in line {marks[key]})", line=line, field=key)
            items[key] = value
            marks[key] = line
        for value, line in merged:
            self._merge(items, marks, value, line)
        self._marks[id(items)] = marks
        return items

    def _merge(self, items: dict[str, Any], marks: dict[Any, int], value: Any, line: int) -> None:
        """YAML's merge key `<<`: the mapping's own keys take precedence, then the earlier of several sources."""
        for source in value if isinstance(value, list) else [value]:
            if not isinstance(source, dict):
                raise SourceError("merge key << must be a mapping or a list of mappings", line=line, field="<<")
            for key, item in source.items():
                if key not in items:
                    items[key] = item
                    marks[key] = line

    def _key(self, event: Any) -> tuple[str, bool]:
        """(key, whether it is the merge key). A number becomes its text; `on`, `~` and `[a]` are not valid keys."""
        if isinstance(event, yaml.AliasEvent):
            key = self._alias(event)
        elif isinstance(event, yaml.ScalarEvent):
            if event.value == "<<" and event.implicit[0]:
                return "<<", True
            key = self._scalar(event)
            if event.anchor:
                self._anchors[event.anchor] = key, 1
        else:
            raise SourceError("a mapping or a list cannot be a key", line=self._line(event))
        if isinstance(key, int) and not isinstance(key, bool) and str(key) == event.value:
            key = event.value
        if not isinstance(key, str):
            raise SourceError(
                f"the key {getattr(event, 'value', key)} is not a string: put it in quotes", line=self._line(event)
            )
        return key, False

    def _scalar(self, event: Any) -> Any:
        tag = event.tag
        if tag is None or tag == "!":
            tag = self._loader.resolve(yaml.ScalarNode, event.value, event.implicit)
        text: str = event.value
        try:
            match tag.removeprefix(_TAG):
                case "str" | "timestamp":
                    return text
                case "null":
                    return None
                case "bool":
                    return text not in _FALSE
                case "int" if ":" in text:  # base 60 exists only in YAML 1.1: Kubernetes reads it as text
                    return text
                case "int":
                    return _integer(text)
                case "float" if ":" in text:
                    return text
                case "float":
                    return float(text.replace("_", ""))
        except ValueError as error:
            raise SourceError(f"{text[:40]!r} cannot be read as a number", line=self._line(event)) from error
        raise SourceError(f"the tag {event.tag or tag} is not JSON's", line=self._line(event))

    def _refuse_tag(self, event: Any, kind: str) -> None:
        if event.tag not in (None, "!", _TAG + kind):
            raise SourceError(f"the tag {event.tag} is not JSON's", line=self._line(event))


def _integer(text: str) -> int:
    digits = text.replace("_", "")
    sign = digits[:1] if digits[:1] in "+-" else ""
    body = digits.removeprefix(sign) if sign else digits
    if body.startswith("0") and body.isdigit() and len(body) > 1:
        return int(f"{sign}0o{body}", 8)  # YAML 1.1 octal
    return int(digits, 0)
