"""`policy trace` queries in which the addresses matter: of Services, of both IP versions, of several backends."""

from __future__ import annotations

from pathlib import Path

import pytest

from l7proxy.errors import ConfigError
from l7proxy.model.verdict import Direction, Verdict
from l7proxy.simulate.cluster import Cluster
from l7proxy.simulate.trace import Outcome, Question, answer
from l7proxy.sources.files.scan import load
from l7proxy.wire.path import PathRules

LAND = """
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDRs: [10.0.1.0/24, "fd00:1::/64"]}
status: {addresses: [{type: InternalIP, address: 192.168.0.1}, {type: InternalIP, address: "fd00::1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec: {nodeName: n1, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
status: {podIP: 10.0.1.5, podIPs: [{ip: 10.0.1.5}, {ip: "fd00:1::5"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: both, labels: {app: both}}
spec: {nodeName: n1, containers: [{name: c}]}
status: {podIP: "fd00:1::6", podIPs: [{ip: "fd00:1::6"}, {ip: 10.0.1.6}]}
---
apiVersion: v1
kind: Pod
metadata: {name: old, labels: {app: old}}
spec: {nodeName: n1, containers: [{name: c}]}
status: {podIP: 10.0.1.7}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIPs: [10.96.0.10, "fd00:96::10"]
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress: [{toPorts: [{ports: [{port: "8080", protocol: TCP}], rules: {http: [{path: /ok}]}}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: old}
spec:
  podSelector: {matchLabels: {app: old}}
  egress:
  - {to: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 8080}]}
  - {to: [{podSelector: {matchLabels: {app: both}}}], ports: [{port: 9000, endPort: 9100}, {port: 70}]}
  policyTypes: [Egress]
"""


@pytest.fixture
def land(tmp_path: Path) -> Cluster:
    return cluster(tmp_path, LAND)


def cluster(folder: Path, text: str) -> Cluster:
    (folder / "land.yaml").write_text(text)
    changes, problems = load([folder / "land.yaml"])
    assert not problems
    return Cluster.of(changes)


def ask(cluster: Cluster, source: str, destination: str, port: str, http: str = "") -> Outcome:
    return answer(cluster, Question(source, destination, port, http))


@pytest.mark.parametrize("address", ["10.96.0.10", "fd00:96::10", "FD00:96:0::10"])
def test_an_address_of_a_service_is_judged_behind_it_as_in_the_kernel(land: Cluster, address: str) -> None:
    assert ask(land, "default/both", address, "80").policy_verdict.verdict is Verdict.REDIRECTED
    found = ask(land, "default/both", address, "http/TCP", "GET /no")
    assert (found.policy_verdict.verdict, found.policy_verdict.direction) == (Verdict.DROPPED, Direction.INGRESS)
    host = "10.96.0.10" if "." in address else "[fd00:96::10]"
    assert f"request GET /no, Host {host}" in found.steps


def test_a_service_s_address_on_another_port_is_an_address_outside(land: Cluster) -> None:
    assert ask(land, "default/both", "10.96.0.10", "443").policy_verdict.direction is Direction.UNKNOWN
    found = ask(land, "default/old", "10.96.0.10", "443")
    assert (found.policy_verdict.verdict, found.policy_verdict.direction) == (Verdict.DROPPED, Direction.EGRESS)


@pytest.mark.parametrize(
    ("source", "destination", "port", "said"),
    [
        ("default/web", "default/both", "80", "default/web (fd00:1::5, identity"),
        ("default/old", "default/both", "80", "-> default/both (10.0.1.6:80, identity"),
        ("fd00:1::99", "default/web", "80", "-> default/web ([fd00:1::5]:80, identity"),
        ("n1", "default/both", "8/ICMPv4", "node n1 (192.168.0.1, host) -> default/both (10.0.1.6, identity"),
        ("n1", "default/web", "128/ICMPv6", "node n1 (fd00::1, host) -> default/web (fd00:1::5, identity"),
        ("reserved:world", "default/both", "80", "-> default/both ([fd00:1::6]:80, identity"),
        ("default/old", "svc:default/web", "80", "-> default/web (10.0.1.5:8080, identity"),
    ],
)
def test_both_ends_are_asked_at_addresses_of_one_family(
    land: Cluster, source: str, destination: str, port: str, said: str
) -> None:
    steps = ask(land, source, destination, port).steps
    assert said in steps[0]
    assert sum(" -> " in step for step in steps) == 1, "a backend that the client cannot reach is no answer"


