"""The stock `hubble` command prints our flows as it prints Cilium's."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from l7proxy.flows.enrich import Enricher
from l7proxy.flows.event import Event, Lost
from l7proxy.flows.records import Connection, HttpRequest, HttpResponse, Malformed, Record
from l7proxy.model.endpoint import NamedPod
from l7proxy.model.policy_verdict import Conn, PolicyVerdict
from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import Direction, DropReason, Protocol, Verdict

HUBBLE = os.environ.get("HUBBLE_CLI") or shutil.which("hubble")
pytestmark = pytest.mark.skipif(not HUBBLE, reason="no hubble command: set HUBBLE_CLI or put it into PATH")

TIME = 1_763_928_000_010_000_000
CONN = Conn("10.0.0.10", 50000, "10.0.0.20", 80, 1234, 5678)
WORLD = Conn("10.0.0.10", 50000, "192.0.2.1", 443, 1234, 2)
PING = Conn("10.0.0.10", 0, "10.0.0.20", 0, 1234, 5678, Protocol.ICMP)
QUERY = Conn("10.0.0.10", 40000, "10.0.0.20", 53, 1234, 5678, Protocol.UDP)
WEB = RuleRef("CiliumNetworkPolicy", "default", "web", "spec.ingress[0]")
OUT = RuleRef("NetworkPolicy", "default", "out", "spec.egress[0]")
ALLOWED = PolicyVerdict(Verdict.FORWARDED, Direction.INGRESS, WEB, match_type=2)
LEFT = PolicyVerdict(Verdict.FORWARDED, Direction.EGRESS, egress=OUT, match_type=1)
STEERED = PolicyVerdict(Verdict.REDIRECTED, Direction.INGRESS, WEB, match_type=2)
AUDITED = PolicyVerdict(Verdict.AUDIT, Direction.INGRESS, WEB, reason="no rule")
REFUSED = PolicyVerdict(Verdict.DROPPED, Direction.INGRESS, WEB, drop_reason=DropReason.POLICY_DENIED, reason="no rule")
DENIED = PolicyVerdict(
    Verdict.DROPPED, Direction.INGRESS, WEB, drop_reason=DropReason.POLICY_DENY, reason="denied", match_type=1
)
SPOOFED = PolicyVerdict(Verdict.DROPPED, Direction.EGRESS, drop_reason=DropReason.INVALID_SOURCE_IP, reason="spoofed")
UNNAMED = PolicyVerdict(Verdict.UNKNOWN, Direction.UNKNOWN)


class Book:
    def pod(self, address: str) -> NamedPod | None:
        name = {"10.0.0.10": "client", "10.0.0.20": "backend"}.get(address)
        return NamedPod(0, "default", name) if name else None

    def identity_labels(self, identity: int) -> Sequence[str]:
        return ()

    def service(self, address: str, port: int, protocol: int) -> tuple[str, str] | None:
        return None


ENRICHER = Enricher(Book(), node="node-a", cluster="kind", revision=3, proxy_port=15001)
PAIR = "default/client:50000 (ID:1234) -> default/backend:80 (ID:5678)"
BACK = "default/client:50000 (ID:1234) <- default/backend:80 (ID:5678)"
UNKNOWN = "default/client:50000 (ID:1234) <> default/backend:80 (ID:5678)"
AWAY = "default/client:50000 (ID:1234) -> 192.0.2.1:443 (world)"
ECHO = "default/client (ID:1234) -> default/backend (ID:5678)"
SYN = "(TCP Flags: SYN)"

PACKETS = [
    (
        Connection(TIME, CONN, ALLOWED),
        f"{PAIR} policy-verdict:L3-L4 INGRESS ALLOWED BY web (CiliumNetworkPolicy) {SYN}",
        f"{PAIR} to-endpoint FORWARDED {SYN}",
    ),
    (
        Connection(TIME, CONN, STEERED),
        f"{PAIR} policy-verdict:L3-L4 INGRESS ALLOWED BY web (CiliumNetworkPolicy) {SYN}",
        f"{PAIR} to-proxy FORWARDED {SYN}",
    ),
    (
        Connection(TIME, WORLD, LEFT),
        f"{AWAY} policy-verdict:L3-Only EGRESS ALLOWED BY out (NetworkPolicy) {SYN}",
        f"{AWAY} to-stack FORWARDED {SYN}",
    ),
    (
        Connection(TIME, CONN, AUDITED),
        f"{PAIR} policy-verdict:none INGRESS AUDITED {SYN}",
        f"{PAIR} to-endpoint FORWARDED {SYN}",
    ),
    (
        Connection(TIME, CONN, REFUSED),
        f"{UNKNOWN} policy-verdict:none INGRESS DENIED BY web (CiliumNetworkPolicy) {SYN}",
        f"{UNKNOWN} Policy denied DROPPED {SYN}",
    ),
    (
        Connection(TIME, CONN, DENIED, flags=0x12),
        f"{UNKNOWN} policy-verdict:L3-Only INGRESS DENIED BY web (CiliumNetworkPolicy) (TCP Flags: SYN, ACK)",
        f"{UNKNOWN} Policy denied by denylist DROPPED (TCP Flags: SYN, ACK)",
    ),
    (
        Connection(TIME, PING, ALLOWED, icmp_type=8),
        f"{ECHO} policy-verdict:L3-L4 INGRESS ALLOWED BY web (CiliumNetworkPolicy) (ICMPv4 EchoRequest)",
        f"{ECHO} to-endpoint FORWARDED (ICMPv4 EchoRequest)",
    ),
    (
        Connection(TIME, QUERY, ALLOWED),
        "default/client:40000 (ID:1234) -> default/backend:53 (ID:5678) policy-verdict:L3-L4 INGRESS ALLOWED"
        " BY web (CiliumNetworkPolicy) (UDP)",
        "default/client:40000 (ID:1234) -> default/backend:53 (ID:5678) to-endpoint FORWARDED (UDP)",
    ),
]
ONE_EACH: list[tuple[Record, str]] = [
    (Connection(TIME, CONN, SPOOFED), f"{UNKNOWN} Invalid source ip DROPPED {SYN}"),
    (
        HttpRequest(TIME, CONN, ALLOWED, "GET", "http://backend/v1", "HTTP/1.1"),
        f"{PAIR} http-request FORWARDED (HTTP/1.1 GET http://backend/v1)",
    ),
    (
        HttpRequest(TIME, CONN, REFUSED, "GET", "http://backend/admin", "HTTP/1.1"),
        f"{PAIR} http-request DROPPED (HTTP/1.1 GET http://backend/admin)",
    ),
    (
        HttpResponse(TIME, CONN, REFUSED, "GET", "http://backend/admin", "HTTP/1.1", 403, 900_000),
        f"{BACK} http-response FORWARDED (HTTP/1.1 403 0ms (GET http://backend/admin))",
    ),
    (
        HttpResponse(TIME, CONN, ALLOWED, "GET", "http://backend/v1", "HTTP/2", 200, 5_250_000),
        f"{BACK} http-response FORWARDED (HTTP/2 200 5ms (GET http://backend/v1))",
    ),
    (
        Malformed(TIME, CONN, REFUSED, 400),
        f"{PAIR} http-request DROPPED (HTTP/1.1 malformed request, answered 400)",
    ),
    (
        HttpRequest(TIME, CONN, UNNAMED, "GET", "http://backend/", "HTTP/1.1"),
        f"{PAIR} http-request VERDICT_UNKNOWN (HTTP/1.1 GET http://backend/)",
    ),
]


def printed(events: Sequence[Event], path: Path) -> list[str]:
    """The lines without their time."""
    assert HUBBLE
    path.write_bytes(b"".join(event.line() for event in events))
    command = [HUBBLE, "observe", "--input-file", f"{path}", "--print-policy-names"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not done.stderr
    return [line.removeprefix("Nov 23 20:00:00.010: ") for line in done.stdout.splitlines()]


def test_each_kind_of_flow_is_printed_as_ciliums(tmp_path: Path) -> None:
    events: list[Event] = [flow for record, *_ in PACKETS for flow in ENRICHER.packet(record)]
    events += [ENRICHER.flow(record) for record, _ in ONE_EACH]
    expected = [line for _, *lines in PACKETS for line in lines] + [line for _, line in ONE_EACH]
    assert printed(events, tmp_path / "flows.jsonl") == expected


def test_lost_flows_are_printed_as_ciliums(tmp_path: Path) -> None:
    (line,) = printed([Lost(42, "HUBBLE_RING_BUFFER", TIME, "kind/node-a")], tmp_path / "flows.jsonl")
    assert line.startswith("Nov 23 20:00:00.010 EVENTS LOST: HUBBLE_RING_BUFFER CPU(0) 42 (first: ")
