"""Matches one request against the HTTP rules of a flow: which rule allows it, or which one came nearest.

Sets of rules are bit masks, bit i for rule i. Method, path and host each give the mask of the rules they satisfy by one
set lookup, so the cost of a request does not grow with the number of rules. Headers are matched last, and only for the
remaining rules. If a rule may change headers, all matching rules are applied (`all_of`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from l7proxy.model.cache import remember
from l7proxy.model.http import Request, Rewrite, edited
from l7proxy.policy.match.headers import HeaderAction, HeaderTest
from l7proxy.policy.match.pattern import PatternSet
from l7proxy.policy.rules import HttpRule

_PARAMETERS: Final = re.compile(rb"(?:;|%3B)[^/]*")
_PARAMETRIC: Final = re.compile(r";|%3[Bb]")
EXPLAINED_HEADERS: Final = 64
"""At most this many required headers are examined to explain a denial, whose cost must not grow with the rules."""
EXPLANATIONS: Final = 1024
"""Cached explanations, by the rule and its results."""


class Clause:
    """One field of all rules: the pattern of each rule, and the mask of the rules that a value satisfies.

    `used` is the mask of the rules that have a pattern.
    """

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
        self.used = (1 << len(demands)) - 1 & ~self._free

    @property
    def broken(self) -> list[str]:
        return self._set.broken

    def satisfied(self, value: bytes) -> int:
        mask = self._free
        for index in self._set.find(value):
            mask |= self._masks[index]
        return mask


def without_parameters(path: bytes) -> bytes:
    """The path without matrix parameters (`;x=y` in a segment), as some servers see it."""
    plain, mark, query = path.partition(b"?")
    cut = _PARAMETERS.sub(b"", plain)
    return path if cut == plain else re.sub(b"//+", b"/", cut) + mark + query


class HttpMatcher:
    """Compiled rules. `first` finds the match, or `all_of` if a rule `acts`; `nearest` explains. Gives no verdicts."""

    __slots__ = (
        "_actions",
        "_all",
        "_headers",
        "_host",
        "_method",
        "_parametric",
        "_path",
        "_tests",
        "_words",
        "acts",
        "rules",
    )

    def __init__(self, rules: Sequence[HttpRule]) -> None:
        self.rules = tuple(rules)
        self._method = Clause([rule.method for rule in self.rules])
        self._path = Clause([rule.path for rule in self.rules])
        self._host = Clause([rule.host for rule in self.rules])
        self._parametric = sum(
            1 << index for index, rule in enumerate(self.rules) if _PARAMETRIC.search(rule.path or "")
        )
        tests = {match: HeaderTest(match) for rule in self.rules for match in rule.headers}
        actions = {match: HeaderAction(match) for rule in self.rules for match in rule.header_matches}
        self._actions = tuple(tuple(actions[match] for match in rule.header_matches) for rule in self.rules)
        self._headers: tuple[tuple[HeaderTest | HeaderAction, ...], ...] = tuple(
            (*(tests[match] for match in rule.headers), *acting)
            for rule, acting in zip(self.rules, self._actions, strict=True)
        )
        for index, required in enumerate(self._headers):
            for test in required:
                test.used |= 1 << index
        every: list[HeaderTest | HeaderAction] = [*tests.values(), *actions.values()]
        self._tests = every[:EXPLAINED_HEADERS]
        self._words: dict[tuple[object, ...], str] = {}
        self._all = (1 << len(self.rules)) - 1
        self.acts = bool(actions)

    @property
    def by_line_only(self) -> bool:
        """True when method and path alone decide, so that results may be cached by them."""
        return not self._host.used and not any(self._headers)

    @property
    def broken(self) -> list[str]:
        """Patterns that RE2 cannot use: their rules match nothing."""
        return [*self._method.broken, *self._path.broken, *self._host.broken]

    def candidates(self, method: bytes, path: bytes) -> int:
        """The mask of the rules whose method and path match."""
        mask = self._satisfied_by_path(path)
        return mask and mask & self._method.satisfied(method)

    def _satisfied_by_path(self, path: bytes) -> int:
        """With matrix parameters a server may see one of two paths, and we do not know which: a rule must match both,
        unless its own pattern contains parameters."""
        mask = self._path.satisfied(path)
        if path.find(b";") < 0 and path.find(b"%3") < 0:
            return mask
        cut = without_parameters(path)
        return mask if cut == path else mask & (self._path.satisfied(cut) | self._parametric)

    def first(self, request: Request, candidates: int) -> int | None:
        """The index of the first candidate whose host and headers match too."""
        return next(self._matching(request, candidates), None)

    def settled(self, candidates: int) -> int | None:
        """The result of `first` for any request with these candidates; None when it depends on host or headers."""
        index = (candidates & -candidates).bit_length() - 1
        return None if index < 0 or self._host.used or self.acts or self._headers[index] else index

    def all_of(self, request: Request, candidates: int) -> tuple[int | None, Rewrite | None]:
        """The first rule that matches, and the changes of all that match. Each rule sees the request as earlier rules
        changed it. A rule that fails because of a header changes nothing."""
        seen = request.having(request.headers)
        first: int | None = None
        done: Rewrite | None = None
        for index in self._matching(seen, candidates):
            first = index if first is None else first
            for action in self._actions[index]:
                change = action.change(seen.headers)
                made = done is not None and change is not None and change.edits and change.edits[0] in done.edits
                if change is None or (made and not change.rejected):
                    continue  # no change, or another rule made it and no wrong value was added since
                seen.headers = edited(seen.headers, change.edits)
                done = change if done is None else done.then(change)
        return first, done

    def _matching(self, request: Request, candidates: int) -> Iterator[int]:
        mask = candidates
        if mask and self._host.used:
            mask &= self._host.satisfied(request.host)
        while mask:
            lowest = mask & -mask
            index = lowest.bit_length() - 1
            if not any(test.problem(request) for test in self._headers[index]):
                yield index
            mask ^= lowest

    def nearest(self, request: Request) -> tuple[HttpRule, str]:
        """The rule with the most clauses satisfied, then with the fewest failed, and the results as text."""
        good: list[int] = []
        bad: list[int] = []
        for clause, satisfied in (
            (self._method, self._method.satisfied(request.method)),
            (self._path, self._satisfied_by_path(request.path)),
            (self._host, self._host.satisfied(request.host)),
        ):
            good.append(clause.used & satisfied)
            bad.append(clause.used & ~satisfied)
        for test in self._tests:
            (bad if test.problem(request) else good).append(test.used)
        mask = _fewest(_most(self._all, good), bad)
        index = (mask & -mask).bit_length() - 1
        return self.rules[index], self._explained(index, request, [bool(each >> index & 1) for each in good[:3]])

    def _explained(self, index: int, request: Request, line: list[bool]) -> str:
        """The first clause that matched, if any, and all that did not. Quotes only the rule: query strings and header
        values of requests must not be logged."""
        problems = [test.problem(request) for test in self._headers[index]]
        key = (index, *line, *problems)
        words = self._words.get(key)
        if words is None:
            words = remember(self._words, key, self._put(index, line, problems), EXPLANATIONS)
        return words

    def _put(self, index: int, line: list[bool], problems: list[str]) -> str:
        rule = self.rules[index]
        held: list[str] = []
        failed: list[str] = []
        for word, demand, satisfied in zip(
            ("method", "path", "host"), (rule.method, rule.path, rule.host), line, strict=True
        ):
            if demand is not None and satisfied:
                held.append(f"{word} {printable(demand)} matched")
            elif demand is not None:
                failed.append(f"{word} does not match {printable(demand)}")
        for test, problem in zip(self._headers[index], problems, strict=True):
            (failed if problem else held).append(f"header {header_name(test.name)} {problem or 'matched'}")
        return ", ".join([*held[:1], *failed])


def _most(among: int, masks: Iterable[int]) -> int:
    """The rules of `among` that are in the most masks."""
    for plane in _counted(masks):
        among = among & plane or among
    return among


def _fewest(among: int, masks: Iterable[int]) -> int:
    for plane in _counted(masks):
        among = among & ~plane or among
    return among


def _counted(masks: Iterable[int]) -> list[int]:
    """How many masks contain each rule, in binary: mask k has digit k of every rule's count; highest digit first.

    All rules are counted at once, so a denial costs about the same with thousands of rules as with one.
    """
    planes: list[int] = []
    for mask in masks:
        carry = mask
        for digit, plane in enumerate(planes):
            planes[digit], carry = plane ^ carry, plane & carry
        if carry:
            planes.append(carry)
    return planes[::-1]


def printable(text: str, limit: int = 80) -> str:
    """A pattern in a form for logs: short, and without control characters."""
    shown = "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text[:limit])
    return shown + "…" if len(text) > limit else shown


def header_name(name: str) -> str:
    """`x-token` in the usual spelling: `X-Token`."""
    return printable("-".join(part.capitalize() for part in name.split("-")))
