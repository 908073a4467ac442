"""What flows count in: names, labels and values as Hubble's, read back with Prometheus' own parsers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from l7proxy.flows.enrich import Enricher
from l7proxy.flows.event import Event, Lost
from l7proxy.flows.flow import (
    IP,
    CiliumEventType,
    Dns,
    Endpoint,
    Flags,
    Flow,
    Http,
    Icmp,
    Layer4,
    Layer7,
    Ports,
    Workload,
)  # fmt: skip
from l7proxy.flows.pack import pack
from l7proxy.flows.records import HttpRequest, HttpResponse, Record
from l7proxy.flows.template import TemplateCache, TemplatedFlow, Uuids
from l7proxy.metrics.options import FLAGS, parse
from l7proxy.metrics.sink import FlowMetrics
from l7proxy.model.endpoint import NamedPod
from l7proxy.model.endpoint import Workload as PodWorkload
from l7proxy.model.policy_verdict import Conn, PolicyVerdict
from l7proxy.model.verdict import Direction, Verdict
from tests.support.flow_records import RECORDS

CLIENT = Endpoint(
    namespace="shop", pod_name="web-1", labels=("k8s:app=web",), workloads=(Workload(name="web", kind="Deployment"),)
)
SERVER = Endpoint(namespace="shop", pod_name="db-0", workloads=(Workload(name="db", kind="StatefulSet"),))
WORLD = Endpoint(identity=2, labels=("reserved:world",))
FOUR = IP(source="10.0.0.1", destination="10.0.0.2", version="IPv4")
VERDICT, DROP, L7 = CiliumEventType(type=5), CiliumEventType(type=1, sub_type=133), CiliumEventType(type=129)
FLOWS_TOTAL, DROP_TOTAL, REQUESTS = "hubble_flows_processed_total", "hubble_drop_total", "hubble_http_requests_total"
SYN = Layer4(tcp=Ports(source_port=40000, destination_port=80, flags=Flags(syn=True)))
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def opened(**more: Any) -> Flow:
    """A new connection; `more` replaces fields."""
    fields = {
        "verdict": "FORWARDED", "ip": FOUR, "l4": SYN, "source": CLIENT, "destination": SERVER, "type": "L3_L4",
        "event_type": VERDICT, "is_reply": False, "traffic_direction": "INGRESS", "policy_match_type": 2,
    }  # fmt: skip
    return Flow(**{**fields, **more})


def request(**more: Any) -> Flow:
    http = Http(method="GET", url="http://db/x", protocol="HTTP/1.1")
    return opened(**{"l7": Layer7(type="REQUEST", http=http), "event_type": L7, "type": "L7", **more})


def response(code: int = 200, latency: int = 7_000_000) -> Flow:
    http = Http(code=code, method="GET", url="http://db/x", protocol="HTTP/1.1")
    return opened(
        l7=Layer7(type="RESPONSE", latency_ns=str(latency), http=http), event_type=L7, type="L7", is_reply=True,
        source=SERVER, destination=CLIENT, ip=IP(source="10.0.0.2", destination="10.0.0.1", version="IPv4"),
    )  # fmt: skip


def exposed(sink: FlowMetrics) -> Samples:
    """Every sample of the text format; the OpenMetrics format must be valid and say the same."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(sink)
    plain = [s for one in parse_text(generate_latest(registry).decode()) for s in one.samples]
    encode, _ = choose_encoder("application/openmetrics-text; version=1.0.0")
    families = parse_openmetrics(encode(registry).decode())  # type: ignore[no-untyped-call]
    other = [s for one in families for s in one.samples]
    found, same = ({(s.name, tuple(sorted(s.labels.items()))): s.value for s in some} for some in (plain, other))
    assert found == same
    return found


def counted(text: str, *flows: Event, limit: int = 100, own: bool = False) -> Samples:
    """What these flows count, without the two metrics that are always there."""
    sink = FlowMetrics(parse(text), limit=limit)
    sink.consume(flows)
    always = () if own else ("hubble_lost_events_total", "l7proxy_metrics_folded_total")
    return {key: value for key, value in exposed(sink).items() if key[0] not in always}