@pytest.mark.parametrize(
    ("source", "destination", "port"),
    [
        ("2001:db8::1", "default/old", "80"),
        ("8.8.8.8", "fd00:1::5", "80"),
        ("default/web", "default/old", "128/ICMPv6"),
    ],
)
def test_ends_that_cannot_meet_cannot_be_asked(land: Cluster, source: str, destination: str, port: str) -> None:
    with pytest.raises(ConfigError, match="have no addresses of the same IP version for this protocol"):
        ask(land, source, destination, port)


@pytest.mark.parametrize(
    ("destination", "port", "failed"),
    [
        ("default/both", "8080", "it allows this peer on 9000-9100/TCP, not on 8080/TCP"),
        ("default/both", "9101", "it allows this peer on 9000-9100/TCP, not on 9101/TCP"),
        ("default/both", "71", "it allows this peer on 70/TCP, not on 71/TCP"),
        ("8.8.8.8", "8080", "it allows 8080/TCP, not to identity"),
        ("8.8.8.8", "1", "it allows 8080/TCP for other peers"),
    ],
)
def test_the_nearest_rule_and_its_clause(land: Cluster, destination: str, port: str, failed: str) -> None:
    (near,) = [step for step in ask(land, "default/old", destination, port).steps if "nearest: " in step]
    assert near.startswith("  egress: nearest: policy default/old spec.egress[")
    assert failed in near


def test_what_only_audit_lets_through_is_told_before_what_passes(tmp_path: Path) -> None:
    policy = "kind: NetworkPolicy\nmetadata: {name: old}\n"
    audited = policy.replace("old}", "old, annotations: {l7proxy.io/audit: 'true'}}")
    slices = """---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.0.1.5]}, {addresses: [198.51.100.7]}]
"""
    found = ask(cluster(tmp_path, LAND.replace(policy, audited) + slices), "default/old", "svc:default/web", "80")
    assert found.policy_verdict.verdict is Verdict.AUDIT
    assert found.allowed


def test_requests_are_read_as_strictly_as_the_workers_do(land: Cluster) -> None:
    question = Question("default/both", "default/web", "8080", "GET /ok;v=1")
    assert any("is answered with 400 before" in step for step in answer(land, question).steps)
    assert not any("is answered" in step for step in answer(land, question, PathRules(allow_matrix=True)).steps)


@pytest.mark.parametrize("destination", ["default/web", "svc:default/web"])
def test_3_8_6_a_pod_always_reaches_itself(destination: str, tmp_path: Path) -> None:
    closed = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: closed}
spec: {endpointSelector: {}, ingressDeny: [{fromEntities: [all]}], egressDeny: [{toEntities: [all]}]}
"""
    land = cluster(tmp_path, f"{LAND}---{closed}")
    port = "80/TCP" if destination.startswith("svc:") else "8080/TCP"
    assert ask(land, "default/web", destination, port).policy_verdict.verdict is Verdict.FORWARDED
    assert ask(land, "default/both", destination, port).policy_verdict.verdict is Verdict.DROPPED


def test_http_rules_that_a_plain_allow_keeps_from_being_asked_are_moot(tmp_path: Path) -> None:
    first = """---
apiVersion: policy.networking.k8s.io/v1alpha1
kind: AdminNetworkPolicy
metadata: {name: first}
spec:
  priority: 1
  subject: {namespaces: {}}
  ingress:
  - action: Allow
    from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: both}}}}]
"""
    land = cluster(tmp_path, LAND + first)
    found = ask(land, "default/both", "default/web", "8080", "GET /no")
    assert found.policy_verdict.verdict is Verdict.FORWARDED
    (moot,) = [step for step in found.steps if "have no effect" in step]
    assert moot.startswith(
        "  ingress: the HTTP rules of policy default/web have no effect for this peer: AdminNetworkPolicy"
    )
    assert not any("have no effect" in step for step in ask(land, "default/old", "default/web", "8080").steps)
    assert not any("have no effect" in step for step in ask(land, "default/both", "default/web", "81").steps)


def test_an_address_that_two_pods_claim_is_an_error_even_if_one_has_another_address(tmp_path: Path) -> None:
    second = """---
apiVersion: v1
kind: Pod
metadata: {name: second, labels: {app: second}}
spec: {nodeName: n1, containers: [{name: c}]}
status: {podIP: 10.0.1.6}
"""
    claimed = cluster(tmp_path, LAND + second)
    for source, destination in (("default/old", "default/both"), ("default/second", "default/old")):
        with pytest.raises(ConfigError, match=r"its address 10\.0\.1\.6 is also claimed by another object"):
            ask(claimed, source, destination, "80")
    assert ask(claimed, "default/web", "default/both", "80").allowed, "by its IPv6 address"
