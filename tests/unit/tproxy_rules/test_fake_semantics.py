"""The semantics of `desired`, row by row, as the fake implements them: the reference for every kernel backend."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tproxy_rules.backend import KernelError
from tproxy_rules.desired import Bridge, Desired, Endpoint, Entry, Port, Verdict, union
from tproxy_rules.fake import FakeBackend, FakeKernel, Fate, Packet

ALLOW, STEER, DENY = Verdict.ALLOW, Verdict.STEER, Verdict.DENY
PASS, STEERED, REFUSED, SPOOFED = Fate.PASS, Fate.STEER, Fate.REFUSE, Fate.SPOOFED
MAC1, MAC2 = "02:00:00:00:00:01", "02:00:00:00:00:02"


def entry(verdict: Verdict, first: int = 0, last: int = 65535, *peers: int, protocol: int = 6) -> Entry:
    return Entry(verdict, protocol, first, last, any_peer=not peers, peers=peers)


INGRESS = union(
    (
        entry(ALLOW, protocol=-1),
        entry(STEER, 80, 80),
        entry(STEER, 8000, 8080, 11),
        entry(DENY, 80, 80, 66),
    )
)
NARROW = union((entry(ALLOW, 53, 53, protocol=17), entry(ALLOW, 443, 443, 20), entry(STEER, 80, 80)))
SNAPSHOT = Desired(
    identities=(
        ("0.0.0.0/0", 2), ("10.1.0.11/32", 11), ("10.1.0.12/32", 12), ("10.9.0.0/16", 20), ("10.9.6.0/24", 66),
        ("fd00:1::b/128", 11), ("fd00:9::/32", 20),
    ),
    endpoints=(
        Endpoint(1, ("10.1.0.11", "fd00:1::b"), Port("veth1"), egress=NARROW),
        Endpoint(2, ("10.1.0.12", "fd00:1::c"), Port("veth2", MAC2, "cni0"), ingress=INGRESS),
        Endpoint(3, ("10.1.0.13",), Port("veth3"), ingress=union((entry(ALLOW, 80, 80, 1),)), egress=union(())),
    ),
    bridges=(Bridge("cni0", MAC1),),
    host_identity=1,
)  # fmt: skip


def from_pod1(destination: str, port: int, protocol: int = 6) -> Packet:
    return Packet("fd00:1::b" if ":" in destination else "10.1.0.11", destination, protocol, port, "veth1")


def from_outside(source: str, destination: str, port: int, protocol: int = 6) -> Packet:
    return Packet(source, destination, protocol, port, "eth0")


ROWS = {
    "no policy either way": (Packet("10.1.0.12", "10.7.7.7", 6, 80, "veth2", MAC2), PASS),
    "neither end is ours": (from_outside("10.9.0.1", "10.7.7.7", 80), PASS),
    "egress by port": (from_pod1("10.7.7.7", 53, 17), PASS),
    "the protocol counts": (from_pod1("10.7.7.7", 53, 6), REFUSED),
    "egress by identity": (from_pod1("10.9.0.1", 443), PASS),
    "egress by identity, IPv6": (from_pod1("fd00:9::1", 443), PASS),
    "the longer prefix is another identity": (from_pod1("10.9.6.1", 443), REFUSED),
    "no identity is nobody's": (from_pod1("fd00:7::1", 443), REFUSED),
    "nothing covers it": (from_pod1("10.7.7.7", 22), REFUSED),
    "steered outward": (from_pod1("10.7.7.7", 80), STEERED),
    "both ask, egress steers": (from_pod1("10.1.0.12", 80), STEERED),
    "both ask, egress refuses what ingress steers": (from_pod1("10.1.0.12", 8000), REFUSED),
    "both ask, ingress refuses what egress steers": (from_pod1("10.1.0.13", 80), REFUSED),
    "steering beats allowing": (from_outside("10.9.0.1", "10.1.0.12", 80), STEERED),
    "denying beats steering": (from_outside("10.9.6.1", "10.1.0.12", 80), REFUSED),
    "allowed by the entry without a port": (from_outside("10.9.6.1", "10.1.0.12", 81), PASS),
    "a range is inclusive, but for one peer": (from_outside("10.9.0.1", "10.1.0.12", 8080), PASS),
    "ICMP is admitted without a port only": (from_outside("10.9.0.1", "10.1.0.12", 0, 1), PASS),
    "ICMP to ports": (from_outside("10.9.0.1", "10.1.0.13", 0, 1), REFUSED),
    "the node is its own identity": (Packet("10.1.0.1", "10.1.0.13", 6, 80), PASS),
    "the node on another port": (Packet("10.1.0.1", "10.1.0.13", 6, 81), REFUSED),
    "to itself in spite of an empty policy": (Packet("10.1.0.13", "10.1.0.13", 6, 81, "veth3"), PASS),
    "an empty egress lets nothing out": (Packet("10.1.0.13", "10.7.7.7", 17, 53, "veth3"), REFUSED),
    "another's address": (Packet("10.1.0.11", "10.7.7.7", 17, 53, "veth3"), SPOOFED),
    "an address that is nobody's": (Packet("192.0.2.1", "10.1.0.12", 6, 81, "veth3"), SPOOFED),
    "a pod's address from outside": (from_outside("10.1.0.11", "10.1.0.12", 81), SPOOFED),
    "another MAC on the bridge": (Packet("10.1.0.12", "10.7.7.7", 6, 80, "veth2", MAC1), SPOOFED),
}


@pytest.mark.parametrize("row", ROWS)
def test_row(row: str) -> None:
    backend = FakeBackend()
    backend.apply(SNAPSHOT)
    packet, fate = ROWS[row]
    assert backend.verdict_of(packet) is fate


def test_without_a_snapshot_everything_passes() -> None:
    backend = FakeBackend()
    backend.apply(SNAPSHOT)
    backend.remove()
    assert backend.verdict_of(from_pod1("10.7.7.7", 22)) is PASS


def test_the_kernel_outlives_the_backend_and_may_refuse() -> None:
    kernel = FakeKernel()
    FakeBackend(kernel).apply(SNAPSHOT)
    failing = FakeBackend(kernel, fails="no more memory")
    for act in (failing.check, failing.remove, lambda: failing.apply(replace(SNAPSHOT, host_identity=5))):
        with pytest.raises(KernelError, match="no more memory"):
            act()
    assert FakeBackend(kernel).verdict_of(from_pod1("10.7.7.7", 22)) is REFUSED
