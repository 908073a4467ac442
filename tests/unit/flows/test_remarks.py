"""Remarks of header rules reach the flow, in batches and with cached templates; secret values do not."""

from __future__ import annotations

import pytest

from l7proxy.cluster.names import Names
from l7proxy.flows.enrich import Enricher
from l7proxy.flows.flow import Flow
from l7proxy.flows.pack import pack
from l7proxy.flows.records import HttpRequest, HttpResponse
from l7proxy.flows.template import TemplateCache, Uuids
from l7proxy.model.policy_verdict import Conn, PolicyVerdict
from l7proxy.model.verdict import Direction, Verdict

CONN = Conn("10.0.0.1", 40000, "10.0.0.2", 80, 1001, 1002)
ALLOWED = PolicyVerdict(Verdict.FORWARDED, Direction.INGRESS)
REMARKS = ("header missing: authorization", "header rejected: x-token: old")


def asked(policy_verdict: PolicyVerdict = ALLOWED, **more: tuple[object, ...]) -> HttpRequest:
    return HttpRequest(1_000_000_000, CONN, policy_verdict, "GET", "http://h/a", "HTTP/1.1", **more)  # type: ignore[arg-type] # either


def shown(enricher: Enricher, record: HttpRequest | HttpResponse) -> Flow:
    (item,) = TemplateCache(enricher, Uuids()).items(pack([record]))
    flow = item.flow()
    assert flow is not None
    return flow


def test_remarks_stand_in_the_flows_policy_log() -> None:
    enricher = Enricher(Names())
    assert shown(enricher, asked(remarks=REMARKS)).policy_log == REMARKS
    assert shown(enricher, asked()).policy_log == ()


def test_behind_the_reason_of_an_audited_refusal() -> None:
    audited = PolicyVerdict(Verdict.AUDIT, Direction.INGRESS, reason="would be refused")
    assert shown(Enricher(Names()), asked(audited, remarks=REMARKS)).policy_log == ("would be refused", *REMARKS)


@pytest.mark.parametrize("name", ["authorization", "Authorization"])
def test_a_secret_headers_value_is_not_shown_even_if_a_worker_tells_it(name: str) -> None:
    open_ = frozenset({"authorization", "x-id"})
    enricher = Enricher(Names(), headers=open_, secret_headers=frozenset({"authorization"}))
    headers = ((name, "hunter2"), ("x-id", "7"))
    for record in (
        asked(headers=headers),
        HttpResponse(2, CONN, ALLOWED, "GET", "http://h/a", "HTTP/1.1", 200, 5, headers),
    ):
        flow = shown(enricher, record)
        assert flow.l7 is not None
        assert flow.l7.http is not None
        found = {header.key: header.value for header in flow.l7.http.headers}
        assert found == {"Authorization": "[redacted]", "X-Id": "7"}
        assert b"hunter2" not in flow.line()
