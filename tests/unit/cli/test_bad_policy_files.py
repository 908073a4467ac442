"""Bad policy files: `policy validate` reports file, line and field, one line per error, and never takes long."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Run

POLICY = """apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: a}
spec:
  endpointSelector: {}
  ingress:
  - toPorts:
    - ports: [{port: "80", protocol: TCP}]
      rules:
        http:
        - path: "/PATH"
"""
PATH = "spec.ingress[0].toPorts[0].rules.http[0].path"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param(POLICY.replace("{name: a}", "{name: a"), "p.yaml:4: not valid YAML: ", id="malformed"),
        pytest.param(
            POLICY.replace("- toPorts", "- toPort"),
            'p.yaml:7: spec.ingress[0].toPort: unknown field "toPort"; did you mean "toPorts"?',
            id="unknown field",
        ),
        pytest.param(
            POLICY.replace("PATH", "a("), f"p.yaml:11: {PATH}: error parsing regexp: missing closing )", id="bad regex"
        ),
        pytest.param(
            POLICY.replace("PATH", "a" * 100_000),
            f"p.yaml:11: {PATH}: the regular expression has 100001 bytes, the limit is 8192",
            id="100 kB regex",
        ),
        pytest.param(
            POLICY.replace("PATH", "(a|b)" * 20_000), f"p.yaml:11: {PATH}: the regular expression has", id="of groups"
        ),
        pytest.param(
            POLICY.replace("PATH", "(((a{1,99}){1,99}){1,99})"),
            f"p.yaml:11: {PATH}: error parsing regexp: ",
            id="a small one that grows",
        ),
        pytest.param(
            POLICY.replace("{name: a}", "{namespace: x}"),
            "p.yaml:3: metadata.name: CiliumNetworkPolicy must have name",
            id="1.1.4 no name",
        ),
        pytest.param(
            POLICY.replace("NetworkPolicy", "ClusterwideNetworkPolicy").replace("{name: a}", "{}"),
            "p.yaml:3: metadata.name: CiliumClusterwideNetworkPolicy must have name",
            id="1.1.4 no name, cluster-wide",
        ),
        pytest.param(
            f"{POLICY}---\n{POLICY}",
            "p.yaml:13: metadata.name: CiliumNetworkPolicy default/a is already defined in ",
            id="one name twice",
        ),
        pytest.param(
            POLICY.replace("spec:\n", "spec:\n  endpointSelector: {}\n"),
            "p.yaml:6: endpointSelector: duplicate key 'endpointSelector' (first defined in line 5)",
            id="one key twice",
        ),
        pytest.param("[" * 5000, "p.yaml:1: nested deeper than 100 levels", id="deep"),
        pytest.param("- 1\n", "p.yaml:1: a manifest must be a mapping", id="no mapping"),
        pytest.param("a: \x01\n", "p.yaml:1: ", id="control characters"),
    ],
)
def test_each_is_named_with_its_place(run: Run, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    begun = time.monotonic()
    found = run("policy", "validate", str(tmp_path / "p.yaml"))
    assert time.monotonic() - begun < 5
    assert found.returncode == 1
    assert any(line.partition(f"{tmp_path}/")[2].startswith(said) for line in found.stdout.splitlines()), found
    assert all(len(line) < 500 for line in found.stdout.splitlines()), "what was written is not repeated whole"
    assert "Traceback" not in found.stdout + found.stderr


def test_a_missing_name_is_told_once(run: Run, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(POLICY.replace("{name: a}", "{}"))
    assert run("policy", "validate", str(tmp_path / "p.yaml")).stdout.count("metadata.name") == 1


def test_bytes_that_are_no_text(run: Run, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_bytes(bytes(range(256)))
    found = run("policy", "validate", str(tmp_path / "p.yaml"))
    assert found.returncode == 1
    assert "p.yaml:2: the file is not UTF-8 text" in found.stdout


def test_aliases_that_multiply_are_bounded(run: Run, tmp_path: Path) -> None:
    """A hundred bytes of YAML that would expand to gigabytes."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    (tmp_path / "p.yaml").write_text("\n".join(lines))
    begun = time.monotonic()
    found = run("policy", "validate", str(tmp_path / "p.yaml"))
    assert time.monotonic() - begun < 5
    assert found.returncode == 1
    assert "p.yaml:" in found.stdout
