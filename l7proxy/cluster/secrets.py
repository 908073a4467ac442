"""Fills Secret values into the header rules that refer to them. Pure; no message contains a secret value.

Cilium semantics: a Secret must have exactly one entry, and its value replaces the rule's own value. If the Secret does
not exist, the rule's own value is used; without one the item matches no request. A value that is not valid in a header
counts as missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from l7proxy.model.resources import Problem, Secret
from l7proxy.model.secret import Sealed
from l7proxy.policy.headers import HeaderRule, SecretName, value_fault
from l7proxy.policy.rules import HttpRule, HttpRules, Rule

MAX_VALUE: Final = 65536
"""Bytes. No request head is larger."""


@dataclass(slots=True)
class SecretResolver:
    """The current Secrets. `namespace`: default for rules that name none; `problems`: Secrets that cannot be used."""

    secrets: Mapping[SecretName, Secret]
    namespace: str = ""
    problems: list[Problem] = field(default_factory=list)

    def resolve(self, rules: Iterable[Rule]) -> Iterator[Rule]:
        """The same rules, with the secret values that exist filled in."""
        for rule in rules:
            if not any(names_secret(item) for item in rule.http):
                yield rule
            else:
                yield replace(rule, l7=HttpRules(tuple(map(self._item, rule.http))))

    def _item(self, item: HttpRule) -> HttpRule:
        found = (self._match(match, item, place) for place, match in enumerate(item.header_matches))
        return replace(item, header_matches=tuple(found))

    def _match(self, match: HeaderRule, item: HttpRule, place: int) -> HeaderRule:
        if match.secret is None:
            return match
        name = replace(match.secret, namespace=match.secret.namespace or self.namespace)
        value, fault = self._value(name)
        if fault:
            instead = "matches no request" if match.value is None else "uses its own value"
            self.problems.append(
                Problem(
                    item.ref.file,
                    item.ref.line,
                    f"{item.ref.rule}.headerMatches[{place}].secret",
                    f"Secret {name} {fault}: this headerMatches item {instead}",
                )
            )
        return replace(match, sealed=value)

    def _value(self, name: SecretName) -> tuple[Sealed | None, str]:
        secret = self.secrets.get(name)
        if secret is None:
            return None, "does not exist"
        if secret.only is None:
            return None, f"must have exactly one entry, not {secret.entries}"
        fault = _unfit(secret.only.value)
        return (None, fault) if fault else (secret.only, "")


def names_secret(item: HttpRule) -> bool:
    return any(match.secret is not None for match in item.header_matches)


def headers_of(rules: Iterable[Rule]) -> frozenset[str]:
    """The headers (lower case) that a rule compares with a secret. Flows must not show their values."""
    return frozenset(
        match.name.lower()
        for rule in rules
        for item in rule.http
        for match in item.header_matches
        if match.secret is not None
    )


def _unfit(value: bytes) -> str:
    """Why the value is not valid in a header; "" if it is valid."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return "is not UTF-8 text"
    if not text:
        return "is empty"
    if len(value) > MAX_VALUE:
        return f"has more than {MAX_VALUE} bytes"
    if text.endswith(("\n", "\r")) and not value_fault(text.rstrip("\r\n")):
        return "ends with a line break, which is not allowed in a header value (use echo -n)"
    if text != text.strip(" \t"):
        return "begins or ends with whitespace, which is not allowed in a header value"
    return value_fault(text)
