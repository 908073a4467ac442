"""Objects that policies of other languages reference, and policies of two API groups with the same kind."""

from __future__ import annotations

from typing import Any

import pytest

from l7proxy.errors import SourceError
from l7proxy.model.resources import NetworkSet, PolicyTier, ResourceKey, ServiceAccount, SourceLocation
from l7proxy.sources import objects

HERE = SourceLocation("f.yaml", 3)


def read(version: str, kind: str, name: str = "a", space: str = "", **spec: Any) -> Any:
    metadata = {"name": name, "labels": {"k": "v"}} | ({"namespace": space} if space else {})
    document = {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}
    return objects.read(document, HERE, lambda: {"spec": 5})


@pytest.mark.parametrize("version", ["projectcalico.org/v3", "crd.projectcalico.org/v1"])
def test_network_sets(version: str) -> None:
    networks = ["10.0.0.0/8", "192.0.2.7", "2001:db8::/32", "10.0.0.0/8"]
    found = read(version, "NetworkSet", space="x", nets=networks)
    assert found == NetworkSet("x", "a", ("10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32"), {"k": "v"}, HERE)
    assert read(version, "NetworkSet", nets=[]).namespace == "default"
    everywhere = read(version, "GlobalNetworkSet", space="ignored")
    assert everywhere == NetworkSet("", "a", (), {"k": "v"}, HERE)
    assert {found.key.kind, everywhere.key.kind} == {"NetworkSet", "GlobalNetworkSet"}


def test_a_network_that_is_none_names_its_line() -> None:
    with pytest.raises(SourceError, match=r"f\.yaml:5: spec\.nets\[0\]"):
        read("projectcalico.org/v3", "NetworkSet", nets=["10.0.0.0/33"])


def test_tiers() -> None:
    assert read("projectcalico.org/v3", "Tier") == PolicyTier("a", float("inf"), False, HERE)
    assert read("projectcalico.org/v3", "Tier", order=5, defaultAction="Pass") == PolicyTier("a", 5.0, True, HERE)


@pytest.mark.parametrize("spec", [{"order": "5"}, {"order": True}, {"order": float("nan")}, {"defaultAction": "pass"}])
def test_a_tier_that_cannot_be_read(spec: dict[str, Any]) -> None:
    with pytest.raises(SourceError, match=r"spec\.order|spec\.defaultAction"):
        read("projectcalico.org/v3", "Tier", **spec)


def test_service_accounts() -> None:
    assert read("v1", "ServiceAccount", space="x") == ServiceAccount("x", "a", {"k": "v"}, HERE)


def test_two_groups_have_a_network_policy() -> None:
    keys = [
        objects.key_of({"apiVersion": version, "kind": "NetworkPolicy", "metadata": {"name": "a", "namespace": "x"}})
        for version in ("networking.k8s.io/v1", "projectcalico.org/v3", "crd.projectcalico.org/v1")
    ]
    theirs = ResourceKey("CalicoNetworkPolicy", "x", "a")
    assert keys == [ResourceKey("NetworkPolicy", "x", "a"), theirs, theirs]
