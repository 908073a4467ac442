"""`log.value` of a policy: in the flows that its rules decide, next to the reason of a denial."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from l7proxy.flows.enrich import Enricher
from l7proxy.flows.records import Connection, HttpRequest
from l7proxy.model.identity import HOST
from l7proxy.model.policy_verdict import Conn, PolicyVerdict
from l7proxy.model.verdict import Direction, Verdict
from l7proxy.policy import lang
from l7proxy.policy.combine import evaluate_l4, evaluate_l7

if TYPE_CHECKING:
    from tests.unit.policy.conftest import Bench

CONN = Conn("10.1.0.2", 40000, "10.1.0.1", 80, 1, 2)
HTTP = "toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: /a}]}}]"


def logged(entries: str, value: str) -> str:
    return f"{{{entries}, log: {{value: '{value}'}}}}"


def told(bench: Bench, policy_verdict: PolicyVerdict) -> tuple[str, ...]:
    enricher = Enricher(bench.town().view.names)
    flows = [
        enricher.flow(Connection(0, CONN, policy_verdict)),
        enricher.flow(HttpRequest(0, CONN, policy_verdict, "GET", "http://server/a", "HTTP/1.1")),
    ]
    assert flows[0].policy_log == flows[1].policy_log
    return flows[0].policy_log


def test_an_allowed_connection_says_what_its_policies_want_said(bench: Bench) -> None:
    land = bench.enforce(
        logged("ingress: [{fromEndpoints: [{}]}]", "one"),
        logged("ingress: [{fromEntities: [all]}]", "two"),
        logged("ingress: [{fromEntities: [world]}]", "not of it"),
        "ingress: [{fromEntities: [cluster]}]",
    )
    policy_verdict = evaluate_l4(None, land.port("a"))
    assert (policy_verdict.verdict, policy_verdict.log) == (Verdict.FORWARDED, ("one", "two"))
    assert told(bench, policy_verdict) == ("one", "two")


def test_a_denied_one_says_the_reason_first(bench: Bench) -> None:
    land = bench.enforce(
        logged("ingressDeny: [{fromEndpoints: [{}]}]", "no entry"), logged("ingress: [{fromEntities: [all]}]", "moot")
    )
    policy_verdict = evaluate_l4(None, land.port("a"))
    assert told(bench, policy_verdict) == ("denied by policy default/p0 spec.ingressDeny[0]", "no entry")


def test_where_no_rule_decides_nobody_speaks(bench: Bench) -> None:
    land = bench.enforce(logged("ingress: [{fromEntities: [world]}]", "not of it"))
    policy_verdict = evaluate_l4(None, land.port("a"))
    assert policy_verdict.log == ()
    assert len(told(bench, policy_verdict)) == 1
    assert evaluate_l4(None, land.port("host")).log == ()


def test_a_request_says_what_the_policy_of_its_rule_wants_said(bench: Bench) -> None:
    land = bench.enforce(
        logged(f"ingress: [{{{HTTP}}}]", "by path"),
        logged(f"ingress: [{{{HTTP.replace('/a', '/b')}}}]", "by other"),
    )
    policy = land.port("a")
    assert evaluate_l4(None, policy).log == ("by path", "by other")
    assert evaluate_l7(None, policy, bench.request("GET /a")).log == ("by path",)
    assert evaluate_l7(None, policy, bench.request("GET /b")).log == ("by other",)
    assert evaluate_l7(None, policy, bench.request("GET /c")).log == ()


def test_both_directions_speak_when_both_let_it_pass(bench: Bench) -> None:
    land = bench.enforce(
        "{ingress: [{fromEntities: [all]}], egress: [{toEntities: [all]}], log: {value: same}}",
        logged("egress: [{toEntities: [all]}]", "out"),
    )
    out, let_in = land.port("a", direction=Direction.EGRESS), land.port("a")
    assert evaluate_l4(out, let_in).log == ("same", "out")


@pytest.mark.parametrize("log", ["{}", "{value: ''}"])
def test_a_log_without_a_value_says_nothing(log: str, bench: Bench) -> None:
    document: Any = bench.cnp("ingress: [{fromEntities: [all]}]")
    document["spec"]["log"] = bench.load(log)
    assert {rule.log for rule in lang.parse(document)} == {""}


@pytest.mark.parametrize("value", ["x" * 32, "für alle: 東京 ✓", "a b"])
def test_1_2_what_a_log_may_say(value: str, bench: Bench) -> None:
    document: Any = bench.cnp("ingress: [{fromEntities: [all]}]")
    document["spec"]["log"] = {"value": value}
    assert {rule.log for rule in lang.parse(document)} == {value}


@pytest.mark.parametrize("value", ["x" * 33, "a\u202eb", "\x1b[31m", "a\tb", "\u00ad"])
def test_1_2_what_a_log_may_not_say(value: str, bench: Bench) -> None:
    document: Any = bench.cnp("ingress: [{fromEntities: [all]}]")
    document["spec"]["log"] = {"value": value}
    (fault,) = lang.faults(document)
    assert str(fault) == "spec.log.value: must be at most 32 printable characters"


def test_the_local_host_is_let_in_by_no_document(bench: Bench) -> None:
    land = bench.enforce(logged("ingress: [{fromEntities: [world]}]", "w"))
    assert land.who("host") == HOST
    assert evaluate_l4(None, land.port("host")).log == ()
