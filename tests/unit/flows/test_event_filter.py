"""Filters of events answer as the filter of each flow does, however much they remember."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.errors import ConfigError
from l7proxy.flows import event_filter, filters
from l7proxy.flows.enrich import Enricher
from l7proxy.flows.event import Event, Lost
from l7proxy.flows.pack import pack
from l7proxy.flows.records import HttpRequest, HttpResponse, Record
from l7proxy.flows.template import TemplateCache, TemplatedFlow, Uuids
from l7proxy.model.endpoint import NamedPod
from l7proxy.model.policy_verdict import Conn, PolicyVerdict
from l7proxy.model.verdict import Direction, Verdict
from tests.support.flow_records import RECORDS

VALUES: dict[str, list[Any]] = {
    "verdict": ["FORWARDED", "DROPPED"],
    "source_ip": ["10.0.0.10", "10.0.0.0/28"],
    "source_label": ["app=a", "app!=a"],
    "http_method": ["get", "POST"],
    "reply": [True, False],
    "protocol": ["http", "tcp"],
    "source_port": ["80", "40000"],
    "destination_port": ["80", "1"],
    "http_path": ["/b", "x"],
    "http_url": ["a/b$"],
    "http_status_code": ["200", "4+"],
}
FILTERS = st.lists(
    st.fixed_dictionaries(
        {}, optional={name: st.lists(st.sampled_from(values), max_size=2) for name, values in VALUES.items()}
    ),
    max_size=3,
)
HTTP = RECORDS.filter(lambda record: isinstance(record, HttpRequest | HttpResponse))


class Book:
    def pod(self, address: str) -> NamedPod | None:
        return None

    def identity_labels(self, identity: int) -> Sequence[str]:
        return (f"k8s:app={'abc'[identity % 3]}",)

    def service(self, address: str, port: int, protocol: int) -> tuple[str, str] | None:
        return None


def events(records: Sequence[Record]) -> list[Event]:
    return TemplateCache(Enricher(Book(), node="n1"), Uuids()).items(pack(records))


@settings(max_examples=300, deadline=None)
@given(st.lists(HTTP, max_size=8), FILTERS, FILTERS)
def test_an_event_is_kept_when_its_flow_is_wanted(
    records: list[Record], whitelist: list[dict[str, Any]], blacklist: list[dict[str, Any]]
) -> None:
    request = {"whitelist": whitelist, "blacklist": blacklist}
    keep, wanted = event_filter.build(request), filters.build(request)
    for event in (made := events(records)) + made:
        flow = event.flow()
        assert flow is not None and keep(event) is wanted(flow)


def flows_of_one_template() -> list[Event]:
    conn, verdict = Conn("10.0.0.10", 40000, "10.0.0.20", 80, 1, 2), PolicyVerdict(Verdict.FORWARDED, Direction.INGRESS)
    return events([HttpRequest(n, conn, verdict, "GET", f"http://a/{n}", "HTTP/1.1") for n in range(1, 10)])


@pytest.mark.parametrize("asked", [{"verdict": ["FORWARDED"]}, {"http_method": ["GET"], "source_label": ["app=b"]}])
def test_no_flow_is_made_where_fixed_fields_give_the_answer(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    made = flows_of_one_template()
    assert all(isinstance(event, TemplatedFlow) for event in made)
    keep = event_filter.build({"whitelist": [asked]})
    monkeypatch.setattr(TemplatedFlow, "flow", None)
    assert [event for event in made if keep(event)] == made


def test_flows_of_one_template_differ_in_the_varying_fields_alone() -> None:
    first, second = (event.flow() for event in flows_of_one_template()[:2])
    assert first is not None and second is not None
    differing = {name for name in first.__struct_fields__ if getattr(first, name) != getattr(second, name)}
    assert differing <= {"time", "uuid", "l4", "l7", "summary"}


def test_a_trace_id_is_asked_of_each_flow() -> None:
    """Flows of one template have trace ids, or none."""
    conn, verdict = Conn("10.0.0.10", 40000, "10.0.0.20", 80, 1, 2), PolicyVerdict(Verdict.FORWARDED, Direction.INGRESS)
    ids = ["", "4bf92f3577b34da6a3ce929d0e0e4736", "", "0af7651916cd43dd8448eb211c80319c"]
    made = events([HttpRequest(1, conn, verdict, "GET", "http://a/", "HTTP/1.1", (), (), one) for one in ids])
    assert all(isinstance(event, TemplatedFlow) for event in made)
    keep = event_filter.build({"whitelist": [{"trace_id": [ids[1]]}]})
    assert [keep(event) for event in made] == [False, True, False, False]


def test_lost_events_pass_every_filter() -> None:
    assert event_filter.build({"blacklist": [{}]})(Lost(3, "HUBBLE_RING_BUFFER", 1))
    assert event_filter.build({}) is event_filter.everything is event_filter.build(None)


def test_a_wrong_filter_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown field 'colour'"):
        event_filter.build({"whitelist": [{"colour": ["red"]}]})
