"""Regular expressions of many small policies: their total memory in every worker is bounded."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.attacks.labs import AttackLab

PATTERNS_PER_POLICY = 20
POLICIES = {"open": 1, "free": 1, "friend": 1, "locked": 6, "victim": 6}
"""Policies per role."""
MOST_GROWTH = 100 << 20
"""Bytes. The node's limit is 80 MiB of programs; without it these 15 policies of 1 KB take some 140 MiB."""


def hostile(role: str, number: int) -> str:
    """Each pattern has 30 bytes and some 9600 RE2 instructions, just below the limit for one pattern."""
    http = [{"method": "GET", "path": f"/{role}{number}/{place}/\\pL{{1,8}}"} for place in range(PATTERNS_PER_POLICY)]
    allow = {"toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": http}}]}
    return yaml.safe_dump(
        {
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumNetworkPolicy",
            "metadata": {"name": f"patterns-{role}-{number}", "namespace": "default"},
            "spec": {"endpointSelector": {"matchLabels": {"role": role}}, "ingress": [allow]},
        }
    )


def resident(pid: int) -> int:
    """Resident memory in bytes, proc_pid_statm(5)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


@pytest.mark.once
def test_workers_stay_small_and_what_does_not_fit_is_refused_by_name(lab: AttackLab, family: int) -> None:
    workers = [worker["pid"] for worker in lab.status("node-1")["workers"]]
    before = {pid: resident(pid) for pid in workers}
    stranger = lab.pod("far-free")
    policies = [hostile(role, number) for role, count in POLICIES.items() for number in range(count)]
    with lab.applied("---\n".join(policies)):
        for role in POLICIES:
            for _ in range(8):  # connections are spread over the workers: each compiles what it needs
                stranger.http(lab.pod(role).addresses[family], f"/{role}0/0/é")
        grown = {pid: resident(pid) - before[pid] for pid in workers}
        states = {p["name"]: p for p in lab.status("node-1")["policies"] if p["name"].startswith("patterns-")}
        refused = [p for p in states.values() if p["state"] == "partly enforced"]
        assert max(grown.values()) < MOST_GROWTH, grown
        assert 0 < len(refused) < len(states)
        assert all("its regular expressions need" in p["reason"] for p in refused)
        closed = refused[0]["name"].split("-")[1]
        assert stranger.http(lab.pod(closed).addresses[family], "/") == "refused"
    assert stranger.http(lab.pod("open").addresses[family], "/") == "200"
