"""Flows, templated flows and lost flows read alike."""

from __future__ import annotations

import json

from l7proxy.flows.event import Event, Lost
from l7proxy.flows.flow import Flow, from_json

TIME = "2025-11-23T20:00:00.080Z"
TIME_NS = 1_763_928_000_080_000_000


def test_a_flow_is_an_event() -> None:
    event: Event = Flow(time=TIME, uuid="7", node_name="n")
    assert (event.time_ns, event.lost, event.flow()) == (TIME_NS, 0, event)
    assert json.loads(event.line()) == {
        "flow": {"time": TIME, "uuid": "7", "node_name": "n"},
        "node_name": "n",
        "time": TIME,
    }


def test_lost_flows_are_an_event() -> None:
    event: Event = Lost(42, "HUBBLE_RING_BUFFER", TIME_NS, "n")
    assert (event.time_ns, event.lost, event.flow()) == (TIME_NS, 42, None)
    told = from_json(event.line()).lost_events
    assert told is not None
    assert (told.source, told.num_events_lost, told.first, told.last) == ("HUBBLE_RING_BUFFER", "42", TIME, TIME)
