"""Hubble's API of a running agent: a client that follows refused traffic sees each refusal, and nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from l7proxy.hubble.api.flow import flow_pb2
from l7proxy.hubble.api.observer import observer_pb2
from l7proxy.lab import agents
from l7proxy.lab.state import Lab
from tests.lab.conftest import Cluster
from tests.lab.test_logs import started, until

GET_FLOWS = "/observer.Observer/GetFlows"


@pytest.fixture
def lab() -> Iterator[Cluster]:
    found = Cluster(f"hubble{os.getpid()}")
    found.run("up", "--no-agent")
    try:
        yield found
    finally:
        found.run("down")


def urls(path: Path) -> list[str]:
    """Of the flows of a log, as far as they have one."""
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line)["flow"] for line in lines]
    return [flow["l7"]["http"]["url"] for flow in found if "l7" in flow]


def test_a_follower_of_refusals_sees_each_and_no_other_flow(lab: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "hubble.sock"  # a unix socket is reached from every network namespace
    logs, refused, all_flows = tmp_path / "flowlogs.yaml", tmp_path / "refused.jsonl", tmp_path / "all.jsonl"
    logs.write_text(
        f"flowLogs:\n- {{name: refused, filePath: {refused}, includeFilters: [{{verdict: [DROPPED]}}], "
        f"fieldMask: [l7.http.url]}}\n- {{name: all, filePath: {all_flows}}}\n"
    )
    process = started(lab.name, "--hubble-socket-path", f"{path}", "--flow-logs-config", f"{logs}")
    try:
        until(lambda: agents.not_enforced(Lab(lab.name), "node-1") is None, "not enforced")
        with grpc.insecure_channel(f"unix:{path}") as channel:
            ask = channel.unary_stream(
                GET_FLOWS, observer_pb2.GetFlowsRequest.SerializeToString, observer_pb2.GetFlowsResponse.FromString
            )
            dropped = flow_pb2.FlowFilter(verdict=[flow_pb2.DROPPED], http_method=["GET"])
            call = ask(observer_pb2.GetFlowsRequest(follow=True, number=1, whitelist=[dropped]), timeout=60)
            for number in range(3):
                for url in (f"http://backend/api/{number}", f"http://backend/admin/{number}"):
                    lab.run("exec", "frontend", "--", "curl", "-s", "-o", "/dev/null", url)
                flow = next(call).flow
                assert flow.l7.http.url == f"http://backend/admin/{number}"
                assert (flow.source.pod_name, flow.destination.pod_name) == ("frontend", "backend")
                assert flow.drop_reason_desc == flow_pb2.POLICY_DENIED
                rotated = tmp_path / f"refused.{number}"
                until(lambda: len(urls(refused)) == 1, "the refusal is not logged")
                assert urls(refused) == [url]
                refused.rename(rotated)  # as logrotate's `create` does
            call.cancel()
    finally:
        process.terminate()
        _, log = process.communicate(timeout=60)
    assert not path.exists(), log
    assert sum("/admin/" in one for one in urls(all_flows)) == 6, "three requests and their responses"
