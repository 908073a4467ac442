"""The bytes of one file: its objects, lists, and text that is not YAML."""

from __future__ import annotations

from l7proxy.model.resources import PolicyDocument
from l7proxy.sources.files.manifest import parse


def test_a_fault_in_a_list_is_the_items_own() -> None:
    text = "apiVersion: v1\nkind: PodList\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: a}}\n"
    text += "- apiVersion: v1\n  kind: Pod\n  metadata: {name: b}\n  status:\n    podIP: x\n"
    manifest = parse(text.encode(), "a.yaml")
    assert [resource.key.name for resource in manifest.resources] == ["a"]
    assert [(one.error.line, one.error.field) for one in manifest.faults] == [(9, "status.podIP")]
    assert manifest.faults[0].key is not None
    assert str(manifest.faults[0].key) == "Pod default/b"


def test_kinds_that_say_nothing_to_us_are_noted_and_no_fault() -> None:
    manifest = parse(b"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n", "a.yaml")
    assert (manifest.resources, manifest.faults) == ((), ())
    assert [note.message for note in manifest.notes] == ["apps/v1 Deployment is not used by l7proxy: ignored"]


def test_torn_text_of_a_policy_leaves_a_placeholder_and_the_rest_is_read() -> None:
    policy = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: [\n"
    manifest = parse(f"{policy}---\napiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\n".encode(), "a.yaml")
    assert [str(resource.key) for resource in manifest.resources] == ["Pod default/a"]
    (fault,) = manifest.faults
    assert fault.unattributed
    assert isinstance(fault.placeholder, PolicyDocument)
    assert str(fault.placeholder.key) == "CiliumNetworkPolicy shop/p"


def test_torn_text_of_a_secret_is_not_quoted() -> None:
    (fault,) = parse(b"kind: Secret\nstringData: {a: b\n  hunter2: : [\n", "a.yaml").faults
    assert "details are withheld" in str(fault.error)
    assert "hunter2" not in str(fault.error)


def test_a_file_that_is_not_text_is_one_fault() -> None:
    (fault,) = parse(b"kind: Pod\n\xff", "a.yaml").faults
    assert str(fault.error) == "a.yaml:2: the file is not UTF-8 text"
