"""Compiled HTTP rules of one flow: decides whether a rule allows a request, and which rule came nearest.

Results are cached by method and path when these alone decide. Caching never changes a result.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from typing import Final

from l7proxy.model.cache import remember
from l7proxy.model.http import Request
from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import DropReason, Verdict
from l7proxy.policy.decision import Decision, policy_name
from l7proxy.policy.match.http import HttpMatcher
from l7proxy.policy.rules import HttpRule

REMEMBERED: Final = 1024
"""Results that one table caches by (method, path)."""
REMEMBERED_PATH: Final = 512
"""Bytes. Longer paths are not cached, so that a client cannot make a table use much memory."""
TABLES: Final = 1024
"""Limit of tables that one generation of `HttpTables` finds by the ids of their rules."""
KEPT: Final = 4096
"""Rules whose tables are kept over policy changes, so that rules that return find them."""
KEPT_TABLES: Final = 64
"""Tables kept over policy changes: each caches up to REMEMBERED results."""


_NOT_HTTP: Final = Decision(Verdict.DROPPED, reason="HTTP rules apply, and this is not an HTTP request")


class HttpTable:
    """The HTTP rules of one flow. A request that no rule matches is denied.

    Compiled on first use or by `make_ready`: evaluating connections alone does not need it.
    """

    __slots__ = ("_allowed", "_compiled", "_final", "_policies", "_refusals", "_seen", "rules")

    def __init__(self, rules: tuple[HttpRule, ...]) -> None:
        self.rules = rules
        self._compiled: HttpMatcher | None = None
        self._allowed: tuple[Decision, ...] = ()
        self._final = False
        self._policies: tuple[RuleRef, ...] = ()
        self._seen: dict[tuple[bytes, bytes], Decision | int] = {}
        self._refusals: dict[tuple[int, str], Decision] = {}

    @property
    def ready(self) -> bool:
        """Compiled already."""
        return self._compiled is not None

    def make_ready(self) -> HttpMatcher:
        """Compile. Thousands of rules take 0.25 s, mostly without holding the GIL."""
        if self._compiled is None:
            matcher = HttpMatcher(self.rules)
            self._allowed = tuple(
                Decision(Verdict.FORWARDED, rule.ref, log=(rule.log,) if rule.log else ()) for rule in self.rules
            )
            self._policies = tuple(dict.fromkeys(_policy(rule.ref) for rule in self.rules))
            self._final = matcher.by_line_only
            self._compiled = matcher  # last: another thread may be reading
        return self._compiled

    @property
    def problems(self) -> tuple[str, ...]:
        """Patterns that RE2 cannot use; their rules match nothing."""
        return tuple(self.make_ready().broken)

    @property
    def refs(self) -> Iterable[RuleRef]:
        return (rule.ref for rule in self.rules)

    def judge(self, asked: object) -> Decision:
        if not isinstance(asked, Request):
            return _NOT_HTTP
        request: Request = asked  # one cast in compiled code, not one per use
        key = (request.method, request.path)
        seen = self._seen.get(key)
        if seen is None:
            seen = self._look(request)
            if len(request.path) <= REMEMBERED_PATH:
                remember(self._seen, key, seen, REMEMBERED)
        return seen if isinstance(seen, Decision) else self._rest(request, seen)

    def _look(self, request: Request) -> Decision | int:
        """The decision when method and path alone decide, else the mask of the rules that they match."""
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
            reason = f"no rule matched; nearest: {policy_name(rule.ref)} rule {rule.number}, {came_of_it}"
            named = _policy(rule.ref)
            also = tuple(policy for policy in self._policies if policy != named)  # none of their rules matched either
            decision = Decision(Verdict.DROPPED, rule.ref, reason, DropReason.POLICY_DENIED, also)
            remember(self._refusals, key, decision, REMEMBERED)
        return decision


def _policy(ref: RuleRef) -> RuleRef:
    """The policy that a rule is in."""
    return RuleRef(ref.kind, ref.namespace, ref.name)


Rules = tuple[HttpRule, ...]


class HttpTables:
    """Tables by their rules: flows of many identities with the same rules share one table.

    Each policy snapshot has its own, which `following` makes of the one before. Two generations are kept. A new one
    begins with a snapshot when at least KEPT rules or KEPT_TABLES tables are held; tables that neither generation used
    are dropped. Compiling thousands of rules takes 0.25 s, and comparing them milliseconds, so rules that are the same
    objects are found by their ids. Another thread may be using the tables that `following` reads.
    """

    def __init__(self) -> None:
        self._young: dict[Rules, HttpTable] = {}
        self._old: dict[Rules, HttpTable] = {}
        self._same: dict[tuple[int, ...], tuple[tuple[Rules, ...], HttpTable]] = {}

    def of(self, *parts: Rules) -> HttpTable:
        """The table of all these rules, without duplicates."""
        key = tuple(map(id, parts))
        known = self._same.get(key)
        if known is None:
            if len(self._same) >= TABLES:
                self._renew()
            known = self._same[key] = parts, self._equal(tuple(dict.fromkeys(chain.from_iterable(parts))))
        return known[1]  # `_same` keeps the parts alive, so their ids stay unique

    def following(self) -> HttpTables:
        """The tables for the next policy snapshot."""
        other, young = HttpTables(), dict(self._young)
        other._young, other._old = young, self._old
        if len(young) >= KEPT_TABLES or sum(map(len, young)) >= KEPT:
            other._renew()
        return other

    def _renew(self) -> None:
        self._old, self._young, self._same = self._young, {}, {}

    def _equal(self, rules: Rules) -> HttpTable:
        table = self._young.get(rules) or self._old.get(rules) or HttpTable(rules)
        self._young[rules] = table
        return table
