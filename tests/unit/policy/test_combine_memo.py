"""Cached verdicts equal freshly computed ones, however many there are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import DropReason, Verdict
from l7proxy.policy import combine as combining
from l7proxy.policy.combine import VerdictCache, combine
from l7proxy.policy.decision import Decision

DECISIONS = st.builds(
    Decision,
    st.sampled_from([Verdict.FORWARDED, Verdict.DROPPED, Verdict.REDIRECTED, Verdict.AUDIT]),
    st.none() | st.builds(RuleRef, st.just("CNP"), st.just("ns"), st.sampled_from("ab")),
    st.sampled_from(["", "no"]),
    st.sampled_from(DropReason),
)


@given(st.lists(st.tuples(st.none() | DECISIONS, st.none() | DECISIONS), max_size=20))
def test_remembered_is_judged_anew(pairs: list[tuple[Decision | None, Decision | None]]) -> None:
    combined = VerdictCache()
    for egress, ingress in pairs * 2:
        assert combined.of(egress, ingress) == combine(egress, ingress)


def test_the_same_decisions_give_one_object() -> None:
    combined, allowed = VerdictCache(), Decision(Verdict.FORWARDED)
    assert combined.of(None, allowed) is combined.of(None, allowed)


def test_decisions_of_a_moment_are_neither_kept_for_ever_nor_mixed_up() -> None:
    """The memory address of a freed decision is reused: the cache must not return the old verdict for it."""
    combined = VerdictCache()
    for number in range(1000):
        decision = Decision(Verdict.DROPPED, reason=str(number))
        assert combined.of(None, decision).reason == str(number)
        assert len(combined._known) <= combining.REMEMBERED
