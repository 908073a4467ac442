"""The one door for verdicts: what a direction's policy says of an identity on a port, and of a request there.

Asked by the workers, by `policy trace` and when a kernel event is given its rule, so explanation and enforcement cannot
differ. Everything returned is immutable (a table remembers answers, which changes none), so callers may keep it as long
as they keep the policy. Cilium semantics: a deny beats everything; a redirect beats a plain allow at L4, but a plain
allow that covers the flow lets every request pass; HTTP rules of all covering entries are one union.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from l7proxy.model.http import Request
from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import Action, DropReason, Protocol, Verdict
from l7proxy.policy.match.http import HttpMatcher
from l7proxy.policy.rules import HttpRule
from l7proxy.policy.tables import DirectionPolicy, Entry

REMEMBERED: Final = 1024
"""Answers one table keeps by (method, path). Beyond that it forgets all of them and starts again."""
REMEMBERED_PATH: Final = 512
"""Bytes. Longer paths are judged anew each time, so that a client cannot make a table hold much."""
TABLES: Final = 1024
"""Compiled HTTP tables kept by their rules: flows of many identities under the same rules share one."""
NAMED: Final = 3
"""Policies that a denial names; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict and who is answerable for it.

    `ref` is the rule that allowed or denied; when nothing allowed, the policy that refuses by default or, for a
    request, the rule that came nearest. None when no policy governs. `also` are others that said the same.
    `reason` is for humans and set on every denial. `match_type` is that of the entry that decided, 0 if none did.
    """

    verdict: Verdict
    ref: RuleRef | None = None
    reason: str = ""
    drop_reason: DropReason = DropReason.UNKNOWN
    also: tuple[RuleRef, ...] = ()
    match_type: int = 0

    @property
    def allowed(self) -> bool:
        return self.verdict is not Verdict.DROPPED


class HttpTable:
    """The HTTP rules that govern one flow. At least one must match a request, or it is refused."""

    __slots__ = ("_allowed", "_final", "_matcher", "_seen", "rules")

    def __init__(self, rules: tuple[HttpRule, ...]) -> None:
        self.rules = rules
        self._matcher = HttpMatcher(rules)
        self._allowed = tuple(Decision(Verdict.FORWARDED, rule.ref) for rule in rules)
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
        return self._rest(request, candidates) if self._final else candidates

    def _rest(self, request: Request, candidates: int) -> Decision:
        index = self._matcher.first(request, candidates)
        return self._refused(request) if index is None else self._allowed[index]

    def _refused(self, request: Request) -> Decision:
        rule, came_of_it = self._matcher.nearest(request)
        reason = f"no rule matched; nearest: {_policy(rule.ref)} rule {rule.number}, {came_of_it}"
        return Decision(Verdict.DROPPED, rule.ref, reason, DropReason.POLICY_DENIED)


@dataclass(frozen=True, slots=True)
class PortPolicy:
    """The answer for one (identity, protocol, port).

    `l4` is DROPPED, FORWARDED or REDIRECTED. With REDIRECTED, `http` judges each request; where it is None some plain
    allow covers the flow and every request passes, by `plain`. `enforced` is False where no policy governs.
    """

    l4: Decision
    http: HttpTable | None = None
    plain: Decision | None = None
    enforced: bool = True

    def judge(self, request: Request) -> Decision:
        """The decision on one request of this flow. What L4 refuses is refused here, too."""
        if self.http is not None:
            return self.http.judge(request)
        return self.plain or self.l4


UNGOVERNED: Final = PortPolicy(Decision(Verdict.FORWARDED), enforced=False)


def port(policy: DirectionPolicy | None, identity: int, protocol: int, number: int) -> PortPolicy:
    """What `policy` says of a peer with `identity` on a port; the port is the destination's in both directions."""
    if policy is None:
        return UNGOVERNED
    covering = [entry for entry in policy.entries if entry.covers(identity, protocol, number)]
    denies = [entry for entry in covering if entry.action is Action.DENY]
    if denies:
        return PortPolicy(_denied(denies))
    if not covering:
        return PortPolicy(_uncovered(policy, identity, protocol, number))
    redirects = [entry for entry in covering if entry.action is Action.REDIRECT]
    plain = [entry for entry in covering if entry.action is Action.ALLOW]
    if not redirects:
        return PortPolicy(_allowing(Verdict.FORWARDED, plain))
    l4 = _allowing(Verdict.REDIRECTED, redirects)
    if plain:
        return PortPolicy(l4, plain=_allowing(Verdict.FORWARDED, plain))
    return PortPolicy(l4, http_table(tuple(rule for entry in redirects for rule in entry.http or ())))


@lru_cache(maxsize=TABLES)
def http_table(rules: tuple[HttpRule, ...]) -> HttpTable:
    """The table of these rules, doubles dropped."""
    return HttpTable(tuple(dict.fromkeys(rules)))


def _denied(entries: list[Entry]) -> Decision:
    first = entries[0]
    reason = f"denied by {_policy(first.ref)} {first.ref.rule}".rstrip()
    if first.refusal:
        reason = f"{_policy(first.ref)} is refused as a whole: {first.refusal}"
    also = _refs(entries[1:], first.ref)
    return Decision(Verdict.DROPPED, first.ref, reason, DropReason.POLICY_DENY, also, first.match_type)


def _uncovered(policy: DirectionPolicy, identity: int, protocol: int, number: int) -> Decision:
    names = [_policy(ref) for ref in policy.denied_by[:NAMED]]
    more = len(policy.denied_by) - len(names)
    who = ", ".join(names) + (f" and {more} more" if more > 0 else "")
    reason = f"no rule of {who or 'any policy'} allows identity {identity} to {port_name(protocol, number)}"
    ref = policy.denied_by[0] if policy.denied_by else None
    return Decision(Verdict.DROPPED, ref, reason, DropReason.POLICY_DENIED, policy.denied_by[1:])


def _allowing(verdict: Verdict, entries: list[Entry]) -> Decision:
    first = entries[0]
    return Decision(verdict, first.ref, also=_refs(entries[1:], first.ref), match_type=first.match_type)


def _refs(entries: Iterable[Entry], but: RuleRef) -> tuple[RuleRef, ...]:
    return tuple(dict.fromkeys(entry.ref for entry in entries if entry.ref != but))


def _policy(ref: RuleRef) -> str:
    return f"policy {ref.namespace}/{ref.name}" if ref.namespace else f"policy {ref.name}"


def port_name(protocol: int, number: int) -> str:
    """`80/TCP`, `ICMP`, `89` (a protocol that policies do not name)."""
    if protocol in (Protocol.ICMP, Protocol.ICMPV6):
        return Protocol(protocol).name
    try:
        return f"{number}/{Protocol(protocol).name}"
    except ValueError:
        return f"protocol {protocol}"
