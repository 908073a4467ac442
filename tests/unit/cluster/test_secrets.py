"""Secrets of header rules: who may reference which, which values are invalid, and that no output shows one."""

from __future__ import annotations

import json
from base64 import b64encode
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from l7proxy.agent import report
from l7proxy.agent.dataplane.pod_interfaces import PodInterfaces
from l7proxy.agent.dataplane.reconciler import Published
from l7proxy.agent.dataplane.render import render
from l7proxy.cluster.policy_status import PolicyPhase
from l7proxy.cluster.state import ClusterState, NodeView
from l7proxy.link.delta import EMPTY, delta
from l7proxy.link.messages import PolicySnapshot
from l7proxy.model.resources import Upsert
from l7proxy.policy.compile import compile_policies
from l7proxy.policy.headers import HeaderRule
from l7proxy.sources.files import manifest as manifests
from l7proxy.sources.source import SourceHealth
from tproxy_rules.desired import Settings

PLANTED = "hunter2-planted"
POD = """
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: n1}
status: {podIPs: [{ip: 10.0.0.9}]}
---
"""


def policy(secret: str = "{name: token}", *, value: str = "", kind: str = "CiliumNetworkPolicy") -> str:
    match = f"{{name: Authorization, mismatch: REPLACE, secret: {secret}{f', value: {value}' if value else ''}}}"
    namespace = ", namespace: shop" if kind == "CiliumNetworkPolicy" else ""
    return f"""
apiVersion: cilium.io/v2
kind: {kind}
metadata: {{name: p{namespace}}}
spec:
  endpointSelector: {{matchLabels: {{app: web}}}}
  egress:
  - toPorts:
    - ports: [{{port: "80", protocol: TCP}}]
      rules:
        http:
        - path: /
          headerMatches:
          - {match}
---
"""


def secret(content: str, *, name: str = "token", namespace: str = "shop") -> str:
    return f"{{apiVersion: v1, kind: Secret, metadata: {{name: {name}, namespace: {namespace}}}, {content}}}\n---\n"


GOOD = secret(f"stringData: {{token: {PLANTED}}}")


@dataclass(frozen=True)
class Seen:
    """What the agent makes of some manifests."""

    view: NodeView
    snapshot: PolicySnapshot
    texts: tuple[str, ...]
    """All texts that the agent would output about them."""

    @property
    def match(self) -> HeaderRule:
        (rule,) = self.view.rules
        assert rule.http is not None
        return rule.http[0].header_matches[0]


def see(*texts: str, secrets_namespace: str = "", backwards: bool = False) -> Seen:
    read = manifests.parse("".join((POD, *texts)).encode(), "m.yaml")
    cluster_state = ClusterState(secrets_namespace=secrets_namespace)
    cluster_state.apply(Upsert(resource) for resource in (reversed(read.resources) if backwards else read.resources))
    view = cluster_state.view("n1")
    policies = compile_policies(view.rules, view.endpoints, view.identities)
    snapshots = render(view, policies, PodInterfaces(), settings=Settings(), resolve_services=False)
    published = Published(1, view, policies, snapshots, PodInterfaces(), SourceHealth())
    said: list[Any] = [
        report.policies(published),
        report.policy_states(published),
        report.endpoints(published),
    ]
    told = [*map(str, view.problems), *map(str, view.secret_problems), *(str(fault.error) for fault in read.faults)]
    return Seen(view, snapshots.workers, (*told, json.dumps(said), repr(view), repr(policies), repr(snapshots)))


def test_the_value_reaches_the_workers_and_nobody_else() -> None:
    seen = see(policy(), GOOD)
    assert seen.match.wanted == PLANTED.encode()
    assert PLANTED.encode() in msgspec.msgpack.encode(delta(EMPTY, seen.snapshot))
    assert all(PLANTED not in text for text in seen.texts)
    assert "[redacted]" in seen.texts[-3]
    assert seen.snapshot.http.secret_headers == {b"authorization"}
    assert not seen.view.secret_problems


def test_data_is_base64() -> None:
    coded = b64encode(PLANTED.encode()).decode()
    assert see(policy(), secret(f"data: {{token: {coded}}}")).match.wanted == PLANTED.encode()
    folded = f"data: {{token: '{coded[:8]}\n\n {coded[8:]}'}}"
    assert see(policy(), secret(folded)).match.wanted == PLANTED.encode()


def test_string_data_is_written_over_data() -> None:
    both = secret(f"data: {{token: b2xk}}, stringData: {{token: {PLANTED}}}")
    assert see(policy(), both).match.wanted == PLANTED.encode()


