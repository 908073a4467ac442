"""What `make cluster` says of a machine that cannot run a cluster."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.cluster import facts, preflight
from deploy.cluster.plan import Cluster

NFTABLES = Cluster("kube", "bridge", "nftables")
IPTABLES = Cluster("kube", "ptp", "iptables")
DATA, CACHE = Path("/data"), Path("/cache")
COLD = frozenset({"go", "packages"})


def good(cluster: Cluster = NFTABLES) -> preflight.Facts:
    """A machine that lacks nothing, with all parts still to be made."""
    return preflight.Facts(
        root=True,
        programs=frozenset(preflight.PROGRAMS),
        kernel=(6, 1),
        ipv6=True,
        seccomp=True,
        kmsg_fault="",
        cgroup_fault="",
        controllers=frozenset({"cpu", "cpuset", "memory", "pids", "io"}),
        memory=8 * preflight.GIB,
        disk={DATA: 9 * preflight.GIB, CACHE: 9 * preflight.GIB},
        failures=dict.fromkeys(preflight.trials(cluster), ""),
        to_make=COLD,
    )


def found(machine: preflight.Facts, cluster: Cluster = NFTABLES) -> list[preflight.Finding]:
    return preflight.findings(machine, cluster, preflight.disk_needed(DATA, CACHE, machine.to_make))


def faulty(machine: preflight.Facts, cluster: Cluster = NFTABLES) -> dict[str, str]:
    return {one.what: one.fault for one in preflight.faults(found(machine, cluster))}


@pytest.mark.parametrize("cluster", [NFTABLES, IPTABLES])
def test_a_machine_that_has_all_has_no_fault(cluster: Cluster) -> None:
    assert faulty(good(cluster), cluster) == {}
    assert not [one for one in found(good(cluster), cluster) if not (one.tried and one.purpose)]


LESS: dict[str, tuple[dict[str, Any], str]] = {
    "root": ({"root": False}, "this is another user"),
    "kernel": ({"kernel": (5, 12)}, "Linux 5.12"),
    "IPv6": ({"ipv6": False}, "the kernel has none"),
    "seccomp": ({"seccomp": False}, "the kernel has none"),
    "/dev/kmsg": ({"kmsg_fault": "/dev/kmsg: No such file or directory"}, "/dev/kmsg: No such file or directory"),
    "cgroups": ({"cgroup_fault": "Read-only file system"}, "Read-only file system"),
    "cgroup controllers": ({"controllers": frozenset({"cpu", "memory"})}, "missing: cpuset, pids"),
    "memory": ({"memory": preflight.GIB}, "1.0 GiB are free"),
    "disk at /cache": ({"disk": {DATA: 9 * preflight.GIB, CACHE: preflight.GIB}}, "1.0 GiB are free"),
    "disk at /data": ({"disk": {DATA: 0, CACHE: 9 * preflight.GIB}}, "0.0 GiB are free"),
    "nft": (
        {"programs": frozenset(preflight.PROGRAMS) - {"nft"}},
        "no such program in PATH, /usr/sbin, /sbin",
    ),
    "Go": ({"go_fault": "too old"}, "too old"),
    "Go modules": ({"modules_fault": "connection refused"}, "connection refused"),
    "Debian packages": ({"packages_fault": "no source"}, "no source"),
}


@pytest.mark.parametrize("what", LESS)
def test_each_thing_that_is_missing_is_named_with_a_remedy(what: str) -> None:
    changed, fault = LESS[what]
    machine = replace(good(), **changed)
    assert faulty(machine) == {what: fault}
    (wrong,) = preflight.faults(found(machine))
    text = preflight.complaint([wrong])
    assert "1 thing is missing" in text
    assert all(part in " ".join(text.split()) for part in (what, wrong.purpose, wrong.fault, wrong.remedy))
    assert wrong.remedy


@pytest.mark.parametrize(
    ("cluster", "names"),
    [
        (NFTABLES, {"namespaces", "mounts", "overlayfs", "veth", "bridge", "br_netfilter", "nf_tables"}),
        (IPTABLES, {"namespaces", "mounts", "overlayfs", "veth", "bridge", "iptables", "ip6tables"}),
    ],
)
def test_what_is_tried_depends_on_the_kind_of_cluster(cluster: Cluster, names: set[str]) -> None:
    assert set(preflight.trials(cluster)) == names
    failures = dict.fromkeys(names, "Operation not permitted")
    assert faulty(replace(good(cluster), failures=failures), cluster) == failures


def test_what_could_not_be_tried_is_unknown_and_no_fault() -> None:
    machine = replace(good(), failures={"namespaces": "Operation not permitted"})
    assert set(faulty(machine)) == {"namespaces"}
    assert {one.what for one in found(machine) if not one.tried} == set(preflight.trials(NFTABLES)) - {"namespaces"}
    lines = preflight.table(found(machine)).splitlines()
    assert [line.split()[0] for line in lines if line.split()[1:2] == ["veth"]] == ["unknown"]
    assert [line.split()[0] for line in lines if line.split()[1:2] == ["namespaces"]] == ["MISSING"]


def test_what_builds_parts_is_needed_only_while_parts_are_missing() -> None:
    warm = replace(
        good(),
        to_make=frozenset(),
        programs=frozenset(preflight.PROGRAMS) - {"apt-get", "dpkg-deb", "perl", "tar", "chroot"},
        go_fault="none",
        modules_fault="none",
        packages_fault="none",
        disk={DATA: 2 * preflight.GIB},
    )
    assert faulty(warm) == {}
    assert set(faulty(replace(warm, to_make=frozenset({"packages"}), disk=good().disk))) == {
        "apt-get", "dpkg-deb", "perl", "tar", "chroot", "Debian packages",
    }  # fmt: skip


def test_an_old_kernel_can_have_kube_proxy_in_iptables_mode() -> None:
    assert faulty(replace(good(IPTABLES), kernel=(5, 10)), IPTABLES) == {}


def test_more_nodes_need_more_memory() -> None:
    machine = replace(good(), memory=3 * preflight.GIB)
    assert faulty(machine, Cluster("kube", node_count=2)) == {}
    assert set(faulty(machine, Cluster("kube", node_count=3))) == {"memory"}


def test_all_faults_are_told_at_once() -> None:
    machine = replace(good(), root=False, kmsg_fault="none", ipv6=False)
    text = preflight.complaint(preflight.faults(found(machine)))
    assert "3 things are missing" in text
    assert all(f"  {name} (" in text for name in ("root", "/dev/kmsg", "IPv6"))


@pytest.mark.parametrize(
    ("release", "version"), [("6.1.0-18-amd64", (6, 1)), ("5.13", (5, 13)), ("7.0-rc1", (7, 0)), ("odd", (0, 0))]
)
def test_kernel_versions(release: str, version: tuple[int, int]) -> None:
    assert facts.kernel_version(release) == version


def test_the_error_of_a_command_is_its_last_lines() -> None:
    script = "import sys; print('one\\ntwo\\n  ^^^^ \\nthree', file=sys.stderr); sys.exit(1)"
    assert facts.failure_of([sys.executable, "-c", script], 60) == "two; three"
    assert facts.failure_of(["false"], 60) == "exit code 1"
    assert facts.failure_of(["true"], 60) == ""
    assert facts.failure_of(["/none/such"], 60) == "/none/such: No such file or directory"
    assert facts.failure_of(["sleep", "60"], 0.01) == "not done within 0 s"


def test_check_prints_all_of_this_machine_with_an_exit_code() -> None:
    """Whatever this machine is: in a container, some of it is missing."""
    done = subprocess.run(
        [sys.executable, "-m", "deploy.cluster", "check", "--cni", "ptp"],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert not done.stderr
    states = [line.split()[0] for line in done.stdout.splitlines() if line and not line.startswith((" ", "It", "This"))]
    assert set(states) <= {"ok", "MISSING", "unknown"}
    assert len(states) > 20
    assert done.returncode == ("MISSING" in states)
