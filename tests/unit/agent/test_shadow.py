"""A second set of policies on flows as they come: what would change is counted, and marked in the flows."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from google.protobuf import json_format

from l7proxy.agent.shadow import ShadowPolicies
from l7proxy.errors import ConfigError
from l7proxy.flows.event import Event, Lost
from l7proxy.flows.flow import Flow, from_json
from l7proxy.flows.ring import RATE_LIMITED, Reader, Ring
from l7proxy.hubble import mask
from l7proxy.hubble.api.observer import observer_pb2
from l7proxy.hubble.client import response_of
from l7proxy.hubble.encode import Encoder
from l7proxy.setting_definitions import Settings
from tests.support.seen_flows import made, pod, read

FRONT, BACK = pod("front"), pod("back")
POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: %s, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: back}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: front}}]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{path: "%s"}]}}]
"""


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "p.yaml").write_text(POLICY % ("p", "/x.*"))
    return tmp_path


def sink(directory: Path, clock: Clock | None = None) -> ShadowPolicies:
    return ShadowPolicies(Settings(shadow_policies=str(directory)), now=clock or Clock())


def request(path: str, **more: Any) -> dict[str, Any]:
    return made(FRONT, BACK, http=f"GET http://back{path}", **more)


def test_flows_are_counted_by_what_would_change(directory: Path) -> None:
    shadow = sink(directory)
    shadow.judged(
        read(
            request("/x"),
            request("/y"),
            request("/y"),
            request("/x", verdict="DROPPED"),
            made(FRONT, BACK, 81),
            made(FRONT, BACK),
            made(BACK, FRONT, 40000, is_reply=True),
        )
    )
    assert shadow.counts == {
        ("unchanged", "ingress", ""): 1,
        ("denied", "ingress", "default/p"): 3,
        ("allowed", "ingress", "default/p"): 1,
        ("unjudged", "ingress", ""): 1,
    }
    assert shadow.report() == {
        "policies": str(directory),
        "problem": "",
        "would": {"unchanged": 1, "denied": 3, "allowed": 1, "unjudged": 1},
    }


def test_changed_files_are_read_again_and_bad_ones_change_nothing(directory: Path) -> None:
    clock = Clock()
    shadow = sink(directory, clock)
    shadow.judged(read(request("/y")))
    (directory / "p.yaml").write_text(POLICY % ("other", "/.*"))
    clock.now = 10.0
    shadow.judged(read(request("/y")))
    assert shadow.counts == {("denied", "ingress", "default/p"): 1, ("unchanged", "ingress", ""): 1}
    (directory / "p.yaml").write_text("kind: [")
    clock.now = 20.0
    shadow.judged(read(request("/y")))
    assert shadow.problem.startswith("shadow-policies: ")
    assert shadow.counts["unchanged", "ingress", ""] == 2


def test_what_cannot_be_judged_for_want_of_policies_passes(directory: Path) -> None:
    (directory / "p.yaml").write_text("kind: [")
    shadow = sink(directory)
    events: list[Event] = [*read(request("/y")), Lost(3, "HUBBLE_RING_BUFFER", 1)]
    assert shadow.judged(events) == events
    assert shadow.counts == {("unjudged", "unknown", ""): 1}


def test_flows_that_would_change_are_marked(directory: Path) -> None:
    flows: list[Event] = [*read(request("/x"), request("/y"))]
    same, changed = flows
    assert isinstance(changed, Flow)
    first, second = sink(directory).judged(flows)
    assert first is same
    assert isinstance(second, Flow)
    assert second.extensions is not None
    assert second.extensions["value"]["shadow"]["would"] == "denied"
    assert msgspec.structs.replace(second, extensions=None) == changed
    assert from_json(second.line()).flow == second


def test_hubbles_clients_read_the_mark(directory: Path) -> None:
    (flow,) = sink(directory).judged(read(request("/y")))
    with Encoder(mask.read(()), "n1") as encoder:
        message = observer_pb2.GetFlowsResponse.FromString(encoder.response(flow))
    shown = json_format.MessageToDict(message.flow.extensions)
    assert isinstance(flow, Flow)
    assert shown == flow.extensions
    assert response_of(message).flow == from_json(flow.line()).flow


async def test_all_events_pass_between_the_rings_in_order(directory: Path) -> None:
    recorded, read_ring = Ring(63, node_name="n1"), Ring(255, node_name="n1")
    flows = read(*[request(f"/{'xy'[number % 2]}{number}") for number in range(100)])
    reader = Reader(read_ring)
    async with sink(directory).between(recorded, read_ring):
        for start in range(0, 100, 10):
            recorded.extend(flows[start : start + 10])
            await asyncio.sleep(0.01)
        recorded.append_lost(7, time_ns=1, source=RATE_LIMITED)
        recorded.extend(flows[:5])  # and ends at once
    events = [*reader.batch(255), *reader.rest()]
    assert [event.lost for event in events if event.lost] == [7]
    passed = [event for event in events if isinstance(event, Flow)]
    assert [flow.uuid for flow in passed] == [flow.uuid for flow in (*flows, *flows[:5])]
    assert [flow.extensions is not None for flow in passed] == [number % 2 == 1 for number in [*range(100), *range(5)]]


async def test_what_it_is_too_slow_for_is_told_as_lost(directory: Path) -> None:
    recorded, read_ring = Ring(7), Ring(63)
    reader = Reader(read_ring)
    async with sink(directory).between(recorded, read_ring):
        recorded.extend(read(*[request("/x") for _ in range(20)]))
    events = [*reader.batch(63), *reader.rest()]
    assert sum(event.lost for event in events) == 13
    assert sum(not event.lost for event in events) == 7


class Broken:
    """An event whose flow cannot be made."""

    lost, time_ns = 0, 1

    def flow(self) -> Flow:
        raise RuntimeError("broken")

    def line(self) -> bytes:
        return b""


def test_a_fault_stops_no_flow(directory: Path) -> None:
    shadow = sink(directory)
    events: list[Event] = [*read(request("/y")), Broken()]
    assert shadow.judged(events) == events
    assert shadow.problem == "shadow-policies: RuntimeError: broken"
    assert shadow.counts == {("unjudged", "unknown", ""): 2}


def test_a_directory_that_does_not_exist_is_an_error_at_start() -> None:
    with pytest.raises(ConfigError, match="shadow-policies: /nowhere: no such directory"):
        sink(Path("/nowhere"))