UNFIT = [
    ("none at all", "", "Secret shop/token does not exist"),
    ("of another namespace", secret(f"stringData: {{a: {PLANTED}}}", namespace="other"), "does not exist"),
    ("of another name", secret(f"stringData: {{a: {PLANTED}}}", name="tokens"), "does not exist"),
    ("empty", secret("data: {}"), "must have exactly one entry, not 0"),
    ("of two entries", secret(f"stringData: {{a: {PLANTED}, b: {PLANTED}}}"), "exactly one entry, not 2"),
    ("with two by both fields", secret(f"data: {{a: b2xk}}, stringData: {{b: {PLANTED}}}"), "not 2"),
    ("with a line break", secret(f'stringData: {{a: "{PLANTED}\\n"}}'), "ends with a line break"),
    ("with another header", secret(f'stringData: {{a: "{PLANTED}\\r\\nX: y"}}'), "contains a line break or a NUL"),
    ("with a NUL", secret(f'stringData: {{a: "{PLANTED}\\0"}}'), "contains a line break or a NUL"),
    ("with a control character", secret(f'stringData: {{a: "{PLANTED}\\x02"}}'), "contains a control character"),
    ("with an outer blank", secret(f'stringData: {{a: " {PLANTED}"}}'), "begins or ends with whitespace"),
    ("with an empty value", secret("stringData: {a: ''}"), "is empty"),
    ("with bytes that are no text", secret("data: {a: //79}"), "is not UTF-8 text"),
    ("larger than any head", secret(f"stringData: {{a: {PLANTED * 6000}}}"), "has more than 65536 bytes"),
]


@pytest.mark.parametrize(("manifest", "fault"), [row[1:] for row in UNFIT], ids=[row[0] for row in UNFIT])
def test_a_secret_of_no_use_matches_nothing_and_is_told(manifest: str, fault: str) -> None:
    seen = see(policy(), manifest)
    assert seen.match.unresolved
    (problem,) = seen.view.secret_problems
    assert fault in problem.message
    assert problem.message.endswith("this headerMatches item matches no request")
    assert (problem.file, problem.line) == ("m.yaml", 19)
    assert problem.field == "spec.egress[0].toPorts[0].rules.http[0].headerMatches[0].secret"
    assert all(PLANTED not in text for text in seen.texts)
    fallback = see(policy(value="own"), manifest)
    assert fallback.match.wanted == b"own"
    assert fallback.view.secret_problems[0].message.endswith("this headerMatches item uses its own value")


def test_a_secret_that_comes_later_counts() -> None:
    cluster_state = ClusterState()
    for part in (POD + policy(), GOOD):
        cluster_state.apply(Upsert(resource) for resource in manifests.parse(part.encode(), "m.yaml").resources)
        rules = cluster_state.view("n1").rules
    assert rules[0].http is not None
    assert rules[0].http[0].header_matches[0].wanted == PLANTED.encode()


def test_a_tenant_may_not_have_the_secrets_of_another() -> None:
    foreign = secret(f"stringData: {{a: {PLANTED}}}", namespace="vault")
    seen = see(policy("{name: token, namespace: vault}"), foreign)
    (state,) = seen.view.policies
    assert state.state is PolicyPhase.REFUSED
    assert "policies of namespace shop cannot use secrets of vault, only those of shop" in state.reason
    assert (state.file, state.line) == ("m.yaml", 21)
    assert PLANTED.encode() not in msgspec.msgpack.encode(delta(EMPTY, seen.snapshot))
    assert all(PLANTED not in text for text in seen.texts)
    assert all(rule.refusal for rule in seen.view.rules)


def test_but_those_of_the_configured_namespace() -> None:
    foreign = secret(f"stringData: {{a: {PLANTED}}}", namespace="vault")
    named = policy("{name: token, namespace: vault}")
    assert see(named, foreign, secrets_namespace="vault").match.wanted == PLANTED.encode()
    (state,) = see(named, foreign, secrets_namespace="other").view.policies
    assert "only those of shop and other (secrets_namespace)" in state.reason


def test_a_cluster_wide_policy_names_any_namespace_or_means_the_configured_one() -> None:
    foreign = secret(f"stringData: {{a: {PLANTED}}}", namespace="vault")
    kind = "CiliumClusterwideNetworkPolicy"
    assert see(policy("{name: token, namespace: vault}", kind=kind), foreign).match.wanted == PLANTED.encode()
    assert see(policy(kind=kind), foreign, secrets_namespace="vault").match.wanted == PLANTED.encode()
    (state,) = see(policy(kind=kind), foreign).view.policies
    assert "a cluster-wide policy must set the secret's namespace" in state.reason


BROKEN = [
    secret(f"stringData: [{PLANTED}]"),
    secret(f"data: {{a: '{PLANTED}!'}}"),
    secret(f"stringData: {{a: [{PLANTED}]}}"),
    secret(f"stringData: {{a: *{PLANTED}}}"),
    secret(f"stringData: {{a: !{PLANTED} x}}"),
    secret(f"stringData: {{a: !!int {PLANTED}}}"),
    secret(f"stringData: {{a: !!int {PLANTED}}}").replace("{apiVersion", '{"kind" : "Secret", apiVersion'),
    secret(f"stringData: {{? [{PLANTED}] : x}}"),
    secret(f"stringData: {{a: '{PLANTED}"),
]


@pytest.mark.parametrize("manifest", BROKEN)
def test_a_broken_secret_is_reported_without_a_word_of_it(manifest: str) -> None:
    read = manifests.parse(manifest.encode(), "m.yaml")
    assert read.faults
    assert all(PLANTED not in str(fault.error) for fault in read.faults)


def test_the_snapshot_does_not_depend_on_the_order_of_facts() -> None:
    parts = (policy(), GOOD, secret("stringData: {x: y}", name="b"))
    assert see(*parts).snapshot == see(*parts, backwards=True).snapshot
