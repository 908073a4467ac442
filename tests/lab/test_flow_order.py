"""The flows of a connection are in the order in which it happened, in what an observer reads and by their times."""

from __future__ import annotations

from typing import Any

import pytest

from tests.lab.conftest import Cluster

pytestmark = pytest.mark.lab

CONNECTIONS = 40
EVENTS = {1: "drop", 4: "trace", 5: "policy-verdict"}


def step(flow: dict[str, Any]) -> str:
    return flow["l7"]["type"].lower() if "l7" in flow else EVENTS[flow["event_type"]["type"]]


def client_port(flow: dict[str, Any]) -> int:
    ports = flow["l4"]["TCP"]
    return int(ports["destination_port" if flow.get("is_reply") else "source_port"])


def test_flows_of_a_connection_are_in_order(cluster: Cluster) -> None:
    marker = "/api/order"
    loop = f"for i in $(seq {CONNECTIONS}); do curl -s -o /dev/null http://backend{marker} || exit 1; done"
    assert cluster.exec("frontend", "sh", "-c", loop).returncode == 0
    asked: set[int] = set()
    for _ in range(20):  # workers send the last records a little later
        flows = cluster.flows("node-1")
        ours = [flow for flow in flows if flow.get("l7", {}).get("http", {}).get("url", "").endswith(marker)]
        asked = {client_port(flow) for flow in ours if flow.get("is_reply")}
        if len(asked) == CONNECTIONS:
            break
    assert len(asked) == CONNECTIONS
    for port in asked:
        found = [flow for flow in flows if flow.get("l4", {}).get("TCP") and client_port(flow) == port]
        assert [step(flow) for flow in found] == ["policy-verdict", "trace", "request", "response"]
        assert found == sorted(found, key=lambda flow: padded(flow["time"]))


def padded(time: str) -> str:
    """With all nine digits of a fraction, so that text order is that of the times."""
    seconds, _, fraction = time.rstrip("Z").partition(".")
    return f"{seconds}.{fraction:0<9}"
