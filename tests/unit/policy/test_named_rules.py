"""Which rules a verdict names: the deciding one, and others with the same result."""

from __future__ import annotations

from l7proxy.model.http import Request
from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import Action, Direction
from l7proxy.policy import decide
from l7proxy.policy.combine import MOST_ALSO, evaluate_l4, evaluate_l7
from l7proxy.policy.rules import HttpRule, HttpRules
from l7proxy.policy.tables import Entry, union

A, B, C = (RuleRef("CiliumNetworkPolicy", "ns", name) for name in "abc")


def rule(name: str) -> HttpRules:
    ref = RuleRef("CiliumNetworkPolicy", "ns", name, "spec.ingress[0]")
    return HttpRules((HttpRule(ref=ref, number=1, method="GET", path="/x"),))


def test_a_default_deny_names_the_policies_that_select_the_pod() -> None:
    policy = decide.port(union((), (A, B, C)), 300, 6, 80)
    refused = evaluate_l4(None, policy)
    assert (refused.direction, refused.ingress, refused.ingress_also) == (Direction.INGRESS, A, (B, C))
    sent = evaluate_l4(policy, None)
    assert (sent.egress, sent.egress_also, sent.ingress_also) == (A, (B, C), ())


def test_all_that_allow_are_named_in_both_directions() -> None:
    policy = decide.port(union((Entry(Action.ALLOW, A), Entry(Action.ALLOW, B)), (C,)), 300, 6, 80)
    allowed = evaluate_l4(policy, policy)
    assert (allowed.ingress, allowed.ingress_also) == (allowed.egress, allowed.egress_also) == (A, (B,))


def test_an_allower_of_the_other_direction_is_named_beside_a_refusal() -> None:
    out = decide.port(union((Entry(Action.ALLOW, A), Entry(Action.ALLOW, B))), 300, 6, 80)
    refused = evaluate_l4(out, decide.port(union((), (C,)), 300, 6, 80))
    assert (refused.egress_also, refused.ingress, refused.ingress_also) == ((B,), C, ())


def test_a_refused_request_names_all_policies_with_rules_for_it() -> None:
    entries = tuple(Entry(Action.REDIRECT, ref, l7=rule(ref.name)) for ref in (A, B))
    refused = evaluate_l7(None, decide.port(union(entries, (A, B)), 300, 6, 80), Request(b"GET", b"/y", b"h", []))
    assert refused.ingress is not None
    assert {refused.ingress.name, *(ref.name for ref in refused.ingress_also)} == {"a", "b"}
    assert len(refused.ingress_also) == 1


def test_the_names_are_bounded() -> None:
    many = tuple(RuleRef("NetworkPolicy", "ns", f"{number}") for number in range(1000))
    assert len(evaluate_l4(None, decide.port(union((), many), 300, 6, 80)).ingress_also) == MOST_ALSO
