"""The exported form of a flow, against samples printed by Hubble's own command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from l7proxy.errors import SourceError
from l7proxy.flows.flow import Flow, LostEvents, Response, from_json

SAMPLES = (Path(__file__).parents[2] / "data/flows/hubble_samples.jsonl").read_text().splitlines()


def without_zeros(value: Any) -> Any:
    """Protobuf leaves zero values out, but keeps messages and the optional is_reply."""
    if isinstance(value, dict):
        cleaned = {key: without_zeros(item) for key, item in value.items()}
        return {key: item for key, item in cleaned.items() if key == "is_reply" or item not in (0, "", False, [], None)}
    return [without_zeros(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("line", SAMPLES, ids=range(1, len(SAMPLES) + 1))
def test_a_sample_read_and_written_is_the_same_object(line: str) -> None:
    response = from_json(line)
    assert json.loads(response.line()) == without_zeros(json.loads(line))
    assert response.to_json() == json.loads(response.line())
    assert response.line().endswith(b"}\n")


def test_every_written_line_is_read_as_the_same_value() -> None:
    for line in SAMPLES:
        assert from_json(from_json(line).line()) == from_json(line)


def test_camel_case_enum_numbers_and_text_numbers_are_understood() -> None:
    text = """{"flow": {"time": "2025-11-23T20:00:00Z", "verdict": 2, "trafficDirection": 1,
        "dropReasonDesc": "POLICY_DENIED", "IP": {"source": "10.0.0.1", "ipVersion": 1},
        "l4": {"TCP": {"sourcePort": "50000", "destinationPort": 80}},
        "l7": {"type": 1, "latencyNs": 5250000}, "isReply": false, "eventType": {"type": 129, "subType": 0}},
        "nodeName": "n"}"""
    response = from_json(text)
    flow = response.flow
    assert flow is not None and flow.l4 is not None and flow.l4.tcp is not None and flow.l7 is not None
    assert (flow.verdict, flow.traffic_direction, flow.is_reply) == ("DROPPED", "INGRESS", False)
    assert (flow.l4.tcp.source_port, flow.l4.tcp.destination_port) == (50000, 80)
    assert (flow.l7.type, flow.l7.latency_ns) == ("REQUEST", "5250000")
    assert flow.ip is not None and flow.ip.version == "IPv4"
    assert response.node_name == "n"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "not a JSON object"),
        ("{", "not a JSON object"),
        ("[]", "expected a JSON object, not list"),
        ('{"flow": 7}', "not a Hubble flow"),
        ('{"flow": {"l4": {"TCP": {"source_port": "x"}}}}', "not a Hubble flow"),
        (b"\xff\xfe{}", "not a JSON object"),
        ("[" * 100_000, "not a JSON object"),
    ],
)
def test_garbage_is_refused_with_what_is_wrong(text: str | bytes, fault: str) -> None:
    with pytest.raises(SourceError, match=fault):
        from_json(text)


def test_a_newer_hubbles_fields_are_passed_over() -> None:
    assert from_json('{"flow": {"verdict": "FORWARDED", "of_tomorrow": {"a": 1}}}').flow == Flow(verdict="FORWARDED")


def test_lost_events_are_exported_as_hubble_does() -> None:
    first, last = "2025-11-23T20:00:00.080Z", "2025-11-23T20:00:00.090Z"
    lost = LostEvents(source="HUBBLE_RING_BUFFER", num_events_lost="42", first=first, last=last)
    assert Response(lost_events=lost, node_name="kind/node-a", time=last).to_json() == json.loads(SAMPLES[22])


def test_only_what_was_refused_has_reasons() -> None:
    assert Flow(verdict="DROPPED", policy_log=("no",)).reasons == ("no",)
    assert Flow(verdict="AUDIT", policy_log=("no",)).reasons == ("no",)
    assert Flow(verdict="FORWARDED", policy_log=("logged",)).reasons == ()
