"""The HTTP rules that govern one flow, compiled: does one of them let this request pass, or which came nearest.

Answers are remembered by method and path where these alone decide; that changes no answer.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
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
"""Compiled HTTP tables kept by their rules: flows of many identities under the same rules share one."""


class HttpTable:
    """The HTTP rules that govern one flow. At least one must match a request, or it is refused."""

    __slots__ = ("_allowed", "_final", "_matcher", "_seen", "rules")

    def __init__(self, rules: tuple[HttpRule, ...]) -> None:
        self.rules = rules
        self._matcher = HttpMatcher(rules)
        self._allowed = tuple(
            Decision(Verdict.FORWARDED, rule.ref, log=(rule.log,) if rule.log else ()) for rule in rules
        )
        self._final = self._matcher.by_line_only
        self._seen: dict[tuple[bytes, bytes], Decision | int] = {}

    @property
    def problems(self) -> tuple[str, ...]:
        """Patterns that could not be used; the rules that hold them match nothing."""
        return tuple(self._matcher.broken)

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
        candidates = self._matcher.candidates(request.method, request.path)
        settled = self._matcher.settled(candidates)
        if settled is not None:
            return self._allowed[settled]
        return self._rest(request, candidates) if self._final else candidates

    def _rest(self, request: Request, candidates: int) -> Decision:
        if self._matcher.acts:
            return self._changing(request, candidates)
        index = self._matcher.first(request, candidates)
        return self._refused(request) if index is None else self._allowed[index]

    def _changing(self, request: Request, candidates: int) -> Decision:
        index, rewrite = self._matcher.all_of(request, candidates)
        if index is None:
            return self._refused(request)
        return self._allowed[index] if rewrite is None else replace(self._allowed[index], rewrite=rewrite)

    def _refused(self, request: Request) -> Decision:
        rule, came_of_it = self._matcher.nearest(request)
        reason = f"no rule matched; nearest: {policy_name(rule.ref)} rule {rule.number}, {came_of_it}"
        return Decision(Verdict.DROPPED, rule.ref, reason, DropReason.POLICY_DENIED)


@lru_cache(maxsize=TABLES)
def http_table(rules: tuple[HttpRule, ...]) -> HttpTable:
    """The table of these rules, doubles dropped."""
    return HttpTable(tuple(dict.fromkeys(rules)))
