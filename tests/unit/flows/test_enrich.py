"""The flow that results from each record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from l7proxy.flows.enrich import Enricher
from l7proxy.flows.flow import Flow, Policy
from l7proxy.flows.records import Connection, HttpRequest, HttpResponse, Malformed, Record
from l7proxy.model.endpoint import NamedPod, Workload
from l7proxy.model.policy_verdict import Conn, PolicyVerdict
from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import Direction, DropReason, Protocol, Verdict

TIME = 1_763_928_000_010_000_000
CONN = Conn("10.0.0.10", 50000, "10.0.0.20", 80, 1234, 5678)
RULE = RuleRef("CiliumNetworkPolicy", "default", "l7-policy", "spec.ingress[0].toPorts[0].rules.http[0]", "p.yaml", 7)
OTHER = RuleRef("CiliumNetworkPolicy", "default", "egress-policy", "spec.egress[1]")
NAMED = Policy(
    name="l7-policy",
    namespace="default",
    kind="CiliumNetworkPolicy",
    labels=(
        "k8s:io.cilium.k8s.policy.derived-from=CiliumNetworkPolicy",
        "k8s:io.cilium.k8s.policy.name=l7-policy",
        "k8s:io.cilium.k8s.policy.namespace=default",
        "l7proxy:rule=spec.ingress[0].toPorts[0].rules.http[0]",
    ),
    revision="3",
)
ALLOWED = PolicyVerdict(Verdict.FORWARDED, Direction.INGRESS, ingress=RULE)
STEERED = PolicyVerdict(Verdict.REDIRECTED, Direction.INGRESS, ingress=RULE)
AUDITED = PolicyVerdict(Verdict.AUDIT, Direction.INGRESS, ingress=RULE)
DENIED = PolicyVerdict(
    Verdict.DROPPED,
    Direction.INGRESS,
    ingress=RULE,
    egress=OTHER,
    drop_reason=DropReason.POLICY_DENIED,
    reason="no rule",
)


@dataclass
class Book:
    """Names, and the number of lookups."""

    pods: Mapping[str, NamedPod] = field(default_factory=dict)
    labels: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    services: Mapping[tuple[str, int, int], tuple[str, str]] = field(default_factory=dict)
    asked: int = 0

    def pod(self, address: str) -> NamedPod | None:
        self.asked += 1
        return self.pods.get(address)

    def identity_labels(self, identity: int) -> tuple[str, ...]:
        return self.labels.get(identity, ())

    def service(self, address: str, port: int, protocol: int) -> tuple[str, str] | None:
        return self.services.get((address, port, protocol))


BOOK = Book(
    {
        "10.0.0.10": NamedPod(101, "default", "client", Workload("client", "Deployment")),
        "10.0.0.20": NamedPod(0, "default", "backend"),
    },
    {1234: ("k8s:app=client", "k8s:io.cilium.k8s.policy.cluster=kind"), 5678: ("k8s:app=backend",)},
)


def flow_of(record: Record, **options: Any) -> Flow:
    usual: dict[str, Any] = {"node": "node-a", "cluster": "kind", "revision": 3, "new_uuid": lambda: "u"}
    return Enricher(BOOK, **(usual | options)).flow(record)


def request(policy_verdict: PolicyVerdict = ALLOWED, url: str = "http://backend/v1", **fields: Any) -> HttpRequest:
    return HttpRequest(TIME, CONN, policy_verdict, "GET", url, "HTTP/1.1", **fields)


def response(policy_verdict: PolicyVerdict = ALLOWED, status: int = 200) -> HttpResponse:
    return HttpResponse(TIME, CONN, policy_verdict, "GET", "http://backend/v1", "HTTP/1.1", status, 5_250_000)


def test_an_allowed_request_is_a_forwarded_l7_request() -> None:
    assert flow_of(request()).to_json() == {
        "flow": {
            "time": "2025-11-23T20:00:00.010Z",
            "uuid": "u",
            "emitter": {"name": "l7proxy", "version": "0.1.0"},
            "verdict": "FORWARDED",
            "IP": {"source": "10.0.0.10", "destination": "10.0.0.20", "ipVersion": "IPv4"},
            "l4": {"TCP": {"source_port": 50000, "destination_port": 80}},
            "source": {
                "ID": 101,
                "identity": 1234,
                "cluster_name": "kind",
                "namespace": "default",
                "labels": ["k8s:app=client", "k8s:io.cilium.k8s.policy.cluster=kind"],
                "pod_name": "client",
                "workloads": [{"name": "client", "kind": "Deployment"}],
            },
            "destination": {
                "identity": 5678,
                "namespace": "default",
                "labels": ["k8s:app=backend"],
                "pod_name": "backend",
            },
            "Type": "L7",
            "node_name": "kind/node-a",
            "l7": {"type": "REQUEST", "http": {"method": "GET", "url": "http://backend/v1", "protocol": "HTTP/1.1"}},
            "event_type": {"type": 129},
            "traffic_direction": "INGRESS",
            "is_reply": False,
            "ingress_allowed_by": [
                {
                    "name": "l7-policy",
                    "namespace": "default",
                    "labels": list(NAMED.labels),
                    "revision": "3",
                    "kind": "CiliumNetworkPolicy",
                }
            ],
            "Summary": "HTTP/1.1 GET http://backend/v1",
        },
        "node_name": "kind/node-a",
        "time": "2025-11-23T20:00:00.010Z",
    }


def test_a_denied_request_names_policy_and_reason_and_who_allowed_the_other_way() -> None:
    flow = flow_of(request(DENIED))
    assert (flow.verdict, flow.drop_reason, flow.drop_reason_desc) == ("DROPPED", 133, "POLICY_DENIED")
    assert flow.ingress_denied_by == (NAMED,)
    assert flow.ingress_allowed_by == ()
    assert [policy.name for policy in flow.egress_allowed_by] == ["egress-policy"]
    assert flow.egress_denied_by == ()
    assert flow.policy_log == ("no rule",) == flow.reasons
    assert flow.is_reply is False


def test_a_response_goes_the_other_way() -> None:
    flow = flow_of(response())
    assert flow.ip is not None and (flow.ip.source, flow.ip.destination) == ("10.0.0.20", "10.0.0.10")
    assert flow.l4 is not None and flow.l4.tcp is not None
    assert (flow.l4.tcp.source_port, flow.l4.tcp.destination_port) == (80, 50000)
    assert flow.source is not None and flow.source.pod_name == "backend"
    assert flow.destination is not None and flow.destination.pod_name == "client"
    assert (flow.is_reply, flow.reply, flow.traffic_direction) == (True, True, "INGRESS")
    assert flow.l7 is not None and (flow.l7.type, flow.l7.latency_ns) == ("RESPONSE", "5250000")
    assert flow.summary == "HTTP/1.1 200 5ms (GET http://backend/v1)"
    assert flow.ingress_allowed_by == (NAMED,)


def test_our_403_is_a_forwarded_response_and_its_denial_is_told_once() -> None:
    flow = flow_of(response(DENIED, 403))
    assert flow.verdict == "FORWARDED"
    assert (flow.policy_log, flow.ingress_denied_by, flow.ingress_allowed_by, flow.drop_reason) == ((), (), (), 0)
    assert flow.summary == "HTTP/1.1 403 5ms (GET http://backend/v1)"


def test_why_the_server_could_not_answer_is_in_the_log() -> None:
    failed = PolicyVerdict(Verdict.FORWARDED, Direction.INGRESS, ingress=RULE, reason="connection refused")
    flow = flow_of(response(failed, 503))
    assert (flow.verdict, flow.policy_log) == ("FORWARDED", ("connection refused",))


def test_a_malformed_request_is_one_dropped_request_with_its_status() -> None:
    flow = flow_of(Malformed(TIME, CONN, PolicyVerdict(Verdict.DROPPED, Direction.INGRESS, reason="bare LF"), 400))
    assert flow.verdict == "DROPPED"
    assert flow.l7 is not None and flow.l7.http is not None and (flow.l7.type, flow.l7.http.code) == ("REQUEST", 400)
    assert flow.reasons == ("bare LF",)
    assert flow.summary == "HTTP/1.1 malformed request, answered 400"


@pytest.mark.parametrize(
    ("policy_verdict", "event", "verdict", "is_reply"),
    [
        pytest.param(ALLOWED, {"type": 5}, "FORWARDED", False, id="allowed"),
        pytest.param(
            PolicyVerdict(Verdict.REDIRECTED, Direction.INGRESS, ingress=RULE),
            {"type": 5},
            "REDIRECTED",
            False,
            id="steered",
        ),
        pytest.param(
            PolicyVerdict(Verdict.AUDIT, Direction.INGRESS, ingress=RULE), {"type": 5}, "AUDIT", False, id="audited"
        ),
        pytest.param(DENIED, {"type": 1, "sub_type": 133}, "DROPPED", None, id="refused by default"),
        pytest.param(
            PolicyVerdict(
                Verdict.DROPPED, Direction.EGRESS, egress=RULE, drop_reason=DropReason.POLICY_DENY, reason="x"
            ),
            {"type": 1, "sub_type": 181},
            "DROPPED",
            None,
            id="refused by a deny rule",
        ),
        pytest.param(
            PolicyVerdict(
                Verdict.DROPPED, Direction.EGRESS, drop_reason=DropReason.INVALID_SOURCE_IP, reason="spoofed"
            ),
            {"type": 1, "sub_type": 132},
            "DROPPED",
            None,
            id="spoofed",
        ),
    ],
)
def test_a_connection_is_one_verdict_or_one_drop(
    policy_verdict: PolicyVerdict, event: dict[str, int], verdict: str, is_reply: bool | None
) -> None:
    found = flow_of(Connection(TIME, CONN, policy_verdict)).to_json()["flow"]
    assert (found["event_type"], found["verdict"], found.get("is_reply")) == (event, verdict, is_reply)
    assert found["Type"] == "L3_L4"
    assert found["l4"] == {"TCP": {"source_port": 50000, "destination_port": 80, "flags": {"SYN": True}}}
    assert found["Summary"] == "TCP Flags: SYN"
    named = {key for key in found if key.endswith("_by")}
    direction = policy_verdict.direction.word
    if policy_verdict.verdict is Verdict.DROPPED and policy_verdict.drop_reason is DropReason.INVALID_SOURCE_IP:
        assert named == set()
    elif policy_verdict.verdict in (Verdict.DROPPED, Verdict.AUDIT):
        assert f"{direction}_denied_by" in named
        assert f"{direction}_allowed_by" not in named
    else:
        assert named == {f"{direction}_allowed_by"}


@pytest.mark.parametrize(
    ("record", "l4", "summary"),
    [
        (
            Connection(TIME, CONN, ALLOWED, flags=0x12),
            {"TCP": {"source_port": 50000, "destination_port": 80, "flags": {"SYN": True, "ACK": True}}},
            "TCP Flags: SYN, ACK",
        ),
        (
            Connection(TIME, Conn("10.0.0.10", 4, "10.0.0.20", 53, 1, 2, Protocol.UDP), ALLOWED),
            {"UDP": {"source_port": 4, "destination_port": 53}},
            "UDP",
        ),
        (
            Connection(TIME, Conn("10.0.0.10", 0, "10.0.0.20", 0, 1, 2, Protocol.ICMP), ALLOWED, icmp_type=8),
            {"ICMPv4": {"type": 8}},
            "ICMPv4 EchoRequest",
        ),
        (
            Connection(TIME, Conn("fd00::1", 0, "fd00::2", 0, 1, 2, Protocol.ICMPV6), ALLOWED, icmp_type=135),
            {"ICMPv6": {"type": 135}},
            "ICMPv6 NeighborSolicitation",
        ),
        (Connection(TIME, Conn("10.0.0.10", 0, "10.0.0.20", 0, 1, 2, 47), ALLOWED), None, "IP protocol 47"),
    ],
)
def test_packets_of_every_protocol(record: Connection, l4: dict[str, Any] | None, summary: str) -> None:
    found = flow_of(record).to_json()["flow"]
    assert (found.get("l4"), found["Summary"]) == (l4, summary)


def packet(policy_verdict: PolicyVerdict, **fields: Any) -> list[dict[str, Any]]:
    enricher = Enricher(BOOK, node="node-a", cluster="kind", revision=3, proxy_port=15001, interface=lambda index: "v0")
    return [flow.to_json()["flow"] for flow in enricher.packet(Connection(TIME, CONN, policy_verdict, **fields))]


OUT = PolicyVerdict(Verdict.FORWARDED, Direction.EGRESS, egress=OTHER)


@pytest.mark.parametrize(
    ("policy_verdict", "verdict", "event", "point", "direction", "port"),
    [
        pytest.param(ALLOWED, "FORWARDED", {"type": 4}, "TO_ENDPOINT", "INGRESS", None, id="allowed"),
        pytest.param(OUT, "FORWARDED", {"type": 4, "sub_type": 3}, "TO_STACK", "EGRESS", None, id="to another node"),
        pytest.param(STEERED, "REDIRECTED", {"type": 4, "sub_type": 1}, "TO_PROXY", "INGRESS", 15001, id="redirected"),
        pytest.param(AUDITED, "AUDIT", {"type": 4}, "TO_ENDPOINT", "INGRESS", None, id="audited"),
    ],
)
def test_a_packet_that_passes_has_a_policy_verdict_and_a_trace(
    policy_verdict: PolicyVerdict, verdict: str, event: dict[str, int], point: str, direction: str, port: int | None
) -> None:
    judged, traced = packet(policy_verdict, interface=7)
    assert (judged["event_type"], judged["verdict"], judged["is_reply"]) == ({"type": 5}, verdict, False)
    assert (traced["event_type"], traced["verdict"], traced["is_reply"]) == (event, "FORWARDED", False)
    assert (traced["trace_observation_point"], traced["trace_reason"]) == (point, "NEW")
    assert (traced["traffic_direction"], traced.get("proxy_port")) == (direction, port)
    assert traced["interface"] == {"index": 7, "name": "v0"}
    assert any(key.endswith("_by") for key in judged)
    assert not [key for key in traced if key.endswith("_by") or key in ("policy_match_type", "policy_log")]
    assert judged["Summary"] == traced["Summary"] == "TCP Flags: SYN"


def test_a_packet_to_a_pod_of_this_node_is_traced_there() -> None:
    away = msgspec.structs.replace(CONN, source="10.0.0.20", destination="10.0.0.10")
    _, traced = Enricher(BOOK).packet(Connection(TIME, away, OUT))
    assert (traced.trace_observation_point, traced.traffic_direction) == ("TO_ENDPOINT", "INGRESS")


def test_a_refused_packet_has_a_policy_verdict_and_a_drop_with_the_reason() -> None:
    judged, dropped = packet(DENIED)
    for found in (judged, dropped):
        assert (found["verdict"], found["drop_reason"], found["drop_reason_desc"]) == ("DROPPED", 133, "POLICY_DENIED")
        assert "is_reply" not in found and found["policy_log"] == ["no rule"]
    assert (judged["event_type"], dropped["event_type"]) == ({"type": 5}, {"type": 1, "sub_type": 133})
    assert judged["ingress_denied_by"] and "ingress_denied_by" not in dropped
    assert judged["uuid"] != dropped["uuid"]


def test_all_rules_with_the_same_result_are_named_the_deciding_one_first() -> None:
    more = RuleRef("NetworkPolicy", "default", "more")
    both = msgspec.structs.replace(DENIED, ingress_also=(more,), egress_also=(RULE, more))
    for record in (request(both), Connection(TIME, CONN, both), Malformed(TIME, CONN, both, 400)):
        flow = flow_of(record)
        assert [policy.name for policy in flow.ingress_denied_by] == ["l7-policy", "more"]
        assert [policy.name for policy in flow.egress_allowed_by] == ["egress-policy", "l7-policy", "more"]
        assert not flow.egress_denied_by and not flow.ingress_allowed_by
    answered = flow_of(response(msgspec.structs.replace(ALLOWED, ingress_also=(more,))))
    assert [policy.name for policy in answered.ingress_allowed_by] == ["l7-policy", "more"]


def test_every_flow_has_the_labels_of_its_node() -> None:
    labels = ("disk=ssd", "zone=a")
    for record in (request(), response(), Connection(TIME, CONN, ALLOWED), Malformed(TIME, CONN, DENIED, 400)):
        assert flow_of(record, node_labels=labels).to_json()["flow"]["node_labels"] == list(labels)


@pytest.mark.parametrize(
    ("protocol", "kind", "code", "text"),
    [
        (Protocol.ICMP, 3, 3, "ICMPv4 DestinationUnreachable(Port)"),
        (Protocol.ICMP, 3, 99, "ICMPv4 DestinationUnreachable(Code: 99)"),
        (Protocol.ICMP, 8, 1, "ICMPv4 EchoRequest(Code: 1)"),
        (Protocol.ICMP, 42, 0, "ICMPv4 42(0)"),
        (Protocol.ICMPV6, 1, 4, "ICMPv6 DestinationUnreachable(PortUnreachable)"),
        (Protocol.ICMPV6, 2, 0, "ICMPv6 PacketTooBig"),
        (Protocol.ICMPV6, 3, 0, "ICMPv6 TimeExceeded(HopLimitExceeded)"),
    ],
)
def test_icmp_messages_are_named_by_type_and_code(protocol: int, kind: int, code: int, text: str) -> None:
    conn = msgspec.structs.replace(CONN, protocol=protocol)
    assert flow_of(Connection(TIME, conn, ALLOWED, icmp_type=kind, icmp_code=code)).summary == text


def test_an_unknown_verdict_has_the_apis_word() -> None:
    assert flow_of(request(PolicyVerdict(Verdict.UNKNOWN, Direction.UNKNOWN))).verdict == "VERDICT_UNKNOWN"


def test_where_no_policy_asks_everything_matches() -> None:
    unasked = Connection(TIME, CONN, PolicyVerdict(Verdict.FORWARDED, Direction.EGRESS))
    assert flow_of(unasked).policy_match_type == 4
    asked = Connection(TIME, CONN, PolicyVerdict(Verdict.FORWARDED, Direction.INGRESS, ingress=RULE, match_type=2))
    assert flow_of(asked).policy_match_type == 2


def test_the_default_cluster_is_not_named() -> None:
    assert flow_of(request(), cluster="default").node_name == "node-a"
    assert flow_of(request(), cluster="").node_name == "node-a"


def test_a_service_that_is_the_destination_itself_is_named() -> None:
    book = Book(services={("10.0.0.20", 80, 6): ("shop", "web")})
    flow = Enricher(book).flow(request())
    assert flow.destination_service is not None
    assert (flow.destination_service.namespace, flow.destination_service.name) == ("shop", "web")
    assert Enricher(book).flow(response()).source_service == flow.destination_service


SECRET = "hunter2-planted"


@pytest.mark.parametrize(
    "url",
    [
        f"http://user:{SECRET}@backend/x",
        f"http://backend/x?token={SECRET}",
        f"http://backend/x#{SECRET}",
        f"http://{SECRET}@backend",
        f"http://{SECRET}@backend?{SECRET}#{SECRET}",
        f"/x?{SECRET}",
    ],
)
def test_no_secret_of_a_url_gets_out(url: str) -> None:
    for record in (request(url=url), HttpResponse(TIME, CONN, DENIED, "GET", url, "HTTP/1.1", 403, 1)):
        assert SECRET.encode() not in flow_of(record).line()


def test_a_query_gets_out_only_where_configured_and_userinfo_never() -> None:
    flow = flow_of(request(url=f"http://u:{SECRET}@backend/x?a=b@c"), query=True)
    assert flow.l7 is not None and flow.l7.http is not None and flow.l7.http.url == "http://backend/x?a=b@c"


def test_an_at_sign_in_the_path_is_no_userinfo() -> None:
    assert flow_of(request(url="http://backend/@user/x")).summary == "HTTP/1.1 GET http://backend/@user/x"


def test_headers_get_out_only_where_configured() -> None:
    headers = (("x-request-id", "r-1"), ("authorization", SECRET), ("accept", "*/*"))
    assert SECRET.encode() not in flow_of(request(headers=headers)).line()
    flow = flow_of(request(headers=headers), headers=frozenset({"X-Request-Id", "accept"}))
    assert json.loads(flow.line())["flow"]["l7"]["http"]["headers"] == [
        {"key": "Accept", "value": "*/*"},
        {"key": "X-Request-Id", "value": "r-1"},
    ]


def test_each_end_is_looked_up_once_per_snapshot() -> None:
    book = Book(BOOK.pods, BOOK.labels)
    enricher = Enricher(book)
    for _ in range(10):
        enricher.flow(request())
        enricher.flow(response())
    assert book.asked == 2


def test_a_scan_of_the_world_does_not_fill_the_memory() -> None:
    book = Book(BOOK.pods, BOOK.labels)
    enricher = Enricher(book, remembered=100)
    for number in range(1000):
        scan = Conn(f"10.1.{number // 256}.{number % 256}", 1, "10.0.0.20", 80, 2, 5678)
        found = enricher.flow(Connection(TIME, scan, ALLOWED)).destination
        assert found is not None and found.pod_name == "backend"
    assert 1000 < book.asked <= 1020, "what was forgotten is looked up again, now and then"


def test_every_flow_has_a_uuid_of_its_own() -> None:
    enricher = Enricher(Book())
    assert len({enricher.flow(request()).uuid for _ in range(100)}) == 100
