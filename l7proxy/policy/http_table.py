"""The HTTP rules that govern one flow, compiled: does one of them let this request pass, or which came nearest.

Answers are remembered by method and path where these alone decide; that changes no answer.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import Final

from l7proxy.model.http import Request
from l7proxy.model.verdict import DropReason, Verdict
from l7proxy.policy.decision import Decision, policy_name
from l7proxy.policy.match.http import HttpMatcher
from l7proxy.policy.rules import HttpRule

REMEMBERED: Final = 1024
"""Answers one table keeps by (method, path). Beyond that it forgets all of them and starts again."""
REMEMBERED_PATH: Final = 512
"""Bytes. Longer paths are judged anew each time, so that a client cannot make a table hold much."""
TABLES: Final = 1024
"""Compiled tables that one generation of `HttpTables` may hold."""
KEPT: Final = 4096
"""Rules whose tables outlive changes of policy, so that one which comes back finds them."""
KEPT_TABLES: Final = 64
"""And no more tables than this: each remembers up to REMEMBERED answers."""


class HttpTable:
    """The HTTP rules that govern one flow. At least one must match a request, or it is refused.

    Compiled when it is first asked, or by `make_ready`: who only wants to know of connections need not pay for it.
    """

    __slots__ = ("_allowed", "_compiled", "_final", "_refusals", "_seen", "rules")

    def __init__(self, rules: tuple[HttpRule, ...]) -> None:
        self.rules = rules
        self._compiled: HttpMatcher | None = None
        self._allowed: tuple[Decision, ...] = ()
        self._final = False
        self._seen: dict[tuple[bytes, bytes], Decision | int] = {}
        self._refusals: dict[tuple[int, str], Decision] = {}

    @property
    def ready(self) -> bool:
        """Compiled already."""
        return self._compiled is not None

    def make_ready(self) -> HttpMatcher:
        """Compile. Thousands of rules take a quarter of a second, most of it without Python's global lock."""
        if self._compiled is None:
            matcher = HttpMatcher(self.rules)
            self._allowed = tuple(
                Decision(Verdict.FORWARDED, rule.ref, log=(rule.log,) if rule.log else ()) for rule in self.rules
            )
            self._final = matcher.by_line_only
            self._compiled = matcher  # last: another thread may be asking
        return self._compiled

    @property
    def problems(self) -> tuple[str, ...]:
        """Patterns that could not be used; the rules that hold them match nothing."""
        return tuple(self.make_ready().broken)

    def judge(self, request: Request) -> Decision:
        key = (request.method, request.path)
        seen = self._seen.get(key)
        if seen is None:
            seen = self._look(request)
            if len(request.path) <= REMEMBERED_PATH:
                if len(self._seen) >= REMEMBERED:
                    self._seen.clear()
                self._seen[key] = seen
        return seen if isinstance(seen, Decision) else self._rest(request, seen)

    def _look(self, request: Request) -> Decision | int:
        """All that method and path tell: the decision when it hangs on nothing else, else the rules left."""
        matcher = self.make_ready()
        candidates = matcher.candidates(request.method, request.path)
        settled = matcher.settled(candidates)
        if settled is not None:
            return self._allowed[settled]
        return self._rest(request, candidates) if self._final else candidates

    def _rest(self, request: Request, candidates: int) -> Decision:
        matcher = self.make_ready()
        if matcher.acts:
            return self._changing(matcher, request, candidates)
        index = matcher.first(request, candidates)
        return self._refused(request) if index is None else self._allowed[index]

    def _changing(self, matcher: HttpMatcher, request: Request, candidates: int) -> Decision:
        index, rewrite = matcher.all_of(request, candidates)
        if index is None:
            return self._refused(request)
        return self._allowed[index] if rewrite is None else replace(self._allowed[index], rewrite=rewrite)

    def _refused(self, request: Request) -> Decision:
        rule, came_of_it = self.make_ready().nearest(request)
        key = (id(rule), came_of_it)
        decision = self._refusals.get(key)
        if decision is None:
            if len(self._refusals) >= REMEMBERED:
                self._refusals.clear()
            reason = f"no rule matched; nearest: {policy_name(rule.ref)} rule {rule.number}, {came_of_it}"
            decision = self._refusals[key] = Decision(Verdict.DROPPED, rule.ref, reason, DropReason.POLICY_DENIED)
        return decision


Rules = tuple[HttpRule, ...]


class HttpTables:
    """Tables by the rules that they are made of: flows of many identities under the same rules share one.

    Two generations are kept, and a new one begins when policy changes while KEPT rules, or KEPT_TABLES, are held: what
    none of the two asked for is forgotten. To compile thousands of rules takes a quarter of a second, and to compare
    them milliseconds; so rules that are the very same values as before are known by their ids. Any thread may ask: at
    worst a table is made twice.
    """

    def __init__(self) -> None:
        self._young: dict[Rules, HttpTable] = {}
        self._old: dict[Rules, HttpTable] = {}
        self._same: dict[tuple[int, ...], tuple[tuple[Rules, ...], HttpTable]] = {}

    def of(self, *parts: Rules) -> HttpTable:
        """The table of all these rules together, doubles dropped."""
        key = tuple(map(id, parts))
        known = self._same.get(key)
        if known is None:
            if len(self._same) >= TABLES:
                self._renew()
            known = self._same[key] = parts, self._equal(tuple(dict.fromkeys(chain.from_iterable(parts))))
        return known[1]  # the parts are alive as long as their ids are here

    def age(self) -> None:
        """Policy has changed."""
        self._same = {}
        if len(self._young) >= KEPT_TABLES or sum(map(len, self._young)) >= KEPT:
            self._renew()

    def _renew(self) -> None:
        self._old, self._young, self._same = self._young, {}, {}

    def _equal(self, rules: Rules) -> HttpTable:
        table = self._young.get(rules) or self._old.get(rules) or HttpTable(rules)
        self._young[rules] = table
        return table


HTTP_TABLES: Final = HttpTables()
"""Those of this process."""
