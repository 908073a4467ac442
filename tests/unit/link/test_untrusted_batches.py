"""What a worker sends is refused, or can be written in every format: a worker may be taken over.

Whatever the values of its records are, they change no field of a flow but their own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.errors import LinkError
from l7proxy.flows import batch
from l7proxy.flows.batch import FlowContext, Flows
from l7proxy.flows.enrich import Enricher
from l7proxy.flows.event import Event
from l7proxy.flows.records import Connection, Malformed
from l7proxy.flows.template import TemplateCache, Uuids
from l7proxy.hubble import mask
from l7proxy.hubble.api.observer import observer_pb2
from l7proxy.hubble.encode import Encoder
from l7proxy.link import framing
from l7proxy.model.endpoint import NamedPod
from l7proxy.model.policy_verdict import Conn, PolicyVerdict
from l7proxy.model.verdict import Direction, DropReason, Verdict

INJECTED = '"}},"flow":{"verdict":"FORWARDED'
HEX = "4bf92f3577b34da6a3ce929d0e0e4736"
CONN = Conn("10.0.0.10", 40000, "10.0.0.20", 80, 1, 2)
ALLOWED = PolicyVerdict(Verdict.FORWARDED, Direction.INGRESS)

texts = st.sampled_from(["", "GET", "HTTP/1.1", "http://a/b", "é\u2028\x00\ue000t", INJECTED, HEX, HEX + "\n", "x" * 9])
addresses = st.sampled_from(
    ["10.0.0.10", "fd00::2", "::ffff:10.0.0.1", "", "10.0.0", "fe80::1%eth0", INJECTED, "1\x00"]
)
numbers = st.sampled_from([-(2**63), -2, -1, 0, 1, 6, 58, 80, 255, 256, 511, 512, 999, 1000, 65535, 65536])
large = numbers | st.sampled_from([2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1])
verdicts = st.builds(
    PolicyVerdict,
    verdict=st.sampled_from(Verdict),
    direction=st.sampled_from(Direction),
    drop_reason=st.sampled_from(DropReason),
    reason=texts,
    match_type=large,
    log=st.tuples(texts),
)
conns = st.builds(
    Conn,
    source=addresses,
    source_port=numbers,
    destination=addresses,
    destination_port=numbers,
    source_identity=large,
    destination_identity=large,
    protocol=numbers,
)
whole = st.one_of(
    st.builds(
        Connection,
        time_ns=large,
        conn=conns,
        policy_verdict=verdicts,
        flags=numbers,
        icmp_type=numbers,
        icmp_code=numbers,
        interface=large,
    ),
    st.builds(Malformed, time_ns=large, conn=conns, policy_verdict=verdicts, status=numbers, protocol=texts),
)
batches = st.builds(
    Flows,
    parties=st.lists(
        st.builds(FlowContext, conn=conns | st.just(CONN), policy_verdict=st.just(0), method=texts, protocol=texts),
        min_size=1,
        max_size=1,
    ),
    policy_verdicts=st.lists(verdicts | st.just(ALLOWED), min_size=1, max_size=1),
    times=st.tuples(large).map(list),
    party=st.sampled_from([[0], [-1], [1]]),
    urls=st.tuples(texts).map(list),
    statuses=st.tuples(large).map(list),
    latencies=st.tuples(large).map(list),
    headers=st.just({}) | st.dictionaries(st.just(0), st.tuples(st.tuples(st.just("x-id"), texts))),
    remarks=st.just({}) | st.dictionaries(st.just(0), st.tuples(texts)),
    whole=st.just({}) | st.dictionaries(st.just(0), whole),
    trace_ids=st.just({}) | st.dictionaries(st.just(0), texts),
    lost=st.just(0),
)


class Names:
    def pod(self, address: str) -> NamedPod | None:
        return None

    def identity_labels(self, identity: int) -> Sequence[str]:
        return ()

    def service(self, address: str, port: int, protocol: int) -> tuple[str, str] | None:
        return None


def received(flows: Flows) -> list[Event]:
    """What the agent makes of the bytes of this batch."""
    (message,) = framing.from_worker().feed(framing.encode(flows))
    assert isinstance(message, Flows)
    return TemplateCache(Enricher(Names(), node="n1", headers=frozenset({"x-id"})), Uuids()).items(message)


def between(source: str, destination_port: int) -> list[FlowContext]:
    return [FlowContext(Conn(source, 40000, "10.0.0.20", destination_port, 1, 2), 0, "GET", "HTTP/1.1")]


def one(**changed: Any) -> Flows:
    """A valid batch of one request, but for what is changed."""
    valid = Flows(between("10.0.0.10", 80), [ALLOWED], [1], [0], ["http://a/"], [batch.NO_STATUS], [0])
    return msgspec.structs.replace(valid, **changed)


@settings(max_examples=2000, deadline=None)
@given(batches)
def test_a_batch_is_refused_or_written_in_every_format(flows: Flows) -> None:
    try:
        events = received(flows)
    except LinkError:
        return
    for event in events:
        flow = event.flow()
        assert flow is not None
        line = json.loads(event.line())
        assert set(line["flow"]) <= {field.encode_name for field in msgspec.structs.fields(flow)}
        assert line["flow"]["verdict"] == flow.verdict
        with Encoder(mask.read(()), "n1") as encoder:
            observer_pb2.GetFlowsResponse.FromString(encoder.response(event))


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"trace_ids": {0: INJECTED}}, id="a trace id with JSON in it"),
        pytest.param({"trace_ids": {0: HEX + "\n"}}, id="a trace id with a line end"),
        pytest.param({"times": [-1]}, id="a time before 1970"),
        pytest.param({"times": [2**63]}, id="a time after 2262"),
        pytest.param({"statuses": [1000]}, id="a status of four digits"),
        pytest.param({"latencies": [-5]}, id="a negative latency"),
        pytest.param({"parties": between("zzz", 80)}, id="no address"),
        pytest.param({"parties": between("10.0.0.10", 65536)}, id="no port"),
        pytest.param(
            {"party": [-1], "whole": {0: Connection(2**64 - 1, CONN, ALLOWED)}}, id="a time in a whole record"
        ),
    ],
)
def test_a_value_out_of_bounds_ends_the_connection(changed: dict[str, Any]) -> None:
    assert len(received(one())) == 1
    with pytest.raises(LinkError):
        received(one(**changed))


def test_the_bounds_fit_what_a_proxy_records() -> None:
    edges = one(times=[2**63 - 1], statuses=[999], latencies=[2**63 - 1], trace_ids={0: HEX})
    (event,) = received(edges)
    assert b'"time":"2262-04-11' in event.line()
    assert HEX in event.line().decode()
