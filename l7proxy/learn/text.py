"""Writes YAML with comments. No text can leave its place: strings are quoted, comments are one line of printable text.

Only what policies contain: mappings, lists, strings, numbers, booleans and None.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from l7proxy.policy.match.http import printable

LONGEST: Final = 300
"""Characters of a comment."""
_BARE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
_VISIBLE: Final = re.compile(r"[ -&(-~]+")
"""Printable ASCII without the single quote."""
_WORDS: Final = frozenset(("true", "false", "yes", "no", "on", "off", "y", "n", "null", "nan", "inf", "infinity"))
"""What YAML 1.1 reads as something else than a string, in any case."""


@dataclass(frozen=True, slots=True)
class Commented:
    """An item of a list, with comments in the lines above it."""

    value: Any
    comments: tuple[str, ...] = ()


def bare(value: Any) -> Any:
    """The value without comments."""
    if isinstance(value, Commented):
        return bare(value.value)
    if isinstance(value, Mapping):
        return {key: bare(each) for key, each in value.items()}
    return [bare(each) for each in value] if isinstance(value, list) else value


def document(value: Mapping[str, Any], comments: Sequence[str] = ()) -> str:
    """One YAML document, comments first."""
    return "\n".join([*(comment(text) for text in comments), *_mapping(value)]) + "\n"


def comment(text: str) -> str:
    return f"# {printable(text, LONGEST)}".rstrip()


def scalar(value: Any) -> str:
    """A string with a backslash is in single quotes, where it stands for itself; others are quoted as in JSON, which
    YAML reads alike. A surrogate, which is no character, is replaced."""
    if not isinstance(value, str):
        return json.dumps(value)
    if _BARE.fullmatch(value) and value.lower() not in _WORDS:
        return value
    if "\\" in value and _VISIBLE.fullmatch(value):
        return f"'{value}'"
    text = value.encode("utf-8", "replace").decode()
    return "".join(_quoted(char) for char in json.dumps(text, ensure_ascii=False))


def _quoted(char: str) -> str:
    """YAML's escapes for what may not stand in its text."""
    if char == " " or (char.isprintable() and ord(char) < 0xFFFE):
        return char
    return f"\\U{ord(char):08x}"


def _mapping(value: Mapping[str, Any]) -> Iterator[str]:
    for key, each in value.items():
        yield from _under(f"{scalar(key)}:", each)


def _under(key: str, value: Any) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        yield key
        yield from (f"  {line}" for line in _mapping(value))
    elif isinstance(value, list) and value:
        yield key
        yield from _list(value)
    else:
        yield f"{key} {_empty(value)}"


def _list(value: list[Any]) -> Iterator[str]:
    for each in value:
        item, comments = (each.value, each.comments) if isinstance(each, Commented) else (each, ())
        yield from (comment(text) for text in comments)
        if isinstance(item, Mapping) and item:
            lines = list(_mapping(item))
            yield f"- {lines[0]}"
            yield from (f"  {line}" for line in lines[1:])
        else:
            yield f"- {_empty(item)}"


def _empty(value: Any) -> str:
    """A value in one line: a scalar, or what has no items. A list in a list does not occur in policies."""
    if isinstance(value, Mapping | list):
        return json.dumps(value)
    return scalar(value)
