"""The words of status."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from l7proxy.agent.cluster_status.conditions import ENFORCED, LONGEST, VALID, verdict
from l7proxy.agent.cluster_status.ledger import Tally
from l7proxy.cluster.policy_status import PolicyPhase
from tests.unit.agent.cluster_status.policies import cnp, status

ALL = Tally(3, 3, 3)
DOWN = Tally(3, 2, 2, missing=(("n3", "kernel: no memory"),))
SILENT = Tally(3, 3, 2, l7_missing=(("n2", "no worker runs"),))
MANY = Tally(10, 2, 2, missing=(("n1", "x"), ("n2", "y"), ("n3", "z")))


@pytest.mark.parametrize(
    ("policy", "tally", "reason", "message"),
    [
        (cnp("a", 4), ALL, "Enforced", "enforced on 3 of 3 nodes at generation 4"),
        (cnp("a", 4), SILENT, "Enforced", "enforced on 3 of 3 nodes at generation 4"),
        (cnp("a", 4, http=True), ALL, "Enforced", "enforced on 3 of 3 nodes at generation 4, L7 live"),
        (
            cnp("a", 4, http=True),
            SILENT,
            "L7NotLive",
            "enforced on 3 of 3 nodes at generation 4, L7 live on 2 of 3; L7 not live on n2 (no worker runs)",
        ),
        (
            cnp("a", 4),
            DOWN,
            "NotOnAllNodes",
            "enforced on 2 of 3 nodes at generation 4; not on n3 (kernel: no memory)",
        ),
        (
            cnp("a", 4),
            MANY,
            "NotOnAllNodes",
            "enforced on 2 of 10 nodes at generation 4; not on n1 (x), n2 (y), n3 (z) and 5 more",
        ),
        (cnp("a", 4), Tally(1, 1, 1), "Enforced", "enforced on 1 of 1 node at generation 4"),
        (cnp("a", 4), Tally(0, 0, 0), "NotOnAllNodes", "enforced on 0 of 0 nodes at generation 4"),
    ],
)
def test_enforced(policy: dict[str, Any], tally: Tally, reason: str, message: str) -> None:
    found = verdict(status(policy), tally)
    assert found.valid.status == "True"
    assert (found.enforced.type, found.enforced.reason, found.enforced.message) == (ENFORCED, reason, message)
    assert found.enforced.status == ("True" if reason == "Enforced" else "False")
    assert found.generation == 4


def test_an_invalid_policy_names_the_field() -> None:
    found = verdict(status(cnp("a", ingress=[{"fromEndpoints": 5}])), ALL)
    assert (found.valid.type, found.valid.status, found.valid.reason) == (VALID, "False", "Invalid")
    assert "spec.ingress[0].fromEndpoints" in found.valid.message
    assert (found.enforced.status, found.enforced.reason) == ("False", "Invalid")


def test_a_policy_that_is_enforced_in_part_names_the_part() -> None:
    policy = status(cnp("a", 2, egress=[{"toFQDNs": [{"matchName": "example.com"}]}]))
    assert policy.state is PolicyPhase.PARTLY
    found = verdict(policy, ALL)
    assert (found.valid.status, found.enforced.status, found.enforced.reason) == ("True", "False", "PartlyEnforced")
    assert found.enforced.message.startswith("partly enforced on 3 of 3 nodes at generation 2: spec.egress[0].toFQDNs")


def test_a_policy_that_is_not_supported_is_valid() -> None:
    refused = replace(status(cnp("a")), state=PolicyPhase.REFUSED, reason="spec.nodeSelector: not enforced")
    found = verdict(refused, ALL)
    assert (found.valid.status, found.enforced.status, found.enforced.reason) == ("True", "False", "NotSupported")
    assert found.enforced.message == "spec.nodeSelector: not enforced; what it covers is denied"


def test_audit_is_not_enforced() -> None:
    policy = cnp("a", 2)
    by_namespace = verdict(status(policy), ALL, audit=True)
    policy["metadata"]["annotations"] = {"l7proxy.io/audit": "true"}
    assert verdict(status(policy), ALL) == by_namespace
    assert (by_namespace.enforced.status, by_namespace.enforced.reason) == ("False", "Audit")
    assert by_namespace.enforced.message == (
        "enforced on 3 of 3 nodes at generation 2, in audit mode (what it would refuse passes and is reported)"
    )


def test_audit_of_what_cannot_be_enforced() -> None:
    """It must not say that something is denied."""
    partly = status(cnp("a", 2, egress=[{"toFQDNs": [{"matchName": "example.com"}]}]))
    bad = status(cnp("a", ingress=[{"fromEndpoints": 5}]))
    for policy, fault in ((partly, ""), (bad, ""), (partly, "broken")):
        message = verdict(policy, ALL, fault, audit=True).enforced.message
        assert "audit mode" in message
        assert "denied" not in message


def test_an_older_version_stays_in_force() -> None:
    found = verdict(status(cnp("a", 4)), ALL, fault="spec.ingress: must be a list")
    assert (found.valid.status, found.valid.message) == ("False", "spec.ingress: must be a list")
    assert (found.enforced.status, found.enforced.reason) == ("False", "OlderVersion")
    assert found.enforced.message == (
        "generation 4 stays in force on 3 of 3 nodes; the newest version is invalid: spec.ingress: must be a list"
    )


def test_messages_are_bounded() -> None:
    long = replace(status(cnp("a")), state=PolicyPhase.INVALID, reason="x" * 100_000 + "\n")
    found = verdict(long, ALL)
    assert all(len(one.message) <= LONGEST for one in found.conditions)
