"""Policies of several languages on one pod: one defined order, which requests pass step by step."""

from __future__ import annotations

import pytest

from l7proxy.model.resources import PolicyTier, Resource
from tests.unit.policy.town import Town

CILIUM_L7 = """
    apiVersion: cilium.io/v2
    kind: CiliumNetworkPolicy
    metadata: {name: cnp, namespace: x}
    spec:
      endpointSelector: {matchLabels: {pod: a}}
      ingress:
      - fromEntities: [cluster]
        toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET, path: /ok}]}}]
"""
CILIUM_DENY = """
    apiVersion: cilium.io/v2
    kind: CiliumNetworkPolicy
    metadata: {name: deny, namespace: x}
    spec:
      endpointSelector: {matchLabels: {pod: a}}
      ingressDeny: [{fromEntities: [all]}]
"""


def kubernetes(peer: str) -> str:
    return f"""
    apiVersion: networking.k8s.io/v1
    kind: NetworkPolicy
    metadata: {{name: knp, namespace: x}}
    spec: {{podSelector: {{matchLabels: {{pod: a}}}}, ingress: [{{from: [{peer}], ports: [{{port: 80}}]}}]}}
"""


def admin(rules: str, priority: int = 5) -> str:
    return f"""
    apiVersion: policy.networking.k8s.io/v1alpha1
    kind: AdminNetworkPolicy
    metadata: {{name: anp{priority}}}
    spec: {{priority: {priority}, subject: {{namespaces: {{}}}}, ingress: [{rules}]}}
"""


def baseline(rules: str) -> str:
    return f"""
    apiVersion: policy.networking.k8s.io/v1alpha1
    kind: BaselineAdminNetworkPolicy
    metadata: {{name: default}}
    spec: {{subject: {{namespaces: {{}}}}, ingress: [{rules}]}}
"""


def calico(spec: str, name: str = "calico") -> str:
    return f"""
    apiVersion: projectcalico.org/v3
    kind: NetworkPolicy
    metadata: {{name: {name}, namespace: x}}
    spec: {{selector: pod == 'a', types: [Ingress], {spec}}}
"""


FROM_B = "{podSelector: {matchLabels: {pod: b}}}"
Y = "{namespaces: {matchLabels: {ns: y}}}"
ANYBODY = "{namespaces: {}}"


def test_11_17_a_plain_kubernetes_allow_makes_http_rules_moot_for_its_own_peers() -> None:
    town = Town(CILIUM_L7, kubernetes(FROM_B))
    assert town.http("x/b", "x/a", "GET /no") and town.http("x/c", "x/a", "GET /ok")
    assert not town.http("x/c", "x/a", "GET /no") and not town.allows("x/b", "x/a", "81/TCP")


def test_a_cilium_deny_beats_a_kubernetes_allow() -> None:
    town = Town(CILIUM_DENY, kubernetes("{namespaceSelector: {}}"))
    assert not town.allows("x/b", "x/a")


def test_an_admin_pass_leaves_requests_to_cilium_and_a_deny_does_not() -> None:
    town = Town(CILIUM_L7, admin(f"{{action: Pass, from: [{Y}]}}, {{action: Deny, from: [{ANYBODY}]}}"))
    assert town.http("y/a", "x/a", "GET /ok") and not town.http("y/a", "x/a", "GET /no")
    assert not town.allows("z/a", "x/a") and not town.allows("y/a", "x/a", "81/TCP")
    assert town.ingress("z/a", "x/a").l4.ref is not None


def test_an_admin_allow_lets_every_request_pass_and_beats_a_cilium_deny() -> None:
    for below in (CILIUM_L7, CILIUM_DENY):
        town = Town(below, admin(f"{{action: Allow, from: [{Y}]}}"))
        assert town.http("y/a", "x/a", "DELETE /no")
        assert not town.http("z/a", "x/a", "DELETE /no")


