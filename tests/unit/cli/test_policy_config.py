"""`--config`: files are read as by the agent with these settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Run

MANIFESTS = """
apiVersion: v1
kind: Node
metadata: {name: n2, labels: {zone: b}}
status: {addresses: [{type: InternalIP, address: 192.168.0.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec: {nodeName: n1}
---
apiVersion: v1
kind: Pod
metadata: {name: free, labels: {app: free}}
spec: {nodeName: n1}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress: [{toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{path: "/ok.*"}]}}]}]
"""
NODES = """---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: nodes}
spec: {endpointSelector: {matchLabels: {app: free}}, ingress: [{fromNodes: [{matchLabels: {zone: b}}]}]}
"""
ROWS = [
    ("policy-enforcement-mode: always", "free 80", 0, 1),
    ("audit: true", "web 81", 1, 0),
    ("matrix-parameters: pass", "web 80 --http GET,/ok;v=1", 1, 0),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "all.yaml").write_text(MANIFESTS)
    return tmp_path / "all.yaml"


@pytest.mark.parametrize(("setting", "to", "without", "with_it"), ROWS, ids=[row[0] for row in ROWS])
def test_trace_and_test_heed_the_agents_settings(
    run: Run, file: Path, setting: str, to: str, without: int, with_it: int
) -> None:
    config = file.with_name("config")
    config.write_text(setting + "\n")
    name, port, *rest = to.split()
    more = [part.replace(",", " ") for part in rest]
    ask = ("policy", "trace", "-f", str(file), "--from", "192.0.2.1", "--to", f"default/{name}", "--port", port, *more)
    assert run(*ask).returncode == without
    assert run(*ask, "--config", str(config)).returncode == with_it
    http = f", http: {more[1]!r}" if more else ""
    case = f"{{from: 192.0.2.1, to: default/{name}, port: {port}{http}, expect: deny}}"
    cases = file.with_name("cases")
    cases.write_text(f"manifests: [all.yaml]\ncases: [{case}]\n")
    assert run("policy", "test", str(cases)).returncode == 1 - without
    assert run("policy", "test", str(cases), "--config", str(config)).returncode == 1 - with_it


def test_validate_knows_what_is_switched_on(run: Run, file: Path) -> None:
    file.write_text(MANIFESTS + NODES)
    found = run("policy", "validate", str(file))
    assert found.returncode == 1
    assert "FromNodes/ToNodes rules can only be applied when" in found.stdout
    config = file.with_name("config")
    config.write_text("enable-node-selector-labels: true\n")
    assert run("policy", "validate", str(file), "--config", str(config)).returncode == 0


@pytest.mark.parametrize("flags", [("--like-cilium",), ("--config", "c")])
def test_a_running_agent_has_settings_of_its_own(run: Run, flags: tuple[str, ...]) -> None:
    found = run("policy", "trace", "--from", "192.0.2.1", "--to", "192.0.2.2", "--port", "80", *flags)
    assert found.returncode == 2
    assert "require -f: the node's agent uses its own settings" in found.stderr


def test_a_config_that_is_wrong_is_exit_code_2(run: Run, file: Path) -> None:
    config = file.with_name("config")
    config.write_text("nonsense: 1\n")
    found = run("policy", "validate", str(file), "--config", str(config))
    assert found.returncode == 2
    assert "unknown setting 'nonsense'" in found.stderr
