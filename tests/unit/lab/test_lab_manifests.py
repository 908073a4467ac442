"""Manifests: one object is one file, stored unchanged; unreadable input is reported by file, line and field."""

from __future__ import annotations

from pathlib import Path

import pytest

from l7proxy.errors import SourceError
from l7proxy.lab.manifests import Key, Store, parse, read

POD = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\n"


def test_documents_keep_their_text_and_say_where_they_stood() -> None:
    policy = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata:\n  name: p  # a remark\n"
    first, second = parse(POD + "---\n" + policy, "a.yaml")
    assert first.key == Key("Pod", "", "default", "web")
    assert second.key == Key("CiliumNetworkPolicy", "cilium.io", "default", "p")
    assert (second.text, second.line) == (policy, 5)


def test_an_unknown_field_is_kept_for_the_agent_to_judge() -> None:
    (manifest,) = parse(POD + "spec: {nonsense: 1}\n", "a.yaml")
    assert "nonsense: 1" in manifest.text


def test_a_list_is_its_items() -> None:
    items = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: a}}\n"
    assert [m.key.name for m in parse(items + "- {apiVersion: v1, kind: Pod, metadata: {name: b}}\n", "l")] == [
        "a",
        "b",
    ]


def test_cluster_scoped_kinds_have_no_namespace() -> None:
    (node,) = parse("apiVersion: v1\nkind: Node\nmetadata: {name: n, namespace: x}\n", "a")
    assert node.key == Key("Node", "", "", "n")


def test_one_kind_in_two_groups_is_two_objects() -> None:
    ours = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\n"
    theirs = ours.replace("networking.k8s.io/v1", "projectcalico.org/v3")
    first, second = parse(f"{ours}---\n{theirs}", "a")
    assert first.key.file != second.key.file


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: Pod\n a: b\n", "a.yaml:2"),
        ("- 1\n", "a.yaml:1: a manifest must be a mapping"),
        ("apiVersion: v1\nmetadata: {name: x}\n", "kind: must be the name"),
        ("kind: Pod\nmetadata: {name: x}\n", "apiVersion: missing"),
        ("apiVersion: v1\nkind: Pod\n", "metadata: must be a mapping"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: ../../etc/passwd}\n", "metadata.name: '../../etc/passwd'"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: b/c}\n", "metadata.namespace: 'b/c'"),
        ("apiVersion: v1\nkind: ../x\nmetadata: {name: a}\n", "kind: must be the name"),
        ("apiVersion: '../v1/v1'\nkind: Pod\nmetadata: {name: a}\n", "apiVersion: '../v1/v1'"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: a, name: b}\n", "duplicate key 'name'"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, said: str) -> None:
    with pytest.raises(SourceError) as caught:
        parse(text, "a.yaml")
    assert said in str(caught.value)


def test_an_object_in_two_files_names_both(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(POD)
    (tmp_path / "b.yaml").write_text(f"---\n{POD}")
    with pytest.raises(SourceError, match=r"b\.yaml:2.*Pod default/web: is defined twice, first at .*a\.yaml:1"):
        read([tmp_path])


def test_no_such_path_and_an_empty_directory_are_errors(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        read([tmp_path / "none"])
    with pytest.raises(SourceError, match="contains no"):
        read([tmp_path])


def test_the_store_holds_exactly_what_was_saved_and_leaves_equal_files_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    both = parse(POD + "---\n" + POD.replace("web", "db"), "x")
    store.save(both)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    store.save(both)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    store.save(both[:1])
    assert list(store.load()) == [both[0].key]
    assert [path.name for path in tmp_path.iterdir()] == ["pod_default_web.yaml"]


def test_each_document_keeps_its_own_text() -> None:
    texts = [
        "# of the first\nkind: A\napiVersion: v1\nmetadata: {name: a}\n",
        "apiVersion: v1\nkind: B\nmetadata:\n  name: b\n  note: |\n    a\n     --- b\n\n    c # kept\n",
        '{"apiVersion": "v1", "kind": "C", "metadata": {"name": "c", "text": "a\u2028b"}}\n',
        "apiVersion: v1\nkind: D\nmetadata: {name: d}\n",
    ]
    found = parse("\n--- # next\n".join(texts), "a.yaml")
    assert [one.document for one in found] == [parse(one.text, "b.yaml")[0].document for one in found]
    assert [one.text for one in found[1:]] == texts[1:]
