"""Client log against flows: each kind of difference is found, and none where there is none."""

from __future__ import annotations

import os

from bench.soak.flows import MALFORMED, MALFORMED_PORT, FlowReader
from bench.soak.ledger import Line, Seen, faults, lines, total

BOTH = {0: 1, 1: 1}


def test_one_flow_of_each_kind_for_each_answer_is_no_fault() -> None:
    assert faults({"keep": b".."}, Seen({"keep": BOTH}, {"keep": BOTH})) == []


def test_what_was_given_up_may_have_flows_or_not() -> None:
    assert faults({"abort": b"??"}, Seen({"abort": {1: 1}}, {})) == []


def test_an_answer_without_a_flow_is_named() -> None:
    assert faults({"keep": b".."}, Seen({"keep": {0: 1}}, {"keep": BOTH})) == [
        "keep: requests: 1 of 2 have no flow, as number 1"
    ]


def test_a_second_flow_is_named_even_for_what_was_given_up() -> None:
    assert faults({"abort": b"?"}, Seen({"abort": {0: 2}}, {})) == [
        "abort: requests: 1 of 1 have several flows, as number 0"
    ]


def test_a_response_that_is_missing_or_doubled_is_named() -> None:
    found = faults({"keep": b".."}, Seen({"keep": BOTH}, {"keep": {0: 2}}))
    assert found == [
        "keep: responses: 1 of 2 have no flow, as number 1",
        "keep: responses: 1 of 2 have several flows, as number 0",
    ]


def test_refused_bytes_have_one_flow_and_no_response() -> None:
    assert faults({MALFORMED: b"."}, Seen({MALFORMED: {0: 1}}, {}), answerless=frozenset({MALFORMED})) == []


def test_flows_of_requests_that_nobody_sent_are_named() -> None:
    assert faults({"keep": b"."}, Seen({"keep": {0: 1, 7: 1}}, {"keep": {0: 1}})) == [
        "keep: requests: 1 of 1 were never sent, as number 7"
    ]
    assert faults({}, Seen({"keep of burst 3": {0: 1}}, {})) == ["keep of burst 3: flows of traffic that nobody sent"]


def test_what_went_wrong_at_the_client_is_a_fault() -> None:
    assert faults({"keep": b"x"}, Seen({"keep": {0: 1}}, {"keep": {0: 1}})) == ["keep: 1 went wrong, as number 0"]


def test_the_table_adds_up_over_bursts() -> None:
    one = lines({"deny": b".?", "keep": b"."}, Seen(verdicts={("deny", "DROPPED"): 1, ("keep", "FORWARDED"): 1}))
    assert one == [Line("deny", 2, 1, 1, 0, 1), Line("keep", 1, 1, 0, 1, 0)]
    assert total([one, one]) == [Line("deny", 4, 2, 2, 0, 2), Line("keep", 2, 2, 0, 2, 0)]


def flow(kind: str, url: str, verdict: str = "FORWARDED", *, port: int = 40000, summary: str = "") -> bytes:
    return (
        f'{{"flow":{{"verdict":"{verdict}","l4":{{"TCP":{{"source_port":{port},"destination_port":80}}}},"Type":"L7",'
        f'"l7":{{"type":"{kind}","http":{{"url":"{url}"}}}},"Summary":"{summary}"}}}}\n'
    ).encode()


def read(*written: bytes) -> FlowReader:
    """A reader that has read these lines, with a burst of 4."""
    into, out = os.pipe()
    reader = FlowReader(os.fdopen(into, "rb"))
    reader.expect(4)
    with os.fdopen(out, "wb") as pipe:
        pipe.write(b"".join(written))
    reader.wait_end()
    return reader


def test_flows_are_counted_by_the_names_in_their_paths() -> None:
    seen = read(
        flow("REQUEST", "http://a/soak/keep/4-0"),
        flow("RESPONSE", "http://a/soak/keep/4-0"),
        flow("REQUEST", "http://a/soak.grpc/4-12"),
        flow("REQUEST", "http://a/soak/deny/4-3", "DROPPED"),
        flow("REQUEST", "http://a/elsewhere"),
    ).take()
    assert seen.requests == {"keep": {0: 1}, "grpc": {12: 1}, "deny": {3: 1}}
    assert seen.responses == {"keep": {0: 1}}
    assert seen.verdicts == {("keep", "FORWARDED"): 1, ("grpc", "FORWARDED"): 1, ("deny", "DROPPED"): 1}


def test_malformed_bytes_are_known_by_their_source_port_others_are_not_ours() -> None:
    said = "HTTP/1.1 malformed request, answered 400"
    seen = read(
        flow("REQUEST", "", "DROPPED", port=MALFORMED_PORT + 5, summary=said),
        flow("REQUEST", "", "DROPPED", port=50000, summary=said),
    ).take()
    assert seen.requests == {MALFORMED: {5: 1}}


def test_flows_of_another_burst_are_told_apart() -> None:
    assert read(flow("REQUEST", "http://a/soak/keep/3-0")).take().requests == {"keep of burst 3": {0: 1}}


def test_lost_flows_are_kept_to_be_told() -> None:
    reader = read(b'{"lost_events":{"source":"HUBBLE_RING_BUFFER","num_events_lost":"3"}}\n')
    assert len(reader.lost) == 1
    assert reader.lost[0].startswith('{"lost_events"')
