"""Audit: traffic that would be refused passes and is reported with reason and policy; nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import pytest

from l7proxy.model.verdict import Direction, DropReason, Verdict
from l7proxy.policy import decide, lang
from l7proxy.policy.combine import evaluate_l4, evaluate_l7
from l7proxy.policy.compile import compile_policies
from l7proxy.policy.decide import PortPolicy
from l7proxy.policy.rules import Rule
from l7proxy.policy.tiers import BASELINE, Level

A = "fromEndpoints: [{matchLabels: {app: a}}]"
HTTP = "toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{method: GET, path: /a}]}}]"
R1 = f"ingress: [{{{A}, {HTTP}}}]"
TCP = 6
WHO = {"a": 301, "b": 302}


class Bench(Protocol):
    def cnp(self, spec: str, *, name: str = ...) -> Any: ...
    def server(self) -> Any: ...
    def identities_for(self, rules: Any) -> Any: ...
    def request(self, line: str) -> Any: ...


def rules(bench: Bench, spec: str, *, audit: bool, name: str = "p") -> list[Rule]:
    return [replace(rule, audit=audit) for rule in lang.parse(bench.cnp(spec, name=name))]


def asked(bench: Bench, own: list[Rule], who: str, *, audit: bool = False, port: int = 80) -> PortPolicy:
    table = compile_policies(own, [replace(bench.server(), audit=audit)], bench.identities_for(own))[1]
    return decide.port(table.ingress, WHO[who], TCP, port)


@pytest.mark.parametrize("by", ["policy", "endpoint"])
def test_what_no_rule_allows_passes_and_is_told(bench: Bench, by: str) -> None:
    own = rules(bench, R1, audit=by == "policy")
    answer = asked(bench, own, "b", audit=by == "endpoint")
    assert answer.l4.verdict is Verdict.AUDIT
    assert answer.l4.drop_reason is DropReason.POLICY_DENIED
    assert answer.l4.reason == "no rule of policy default/p allows identity 302 to 80/TCP"
    policy_verdict = evaluate_l4(None, answer)
    assert (policy_verdict.verdict, policy_verdict.direction) == (Verdict.AUDIT, Direction.INGRESS)
    assert policy_verdict.ingress is not None
    assert policy_verdict.ingress.name == "p"


def test_requests_that_no_rule_matches_pass_and_are_told_one_by_one(bench: Bench) -> None:
    answer = asked(bench, rules(bench, R1, audit=True), "a")
    assert answer.l4.verdict is Verdict.REDIRECTED
    good, bad = bench.request("GET /a"), bench.request("POST /b")
    assert evaluate_l7(None, answer, good).verdict is Verdict.FORWARDED
    found = evaluate_l7(None, answer, bad)
    assert found.verdict is Verdict.AUDIT
    assert found.reason.startswith("no rule matched; nearest: policy default/p rule 1")
    assert evaluate_l4(None, answer).verdict is Verdict.REDIRECTED


def test_an_explicit_deny_is_audited_and_the_rest_is_asked(bench: Bench) -> None:
    deny = rules(bench, f"ingressDeny: [{{{A}}}]", audit=True, name="deny")
    allow = rules(bench, f"ingress: [{{{A}}}]", audit=False, name="allow")
    answer = asked(bench, deny + allow, "a")
    assert (answer.l4.verdict, answer.l4.drop_reason) == (Verdict.AUDIT, DropReason.POLICY_DENY)
    assert answer.l4.reason == "denied by policy default/deny spec.ingressDeny[0]"


def test_a_policy_that_is_enforced_still_refuses_what_another_only_audits(bench: Bench) -> None:
    audited = rules(bench, R1, audit=True, name="audited")
    enforced = rules(bench, "ingress: [{fromEndpoints: [{matchLabels: {app: plain}}]}]", audit=False, name="enforced")
    answer = asked(bench, audited + enforced, "b")
    assert answer.l4.verdict is Verdict.DROPPED
    assert answer.l4.ref is not None
    assert answer.l4.ref.name == "enforced"
    deny = rules(bench, f"ingressDeny: [{{{A}}}]", audit=False, name="deny")
    assert asked(bench, audited + deny, "a").l4.verdict is Verdict.DROPPED


def test_what_an_audited_policy_lets_go_a_lower_tier_may_refuse(bench: Bench) -> None:
    everyone = rules(bench, "ingressDeny: [{fromEntities: [all]}]", audit=False, name="base")
    baseline = [replace(rule, level=Level(BASELINE, 0), default_deny=False) for rule in everyone]
    answer = asked(bench, rules(bench, R1, audit=True) + baseline, "b")
    assert answer.l4.verdict is Verdict.DROPPED
    request = asked(bench, rules(bench, R1, audit=True) + baseline, "a")
    assert evaluate_l7(None, request, bench.request("GET /a")).verdict is Verdict.FORWARDED
    assert evaluate_l7(None, request, bench.request("POST /b")).verdict is Verdict.DROPPED


def test_one_direction_audited_and_the_other_refusing_is_refused(bench: Bench) -> None:
    audited = asked(bench, rules(bench, R1, audit=True), "b")
    refused = asked(bench, rules(bench, R1, audit=False), "b")
    passed = asked(bench, rules(bench, "ingress: [{fromEntities: [all]}]", audit=False), "b")
    assert evaluate_l4(refused, audited).direction is Direction.EGRESS
    assert evaluate_l4(refused, audited).verdict is Verdict.DROPPED
    assert evaluate_l4(audited, refused).verdict is Verdict.DROPPED
    assert evaluate_l4(passed, audited).verdict is Verdict.AUDIT
    assert (evaluate_l4(audited, passed).verdict, evaluate_l4(audited, passed).direction) == (
        Verdict.AUDIT,
        Direction.EGRESS,
    )
