"""Combines the decisions of both directions into one verdict."""

from __future__ import annotations

import pytest

from l7proxy.model.http import Request
from l7proxy.model.policy_verdict import PolicyVerdict
from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import Direction, DropReason, Verdict
from l7proxy.policy.combine import combine, evaluate_l4, evaluate_l7
from l7proxy.policy.decide import UNGOVERNED, Decision, HttpTable, PortPolicy
from l7proxy.policy.rules import HttpRule

E, I = RuleRef("K", "n", "egress"), RuleRef("K", "n", "ingress")  # noqa: E741
NO = DropReason.POLICY_DENIED


def yes(ref: RuleRef, verdict: Verdict = Verdict.FORWARDED) -> Decision:
    return Decision(verdict, ref)


def no(ref: RuleRef) -> Decision:
    return Decision(Verdict.DROPPED, ref, f"no: {ref.name}", NO)


ROWS = [
    ("nobody is asked", None, None, PolicyVerdict(Verdict.FORWARDED, Direction.EGRESS)),
    ("egress alone allows", yes(E), None, PolicyVerdict(Verdict.FORWARDED, Direction.EGRESS, None, E)),
    ("ingress alone allows", None, yes(I), PolicyVerdict(Verdict.FORWARDED, Direction.INGRESS, I)),
    ("both allow: ingress decides", yes(E), yes(I), PolicyVerdict(Verdict.FORWARDED, Direction.INGRESS, I, E)),
    ("egress refuses", no(E), yes(I), PolicyVerdict(Verdict.DROPPED, Direction.EGRESS, I, E, NO, "no: egress")),
    ("ingress refuses", yes(E), no(I), PolicyVerdict(Verdict.DROPPED, Direction.INGRESS, I, E, NO, "no: ingress")),
    (
        "both refuse: egress first",
        no(E),
        no(I),
        PolicyVerdict(Verdict.DROPPED, Direction.EGRESS, None, E, NO, "no: egress"),
    ),
    ("egress steers", yes(E, Verdict.REDIRECTED), yes(I), PolicyVerdict(Verdict.REDIRECTED, Direction.INGRESS, I, E)),
    ("ingress steers", yes(E), yes(I, Verdict.REDIRECTED), PolicyVerdict(Verdict.REDIRECTED, Direction.INGRESS, I, E)),
    (
        "egress steers, ingress refuses",
        yes(E, Verdict.REDIRECTED),
        no(I),
        PolicyVerdict(Verdict.DROPPED, Direction.INGRESS, I, E, NO, "no: ingress"),
    ),
]


@pytest.mark.parametrize(("egress", "ingress", "expected"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_combine(egress: Decision | None, ingress: Decision | None, expected: PolicyVerdict) -> None:
    assert combine(egress, ingress) == expected
    ports = [None if each is None else PortPolicy(each) for each in (egress, ingress)]
    assert evaluate_l4(*ports) == expected
    with_ungoverned = [port or UNGOVERNED for port in ports]
    assert evaluate_l4(*with_ungoverned) == expected


def proxied(ref: RuleRef, path: str) -> PortPolicy:
    return PortPolicy(yes(ref, Verdict.REDIRECTED), (HttpTable((HttpRule(ref, path=path, number=1),)), no(ref)))


GET_A = Request(b"GET", b"/a", b"h", [])


def test_a_request_must_please_both_directions() -> None:
    a, b = "/a", "/b"
    assert evaluate_l7(proxied(E, a), proxied(I, a), GET_A) == PolicyVerdict(Verdict.FORWARDED, Direction.INGRESS, I, E)
    assert evaluate_l7(proxied(E, b), proxied(I, a), GET_A).direction is Direction.EGRESS
    denied = evaluate_l7(proxied(E, a), proxied(I, b), GET_A)
    assert (denied.verdict, denied.direction, denied.ingress, denied.egress) == (
        Verdict.DROPPED,
        Direction.INGRESS,
        I,
        E,
    )
    assert denied.reason == "no rule matched; nearest: policy n/ingress rule 1, path does not match /b"


def test_a_request_is_judged_where_there_are_rules_and_passes_where_there_are_none() -> None:
    plain = PortPolicy(yes(E))
    moot = PortPolicy(yes(E, Verdict.REDIRECTED), (yes(E),))
    for egress in (None, UNGOVERNED, plain, moot):
        assert evaluate_l7(egress, proxied(I, "/a"), GET_A).verdict is Verdict.FORWARDED
        assert evaluate_l7(egress, proxied(I, "/b"), GET_A).verdict is Verdict.DROPPED
    assert evaluate_l7(moot, None, GET_A) == PolicyVerdict(Verdict.FORWARDED, Direction.EGRESS, None, E)


def test_a_direction_that_refuses_the_connection_refuses_its_requests() -> None:
    assert evaluate_l7(PortPolicy(no(E)), proxied(I, "/a"), GET_A).reason == "no: egress"
    assert evaluate_l7(None, PortPolicy(no(I)), GET_A).reason == "no: ingress"
