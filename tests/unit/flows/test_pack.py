"""Records that cross the link in a batch stay whole, and what they share is sent once."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from l7proxy.flows.batch import Flows
from l7proxy.flows.pack import pack
from l7proxy.flows.records import HttpRequest, Record
from l7proxy.model.policy_verdict import Conn, PolicyVerdict
from l7proxy.model.verdict import Direction, Verdict
from tests.support.flow_records import RECORDS


@given(st.lists(RECORDS, max_size=20), st.integers(0, 5))
def test_a_batch_is_its_records(records: list[Record], lost: int) -> None:
    packed = pack(records, lost)
    assert packed.records() == records
    assert packed.lost == lost
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(packed), type=Flows) == packed


def test_what_is_shared_is_sent_once() -> None:
    conn = Conn("10.0.0.10", 40000, "10.0.0.20", 80, 1, 2)
    allowed = PolicyVerdict(Verdict.FORWARDED, Direction.INGRESS)
    records = [HttpRequest(number, conn, allowed, "GET", f"http://a/{number}", "HTTP/1.1") for number in range(9)]
    packed = pack(records)
    assert (len(packed.parties), len(packed.policy_verdicts), len(packed.times)) == (1, 1, 9)


def test_remarks_are_sent_with_their_record() -> None:
    conn = Conn("10.0.0.10", 40000, "10.0.0.20", 80, 1, 2)
    allowed = PolicyVerdict(Verdict.FORWARDED, Direction.INGRESS)
    plain = HttpRequest(1, conn, allowed, "GET", "http://h/a", "HTTP/1.1")
    records = [msgspec.structs.replace(plain, remarks=("missing: x",), headers=(("a", "b"),)), plain]
    assert pack(records).records() == records
