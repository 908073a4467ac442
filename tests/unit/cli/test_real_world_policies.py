"""`policy validate` on a folder of policies of all kinds, as people write them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from l7proxy.cluster.state import ClusterState
from l7proxy.policy import lang
from l7proxy.policy.compile import compile_policies
from l7proxy.sources.files.scan import load

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Run

FOLDER = Path(__file__).parents[2] / "policies" / "real-world"
FILES = sorted(path for path in FOLDER.iterdir() if path.is_file())
UNENFORCED = sorted((FOLDER / "unenforced").iterdir())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_what_people_write_is_valid(file: Path, run: Run) -> None:
    found = run("policy", "validate", str(file))
    assert found.returncode == 0, found.stdout
    assert found.stdout.splitlines()[-1].startswith("valid: ")


@pytest.mark.parametrize("file", UNENFORCED, ids=lambda file: file.name)
def test_what_we_do_not_enforce_is_told_by_name_and_line(file: Path, run: Run) -> None:
    found = run("policy", "validate", str(file))
    assert found.returncode == 1
    for line in found.stdout.splitlines():
        if ": note: " not in line and ": warning: " not in line:
            assert line.startswith(f"{file}:") and "not supported yet" in line


def test_every_kind_of_policy_that_we_read_is_there() -> None:
    changes, problems = load([FOLDER])
    assert not problems
    world = ClusterState()
    world.apply(changes)
    view = world.view(None)
    assert {one.kind for one in view.policies} == {
        lang.known_as({"apiVersion": f"{group}/v", "kind": kind})
        for group, kind in lang.LANGUAGES
        if group != "extensions"
    }
    assert compile_policies(view.rules, view.endpoints, view.identities) == {}, "there are no pods"
