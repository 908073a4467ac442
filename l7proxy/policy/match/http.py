"""The HTTP rules that govern one flow against one request: which rule lets it pass, or which one came nearest.

Rules are told apart by bit masks, bit i for rule i. Method, path and host each give the mask of the rules they satisfy
by one set lookup, so the price of a request does not grow with the number of rules. Headers are looked at last, and
only for the rules that are left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from l7proxy.model.http import Request
from l7proxy.policy.match.pattern import PatternSet
from l7proxy.policy.rules import HeaderMatch, HttpRule

NEAREST_AMONG: Final = 256
"""Rules looked at to explain a denial: the first so many. A denial must not cost more the more rules there are."""


class Clause:
    """One field of all rules: what each rule demands of it, and the mask of those that a value satisfies."""

    __slots__ = ("_free", "_masks", "_set", "used")

    def __init__(self, demands: Sequence[str | None]) -> None:
        masks: dict[str, int] = {}
        self._free = 0
        for index, demand in enumerate(demands):
            if demand is None:
                self._free |= 1 << index
            else:
                masks[demand] = masks.get(demand, 0) | 1 << index
        self._set = PatternSet(masks)
        self._masks = tuple(masks.values())
        self.used = bool(masks)

    @property
    def broken(self) -> list[str]:
        return self._set.broken

    def satisfied(self, value: bytes) -> int:
        mask = self._free
        for index in self._set.find(value):
            mask |= self._masks[index]
        return mask


class HeaderTest:
    """One required header. Repeats are joined by a comma first; bytes that are not UTF-8 match no pattern."""

    __slots__ = ("_name", "_pattern", "_value", "match")

    def __init__(self, match: HeaderMatch) -> None:
        self.match = match
        self._name = match.name.encode("utf-8", "surrogatepass")
        self._value = None if match.value is None else match.value.encode("utf-8", "surrogatepass")
        self._pattern = None if match.pattern is None else PatternSet((match.pattern,))

    def problem(self, request: Request) -> str:
        """ "" when the request satisfies it; else `missing` or `differs`."""
        value = request.joined(self._name)
        if value is None:
            return "missing"
        if self._value is None or value == self._value:
            return ""
        if self._pattern is not None and self._pattern.find(value):
            return ""
        return "differs"


class HttpMatcher:
    """Compiled rules. `first` answers; `nearest` explains. Knows no verdicts."""

    __slots__ = ("_headers", "_host", "_method", "_path", "rules")

    def __init__(self, rules: Sequence[HttpRule]) -> None:
        self.rules = tuple(rules)
        self._method = Clause([rule.method for rule in self.rules])
        self._path = Clause([rule.path for rule in self.rules])
        self._host = Clause([rule.host for rule in self.rules])
        self._headers = tuple(tuple(HeaderTest(match) for match in rule.headers) for rule in self.rules)

    @property
    def by_line_only(self) -> bool:
        """True when method and path alone decide, so that an answer may be remembered by them."""
        return not self._host.used and not any(self._headers)

    @property
    def broken(self) -> list[str]:
        """Patterns that RE2 could not use: their rules match nothing."""
        return [*self._method.broken, *self._path.broken, *self._host.broken]

    def candidates(self, method: bytes, path: bytes) -> int:
        """The mask of the rules whose method and path hold."""
        mask = self._path.satisfied(path)
        return mask and mask & self._method.satisfied(method)

    def first(self, request: Request, candidates: int) -> int | None:
        """The index of the first rule among the candidates whose host and headers hold too."""
        mask = candidates
        if mask and self._host.used:
            mask &= self._host.satisfied(request.host)
        while mask:
            lowest = mask & -mask
            index = lowest.bit_length() - 1
            if not any(test.problem(request) for test in self._headers[index]):
                return index
            mask ^= lowest
        return None

    def nearest(self, request: Request) -> tuple[HttpRule, str]:
        """The rule with most of its clauses satisfied, then with fewest not, and what came of them, in words."""
        method = self._method.satisfied(request.method)
        path = self._path.satisfied(request.path)
        host = self._host.satisfied(request.host)
        best: tuple[int, int] | None = None
        answer: tuple[HttpRule, list[str], list[str]] | None = None
        for index, rule in enumerate(self.rules[:NEAREST_AMONG]):
            good: list[str] = []
            bad: list[str] = []
            for word, demand, mask in (
                ("method", rule.method, method),
                ("path", rule.path, path),
                ("host", rule.host, host),
            ):
                if demand is None:
                    continue
                if mask >> index & 1:
                    good.append(f"{word} {printable(demand)} matched")
                else:
                    bad.append(f"{word} is not {printable(demand)}")
            for test in self._headers[index]:
                name = header_name(test.match.name)
                problem = test.problem(request)
                if problem:
                    bad.append(f"header {name} {problem}")
                else:
                    good.append(f"header {name} matched")
            score = (len(good), -len(bad))
            if best is None or score > best:
                best, answer = score, (rule, good, bad)
        assert answer is not None, "a matcher without rules is never made"
        rule, good, bad = answer
        return rule, ", ".join([*good[:1], *bad])


def printable(text: str, limit: int = 80) -> str:
    """A pattern as it may stand in a log line: short, and without control characters."""
    shown = "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text[:limit])
    return shown + "…" if len(text) > limit else shown


def header_name(name: str) -> str:
    """`x-token` as people write it: `X-Token`."""
    return printable("-".join(part.capitalize() for part in name.split("-")))
