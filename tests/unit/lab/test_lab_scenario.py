"""Scenarios: the file becomes rows; invalid content is named; flows are counted exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from l7proxy.errors import ConfigError
from l7proxy.lab.flow_assertions import Account, client_of, faults_of, policies_of
from l7proxy.lab.plan import plan
from l7proxy.lab.scenario import Only, load, rows, variants
from l7proxy.lab.settings import Cni, Families, Kernel, Settings
from l7proxy.model.net import HostPort

FILE = """
manifests:
- {apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {nodeName: node-1}}
- {apiVersion: v1, kind: Pod, metadata: {name: b}, spec: {nodeName: node-2}}
- {apiVersion: v1, kind: Pod, metadata: {name: web, labels: {app: web}}, spec: {nodeName: node-2}}
- apiVersion: v1
  kind: Service
  metadata: {name: web}
  spec: {selector: {app: web}, ports: [{port: 80, targetPort: 81}]}
dimensions: {cni: [bridge, ptp], bridge-nf-call: [0, 1], backend: [nftables, iptables], ip-family: ["4", "6"]}
cases:
- {from: [a, b], via: [service, pod], request: GET http://web/x, expect: 200}
"""


def write(path: Path, text: str) -> Path:
    (path / "s.yaml").write_text(text)
    return path / "s.yaml"


def test_bridge_nf_call_is_no_dimension_where_there_is_no_bridge(tmp_path: Path) -> None:
    found = variants(load(write(tmp_path, FILE)), "x")
    assert len(found) == (2 + 1) * 2 * 2
    assert len({(s.cni, s.bridge_nf_call, s.backend, s.ip_family) for s in found}) == len(found)


def test_the_command_line_narrows(tmp_path: Path) -> None:
    only: Only = {"cni": [Cni.PTP], "backend": [Kernel.NFTABLES], "ip_family": [Families.DUAL]}
    (one,) = variants(load(write(tmp_path, FILE)), "x", only)
    assert (one.cni, one.backend, one.families) == (Cni.PTP, Kernel.NFTABLES, (4, 6))


def test_a_case_is_a_row_for_each_pod_way_and_family(tmp_path: Path) -> None:
    scenario = load(write(tmp_path, FILE))
    settings = Settings(ip_family=Families.DUAL)
    cluster = plan(scenario.objects, settings.families).cluster
    assert [(r.pod.name, r.via, r.address, r.request.port, r.same_node) for r in rows(scenario, settings, cluster)] == [
        ("a", "service", "10.96.0.10", 80, False),
        ("a", "service", "fd00:10:96::a", 80, False),
        ("a", "pod", "10.244.2.11", 81, False),
        ("a", "pod", "fd00:10:244:2::b", 81, False),
        ("b", "service", "10.96.0.10", 80, True),
        ("b", "service", "fd00:10:96::a", 80, True),
        ("b", "pod", "10.244.2.11", 81, True),
        ("b", "pod", "fd00:10:244:2::b", 81, True),
    ]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("expect: 200", "expects: 200", "expects"),
        ("GET http://web/x", "fetch web", "request 'fetch web'"),
        ("[service, pod]", "[ingress]", "via: ingress"),
        ("cni: [bridge, ptp]", "cni: [token-ring]", "token-ring"),
        ("cases:", "cases: [", "s.yaml"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, FILE.replace(old, new)))
    assert said in str(caught.value)


def test_an_unknown_pod_or_name_is_an_error_not_a_row(tmp_path: Path) -> None:
    for old, new, said in (
        ("from: [a, b]", "from: c", "pod default/c not found"),
        ("http://web/x", "http://wob/x", "wob"),
    ):
        scenario = load(write(tmp_path, FILE.replace(old, new)))
        with pytest.raises(ConfigError, match=said):
            list(rows(scenario, Settings(), plan(scenario.objects, (4,)).cluster))


def flow(verdict: str, kind: str = "REQUEST", **more: Any) -> dict[str, Any]:
    ends = {"IP": {"source": "10.0.0.1", "destination": "10.0.0.2"}, "is_reply": kind == "RESPONSE"}
    return {
        "verdict": verdict,
        "l4": {"TCP": {"source_port": 5, "destination_port": 80}},
        "l7": {"type": kind},
        **ends,
        **more,
    }


BLAME: dict[str, Any] = {
    "ingress_denied_by": [{"namespace": "default", "name": "p"}],
    "policy_log": ["no rule matched"],
}


def test_a_client_is_found_from_both_directions() -> None:
    assert client_of(flow("FORWARDED")) == HostPort("10.0.0.1", 5)
    reply = {**flow("FORWARDED", "RESPONSE"), "IP": {"source": "10.0.0.2", "destination": "10.0.0.1"}}
    reply["l4"] = {"TCP": {"source_port": 80, "destination_port": 5}}
    assert client_of(reply) == HostPort("10.0.0.1", 5)


def test_exactly_one_of_each_is_right() -> None:
    request, response = flow("FORWARDED"), flow("FORWARDED", "RESPONSE")
    dropped = flow("DROPPED", **BLAME)
    assert faults_of([request, response], Account.L7_ALLOWED) == []
    assert faults_of([dropped, response], Account.L7_DENIED) == []
    assert faults_of([dropped], Account.L4_DENIED) == []
    assert policies_of(dropped) == ["default/p"]


@pytest.mark.parametrize(
    ("found", "wanted", "said"),
    [
        ([flow("FORWARDED")], Account.L7_ALLOWED, "0 response flows, not 1"),
        ([flow("FORWARDED")] * 2 + [flow("FORWARDED", "RESPONSE")], Account.L7_ALLOWED, "2 request flows, not 1"),
        ([flow("FORWARDED"), flow("FORWARDED", "RESPONSE"), flow("DROPPED", "")], Account.L7_ALLOWED, "DROPPED"),
        ([], Account.L4_DENIED, "no DROPPED flow"),
        ([flow("DROPPED", "")], Account.L4_DENIED, "names no policy"),
        ([flow("DROPPED", "", ingress_denied_by=BLAME["ingress_denied_by"])], Account.L4_DENIED, "gives no reason"),
        ([flow("DROPPED", **BLAME)] * 2 + [flow("FORWARDED", "RESPONSE")], Account.L7_DENIED, "2 DROPPED flows, not 1"),
    ],
)
def test_one_too_few_or_too_many_is_a_fault(found: list[dict[str, Any]], wanted: Account, said: str) -> None:
    assert any(said in fault for fault in faults_of(found, wanted))
