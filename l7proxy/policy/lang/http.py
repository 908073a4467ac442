"""The items of `rules.http`. An empty string is a field not set; header strings are split as Cilium splits them."""

from __future__ import annotations

import re
from typing import Final

from l7proxy.policy.lang.document import Document
from l7proxy.policy.lang.fields import Field, quoted
from l7proxy.policy.match import pattern
from l7proxy.policy.rules import HeaderMatch, HttpRule

MAX_HEADERS: Final = 100
"""Required headers of one rule: a request may not carry more than so many anyway."""
MAX_HEADER: Final = 65536
"""Bytes of one required header: no request head is larger."""

_PLAIN_IN_VALUES: Final = frozenset(".-")
"""Metacharacters too common in real values to make one a pattern."""
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""RFC 9110 section 5.6.2: what a header name may be made of."""


def http_rule(field: Field, document: Document) -> HttpRule:
    found = field.mapping(("method", "path", "host", "headers"), later=("headerMatches",))
    return HttpRule(
        ref=document.ref(field.at),
        method=_pattern(found.get("method"), document),
        path=_pattern(found.get("path"), document),
        host=_pattern(found.get("host"), document),
        headers=_headers(found["headers"], document) if "headers" in found else (),
    )


def _pattern(field: Field | None, document: Document) -> str | None:
    if field is None or not field.text():
        return None
    try:
        document.check_pattern(field.text())
    except pattern.PatternError as error:
        field.fail(str(error))
    return field.text()


def _headers(field: Field, document: Document) -> tuple[HeaderMatch, ...]:
    items = field.items(most=MAX_HEADERS, too_many=f"too many headers, the max is {MAX_HEADERS}")
    return tuple(dict.fromkeys(_header(item, document) for item in items))


def _header(field: Field, document: Document) -> HeaderMatch:
    text = field.text()
    if len(text.encode()) > MAX_HEADER:
        field.fail(f"the header has more than {MAX_HEADER} bytes")
    name, blank, value = text.partition(" ")
    if blank:
        name = name.rstrip(":")
    if not name:
        field.fail("Header name missing")
    if not _TOKEN.fullmatch(name):
        document.note(field, f"never matches: {quoted(name)} is not a header name; write 'Name: value' with one space")
    if not blank:
        return HeaderMatch(name.lower())
    if value != value.strip(" \t"):
        document.note(field, "the value matches literally with its outer blanks, which no request can have")
    return HeaderMatch(name.lower(), value, _value_pattern(value, field, document))


def _value_pattern(value: str, field: Field, document: Document) -> str | None:
    """The value again, if it looks like a pattern and is one."""
    if not (pattern.METACHARACTERS - _PLAIN_IN_VALUES).intersection(value):
        return None
    try:
        document.check_pattern(value)
    except pattern.PatternError as error:
        document.note(field, f"the value matches literally only: {error}")
        return None
    document.note(field, "the value is also tried as a whole-string regular expression")
    return value
