"""Combines the egress and the ingress decision into one verdict.

A flow is allowed when the egress policy of its source and the ingress policy of its destination both allow it. A
direction is None when its pod is not an endpoint of this node.
"""

from __future__ import annotations

from typing import Final

import msgspec

from l7proxy.model.cache import remember
from l7proxy.model.http import Request, Rewrite, edited
from l7proxy.model.policy_verdict import PolicyVerdict
from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import Direction, Verdict
from l7proxy.policy.decide import Decision, PortPolicy, mixed

DROPPED: Final = Verdict.DROPPED
MOST_ALSO: Final = 15
"""Rules that a verdict names beside the deciding one: a pod may be selected by thousands of policies, and clients of
flows read lines of at most 64 KiB."""
REMEMBERED: Final = 16384
"""Cached verdicts, about 400 bytes each. Thousands of rules make thousands of verdicts, and denials have many
reasons."""


def evaluate_l4(egress: PortPolicy | None, ingress: PortPolicy | None) -> PolicyVerdict:
    """The verdict on a connection: REDIRECTED when L7 rules of either direction apply to its requests."""
    if egress is not None and ingress is not None and egress.kind and ingress.kind and egress.kind != ingress.kind:
        return combine(egress.l4, mixed(egress.kind, ingress.kind, ingress.l4))
    return combine(
        egress.l4 if egress is not None and egress.enforced else None,
        ingress.l4 if ingress is not None and ingress.enforced else None,
    )


class VerdictCache:
    """A cache for `combine`: the requests of a connection are allowed by the same few rules.

    Decisions are immutable, so the same two give the same verdict. It is also the same object, which keeps batches of
    flow records small.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], tuple[Decision | None, Decision | None, PolicyVerdict]] = {}

    def of(self, egress: Decision | None, ingress: Decision | None) -> PolicyVerdict:
        # cached decisions are alive, so their ids are unique; `id` is costly in compiled code
        key = (0 if egress is None else id(egress), 0 if ingress is None else id(ingress))
        known = self._known.get(key)
        if known is None:
            known = remember(self._known, key, (egress, ingress, combine(egress, ingress)), REMEMBERED)
        return known[2]


def evaluate_l7(
    egress: PortPolicy | None,
    ingress: PortPolicy | None,
    asked: object,
    combined: VerdictCache | None = None,
) -> PolicyVerdict:
    """The verdict on one request. A direction that denies the connection denies each of its requests.

    The ingress policy evaluates an HTTP request as the egress policy rewrites it; its `rewrite` gets both rewrites.
    """
    together = VerdictCache() if combined is None else combined
    out = egress.judge(asked) if egress is not None and egress.enforced else None
    if out is not None and out.verdict is DROPPED:
        return together.of(out, None)
    rewrite = out.rewrite if out is not None else None
    seen = asked if rewrite is None else _rewritten(asked, rewrite)
    let_in = ingress.judge(seen) if ingress is not None and ingress.enforced else None
    if let_in is not None and let_in.rewrite is not None:
        rewrite = let_in.rewrite if rewrite is None else rewrite.then(let_in.rewrite)
    if isinstance(asked, Request):
        asked.rewrite = rewrite
    return together.of(out, let_in)


def _rewritten(asked: object, rewrite: Rewrite) -> object:
    return asked.having(edited(asked.headers, rewrite.edits)) if isinstance(asked, Request) else asked


def combine(egress: Decision | None, ingress: Decision | None) -> PolicyVerdict:
    """The deciding direction is the one that denied, egress first; else ingress if it has a policy, else egress.

    Traffic that is allowed only because its denial is audited is AUDIT, with the reason. A connection with L7 rules
    is REDIRECTED instead, because each request gets its own verdict.
    """
    if egress is not None and egress.verdict is Verdict.DROPPED:
        return _refused(egress, Direction.EGRESS, other=ingress)
    if ingress is not None and ingress.verdict is Verdict.DROPPED:
        return _refused(ingress, Direction.INGRESS, other=egress)
    verdicts = {each.verdict for each in (egress, ingress) if each is not None}
    if Verdict.AUDIT in verdicts and Verdict.REDIRECTED not in verdicts:
        return _audited(egress, ingress)
    deciding = egress if ingress is None else ingress
    return PolicyVerdict(
        Verdict.REDIRECTED if Verdict.REDIRECTED in verdicts else Verdict.FORWARDED,
        Direction.EGRESS if ingress is None else Direction.INGRESS,
        _allower(ingress),
        _allower(egress),
        match_type=deciding.match_type if deciding is not None else 0,
        log=tuple(dict.fromkeys(word for each in (egress, ingress) if each is not None for word in each.log)),
        ingress_also=_also(ingress),
        egress_also=_also(egress),
    )


def revoked(policy_verdict: PolicyVerdict) -> PolicyVerdict:
    """The denial of an open connection or request that was allowed; the reason says that the policy changed."""
    return msgspec.structs.replace(policy_verdict, reason=f"policy changed: {policy_verdict.reason}")


def _audited(egress: Decision | None, ingress: Decision | None) -> PolicyVerdict:
    """Like a denial, but with verdict AUDIT."""
    if egress is not None and egress.verdict is Verdict.AUDIT:
        return _refused(egress, Direction.EGRESS, other=ingress)
    assert ingress is not None, "one of the two is AUDIT"
    return _refused(ingress, Direction.INGRESS, other=egress)


def _refused(decision: Decision, direction: Direction, *, other: Decision | None) -> PolicyVerdict:
    """`other`: the decision of the other direction."""
    is_ingress = direction is Direction.INGRESS
    allower, also, allowers = _allower(other), decision.also[:MOST_ALSO], _also(other)
    return PolicyVerdict(
        decision.verdict,
        direction,
        decision.ref if is_ingress else allower,
        allower if is_ingress else decision.ref,
        decision.drop_reason,
        decision.reason,
        match_type=decision.match_type,
        log=decision.log,
        ingress_also=also if is_ingress else allowers,
        egress_also=allowers if is_ingress else also,
    )


def _allower(decision: Decision | None) -> RuleRef | None:
    """The rule that allowed; None when the decision is a denial or AUDIT."""
    return decision.ref if decision is not None and _allows(decision) else None


def _also(decision: Decision | None) -> tuple[RuleRef, ...]:
    """The other rules that allowed."""
    return decision.also[:MOST_ALSO] if decision is not None and _allows(decision) else ()


def _allows(decision: Decision) -> bool:
    return decision.verdict not in (Verdict.DROPPED, Verdict.AUDIT)
