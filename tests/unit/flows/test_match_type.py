"""The L3/L4 match type goes from the rule to the printed line."""

from __future__ import annotations

import pytest

from l7proxy.flows import hubble_constants as hubble
from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import Action, Verdict
from l7proxy.policy import decide
from l7proxy.policy.combine import evaluate_l4
from l7proxy.policy.tables import Entry, union

REF = RuleRef("CiliumNetworkPolicy", "default", "p")


@pytest.mark.parametrize("action", [Action.ALLOW, Action.DENY])
@pytest.mark.parametrize(
    ("peers", "protocol", "first", "last", "said"),
    [
        pytest.param((300,), None, 0, 65535, "L3-Only", id="a peer on every port"),
        pytest.param((300,), 6, 80, 80, "L3-L4", id="a peer on a port"),
        pytest.param((300,), 6, 80, 90, "L3-L4", id="a peer on some ports"),
        pytest.param(None, 6, 80, 80, "L4-Only", id="everyone on a port"),
        pytest.param(None, None, 0, 65535, "all", id="everyone on every port"),
        pytest.param((300,), 6, 0, 65535, "L3-Proto", id="a peer by a protocol"),
        pytest.param(None, 6, 0, 65535, "Proto-Only", id="everyone by a protocol"),
    ],
)
def test_what_a_rule_matched_by(
    action: Action, peers: tuple[int, ...] | None, protocol: int | None, first: int, last: int, said: str
) -> None:
    policy = union((Entry(action, REF, peers, protocol, first, last),), (REF,))
    policy_verdict = evaluate_l4(None, decide.port(policy, 300, 6, 80))
    assert policy_verdict.verdict is (Verdict.FORWARDED if action is Action.ALLOW else Verdict.DROPPED)
    assert hubble.MATCH_TYPES[policy_verdict.match_type] == said
    turned = evaluate_l4(decide.port(policy, 300, 6, 80), None)
    assert turned.match_type == policy_verdict.match_type


def test_what_no_rule_covers_matched_none() -> None:
    policy_verdict = evaluate_l4(None, decide.port(union((), (REF,)), 300, 6, 80))
    assert (policy_verdict.verdict, hubble.MATCH_TYPES[policy_verdict.match_type]) == (Verdict.DROPPED, "none")
