"""The status of a policy comes from what its source has parsed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from l7proxy.cluster.policy_status import PolicyPhase, status_of
from l7proxy.errors import PolicyError, SourceError
from l7proxy.model.resources import PolicyDocument, SourceLocation
from l7proxy.model.verdict import Action
from l7proxy.policy import lang
from l7proxy.sources import objects

HERE = SourceLocation("p.yaml", 1)


def policy(ingress: Any) -> PolicyDocument:
    metadata, spec = {"name": "p", "namespace": "shop"}, {"endpointSelector": {}, "ingress": ingress}
    document = {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": metadata, "spec": spec}
    return objects.policy(document, HERE, {"spec.ingress[0]": 7})


def test_rules_are_those_that_were_parsed_not_those_of_the_document() -> None:
    other = policy([{"fromEntities": ["world"]}]).parsed
    found = status_of(replace(policy([{}]), parsed=other))
    assert (found.state, found.rules) == (PolicyPhase.ACCEPTED, other.rules)
    assert found.rules != status_of(policy([{}])).rules


@pytest.mark.parametrize(("unsupported", "phase"), [(True, PolicyPhase.REFUSED), (False, PolicyPhase.INVALID)])
def test_an_error_becomes_rules_that_refuse(unsupported: bool, phase: PolicyPhase) -> None:
    error = PolicyError("no", at="spec.ingress[0].fromNodes", unsupported=unsupported)
    found = status_of(replace(policy([{}]), parsed=error))
    assert (found.state, found.reason, found.file, found.line) == (phase, "spec.ingress[0].fromNodes: no", "p.yaml", 7)
    assert {rule.action for rule in found.rules} == {Action.DENY}


def test_a_placeholder_is_invalid_and_says_why() -> None:
    unread = objects.placeholder(policy([{}]).document, HERE, {}, SourceError("torn", field="metadata.name"))
    found = status_of(unread)
    assert (found.state, found.reason) == (PolicyPhase.INVALID, "metadata.name: torn")
    assert {rule.action for rule in found.rules} == {Action.DENY}


def test_a_part_that_is_not_enforced_is_named() -> None:
    found = status_of(policy([{"authentication": {"mode": "required"}}]))
    assert found.state is PolicyPhase.PARTLY
    assert "authentication" in found.reason
    assert isinstance(policy([{}]).parsed, lang.Read)


def test_the_version_of_the_object_is_known_whatever_comes_of_it() -> None:
    """So status can say which generation is enforced, or cannot be."""
    version = {"uid": "u-1", "generation": 7}
    for ingress in (None, 5):
        document = policy(ingress).document
        found = status_of(objects.policy({**document, "metadata": {**document["metadata"], **version}}))
        assert (found.uid, found.generation, found.api_version) == ("u-1", 7, "cilium.io/v2")
    odd = {"uid": 5, "generation": "x"}
    found = status_of(objects.policy({**document, "metadata": {**document["metadata"], **odd}}))
    assert (found.uid, found.generation) == ("", 0)
