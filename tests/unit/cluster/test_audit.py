"""Audit mode: by the policy's annotation, by the namespace's, by the agent's setting; and invalid values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from l7proxy.cluster import policy_status
from l7proxy.cluster.audit import ANNOTATION
from l7proxy.cluster.policy_status import PolicyPhase
from l7proxy.cluster.state import ClusterState, NodeView
from l7proxy.model.resources import Namespace, Node, Pod, PolicyDocument, Resource, Upsert
from l7proxy.sources import objects
from l7proxy.sources.source import SYNCED

N1 = Node("n1", ("192.168.0.1",), ("10.0.1.0/24",))
WEB = Pod("shop", "web", "n1", ("10.0.1.5",), {"app": "web"})
OTHER = Pod("other", "web", "n1", ("10.0.1.6",), {"app": "web"})


def document(value: Any, spec: Any = None) -> PolicyDocument:
    metadata = {"name": "p", "namespace": "shop", "annotations": {ANNOTATION: value}}
    body = spec or {"endpointSelector": {}, "ingress": [{}]}
    text = {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": metadata, "spec": body}
    return objects.policy(text)


def view(space: Namespace, *, audit_all: bool = False, pods: tuple[Pod, ...] = (WEB, OTHER)) -> NodeView:
    cluster_state = ClusterState(audit_all=audit_all)
    told: list[Resource] = [N1, space, *pods]
    cluster_state.apply([*(Upsert(resource) for resource in told), *SYNCED])
    return cluster_state.view("n1")


def test_a_policy_is_audited_by_its_annotation() -> None:
    state = policy_status.status_of(document("true"))
    assert (state.state, state.audit, state.reason) == (PolicyPhase.ACCEPTED, True, "")
    assert all(rule.audit for rule in state.rules)
    assert not policy_status.status_of(document("false")).audit


def test_a_refused_policy_is_audited_too() -> None:
    state = policy_status.status_of(document("true", {"endpointSelector": {}, "ingress": [{"nonsense": 1}]}))
    assert state.state is PolicyPhase.INVALID
    assert state.rules
    assert all(rule.audit for rule in state.rules)


@pytest.mark.parametrize("value", ["yes", "True", "", True, 1, None])
def test_what_is_neither_true_nor_false_is_enforced_and_told(value: object) -> None:
    state = policy_status.status_of(document(value))
    assert not state.audit
    assert not any(rule.audit for rule in state.rules)
    assert 'must be "true" or "false": the policy is enforced' in state.reason


def test_a_namespace_audits_its_own_endpoints() -> None:
    found = view(Namespace("shop", annotations={ANNOTATION: "true"}))
    assert {str(one): one.audit for one in found.endpoints} == {"shop/web": True, "other/web": False}
    assert found.problems == ()


def test_a_namespace_that_says_it_wrongly_is_a_problem() -> None:
    found = view(Namespace("shop", annotations={ANNOTATION: "on"}))
    assert not any(one.audit for one in found.endpoints)
    (problem,) = found.problems
    assert problem.field == "metadata.annotations.l7proxy.io/audit"
    assert "'on' must be" in problem.message


def test_the_whole_node_but_not_an_address_that_two_claim() -> None:
    found = view(Namespace("shop"), audit_all=True, pods=(WEB, replace(OTHER, addresses=WEB.addresses)))
    assert {one.name: one.audit for one in found.endpoints} == {"conflicting address 10.0.1.5": False}
    assert all(one.audit for one in view(Namespace("shop"), audit_all=True).endpoints)
