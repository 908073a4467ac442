"""Parses the items of `rules.http`. An empty string counts as absent; header strings are split as in Cilium.

A policy may use secrets of its own namespace and of the agent's secrets namespace, so that authors of policies cannot
read (or send) the secrets of other namespaces. Only the agent knows its secrets namespace; it calls
`foreign_secrets`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Final, TypeVar

from l7proxy.errors import PolicyError
from l7proxy.policy.headers import CHANGING, WRITING, HeaderRule, Mismatch, SecretName, value_fault, writing_fault
from l7proxy.policy.lang.document import Document
from l7proxy.policy.lang.fields import Field, quoted
from l7proxy.policy.match import pattern
from l7proxy.policy.rules import HeaderMatch, HttpRule, HttpRules, Rule

T = TypeVar("T")
MAX_HEADERS: Final = 100
"""Required headers of one rule."""
MAX_HEADER: Final = 65536
"""Bytes of one required header: no request head is larger."""

_PLAIN_IN_VALUES: Final = frozenset(".-")
"""Metacharacters that are too common in real values to indicate a pattern."""
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""RFC 9110 section 5.6.2: a token, the syntax of header names."""
_SECRET: Final = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_SPACE: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def http_rule(field: Field, document: Document) -> HttpRule:
    found = field.mapping(("method", "path", "host", "headers", "headerMatches"))
    return HttpRule(
        ref=document.counted_ref(field.at),
        method=document.part(partial(_pattern, found.get("method"), document), None),
        path=document.part(partial(_pattern, found.get("path"), document), None),
        host=document.part(partial(_pattern, found.get("host"), document), None),
        headers=_headers(found["headers"], document) if "headers" in found else (),
        header_matches=_header_rules(found["headerMatches"], document) if "headerMatches" in found else (),
    )


def numbered(rules: Iterable[Rule]) -> Iterator[Rule]:
    """Number the HTTP rules of a document from 1, as denials name them, and add the log text of their policy."""
    numbers = count(1)
    for rule in rules:
        if rule.http:
            items = tuple(replace(item, number=next(numbers), log=rule.log) for item in rule.http)
            rule = replace(rule, l7=HttpRules(items))
        yield rule


def _pattern(field: Field | None, document: Document) -> str | None:
    if field is None or not field.text():
        return None
    try:
        document.check_pattern(field.text())
    except pattern.PatternError as error:
        field.fail(str(error))
    return field.text()


def _headers(field: Field, document: Document) -> tuple[HeaderMatch, ...]:
    return tuple(dict.fromkeys(_each(field, partial(_header, document=document))))


def _each(field: Field, read: Callable[[Field], T]) -> list[T]:
    return field.each(read, most=MAX_HEADERS, too_many=f"too many headers, the max is {MAX_HEADERS}")


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
        document.note(field, f"never matches: {quoted(name)} is not a header name; use 'Name: value' with one space")
    if not blank:
        return HeaderMatch(name.lower())
    if value != value.strip(" \t"):
        document.note(field, "never matches: the value has leading or trailing whitespace, which is matched literally")
    return HeaderMatch(name.lower(), value, _value_pattern(value, field, document))


def _value_pattern(value: str, field: Field, document: Document) -> str | None:
    """The value, if it looks like a pattern and RE2 can use it; else None."""
    if not (pattern.METACHARACTERS - _PLAIN_IN_VALUES).intersection(value):
        return None
    try:
        document.check_pattern(value)
    except pattern.PatternError as error:
        document.note(field, f"the value is matched literally only: {error}")
        return None
    document.note(field, "the value is also matched as a whole-string regular expression", code="header-regex")
    return value


# --- headerMatches ---------------------------------------------------------------------------------------------------


def foreign_secrets(rules: Iterable[Rule], secrets_namespace: str) -> PolicyError | None:
    """The fault for the first secret that these rules must not use; None when there is none.

    A cluster-wide policy may use secrets of any namespace, because its author has access to the whole cluster.
    """
    for rule in rules:
        for item in rule.http:
            for place, match in enumerate(item.header_matches):
                fault = _foreign(match.secret, item.ref.namespace, secrets_namespace) if match.secret else ""
                if fault:
                    at = f"{item.ref.rule}.headerMatches[{place}].secret.namespace"
                    return PolicyError(fault, at=at, unsupported=True)
    return None


def _foreign(secret: SecretName, own: str, configured: str) -> str:
    if not secret.namespace and not configured:
        return "a cluster-wide policy must set the secret's namespace: the agent has no secrets_namespace"
    if not own or secret.namespace in ("", own, configured):
        return ""
    others = f" and {configured} (secrets_namespace)" if configured else ""
    return f"policies of namespace {own} cannot use secrets of {secret.namespace}, only those of {own}{others}"


def _header_rules(field: Field, document: Document) -> tuple[HeaderRule, ...]:
    return tuple(_each(field, partial(_header_rule, document=document)))


def _header_rule(field: Field, document: Document) -> HeaderRule:
    found = field.mapping(("name", "value", "secret", "mismatch"))
    name = found["name"].text() if "name" in found else ""
    if not name:
        field.fail("Header name missing")
    if not _TOKEN.fullmatch(name):
        found["name"].fail(f"{quoted(name)} is not a header name")
    mismatch = _mismatch(found["mismatch"]) if "mismatch" in found else Mismatch.FAIL
    secret = _secret(found["secret"], document) if "secret" in found else None
    value = _value(found["value"], document) if "value" in found else None
    if mismatch in CHANGING and (fault := writing_fault(name, value or "")):
        field.fail(fault)
    if value is None and secret is None and mismatch in CHANGING:
        what = "adds an empty header" if mismatch in WRITING else "has no effect"
        document.note(
            field, f"without value or secret only the presence of the header is checked: {mismatch.value} {what}"
        )
    return HeaderRule(name, value, mismatch, secret)


def _mismatch(field: Field) -> Mismatch:
    try:
        return Mismatch(field.text())
    except ValueError:
        field.fail(f"Invalid header action: {quoted(field.text())[1:-1]}")


def _secret(field: Field, document: Document) -> SecretName:
    found = field.mapping(("namespace", "name"))
    name = found["name"].text() if "name" in found else ""
    if not name:
        field.fail("Secret name missing")
    if not _SECRET.fullmatch(name):
        found["name"].fail(f"{quoted(name)} is not a valid Secret name")
    space = found["namespace"].text() if "namespace" in found else ""
    if space and not _SPACE.fullmatch(space):
        found["namespace"].fail(f"{quoted(space)} is not a valid namespace")
    if space and document.namespace not in ("", space):
        document.note(
            found["namespace"],
            f"is not the policy's namespace: refused unless the agent's secrets_namespace is {space}",
        )
    return SecretName(space or document.namespace, name)


def _value(field: Field, document: Document) -> str | None:
    text = field.text()
    if len(text.encode()) > MAX_HEADER:
        field.fail(f"the header has more than {MAX_HEADER} bytes")
    if fault := value_fault(text):
        field.fail(f"the value {fault}")
    if text != text.strip(" \t"):
        document.note(field, "never matches: the value has leading or trailing whitespace, which is matched literally")
    if (pattern.METACHARACTERS - _PLAIN_IN_VALUES).intersection(text):
        document.note(field, "the value is matched literally: headerMatches does not support regular expressions")
    return text or None
