"""The template's line equals the enricher's for any record."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.errors import LinkError
from l7proxy.flows.batch import FlowContext, Flows
from l7proxy.flows.enrich import Enricher
from l7proxy.flows.flow import Flow
from l7proxy.flows.pack import pack
from l7proxy.flows.records import HttpRequest, HttpResponse, Record
from l7proxy.flows.template import TemplateCache, TemplatedFlow, Uuids
from l7proxy.model.endpoint import NamedPod, Workload
from l7proxy.model.policy_verdict import Conn, PolicyVerdict
from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import Direction, Verdict
from tests.support.flow_records import RECORDS

POD = NamedPod(101, "default", "client", Workload("client", "Deployment"))


class Book:
    """Names, some of them odd: one label contains a marker of template.py, one characters that JSON escapes."""

    def pod(self, address: str) -> NamedPod | None:
        return POD if address == "10.0.0.10" else None

    def identity_labels(self, identity: int) -> Sequence[str]:
        return {1: ("k8s:app=a",), 2: ('k8s:odd="\\é%s{}\n',), 3: ("k8s:trap=\ue000u",)}.get(identity, ())

    def service(self, address: str, port: int, protocol: int) -> tuple[str, str] | None:
        return ("default", "web") if port == 80 else None


def enricher(**options: Any) -> Enricher:
    return Enricher(Book(), node="n1", cluster="kind", revision=3, headers=frozenset({"x-id"}), **options)


def without_uuid(line: bytes) -> Any:
    found = json.loads(line)
    assert str(uuid.UUID(found["flow"].pop("uuid")))
    return found, list(found["flow"])


@settings(max_examples=300, deadline=None)  # a batch takes long on a busy machine
@given(st.lists(RECORDS, max_size=12), st.booleans(), st.integers(1, 3))
def test_the_quick_line_is_the_enrichers_line(records: list[Record], query: bool, remembered: int) -> None:
    slow = enricher(query=query)
    templates = TemplateCache(enricher(query=query), Uuids(), remembered=remembered)
    items = templates.items(pack(records)) + templates.items(pack(records))
    for item, record in zip(items, records * 2, strict=True):
        line = item.line()
        assert line.endswith(b"}\n") and line.count(b"\n") == 1
        assert without_uuid(line) == without_uuid(slow.flow(record).line())
        if isinstance(item, TemplatedFlow):
            assert item.flow().line() == line
            assert item.time_ns == record.time_ns == item.flow().time_ns


CONN = Conn("10.0.0.10", 40000, "10.0.0.20", 80, 1, 2)
ALLOWED = PolicyVerdict(Verdict.FORWARDED, Direction.INGRESS, RuleRef("CNP", "ns", "a"))


def asked(number: int, conn: Conn = CONN, policy_verdict: PolicyVerdict = ALLOWED) -> HttpRequest:
    return HttpRequest(number, conn, policy_verdict, "GET", f"http://a/{number}", "HTTP/1.1")


def test_plain_records_take_the_quick_way_and_have_uuids_of_their_own() -> None:
    templates = TemplateCache(enricher(), Uuids())
    items = templates.items(pack([asked(number) for number in range(1000)]))
    assert all(isinstance(item, TemplatedFlow) for item in items)
    found = [uuid.UUID(json.loads(item.line())["flow"]["uuid"]) for item in items]
    assert len(set(found)) == 1000
    assert {each.version for each in found} == {4}


def test_the_next_snapshot_goes_on_counting() -> None:
    uuids = Uuids()
    first, second = (TemplateCache(enricher(), uuids).items(pack([asked(1)])) for _ in range(2))
    assert first[0].line() != second[0].line()


def test_ports_do_not_need_shapes_of_their_own() -> None:
    asked_for: list[str] = []

    class Counting(Book):
        def service(self, address: str, port: int, protocol: int) -> tuple[str, str] | None:
            asked_for.append(address)
            return None

    templates = TemplateCache(Enricher(Counting()), Uuids())
    made = templates.items(
        pack([asked(port, Conn("10.0.0.10", port, "10.0.0.20", 80, 1, 2)) for port in range(1, 500)])
    )
    assert len(asked_for) <= 2
    assert [json.loads(item.line())["flow"]["l4"]["TCP"]["source_port"] for item in made] == list(range(1, 500))


def test_a_port_of_zero_has_no_part_in_the_shape_of_others() -> None:
    """It can be spoofed, and like any zero it is not written."""
    conns = [Conn("10.0.0.10", port, "10.0.0.20", 80, 1, 2) for port in (0, 40000, 0, 1)]
    made = TemplateCache(enricher(), Uuids()).items(pack([asked(1, conn) for conn in conns]))
    assert [type(item) for item in made] == [Flow, TemplatedFlow, Flow, TemplatedFlow]
    for item, conn in zip(made, conns, strict=True):
        assert without_uuid(item.line()) == without_uuid(enricher().flow(asked(1, conn)).line())


def test_forgotten_shapes_are_not_mixed_up() -> None:
    """More verdicts than are cached, in one batch and across batches: each flow names its own rule."""
    templates = TemplateCache(enricher(), Uuids(), remembered=3)
    rules = [PolicyVerdict(Verdict.FORWARDED, Direction.INGRESS, RuleRef("CNP", "ns", f"rule-{n}")) for n in range(10)]
    for order in (rules, rules[::-1], rules[3:] + rules[:3]):
        items = templates.items(pack([asked(1, policy_verdict=policy_verdict) for policy_verdict in order]))
        names = [json.loads(item.line())["flow"]["ingress_allowed_by"][0]["name"] for item in items]
        assert names == [policy_verdict.ingress.name for policy_verdict in order if policy_verdict.ingress]


PARTY = FlowContext(CONN, 0, "GET", "HTTP/1.1")


@pytest.mark.parametrize(
    "flows",
    [
        pytest.param(Flows([], [], [1], [0], ["http://a/"], [-1], [0]), id="no such party"),
        pytest.param(Flows([], [], [1], [-1], [""], [-1], [0]), id="no such whole record"),
        pytest.param(
            Flows([FlowContext(CONN, 4, "GET", "HTTP/1.1")], [ALLOWED], [1], [0], ["http://a/"], [200], [1]),
            id="no such policy verdict",
        ),
    ],
)
def test_a_batch_that_refers_to_nothing_is_refused(flows: Flows) -> None:
    with pytest.raises(LinkError, match="not in its batch"):
        TemplateCache(enricher(), Uuids()).items(flows)


@pytest.mark.parametrize("method", ["BREW", "get", "X-1"])
def test_methods_that_a_client_makes_up_make_no_shapes(method: str) -> None:
    made = TemplateCache(enricher(), Uuids()).items(
        pack([HttpRequest(1, CONN, ALLOWED, method, "http://a/", "HTTP/1.1")])
    )
    assert [type(item) for item in made] == [Flow]
    assert json.loads(made[0].line())["flow"]["l7"]["http"]["method"] == method


def test_traced_requests_take_the_quick_way_too() -> None:
    records: list[Record] = [
        HttpRequest(1, CONN, ALLOWED, "GET", "http://a/", "HTTP/1.1", trace_id="a" * 32),
        HttpResponse(1, CONN, ALLOWED, "GET", "http://a/", "HTTP/1.1", 200, 7, trace_id="a" * 32),
        HttpRequest(1, CONN, ALLOWED, "GET", "http://a/", "HTTP/1.1"),
    ]
    made = TemplateCache(enricher(), Uuids()).items(pack(records))
    assert all(isinstance(one, TemplatedFlow) for one in made)
    contexts = [json.loads(one.line())["flow"].get("trace_context") for one in made]
    assert contexts == [{"parent": {"trace_id": "a" * 32}}] * 2 + [None]


def test_queries_that_may_be_told_take_the_quick_way_too() -> None:
    record = HttpRequest(1, CONN, ALLOWED, "GET", "http://a/b?c=d", "HTTP/1.1")
    (told,) = TemplateCache(enricher(query=True), Uuids()).items(pack([record]))
    (kept_back,) = TemplateCache(enricher(), Uuids()).items(pack([record]))
    assert isinstance(told, TemplatedFlow) and b"c=d" in told.line()
    assert isinstance(kept_back, Flow) and b"c=d" not in kept_back.line()
