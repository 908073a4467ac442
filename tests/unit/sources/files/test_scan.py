"""Files and directories that are read once, and objects that several files define."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from l7proxy.model.resources import Pod, Upsert
from l7proxy.sources.files.scan import load
from tests.support.manifests import POLICY, pod, said, write


def test_load_names_files_as_they_were_given(tmp_path: Path) -> None:
    write(tmp_path / "d" / "a.yaml", pod("a", "x"))
    write(tmp_path / "d" / "b.json", '{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}')
    write(tmp_path / "d" / "notes.txt", "not a manifest")
    write(tmp_path / "one.yaml", POLICY)
    changes, problems = load([tmp_path / "d", tmp_path / "one.yaml", tmp_path / "gone"])
    assert said(changes) == ["+CiliumNetworkPolicy shop/p", "+Namespace n", "synced"]
    assert [(one.file, one.line, one.field) for one in problems] == [
        (str(tmp_path / "d" / "a.yaml"), 4, "status.podIP"),
        (str(tmp_path / "gone"), None, ""),
    ]


def test_the_first_file_by_path_has_an_object_and_both_places_are_named(tmp_path: Path) -> None:
    write(tmp_path / "b.yaml", pod("a", "10.0.0.6"))
    write(tmp_path / "a.yaml", pod("a", "10.0.0.5", f"---\n{pod('a', '10.0.0.9')}"))
    changes, problems = load([tmp_path])
    upsert = changes[0]
    assert isinstance(upsert, Upsert)
    assert isinstance(upsert.resource, Pod)
    assert upsert.resource.addresses == ("10.0.0.5",)
    a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
    assert [str(one) for one in problems] == [
        f"{a}:6: metadata.name: Pod default/a is already defined in {a}:1, which stays in force",
        f"{b}:1: metadata.name: Pod default/a is already defined in {a}:1, which stays in force",
    ]


def test_load_reads_a_pipe_that_it_is_given(tmp_path: Path) -> None:
    """As `policy validate <(kubectl get …)` does."""
    os.mkfifo(tmp_path / "p")
    writer = threading.Thread(target=(tmp_path / "p").write_text, args=(POLICY,))
    writer.start()
    changes, problems = load([tmp_path / "p"])
    writer.join()
    assert (said(changes), problems) == (["+CiliumNetworkPolicy shop/p", "synced"], [])
