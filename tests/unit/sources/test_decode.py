"""One object, a plain mapping as YAML or the Kubernetes API gives it."""

from __future__ import annotations

from typing import Any

import pytest

from l7proxy.errors import PolicyError, SourceError
from l7proxy.model.resources import CidrGroup, Pod, PolicyDocument, SourceLocation
from l7proxy.policy import lang
from l7proxy.policy.lang.options import Options
from l7proxy.sources.decode import Fault, decode, decoded

HERE = SourceLocation("f.yaml", 3)


def policy(ingress: Any, **metadata: Any) -> dict[str, Any]:
    spec = {"endpointSelector": {}, "ingress": ingress}
    named = {"name": "p", "namespace": "shop"} | metadata
    return {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": named, "spec": spec}


def test_an_object_of_the_api_needs_no_lines() -> None:
    metadata = {"name": "web", "namespace": "shop", "uid": "1-2", "resourceVersion": "7", "managedFields": [{}]}
    found = decode({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": {"podIP": "10.0.0.5"}})
    assert found == Pod("shop", "web", addresses=("10.0.0.5",))
    wrong = decode({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": {"podIP": "x"}})
    assert isinstance(wrong, Fault)
    assert (wrong.key, wrong.placeholder, wrong.error.field) == (Pod("shop", "web").key, None, "status.podIP")


def test_a_policy_is_parsed_and_its_rules_name_the_line() -> None:
    found = decode(policy([{}]), HERE, lambda: {"spec": 5, "spec.ingress": 7})
    assert isinstance(found, PolicyDocument)
    assert isinstance(found.parsed, lang.Read)
    assert [(rule.ref.file, rule.ref.line) for rule in found.parsed.rules] == [("f.yaml", 7)]


def test_an_invalid_policy_is_a_fault_and_its_placeholder_holds_the_error() -> None:
    found = decode(policy([{"fromEndpoint": [{}]}]), HERE, lambda: {"spec.ingress[0]": 8})
    assert isinstance(found, Fault)
    assert (found.error.line, found.error.field) == (8, "spec.ingress[0].fromEndpoint")
    assert isinstance(found.placeholder, PolicyDocument)
    assert isinstance(found.placeholder.parsed, PolicyError)
    assert found.placeholder.fault == "", "its fields are those of the document"


def test_a_policy_with_broken_metadata_leaves_a_placeholder() -> None:
    found = decode(policy([{}], name=5), HERE)
    assert isinstance(found, Fault)
    assert found.unattributed
    assert isinstance(found.placeholder, PolicyDocument)
    assert (found.placeholder.name, found.placeholder.parsed.at) == ("f.yaml:3", "metadata.name")
    assert found.placeholder.fault == "must be a string, not a number"


def test_an_unsupported_policy_is_no_fault_and_options_decide() -> None:
    document = policy([{"fromNodes": [{}]}])
    found = decode(document)
    assert isinstance(found, PolicyDocument)
    assert isinstance(found.parsed, PolicyError)
    assert found.parsed.unsupported
    allowed = decode(document, options=Options(node_selectors=True))
    assert isinstance(allowed, PolicyDocument)
    assert isinstance(allowed.parsed, lang.Read)


def test_a_group_that_cannot_be_read_may_mean_any_address() -> None:
    group = {"apiVersion": "cilium.io/v2", "kind": "CiliumCIDRGroup", "metadata": {"name": "g"}}
    found = decode({**group, "spec": {"externalCIDRs": ["x"]}}, HERE)
    assert isinstance(found, Fault)
    assert found.placeholder == CidrGroup("g", unread=True, origin=HERE)


def test_a_kind_that_is_not_used_is_a_note_and_a_typo_of_a_policy_kind_a_fault() -> None:
    note = decode({"apiVersion": "v1", "kind": "ConfigMap"}, HERE)
    assert isinstance(note, SourceError)
    assert str(note) == "f.yaml:3: kind: v1 ConfigMap is not used by l7proxy: ignored"
    typo = decode({**policy([{}]), "kind": "CiliumNetworkPolici"}, HERE)
    assert isinstance(typo, Fault)
    assert str(typo.key) == "CiliumNetworkPolicy shop/p"


@pytest.mark.parametrize("value", [None, 5, "text", ["list"]])
def test_what_is_no_mapping_is_a_fault(value: Any) -> None:
    found = decode(value, HERE)
    assert isinstance(found, Fault)
    assert str(found.error) == "f.yaml:3: a manifest must be a mapping with kind and metadata"


def test_results_are_sorted_by_what_they_are() -> None:
    pod, note, fault = Pod("shop", "web"), SourceError("note"), Fault(SourceError("fault"))
    found = decoded([note, fault, pod])
    assert (found.resources, found.faults, found.notes) == ((pod,), (fault,), (note,))