def test_a_baseline_never_judges_whom_cilium_isolates() -> None:
    town = Town(CILIUM_L7, baseline(f"{{action: Allow, from: [{ANYBODY}]}}"))
    assert not town.allows("y/a", "x/a", "81/TCP") and not town.http("y/a", "x/a", "GET /no")
    closed = Town(CILIUM_L7, baseline(f"{{action: Deny, from: [{ANYBODY}]}}"))
    assert closed.http("y/a", "x/a", "GET /ok") and not closed.allows("y/a", "x/b")


@pytest.mark.parametrize(
    ("order", "reached"),
    [("order: 999, ", False), ("order: 1001, ", True), ("", True)],
    ids=["before the union", "after it", "no order is after it"],
)
def test_calico_deny_before_and_after_cilium(order: str, reached: bool) -> None:
    town = Town(CILIUM_L7, calico(f"{order}ingress: [{{action: Deny}}]"))
    assert town.allows("y/a", "x/a") is reached
    if reached:
        assert town.http("y/a", "x/a", "GET /ok") and not town.http("y/a", "x/a", "GET /no")


def test_a_request_that_cilium_does_not_match_goes_on_to_calicos_rules_after_it() -> None:
    after = calico("order: 2000, ingress: [{action: Allow, protocol: TCP, http: {paths: [{prefix: /extra}]}}]")
    town = Town(CILIUM_L7, after)
    assert town.http("y/a", "x/a", "GET /ok") and town.http("y/a", "x/a", "POST /extra/x")
    assert not town.http("y/a", "x/a", "POST /extras") and not town.http("8.8.8.8", "x/a", "GET /ok")
    assert town.http("8.8.8.8", "x/a", "GET /extra")


def test_calico_pass_skips_the_union_in_its_tier() -> None:
    town = Town(CILIUM_L7, calico("order: 1, ingress: [{action: Pass, source: {selector: pod == 'b'}}]"))
    assert town.http("x/b", "x/a", "GET /no") and not town.http("x/c", "x/a", "GET /no")


def test_a_calico_tier_stands_between_admins_and_the_default_tier() -> None:
    early: list[Resource] = [PolicyTier("security", 2000.0)]
    security = calico("tier: security, ingress: [{action: Deny, source: {selector: pod == 'b'}}, {action: Pass}]")
    town = Town(security, kubernetes("{namespaceSelector: {}}"), admin(f"{{action: Allow, from: [{Y}]}}"), more=early)
    assert town.allows("y/b", "x/a", "81/TCP"), "the admin has allowed it"
    assert not town.allows("x/b", "x/a"), "security denies"
    assert town.allows("x/c", "x/a") and not town.allows("x/c", "x/a", "81/TCP"), "Pass leaves it to Kubernetes' policy"


def test_the_own_node_gets_in_through_every_tier() -> None:
    town = Town(
        CILIUM_L7,
        kubernetes(FROM_B),
        calico("ingress: [{action: Deny}]"),
        admin(f"{{action: Deny, from: [{ANYBODY}]}}"),
        baseline(f"{{action: Deny, from: [{ANYBODY}]}}"),
    )
    assert town.allows("n1", "x/a", "81/TCP") and not town.allows("n2", "x/a", "81/TCP")


def test_each_verdict_names_its_policy() -> None:
    town = Town(CILIUM_L7, kubernetes(FROM_B), admin(f"{{action: Deny, from: [{Y}]}}"), calico("order: 2000"))
    kinds = {
        peer: [ref.kind for ref in (found.l4.ref, *found.l4.also) if ref is not None]
        for peer, port in (("y/a", "80/TCP"), ("x/b", "80/TCP"), ("x/c", "81/TCP"))
        for found in (town.ingress(peer, "x/a", port),)
    }
    assert kinds["y/a"] == ["AdminNetworkPolicy"]
    assert "CiliumNetworkPolicy" in kinds["x/b"]
    assert kinds["x/c"] == ["CalicoNetworkPolicy", "CiliumNetworkPolicy", "NetworkPolicy"]
