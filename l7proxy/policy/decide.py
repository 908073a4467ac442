"""Gives all verdicts: how one direction's policy decides on an identity and port, and on a request there.

Used by the workers, by `policy trace` and to attribute kernel events to rules, so explanation and enforcement cannot
differ. Everything returned is immutable (tables cache results, which does not change them), so callers may keep it as
long as they keep the policy.

Tiers and levels are evaluated as in `policy.tiers`. Within a stage Cilium's semantics apply: a deny overrides
everything, a redirect overrides a plain allow at L4, but a plain allow that covers the flow allows every request, and
the L7 rules of all covering entries are one union. A request that no L7 rule of a stage matches goes to the next
stage. So does traffic that only audited rules deny; its verdict is AUDIT instead of FORWARDED.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from l7proxy.model.ref import BUILT_IN, RuleRef
from l7proxy.model.verdict import Action, DropReason, Verdict
from l7proxy.policy.decision import Decision, policy_name, port_name
from l7proxy.policy.http_table import HttpTable, HttpTables
from l7proxy.policy.l7 import Kind, Table, kind_of
from l7proxy.policy.tables import DirectionPolicy, Entry, Stage, TierPolicy

__all__ = ["NO_DEFAULT_DENY", "UNGOVERNED", "Decision", "HttpTable", "PortPolicy", "port", "port_name"]

AUDIT: Final = Verdict.AUDIT
DROPPED: Final = Verdict.DROPPED
NAMED: Final = 3
"""Policies that the reason of a denial names; the rest are counted."""
NO_DEFAULT_DENY: Final = RuleRef(BUILT_IN, "", "no-default-deny")
"""The rule that allows when policies cover a direction, but none decides and none sets default deny."""

Step = HttpTable | Table | Decision
"""One step of the evaluation of a request: L7 rules that may allow it; an AUDIT decision: the audited denial at this
step; any other decision ends the evaluation."""


@dataclass(frozen=True, slots=True)
class PortPolicy:
    """The result for one (identity, protocol, port).

    `l4` is the decision on the connection: REDIRECTED when L7 rules apply to its requests, which are then of `kind`.
    `steps` are evaluated for each request; empty when `l4` decides alone. `enforced` is False when no policy applies.
    """

    l4: Decision
    steps: tuple[Step, ...] = ()
    enforced: bool = True
    kind: Kind | None = None

    @property
    def redirects(self) -> bool:
        return self.l4.verdict is Verdict.REDIRECTED

    @property
    def tables(self) -> tuple[Table, ...]:
        return tuple(step for step in self.steps if not isinstance(step, Decision))

    @property
    def rest(self) -> Decision:
        """The decision on requests that no L7 rule matches."""
        last = self.steps[-1] if self.steps else self.l4
        return last if isinstance(last, Decision) else self.l4

    def judge(self, asked: object) -> Decision:
        """The decision on one request of this flow, of `kind`. A denial at L4 denies every request."""
        audit: Decision | None = None
        unmatched: Decision | None = None
        for step in self.steps:
            if not isinstance(step, Decision):
                found = step.judge(asked)
                if found.verdict is not DROPPED:
                    return found if audit is None else replace(audit, rewrite=found.rewrite)
                unmatched = unmatched or found
            elif step.verdict is AUDIT:
                audit = audit or _audited(unmatched or step)
            elif step.verdict is DROPPED:
                return _nearest(step, unmatched)
            else:
                return audit or step
        return audit or self.l4


UNGOVERNED: Final = PortPolicy(Decision(Verdict.FORWARDED), enforced=False)
UNDECIDED: Final = Decision(Verdict.FORWARDED, NO_DEFAULT_DENY)


def port(
    policy: DirectionPolicy | None, identity: int, protocol: int, number: int, tables: HttpTables | None = None
) -> PortPolicy:
    """How `policy` decides on a peer with `identity` and a port: the destination port in both directions.

    `tables`: HTTP tables of other flows, which are used again where the rules are the same.
    """
    if policy is None:
        return UNGOVERNED
    met = tuple(_walk(policy, identity, protocol, number, tables or HttpTables()))
    if not policy.governed and met[0] is UNDECIDED:
        return UNGOVERNED
    redirects = [step for step in met if isinstance(step, _Redirect)]
    if redirects:
        first = redirects[0]
        for other in redirects:
            if other.kind is not first.kind:
                return PortPolicy(mixed(first.kind, other.kind, first.l4))
        steps = tuple(step.table if isinstance(step, _Redirect) else step for step in met)
        return PortPolicy(first.l4, steps, kind=first.kind)
    decisions = [step for step in met if isinstance(step, Decision)]
    last = decisions[-1]
    return PortPolicy(decisions[0] if last.allowed else last)  # the first is AUDIT when there are several


@dataclass(frozen=True, slots=True)
class _Redirect:
    """A stage whose L7 rules of one kind cover the flow."""

    l4: Decision
    kind: Kind
    table: Table


def mixed(one: Kind, other: Kind, l4: Decision) -> Decision:
    """The denial of a connection to which L7 rules of two kinds apply: only one gate can read it."""
    reason = f"both {one.name} rules and {other.name} rules apply, and a connection can be inspected for one kind only"
    return replace(l4, verdict=DROPPED, reason=reason, drop_reason=DropReason.POLICY_DENIED)


def _walk(
    policy: DirectionPolicy, identity: int, protocol: int, number: int, tables: HttpTables
) -> Iterator[_Redirect | Decision]:
    """The steps for a flow, in order: redirects, AUDIT decisions, and last the one final decision."""
    for tier in policy.tiers:
        for stage in tier.stages:
            covering = [entry for entry in stage if entry.covers(identity, protocol, number)]
            yield from _stage(covering, tables)
            strongest = max((entry.action for entry in covering if not _is_audited(entry)), default=None)
            if strongest in (Action.DENY, Action.ALLOW) or _some(covering, Action.ALLOW):
                return
            if strongest is Action.PASS:
                break
        else:
            if tier.denied_by:
                yield _uncovered(tier, identity, protocol, number)
                return
            if tier.audited_by:
                yield _audited(_uncovered(tier, identity, protocol, number))
    yield UNDECIDED


def _stage(covering: Stage | list[Entry], tables: HttpTables) -> Iterator[_Redirect | Decision]:
    """The steps of the covering entries of one stage. A final decision, if any, comes last."""
    audited = [entry for entry in covering if _is_audited(entry)]
    if audited:
        yield _audited(_denied(audited))
    denies = [entry for entry in _some(covering, Action.DENY) if not entry.audit]
    if denies:
        yield _denied(denies)
        return
    redirects: dict[Kind, list[Entry]] = {}
    for entry in _some(covering, Action.REDIRECT):
        redirects.setdefault(kind_of(entry.l7), []).append(entry)
    for kind, entries in redirects.items():
        table = kind.table([entry.l7 for entry in entries], tables)
        yield _Redirect(_allowing(Verdict.REDIRECTED, entries), kind, table)
    plain = _some(covering, Action.ALLOW)
    if plain:
        yield _allowing(Verdict.FORWARDED, plain)


def _some(entries: Iterable[Entry], action: Action) -> list[Entry]:
    return [entry for entry in entries if entry.action is action]


def _is_audited(entry: Entry) -> bool:
    return entry.audit and entry.action is Action.DENY


def _audited(decision: Decision) -> Decision:
    return replace(decision, verdict=Verdict.AUDIT)


def _nearest(refusal: Decision, unmatched: Decision | None) -> Decision:
    """The decision that explains a denied request: an explicit deny, else the HTTP rules that did not match."""
    return refusal if unmatched is None or refusal.drop_reason is DropReason.POLICY_DENY else unmatched


def _denied(entries: list[Entry]) -> Decision:
    first = entries[0]
    reason = f"denied by {policy_name(first.ref)} {first.ref.rule}".rstrip()
    if first.refusal and first.ref.kind == BUILT_IN:
        about = f"{port_name(first.protocol, first.first)} " if first.protocol is not None else ""
        reason = about + first.refusal
    elif first.refusal:
        extent = "is partly enforced" if "." in first.ref.rule else "cannot be enforced"
        reason = f"{policy_name(first.ref)} {extent}: {first.refusal}"
    also = _refs(entries[1:], first.ref)
    return Decision(
        Verdict.DROPPED, first.ref, reason, DropReason.POLICY_DENY, also, first.match_type, log=_logs(entries)
    )


def _uncovered(tier: TierPolicy, identity: int, protocol: int, number: int) -> Decision:
    refusing = tier.denied_by or tier.audited_by
    names = [policy_name(ref) for ref in refusing[:NAMED]]
    more = len(refusing) - len(names)
    who = ", ".join(names) + (f" and {more} more" if more > 0 else "")
    reason = f"no rule of {who} allows identity {identity} to {port_name(protocol, number)}"
    return Decision(Verdict.DROPPED, refusing[0], reason, DropReason.POLICY_DENIED, refusing[1:])


def _allowing(verdict: Verdict, entries: list[Entry]) -> Decision:
    first = entries[0]
    also = _refs(entries[1:], first.ref)
    return Decision(verdict, first.ref, also=also, match_type=first.match_type, log=_logs(entries))


def _logs(entries: Iterable[Entry]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(entry.log for entry in entries if entry.log))


def _refs(entries: Iterable[Entry], but: RuleRef) -> tuple[RuleRef, ...]:
    return tuple(dict.fromkeys(entry.ref for entry in entries if entry.ref != but))
