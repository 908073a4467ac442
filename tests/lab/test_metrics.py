"""Real requests, and the counters that Prometheus would read of them: exact."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from tests.lab.conftest import Cluster

ADDRESS = "127.0.0.1:9965"
FETCH = f"import urllib.request as u; print(u.urlopen('http://{ADDRESS}/metrics', timeout=10).read().decode())"


@pytest.fixture(scope="module")
def lab() -> Iterator[Cluster]:
    made = Cluster(f"m{os.getpid()}")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("L7PROXY_METRICS_ADDRESS", ADDRESS)
        environment.setenv(
            "L7PROXY_FLOW_METRICS", "flow drop policy cilium httpV2:labelsContext=source_pod,destination_pod"
        )
        made.run("up")
        try:
            yield made
        finally:
            made.run("down")


def scrape(lab: Cluster) -> dict[str, float]:
    done = lab.exec("node/node-1", sys.executable, "-c", FETCH)
    assert done.returncode == 0, done.stderr
    found = {}
    for family in parse(done.stdout):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def counted(lab: Cluster, total: int) -> dict[str, float]:
    """A scrape when this many requests have been counted: workers report in batches."""
    while True:
        found = scrape(lab)
        if found.get("cilium_policy_l7_total{proxy_type=envoy,rule=received}", 0) >= total:
            responses = sum(v for k, v in found.items() if k.startswith("hubble_http_requests_total"))
            if responses >= total:
                return found


@pytest.mark.timeout(120)
def test_requests_and_refusals_are_counted_exactly(lab: Cluster) -> None:
    for number in range(5):
        assert lab.curl("frontend", f"http://backend/api/{number}") == "200"
    for _ in range(3):
        assert lab.curl("frontend", "http://backend/admin") == "403"
    assert lab.curl("stranger", "http://backend/api/x").startswith("exit"), "refused by the kernel"
    found = counted(lab, 8)
    ends = "destination_pod=backend,method=GET,protocol=HTTP/1.1,reporter=server,source_pod=frontend"
    assert found[f"hubble_http_requests_total{{{ends},status=200}}"] == 5
    assert found[f"hubble_http_requests_total{{{ends},status=403}}"] == 3
    both = "destination_pod=backend,method=GET,reporter=server,source_pod=frontend"
    assert found[f"hubble_http_request_duration_seconds_count{{{both}}}"] == 8
    assert found["hubble_policy_verdicts_total{action=dropped,direction=ingress,match=l7/http}"] == 3
    assert found["cilium_policy_l7_total{proxy_type=envoy,rule=forwarded}"] == 5
    assert found["cilium_policy_l7_total{proxy_type=envoy,rule=denied}"] == 3
    assert found["hubble_drop_total{protocol=HTTP,reason=POLICY_DENIED}"] == 3
    assert found["hubble_drop_total{protocol=TCP,reason=POLICY_DENIED}"] >= 1
    assert found["l7proxy_ready{}"] == 1
    assert found["l7proxy_policy_revision{}"] == found["l7proxy_policy_enforced_revision{}"] > 0
    assert found["l7proxy_sink_lost_total{sink=metrics}"] == 0
