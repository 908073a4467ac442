"""deploy/smoke: its manifests, checks and script as a user runs them, with a lab as the cluster."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from l7proxy.lab.state import Lab
from tests.lab.conftest import ROOT, Cluster

SMOKE = ROOT / "deploy" / "smoke"
GIVEN = [("Node", "node-1"), ("Node", "node-2"), ("Namespace", "theirs")]


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes without pods, and somebody's namespace."""
    nodes = tmp_path_factory.mktemp("nodes") / "nodes.yaml"
    nodes.write_text(
        "\n---\n".join(f"{{apiVersion: v1, kind: {kind}, metadata: {{name: {name}}}}}" for kind, name in GIVEN)
    )
    lab = Cluster(f"smoke{os.getpid()}")
    lab.run("up", "-f", str(nodes))
    try:
        yield lab
    finally:
        lab.run("down")


def smoke(*arguments: str, directory: Path = SMOKE, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({"PATH": path} if path else {})}
    return subprocess.run(
        ["/bin/sh", str(directory / "run.sh"), *arguments],
        capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300,
    )  # fmt: skip


def kubectl(lab: Cluster) -> str:
    return f"{sys.executable} -m tests.support.kubectl_of_lab {lab.name}"


def objects(lab: Cluster) -> set[str]:
    return {f"{key}" for key in Lab(lab.name).store.load() if key.kind in {"Pod", "CiliumNetworkPolicy"}}


def test_every_verdict_is_right_and_nothing_is_left(empty: Cluster) -> None:
    done = smoke("--kubectl", kubectl(empty))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in (SMOKE / "checks.tsv").read_text().splitlines() if not line.startswith("#")]
    assert f"All {len(rows)} verdicts are right." in done.stdout
    assert done.stdout.count(" ok: ") == len(rows)
    assert objects(empty) == set()


def test_a_wrong_verdict_is_found_and_fails(empty: Cluster, tmp_path: Path) -> None:
    """Without the policies, and with one node: every refusal that was expected is missing."""
    copy = tmp_path / "smoke"
    shutil.copytree(SMOKE, copy)
    (copy / "manifests" / "2-policies.yaml").write_text("# none\n")
    done = smoke(
        "--kubectl", kubectl(empty), "--namespace", "mine", "--one-node", "--timeout", "1", "--keep", directory=copy
    )
    assert done.returncode == 1, done.stdout + done.stderr
    rows = [line.split("\t") for line in (SMOKE / "checks.tsv").read_text().splitlines() if not line.startswith("#")]
    near = [row for row in rows if not row[0].endswith("-far")]
    refused = sum(row[5] != "200" for row in near)
    assert f"{refused} of {len(near)} verdicts are wrong." in done.stdout
    assert f"{len(rows) - len(near)} rows were skipped." in done.stdout
    assert done.stdout.count(" WRONG: ") == refused
    assert "Kept. To remove:" in done.stdout
    assert "Pod mine/frontend" in objects(empty)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nonsense"], "unknown option --nonsense"),
        (["--image"], "--image needs a value"),
        (["--image", "a b"], "is not the name of an image"),
        (["--namespace", "A"], "must have lower case letters"),
        (["--timeout", "soon"], "must be a number of seconds"),
        (["--kubectl", "no-such-kubectl"], "no-such-kubectl is not installed: install kubectl"),
        (["--kubectl", "false"], "the cluster cannot be used: check"),
    ],
)
def test_what_cannot_run_says_why_and_what_to_do(arguments: list[str], said: str) -> None:
    done = smoke(*arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_namespace_of_others_is_not_touched(empty: Cluster) -> None:
    before = objects(empty)
    done = smoke("--kubectl", kubectl(empty), "--namespace", "theirs")
    assert done.returncode == 2
    assert "the namespace theirs exists and is not of this test" in done.stderr
    assert objects(empty) == before


def test_help_names_every_option() -> None:
    done = smoke("--help")
    assert done.returncode == 0
    for option in ("--image", "--namespace", "--kubectl", "--timeout", "--drop", "--one-node", "--keep"):
        assert option in done.stdout