def sample(name: str, **labels: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    return name, tuple(sorted(labels.items()))


def test_flows_processed() -> None:
    assert counted("flow", opened(), opened(), request(), opened(event_type=DROP, verdict="DROPPED")) == {
        sample(FLOWS_TOTAL, protocol="TCP", type="PolicyVerdict", subtype="", verdict="FORWARDED"): 2,
        sample(FLOWS_TOTAL, protocol="HTTP", type="L7", subtype="HTTP", verdict="FORWARDED"): 1,
        sample(FLOWS_TOTAL, protocol="TCP", type="Drop", subtype="", verdict="DROPPED"): 1,
    }


def test_drops_have_their_context_first() -> None:
    drop = opened(event_type=DROP, verdict="DROPPED", drop_reason_desc="POLICY_DENIED")
    assert counted("drop:sourceContext=pod;destinationContext=workload", drop, request(verdict="DROPPED")) == {
        sample(DROP_TOTAL, source="shop/web-1", destination="shop/db", reason="POLICY_DENIED", protocol="TCP"): 1,
        sample(
            DROP_TOTAL, source="shop/web-1", destination="shop/db", reason="DROP_REASON_UNKNOWN",
            protocol="HTTP",
        ): 1,
    }  # fmt: skip


def test_tcp_flags_of_what_passed() -> None:
    answer = opened(l4=Layer4(tcp=Ports(flags=Flags(syn=True, ack=True))))
    assert counted("tcp", opened(), answer, opened(verdict="DROPPED")) == {
        sample("hubble_tcp_flags_total", flag="SYN", family="IPv4"): 1,
        sample("hubble_tcp_flags_total", flag="SYN-ACK", family="IPv4"): 1,
    }


def test_icmp() -> None:
    ping = opened(l4=Layer4(icmpv4=Icmp(type=8)))
    assert counted("icmp port-distribution", ping) == {
        sample("hubble_icmp_total", family="IPv4", type="EchoRequest"): 1,
        sample("hubble_port_distribution_total", protocol="ICMPv4", port="0"): 1,
    }


def test_ports_of_new_connections_only() -> None:
    assert counted("port-distribution", opened(), opened(is_reply=None), opened(verdict="DROPPED"), response()) == {
        sample("hubble_port_distribution_total", protocol="TCP", port="80"): 1
    }


def test_policy_verdicts() -> None:
    denied = opened(verdict="DROPPED", drop_reason_desc="POLICY_DENIED", policy_match_type=0)
    dropped = opened(event_type=DROP, verdict="DROPPED", drop_reason_desc="POLICY_DENIED", policy_match_type=0)
    host = opened(source=Endpoint(identity=1))
    spoofed = opened(event_type=DROP, verdict="DROPPED", drop_reason_desc="INVALID_SOURCE_IP")
    assert counted("policy", opened(), denied, dropped, host, spoofed, request(verdict="DROPPED")) == {
        sample("hubble_policy_verdicts_total", direction="ingress", match="l3-l4", action="forwarded"): 1,
        sample("hubble_policy_verdicts_total", direction="ingress", match="none", action="dropped"): 1,
        sample("hubble_policy_verdicts_total", direction="ingress", match="l7/http", action="dropped"): 1,
    }


def test_flows_to_world() -> None:
    out = opened(destination=WORLD)
    spoofed = opened(destination=WORLD, verdict="DROPPED", drop_reason_desc="INVALID_SOURCE_IP")
    assert counted("flows-to-world:port", out, opened(), spoofed, opened(destination=WORLD, is_reply=True)) == {
        sample("hubble_flows_to_world_total", protocol="TCP", verdict="FORWARDED", port="80"): 1
    }
    assert counted("flows-to-world:any-drop;syn-only", spoofed) == {
        sample("hubble_flows_to_world_total", protocol="TCP", verdict="DROPPED"): 1
    }


def buckets(name: str, at_most: float, **labels: str) -> Samples:
    bounds = ("0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1.0", "2.5", "5.0", "10.0", "+Inf")
    return {sample(f"{name}_bucket", **labels, le=bound): float(float(bound) >= at_most) for bound in bounds}


def test_http_of_version_1() -> None:
    assert counted("http:sourceContext=pod", request(), response(404)) == {
        sample(REQUESTS, source="shop/web-1", method="GET", protocol="HTTP/1.1", reporter="server"): 1,
        sample(
            "hubble_http_responses_total", source="shop/db-0", method="GET", protocol="HTTP/1.1", status="404",
            reporter="server",
        ): 1,
        **buckets("hubble_http_request_duration_seconds", 0.007, source="shop/db-0", method="GET", reporter="server"),
        sample("hubble_http_request_duration_seconds_count", source="shop/db-0", method="GET", reporter="server"): 1,
        sample("hubble_http_request_duration_seconds_sum", source="shop/db-0", method="GET", reporter="server"): 0.007,
    }  # fmt: skip


def test_http_of_version_2_counts_responses_under_their_client() -> None:
    text = "httpV2:labelsContext=source_namespace,source_workload,destination_workload,traffic_direction"
    own = {
        "source_namespace": "shop", "source_workload": "web", "destination_workload": "db",
        "traffic_direction": "ingress",
    }  # fmt: skip
    duration = "hubble_http_request_duration_seconds"
    assert counted(text, request(), response(404)) == {
        sample(REQUESTS, **own, method="GET", protocol="HTTP/1.1", status="404", reporter="server"): 1,
        **buckets(duration, 0.007, **own, method="GET", reporter="server"),
        sample(f"{duration}_count", **own, method="GET", reporter="server"): 1,
        sample(f"{duration}_sum", **own, method="GET", reporter="server"): 0.007,
    }


def test_dns() -> None:
    asked = opened(l7=Layer7(type="REQUEST", dns=Dns(query="a.example.", qtypes=("A",))))
    refused = opened(l7=Layer7(type="REQUEST", dns=Dns(query="b.example.", qtypes=("A",))), verdict="DROPPED")
    told = opened(
        l7=Layer7(type="RESPONSE", dns=Dns(query="a.example.", qtypes=("A",), ips=("1.2.3.4",), rrtypes=("A",))),
        is_reply=True,
    )
    six = opened(l7=Layer7(type="REQUEST", dns=Dns(query="a.example.", qtypes=("AAAA",))))
    own = {"qtypes": "A", "query": "a.example."}
    assert counted("dns:query;ignoreAAAA", asked, refused, told, six) == {
        sample("hubble_dns_queries_total", rcode="", qtypes="A", ips_returned="0", query="a.example."): 1,
        sample("hubble_dns_queries_total", rcode="Policy denied", qtypes="A", ips_returned="0", query="b.example."): 1,
        sample("hubble_dns_responses_total", rcode="No Error", qtypes="A", ips_returned="1", query="a.example."): 1,
        sample("hubble_dns_response_types_total", type="A", **own): 1,
    }


def test_what_dashboards_of_ciliums_agent_query() -> None:
    malformed = request(l7=Layer7(type="REQUEST", http=Http(code=400, protocol="HTTP/1.1")), verdict="DROPPED")
    drop = opened(event_type=DROP, verdict="DROPPED", drop_reason=133)
    assert counted("cilium", request(), request(verdict="DROPPED"), malformed, response(), drop) == {
        sample("cilium_policy_l7_total", rule="received", proxy_type="envoy"): 3,
        sample("cilium_policy_l7_total", rule="forwarded", proxy_type="envoy"): 1,
        sample("cilium_policy_l7_total", rule="denied", proxy_type="envoy"): 1,
        sample("cilium_policy_l7_total", rule="parse_errors", proxy_type="envoy"): 1,
        sample("cilium_drop_count_total", reason="Policy denied", direction="INGRESS"): 1,
    }


@pytest.mark.parametrize(
    ("identifier", "value"),
    [
        ("identity", "k8s:app=web"),
        ("namespace", "shop"),
        ("pod", "shop/web-1"),
        ("pod-name", "web-1"),
        ("dns", "a.example,b.example"),
        ("ip", "10.0.0.1"),
        ("reserved-identity", ""),
        ("workload", "shop/web"),
        ("workload-name", "web"),
        ("app", "web"),
        ("reserved-identity|dns|pod", "a.example,b.example"),
    ],
)
def test_contexts(identifier: str, value: str) -> None:
    flow = opened(source_names=("a.example", "b.example"))
    found = counted(f"tcp:sourceContext={identifier}", flow)
    assert found == {sample("hubble_tcp_flags_total", flag="SYN", family="IPv4", source=value): 1}


def test_a_context_of_one_direction_wins_there() -> None:
    text = "tcp:destinationContext=namespace;destinationEgressContext=ip"
    found = counted(text, opened(), opened(traffic_direction="EGRESS"))
    assert {key[1][0] for key in found} == {("destination", "shop"), ("destination", "10.0.0.2")}


def test_lost_events_are_counted_by_source() -> None:
    found = counted("flow", Lost(5, "HUBBLE_RING_BUFFER", 1), Lost(2, "HUBBLE_RING_BUFFER", 2), own=True)
    assert found == {
        sample("hubble_lost_events_total", source="observer_events_queue"): 0,
        sample("hubble_lost_events_total", source="hubble_ring_buffer"): 7,
        sample("hubble_lost_events_total", source="perf_event_ring_buffer"): 0,
        sample("l7proxy_metrics_folded_total", metric="hubble_flows_processed"): 0,
    }


def test_series_beyond_the_limit_are_folded_and_none_goes_uncounted() -> None:
    flows = [opened(l4=Layer4(tcp=Ports(destination_port=port))) for port in range(1, 101)]
    found = counted("port-distribution", *flows, limit=10, own=True)
    name = "hubble_port_distribution_total"
    ports = {key: value for key, value in found.items() if key[0] == name}
    assert len(ports) == 11
    assert sum(ports.values()) == 100
    assert ports[sample(name, protocol="TCP", port="overflow")] == 90
    assert found[sample("l7proxy_metrics_folded_total", metric="hubble_port_distribution")] == 90


def test_the_series_of_a_pod_go_a_minute_after_it() -> None:
    clock, pods = [0.0], {("10.0.0.1", "shop", "web-1"), ("10.0.0.2", "shop", "db-0")}
    metrics = parse("tcp:labelsContext=source_pod,source_namespace drop:sourceContext=namespace")
    sink = FlowMetrics(metrics, limit=9, alive=lambda pod: pod in pods, now=lambda: clock[0])

    def names() -> set[str]:
        return {name for name, _ in exposed(sink)} & {"hubble_tcp_flags_total", "hubble_drop_total"}

    sink.consume([opened(), opened(verdict="DROPPED", event_type=DROP)])
    both = {"hubble_tcp_flags_total", "hubble_drop_total"}
    assert names() == both
    pods.remove(("10.0.0.1", "shop", "web-1"))
    for moment in (1.0, 60.9):
        clock[0] = moment
        assert names() == both
    clock[0] = 61.1
    assert names() == {"hubble_drop_total"}, "a namespace is no pod"
    sink.consume([opened()])
    assert names() == both, "a pod of that name is counted anew"


class Book:
    def pod(self, address: str) -> NamedPod | None:
        workload = PodWorkload("client", "Deployment")
        return NamedPod(101, "default", "client", workload) if address == "10.0.0.10" else None

    def identity_labels(self, identity: int) -> Sequence[str]:
        return ("reserved:world",) if identity == 2 else ("k8s:app=a",)

    def service(self, address: str, port: int, protocol: int) -> tuple[str, str] | None:
        return None


EVERYTHING = " ".join(
    f"{name}:labelsContext=source_pod,destination_ip" for name in FLAGS if name not in ("http", "cilium")
)
CONN = Conn("10.0.0.10", 40000, "10.0.0.20", 80, 1, 2)
ALLOWED = PolicyVerdict(Verdict.FORWARDED, Direction.INGRESS)


def exchanges(count: int) -> list[Record]:
    made: list[Record] = []
    for number in range(count):
        status = 200 if number % 3 else 404
        made.append(HttpRequest(1, CONN, ALLOWED, "GET", f"http://a/{number}", "HTTP/1.1"))
        made.append(
            HttpResponse(1, CONN, ALLOWED, "GET", f"http://a/{number}", "HTTP/1.1", status, (number + 1) * 1_000_000)
        )
    return made


@settings(max_examples=25, deadline=None)
@given(st.lists(RECORDS, max_size=12))
def test_what_templates_count_is_what_their_flows_count(records: list[Record]) -> None:
    """The short way, by template and status, must never count other than the long one."""
    events = TemplateCache(Enricher(Book()), Uuids()).items(pack([*records, *exchanges(4)]))
    assert any(isinstance(event, TemplatedFlow) for event in events)
    quick, slow = (FlowMetrics(parse(f"{EVERYTHING} cilium"), limit=1000) for _ in range(2))
    quick.consume(events)
    slow.consume([flow for event in events if (flow := event.flow()) is not None])
    assert exposed(quick) == pytest.approx(exposed(slow))


def test_many_templates_forget_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("l7proxy.metrics.sink.REMEMBERED", 1)
    sink = FlowMetrics(parse("httpV2"), limit=100)
    sink.consume(TemplateCache(Enricher(Book()), Uuids()).items(pack(exchanges(30))))
    found = exposed(sink)
    own = {"method": "GET", "protocol": "HTTP/1.1"}
    assert found[sample(REQUESTS, **own, status="404", reporter="server")] == 10
    assert found[sample(REQUESTS, **own, status="200", reporter="server")] == 20
    total = found[sample("hubble_http_request_duration_seconds_sum", method="GET", reporter="server")]
    assert total == pytest.approx(sum(range(1, 31)) / 1000)


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def exemplars(text: str, *events: Event) -> dict[str, tuple[dict[str, str], float, float]]:
    """Sample, with `le` if it is of a bucket → its exemplar, in the OpenMetrics format."""
    sink = FlowMetrics(parse(text), limit=100)
    sink.consume(events)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(sink)
    assert TRACE not in generate_latest(registry).decode()
    encode, _ = choose_encoder("application/openmetrics-text; version=1.0.0")
    families = parse_openmetrics(encode(registry).decode())  # type: ignore[no-untyped-call]
    return {
        s.name + s.labels.get("le", ""): (s.exemplar.labels, s.exemplar.value, float(s.exemplar.timestamp))
        for one in families
        for s in one.samples
        if s.exemplar
    }


def traced(latency_ns: int, *, headers: tuple[tuple[str, str], ...] = ()) -> list[Event]:
    """A request's two flows; those with headers are made by the enricher, others by templates."""
    conn, allowed = Conn("10.0.0.1", 40000, "10.0.0.2", 80, 1, 2), PolicyVerdict(Verdict.FORWARDED, Direction.INGRESS)
    url, protocol, end = "http://db/x", "HTTP/1.1", 2_000_000_000
    records: list[Record] = [
        HttpRequest(end - latency_ns, conn, allowed, "GET", url, protocol, headers, (), TRACE),
        HttpResponse(end, conn, allowed, "GET", url, protocol, 200, latency_ns, headers, TRACE),
    ]
    return TemplateCache(Enricher(Book(), node="n1", headers=frozenset({"x-id"})), Uuids()).items(pack(records))


@pytest.mark.parametrize("headers", [(), (("x-id", "7"),)])
def test_exemplars_are_shown_if_asked_for(headers: tuple[tuple[str, str], ...]) -> None:
    events = traced(7_000_000, headers=headers)
    assert all(isinstance(event, TemplatedFlow) is not bool(headers) for event in events)
    trace = {"traceID": TRACE}
    assert exemplars("flow httpV2:exemplars=true", *events) == {
        "hubble_http_requests_total": (trace, 1.0, 2.0),
        "hubble_http_request_duration_seconds_bucket0.01": (trace, 0.007, 2.0),
    }
    assert set(exemplars("http:exemplars", *events)) == {
        "hubble_http_requests_total",
        "hubble_http_request_duration_seconds_bucket0.01",
    }
    assert exemplars("flow httpV2", *events) == {}


def test_the_newest_request_of_a_bucket_is_its_exemplar() -> None:
    found = exemplars("httpV2:exemplars=true", *traced(7_000_000), *traced(3_000_000_000), *traced(6_000_000))
    assert {name: value for name, (_, value, _) in found.items() if "bucket" in name} == {
        "hubble_http_request_duration_seconds_bucket0.01": 0.006,
        "hubble_http_request_duration_seconds_bucket5.0": 3.0,
    }


def test_the_configuration_of_ciliums_documentation_is_read() -> None:
    text = (
        "dns drop tcp flow port-distribution icmp httpV2:exemplars=true;labelsContext=source_ip,source_namespace,"
        "source_workload,destination_ip,destination_namespace,destination_workload,traffic_direction"
    )
    assert "exemplars" in parse(text)[-1].flags
