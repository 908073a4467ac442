"""Encoded flows: the same fields and values as the exporter's JSON, for any record."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.flows.enrich import Enricher
from l7proxy.flows.event import Event, Lost
from l7proxy.flows.flow import IP, Flow, Policy
from l7proxy.flows.pack import pack
from l7proxy.flows.records import Connection, HttpRequest, HttpResponse, Record
from l7proxy.flows.template import TemplateCache, TemplatedFlow, Uuids
from l7proxy.hubble import mask
from l7proxy.hubble.api.observer import observer_pb2
from l7proxy.hubble.encode import Encoder, Encoders
from l7proxy.model.endpoint import NamedPod, Workload
from l7proxy.model.policy_verdict import Conn, PolicyVerdict
from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import Direction, DropReason, Verdict
from tests.support.flow_records import RECORDS

CONN = Conn("10.0.0.10", 40000, "10.0.0.20", 80, 1, 2)
RULE = RuleRef("CiliumNetworkPolicy", "default", "web")
ALLOWED = PolicyVerdict(Verdict.FORWARDED, Direction.INGRESS, RULE)
DENIED = PolicyVerdict(Verdict.DROPPED, Direction.INGRESS, RULE, drop_reason=DropReason.POLICY_DENIED, reason="no rule")


class Book:
    def pod(self, address: str) -> NamedPod | None:
        return NamedPod(7, "default", "client", Workload("client", "Deployment")) if address == CONN.source else None

    def identity_labels(self, identity: int) -> Sequence[str]:
        return ("k8s:app=a", "k8s:io.cilium.k8s.policy.cluster=kind")

    def service(self, address: str, port: int, protocol: int) -> tuple[str, str] | None:
        return ("default", "web") if port == 80 else None


def events(records: Sequence[Record]) -> list[Event]:
    enricher = Enricher(Book(), node="n1", cluster="kind", revision=3, headers=frozenset({"x-id"}))
    return TemplateCache(enricher, Uuids()).items(pack(records))


def sent(event: Event, *paths: str) -> Any:
    """What a client reads, as JSON."""
    response = observer_pb2.GetFlowsResponse.FromString(Encoder(mask.read(paths), "kind/n1").response(event))
    return json_format.MessageToDict(response, preserving_proto_field_name=True)


def exported(event: Event) -> Any:
    """The exporter's line, without fields that name an enum's zero value."""
    response = json_format.Parse(event.line(), observer_pb2.GetFlowsResponse())
    return json_format.MessageToDict(response, preserving_proto_field_name=True)


@settings(max_examples=100, deadline=None)
@given(st.lists(RECORDS, max_size=6))
def test_a_client_reads_what_the_exporter_writes(records: list[Record]) -> None:
    for event in events(records):
        try:
            wanted = exported(event)
        except json_format.ParseError:  # a number that the API cannot express
            assert sent(event)["lost_events"]["num_events_lost"] == "1"
        else:
            assert sent(event) == wanted


@settings(max_examples=60, deadline=None)
@given(RECORDS.filter(lambda record: isinstance(record, Connection)))
def test_a_client_reads_both_events_of_a_packet_as_the_exporter_writes_them(record: Connection) -> None:
    enricher = Enricher(
        Book(), node="n1", cluster="kind", node_labels=("a=b",), proxy_port=15001, interface=lambda index: "eth0"
    )
    for flow in enricher.packet(record):
        assert sent(flow)["flow"] == exported(flow)["flow"]


def test_flows_of_one_template_share_their_fixed_bytes_and_nothing_else() -> None:
    records: list[Record] = [
        one
        for number in range(1, 6)
        for traced in (f"{number:032x}" if number % 2 else "",)
        for one in (
            HttpRequest(number, CONN, ALLOWED, "GET", f"http://a/{number}", "HTTP/1.1", trace_id=traced),
            HttpResponse(
                number, CONN, ALLOWED, "GET", f"http://a/{number}", "HTTP/1.1", 200, number * 10**6, trace_id=traced
            ),
        )
    ]
    made = events(records)
    assert all(isinstance(event, TemplatedFlow) for event in made)
    encoder = Encoder({}, "")
    for event in made:
        response = observer_pb2.GetFlowsResponse.FromString(encoder.response(event))
        assert response == json_format.Parse(event.line(), observer_pb2.GetFlowsResponse())


@settings(max_examples=100, deadline=None)
@given(st.lists(RECORDS, max_size=6))
def test_followers_with_one_mask_share_an_encoder_and_get_what_each_would_get(records: list[Record]) -> None:
    made = events(records)
    encoders = Encoders("n1")
    expected = [Encoder({}, "n1").response(event) for event in made]
    with encoders.of(mask.read(())) as one, encoders.of(mask.read(())) as other:
        assert one is other and encoders.of(mask.read(["l4"])) is not one
        assert one.responses(made) == expected
        again = other.responses(made)
        assert again == expected and all(a is b for a, b in zip(again, one.responses(made), strict=True))


def test_no_more_is_kept_for_followers_than_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("l7proxy.hubble.encode.WINDOW", 3)
    made = events([HttpRequest(n, CONN, ALLOWED, "GET", f"http://a/{n}", "HTTP/1.1") for n in range(1, 20)])
    with Encoder({}, "") as encoder, encoder:
        assert encoder.responses(made) == [Encoder({}, "").response(event) for event in made]
        assert len(encoder._recent) <= 3


@pytest.mark.parametrize("event", events([HttpRequest(5, CONN, DENIED, "GET", "http://a/", "HTTP/1.1")]))
def test_a_mask_keeps_its_fields_and_the_time_and_node_of_the_response(event: Event) -> None:
    whole = json.loads(event.line())
    assert sent(event, "verdict", "source.labels", "l7.http.method") == {
        "flow": {
            "verdict": "DROPPED",
            "source": {"labels": whole["flow"]["source"]["labels"]},
            "l7": {"http": {"method": "GET"}},
        },
        "node_name": "kind/n1",
        "time": whole["time"],
    }
    assert sent(event, "source.labels", "source")["flow"] == {"source": whole["flow"]["source"]}


@pytest.mark.parametrize(
    "paths",
    [
        ["uuid"],
        ["l7"],
        ["trace_context"],
        ["trace_context.parent.trace_id"],
        ["l7.http.url"],
        ["l4.TCP.source_port", "time"],
        ["Summary", "source"],
    ],
)
def test_a_mask_of_varying_fields_is_the_same_for_templates(paths: list[str]) -> None:
    (event,) = events([HttpResponse(5, CONN, ALLOWED, "GET", "http://a/", "HTTP/1.1", 200, 7, trace_id="a" * 32)])
    assert isinstance(event, TemplatedFlow)
    assert sent(event, *paths) == sent(event.flow(), *paths)


def test_the_stock_client_gets_what_it_prints_besides_its_mask() -> None:
    (event,) = events([HttpRequest(5, CONN, DENIED, "GET", "http://a/", "HTTP/1.1")])
    found = sent(event, *mask.STOCK)["flow"]
    assert found["traffic_direction"] == "INGRESS" and found["ingress_denied_by"]
    assert "uuid" not in found and "labels" not in found["source"]


def test_every_verdict_and_drop_reason_has_a_number() -> None:
    for verdict in set(Verdict) - {Verdict.UNKNOWN}:
        for reason in DropReason:
            denied = msgspec.structs.replace(DENIED, verdict=verdict, drop_reason=reason)
            (event,) = events([HttpRequest(5, CONN, denied, "GET", "http://a/", "HTTP/1.1")])
            assert sent(event) == exported(event)


def test_a_flow_read_from_elsewhere_is_encoded_too() -> None:
    flow = Flow(
        time="1970-01-01T00:00:01Z",
        ip=IP(source="10.0.0.1", version="IPv4"),
        egress_denied_by=(Policy(name="a", revision="9"), Policy(name="b")),
        is_reply=False,
        auth_type="SPIRE",
        trace_observation_point="TO_ENDPOINT",
    )
    assert sent(flow)["flow"] == exported(flow)["flow"]


def test_lost_events_say_how_many_where_and_when() -> None:
    assert sent(Lost(12, "HUBBLE_RING_BUFFER", 1_000_000_000, "n1")) == {
        "lost_events": {
            "source": "HUBBLE_RING_BUFFER",
            "num_events_lost": "12",
            "first": "1970-01-01T00:00:01Z",
            "last": "1970-01-01T00:00:01Z",
        },
        "node_name": "kind/n1",
        "time": "1970-01-01T00:00:01Z",
    }
