"""How Kubernetes' NetworkPolicy is read, ours or Cilium's: an agent setting, and a flag for commands on files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from l7proxy.errors import ConfigError
from l7proxy.settings.derived import policy_options
from l7proxy.settings.read import load

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Run

MANIFESTS = """
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: x, labels: {app: a}}
spec: {nodeName: n1}
status: {podIP: 10.0.1.5}
---
apiVersion: v1
kind: Pod
metadata: {name: b, namespace: x, labels: {app: b}}
spec: {nodeName: n2}
status: {podIP: 10.0.2.5}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec:
  podSelector: {matchLabels: {app: a}}
  policyTypes: [Egress]
  ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}}]}]
"""


def test_trace_and_validate_with_and_without_the_flag(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "all.yaml"
    file.write_text(MANIFESTS)
    ask = ("policy", "trace", "-f", str(file), "--from", "x/b", "--to", "x/a", "--port", "80/TCP")
    assert run(*ask).returncode == 0
    assert run(*ask, "--like-cilium").returncode == 1
    told = f"{file}:20: note: spec.ingress: has no effect: policyTypes does not include Ingress"
    assert told in run("policy", "validate", str(file)).stdout
    assert "has no effect" not in run("policy", "validate", str(file), "--like-cilium").stdout


def test_cases_with_and_without_the_flag(run: Run, tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text(MANIFESTS)
    cases = tmp_path / "cases.yaml"
    cases.write_text("manifests: [all.yaml]\ncases: [{from: x/b, to: x/a, port: 80/TCP, expect: deny}]\n")
    assert run("policy", "test", str(cases)).returncode == 1
    assert run("policy", "test", str(cases), "--like-cilium").returncode == 0


def test_the_agent_is_told_in_its_settings(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("kubernetes-network-policy: cilium\n")
    assert policy_options(load(file)).kubernetes_like_cilium is True
    assert policy_options(load(None)).kubernetes_like_cilium is False
    file.write_text("kubernetes-network-policy: calico\n")
    with pytest.raises(ConfigError, match="kubernetes-network-policy: must be one of kubernetes, cilium, not 'calico'"):
        load(file)
