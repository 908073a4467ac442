"""Parses DNS names: checks the items of `toFQDNs`, and reads those of `rules.dns`.

A name matches itself. In a pattern `*` matches letters, digits, `-` and `_` within one label, a leading `**.` whole
labels, and `*` alone every name (Cilium semantics).
"""

from __future__ import annotations

import re
from typing import Final

from l7proxy.policy.lang.fields import Field, quoted
from l7proxy.policy.rules import DnsRule

MAX_NAME: Final = 255
_NAME: Final = re.compile(r"[-a-zA-Z0-9_.]+")
_PATTERN: Final = re.compile(r"[-a-zA-Z0-9_.*]+")


def check_peers(items: list[Field]) -> None:
    """`toFQDNs`: each item is a name or a pattern."""
    for item in items:
        found = _read(item)
        if len(found) > 1:
            item.fail("only one of MatchName or MatchPattern is allowed in an FQDNSelector")


def rule(item: Field) -> DnsRule:
    """An item of `rules.dns`: a name, a pattern, or both, of which one must match."""
    found = _read(item)
    return DnsRule(found.get("matchName", ""), found.get("matchPattern", ""))


def _read(item: Field) -> dict[str, str]:
    found = {name: field for name, field in item.mapping(("matchName", "matchPattern")).items() if field.text()}
    if not found:
        item.fail("one of matchName or matchPattern is required")
    if "matchName" in found:
        _name(found["matchName"])
    if "matchPattern" in found:
        _pattern(found["matchPattern"])
    return {name: field.text() for name, field in found.items()}


def _name(field: Field) -> None:
    if not _NAME.fullmatch(field.text()):
        shown = quoted(field.text())
        field.fail(f"Invalid characters in MatchName: {shown}. Only 0-9, a-z, A-Z and . and - characters are allowed")
    if len(field.text()) > MAX_NAME:
        field.fail(f"Invalid MatchName: {quoted(field.text())}. Must be <= {MAX_NAME} characters long.")


def _pattern(field: Field) -> None:
    shown = quoted(field.text())
    if len(field.text().strip()) > MAX_NAME:
        field.fail(f"Invalid MatchPattern: {shown}. Must be <= {MAX_NAME} characters long.")
    if not _PATTERN.fullmatch(field.text()):
        what = "Only 0-9, a-z, A-Z and ., -, _ and * characters are allowed"
        field.fail(f"Invalid characters in MatchPattern: {shown}. {what}")
