"""Parses `http` of a Calico rule: methods and paths become whole-string patterns over the path that we forward.

Calico matches the decoded path without its query; our normal form keeps necessary escapes. So a character of the
policy matches itself and, if the normal form escapes it, its escape. A prefix ends at the end of a segment:
`/pub` matches `/pub` and `/pub/x`, never `/public`.
"""

from __future__ import annotations

import re
from typing import Final

from l7proxy.policy.lang.document import Document
from l7proxy.policy.lang.fields import Field, quoted
from l7proxy.policy.match import pattern
from l7proxy.policy.rules import HttpRule

MAX_ITEMS: Final = 20
"""Calico's limit, for methods and for paths."""

_METHOD: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""RFC 9110 section 9.1: a token."""
_BAD_IN_PATH: Final = re.compile(r"[\s?#]")
_PLAIN: Final = re.compile(r"[A-Za-z0-9/_~-]")
_QUERY: Final = r"(?:\?.*)?"


def http_rule(field: Field, document: Document) -> HttpRule:
    found = field.mapping(("methods", "paths"))
    methods = _several(found["methods"], "methods") if "methods" in found else []
    paths = _several(found["paths"], "paths") if "paths" in found else []
    return HttpRule(
        ref=document.counted_ref(field.at),
        method=_methods(methods),
        path=_checked("|".join(_path(each, document) for each in paths), field, document) if paths else None,
    )


def _several(field: Field, what: str) -> list[Field]:
    return field.items(most=MAX_ITEMS, too_many=f"too many {what}, the max is {MAX_ITEMS}")


def _methods(fields: list[Field]) -> str | None:
    seen: list[str] = []
    for field in fields:
        method = field.text()
        if method in seen:
            field.fail(f"duplicate method {quoted(method)}")
        if not _METHOD.fullmatch(method):
            field.fail(f"{quoted(method)} is not an HTTP method")
        seen.append(method)
    if not seen or "*" in seen:
        return None
    return "|".join(re.escape(method) for method in seen)


def _path(field: Field, document: Document) -> str:
    found = field.mapping(("exact", "prefix"))
    if len(found) != 1:
        field.fail("must have exactly one of exact and prefix")
    ((kind, where),) = found.items()
    text = where.text()
    if not text.startswith("/"):
        where.fail(f"must start with /: {quoted(text)}")
    if _BAD_IN_PATH.search(text):
        where.fail(f"must not contain ?, # or whitespace: {quoted(text)}")
    if any(part in ("", ".", "..") for part in text.strip("/").split("/")) and text != "/":
        document.note(where, "never matches: paths are normalised (without //, . and ..) before matching")
    if kind == "exact":
        return _spelled(text) + _QUERY
    if text.endswith("/"):
        return _spelled(text) + ".*"
    return _spelled(text) + r"(?:[/?].*)?"


def _spelled(text: str) -> str:
    return "".join(_character(each) for each in text)


def _character(each: str) -> str:
    """A character as a normalised path may contain it: itself if visible ASCII, or the escape of its UTF-8."""
    if _PLAIN.fullmatch(each):
        return each
    escape = "".join(f"%{byte:02X}" for byte in each.encode())
    if each == "%" or not 0x21 <= ord(each) <= 0x7E:
        return escape
    return f"(?:{re.escape(each)}|{escape})"


def _checked(text: str, field: Field, document: Document) -> str:
    try:
        document.check_pattern(text)
    except pattern.PatternError as error:
        field.fail(str(error))
    return text
