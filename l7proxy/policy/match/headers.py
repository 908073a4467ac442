"""Matches one header against the requirement of a rule.

Repeated headers are joined by a comma first. Bytes that are not UTF-8 match no pattern (RE2 in UTF-8 mode;
CVE-2026-73552 was a pattern that failed open on them). Values that may be secret are compared in constant time.
"""

from __future__ import annotations

from hmac import compare_digest
from typing import Final

from l7proxy.model.http import EditKind, HeaderEdit, Headers, Request, Rewrite, alike
from l7proxy.model.secret import REDACTED
from l7proxy.policy.headers import FRAMING, WRITING, HeaderRule, Mismatch
from l7proxy.policy.match.pattern import PatternSet
from l7proxy.policy.rules import HeaderMatch

_OF_A_CONNECTION: Final = frozenset(name.encode() for name in FRAMING)
NEEDED: Final = WRITING | {Mismatch.FAIL}
"""Actions that ensure that the server receives the header."""
MISSING: Final = "missing"
DIFFERS: Final = "differs"
NOMINATED: Final = "is listed in Connection, so the next proxy would remove it"
UNRESOLVED: Final = "is compared with a secret that does not exist"


def nominated(headers: Headers, name: bytes) -> bool:
    """Whether Connection lists this header (`alike`), so that the next proxy removes it (RFC 9110 7.6.1).

    False for hop-by-hop headers, which Connection must list anyway.
    """
    if name in _OF_A_CONNECTION:
        return False
    for key, value in headers:
        if key == b"connection" and any(alike(one.strip(b" \t")) == name for one in value.lower().split(b",")):
            return True
    return False


class HeaderTest:
    """One required header. `used` is the mask of the rules that require it.

    The server must see it unambiguously: no proxy may remove it, and no header with an `alike` name may be present.
    """

    __slots__ = ("_alike", "_name", "_pattern", "_value", "match", "used")

    def __init__(self, match: HeaderMatch) -> None:
        self.match = match
        self.used = 0
        self._name = match.name.encode("utf-8", "surrogatepass")
        self._alike = alike(self._name)
        self._value = None if match.value is None else match.value.encode("utf-8", "surrogatepass")
        self._pattern = None if match.pattern is None else PatternSet((match.pattern,))

    @property
    def name(self) -> str:
        return self.match.name

    def problem(self, request: Request) -> str:
        """ "" when the request has the header as required; else why not."""
        value = request.joined(self._name)
        if value is None:
            return MISSING
        if nominated(request.headers, self._alike):
            return NOMINATED
        if self._value is None:
            return ""
        if any(name != self._name and alike(name) == self._alike for name, _ in request.headers):
            return DIFFERS
        if value == self._value:
            return ""
        if self._pattern is not None and self._pattern.find(value):
            return ""
        return DIFFERS


class HeaderAction:
    """One item of `headerMatches`. `problem` denies the request; `change` is the rewrite when it is allowed.

    Names that some servers read as this one (`_` for `-`) never match, but count as additional values of the header.
    """

    __slots__ = ("_alike", "_name", "_wanted", "rule", "used")

    def __init__(self, rule: HeaderRule) -> None:
        self.rule = rule
        self.used = 0
        self._name = rule.name.lower().encode()
        self._alike = alike(self._name)
        self._wanted = rule.wanted

    @property
    def name(self) -> str:
        return self.rule.name

    def problem(self, request: Request) -> str:
        """ "" unless the rule does not match because of this item; else why."""
        if self.rule.unresolved:
            return UNRESOLVED
        if self.rule.mismatch is Mismatch.FAIL and (fault := self._mismatch(self._found(request.headers))):
            return fault
        if self.rule.mismatch in NEEDED and nominated(request.headers, self._alike):
            return NOMINATED
        return ""

    def change(self, headers: Headers) -> Rewrite | None:
        """The changes and reports because of a mismatch; None when there is none. Call `problem` first."""
        found = self._found(headers)
        problem = self._mismatch(found)
        if not problem:
            return None
        wrong = tuple((self._name, value) for _, value in found)
        match self.rule.mismatch:
            case Mismatch.DELETE:
                return Rewrite(
                    (self._edit(EditKind.REMOVE),), rejected=wrong
                )  # also when absent: trailers must not add it
            case Mismatch.REPLACE:
                return Rewrite((self._edit(EditKind.SET),), self._lacking(), wrong)
            case Mismatch.ADD:
                return Rewrite((self._edit(EditKind.ADD),), self._lacking())
        return Rewrite(missing=self._lacking())

    def _found(self, headers: Headers) -> Headers:
        """The headers with this name or one `alike` to it."""
        return [header for header in headers if alike(header[0]) == self._alike]

    def _mismatch(self, found: Headers) -> str:
        exact = [value for name, value in found if name == self._name]
        if self._wanted is None:
            return "" if exact else MISSING
        if not found:
            return MISSING
        same = len(exact) == len(found) and compare_digest(b",".join(exact), self._wanted)
        return "" if same else DIFFERS

    def _edit(self, kind: EditKind) -> HeaderEdit:
        value = b"" if kind is EditKind.REMOVE or self._wanted is None else self._wanted
        return HeaderEdit(kind, self.rule.name.encode(), value, secret=self.rule.sealed is not None)

    def _lacking(self) -> tuple[tuple[bytes, bytes], ...]:
        secret = self.rule.sealed is not None
        return ((self._name, REDACTED.encode() if secret else self._wanted or b""),)
