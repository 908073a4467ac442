"""Odd input to `policy validate`, `trace` and `test`: not a policy, not a file, endless, or not existing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from l7proxy.policy import lang

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Run

POLICY = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {podSelector: {}}\n"
FLOW = ("--from", "192.0.2.1", "--to", "192.0.2.2", "--port", "80")


@pytest.mark.parametrize("text", ["", "---\n---\n", "# nothing\n"], ids=["empty", "only dashes", "only a comment"])
def test_a_file_without_anything(run: Run, tmp_path: Path, text: str) -> None:
    (tmp_path / "f.yaml").write_text(text)
    found = run("policy", "validate", str(tmp_path / "f.yaml"))
    assert (found.returncode, found.stdout) == (0, "valid: 0 policies\n")
    assert run("policy", "trace", "-f", str(tmp_path / "f.yaml"), *FLOW).returncode == 0
    found = run("policy", "test", str(tmp_path / "f.yaml"))
    assert (found.returncode, found.stdout) == (2, "")
    assert "must be a mapping with `manifests` and `cases`" in found.stderr


def test_a_folder_that_is_its_own_child_is_read_once(run: Run, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(POLICY)
    (tmp_path / "self").symlink_to(tmp_path)
    assert run("policy", "validate", str(tmp_path)).stdout == "valid: 1 policy\n"


def test_a_pipe_in_a_folder_holds_nobody_up_and_one_that_is_named_is_read(run: Run, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(POLICY)
    os.mkfifo(tmp_path / "pipe.yaml")
    found = run("policy", "validate", str(tmp_path))
    assert (found.returncode, found.stdout) == (1, f"{tmp_path}/pipe.yaml: cannot be read: not a regular file\n")
    reading, writing = os.pipe()
    os.write(writing, POLICY.encode())
    os.close(writing)
    try:
        assert run("policy", "validate", f"/dev/fd/{reading}").stdout == "valid: 1 policy\n"
    finally:
        os.close(reading)


@pytest.mark.parametrize("command", ["validate", "test"])
def test_a_file_without_an_end(run: Run, command: str) -> None:
    found = run("policy", command, "/dev/zero")
    assert found.returncode == (1 if command == "validate" else 2)
    assert "the limit is 8388608" in found.stdout + found.stderr


SLIPS = [
    ("v1", "NetworkPolicy", "networking.k8s.io/v1 NetworkPolicy"),
    ("networking.k8s.io/v1", "networkpolicy", "networking.k8s.io/v1 NetworkPolicy"),
    ("networking.k8s.io/v1", "NetworkPolicys", "networking.k8s.io/v1 NetworkPolicy"),
    ("networking.k8s.io/v1", "AdminNetworkPolicy", "policy.networking.k8s.io/v1alpha1 AdminNetworkPolicy"),
    ("cilium.io/v2", "CiliumNetworkPolcy", "cilium.io/v2 CiliumNetworkPolicy"),
    ("cilium.io/v2", "CiliumClusterWideNetworkPolicy", "cilium.io/v2 CiliumClusterwideNetworkPolicy"),
    ("cilium.io/v2", "NetworkPolicy", "networking.k8s.io/v1 NetworkPolicy"),
    ("projectcalico.org/v3", "GlobalNetworkPolcy", "projectcalico.org/v3 GlobalNetworkPolicy"),
    ("networking.k8s.io/v1", "NetworkPolicy", ""),
    ("networking.k8s.io/v1", "Ingress", ""),
    ("cilium.io/v2", "CiliumLocalRedirectPolicy", ""),
    ("projectcalico.org/v3", "HostEndpoint", ""),
    ("crd.antrea.io/v1beta1", "ClusterNetworkPolicy", ""),
    ("v1", "Pod", ""),
]


@pytest.mark.parametrize(("version", "kind", "meant"), SLIPS)
def test_what_a_kind_was_meant_to_be(version: str, kind: str, meant: str) -> None:
    assert lang.meant({"apiVersion": version, "kind": kind}) == meant


def test_a_policy_whose_kind_is_misspelt_is_a_fault_and_not_silence(run: Run) -> None:
    text = "---\n" + POLICY.replace("kind: NetworkPolicy", "kind: NetworkPolicies")
    found = run("policy", "validate", "-", stdin=text)
    said = "networking.k8s.io/v1 NetworkPolicies does not exist; did you mean networking.k8s.io/v1 NetworkPolicy?"
    assert (found.returncode, found.stdout) == (1, f"-:3: kind: {said}\n")


def test_what_is_none_of_our_kinds_is_named(run: Run) -> None:
    others = "apiVersion: {}\nkind: {}\nmetadata: {{name: o}}\n---\n"
    text = others.format("crd.antrea.io/v1beta1", "NetworkPolicy") + others.format("apps/v1", "Deployment") * 2 + POLICY
    found = run("policy", "validate", "-", stdin=text)
    assert found.returncode == 0
    assert found.stdout == "valid: 1 policy; ignored: apps/v1 Deployment, crd.antrea.io/v1beta1 NetworkPolicy\n"
    answer = json.loads(run("policy", "validate", "-", "-o", "json", stdin=text).stdout)
    assert answer["unread"] == ["apps/v1 Deployment", "crd.antrea.io/v1beta1 NetworkPolicy"]


def test_cases_may_come_from_standard_input(run: Run, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(POLICY)
    case = "{from: 192.0.2.1, to: 192.0.2.2, port: 80, expect: allow}"
    found = run("policy", "test", "-", stdin=f"manifests: [{tmp_path}/p.yaml]\ncases:\n- {case}\n")
    assert (found.returncode, found.stdout.splitlines()[-1]) == (0, "1 cases, all passed"), found.stderr


def test_a_cluster_wide_policy_that_cannot_be_read_is_told_once(run: Run) -> None:
    text = (
        "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: {name: p}\n"
        "spec: {priority: 1, subject: {namespaces: {matchLabels: {no: pe}}}}\n"
    )
    assert run("policy", "validate", "-", stdin=text).stdout == "-:4: the key no is not a string: put it in quotes\n"
