"""The replacement of a document that cannot be enforced: rules that deny for the endpoints it selects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from l7proxy.model.endpoint import Endpoint
from l7proxy.model.ids import EndpointId, IdentityId
from l7proxy.model.labels import Label, LabelSet
from l7proxy.model.verdict import Direction, DropReason, Verdict
from l7proxy.policy import decide, lang
from l7proxy.policy.compile import compile_policies

if TYPE_CHECKING:
    from tests.unit.policy.conftest import Bench

NS = "io.kubernetes.pod.namespace"


def refused(document: Any, bench: Bench, *, namespace: str = "default", app: str = "server") -> str:
    """Which directions are denied for a pod: "in", "out", "in out" or ""."""
    rules = lang.refuse(document, "because")
    labels = LabelSet.of([Label("k8s", NS, namespace), Label("k8s", "app", app)])
    endpoint = Endpoint(EndpointId(1), namespace, "x", IdentityId(999), labels, ())
    policy = compile_policies(rules, [endpoint], bench.identities_for(rules))[1]
    ways = {"in": policy.ingress, "out": policy.egress}
    return " ".join(way for way, table in ways.items() if decide.port(table, 301, 6, 80).l4.verdict is Verdict.DROPPED)


def policy(kind: str = "CiliumNetworkPolicy", api: str = "cilium.io/v2", **fields: Any) -> dict[str, Any]:
    return {"apiVersion": api, "kind": kind, "metadata": {"name": "p", "namespace": "default"}, **fields}


SERVER = {"matchLabels": {"app": "server"}}
K8S = {"kind": "NetworkPolicy", "api": "networking.k8s.io/v1"}

WHOM: list[tuple[str, dict[str, Any], str, str, str]] = [
    (
        "its subject, in the direction it mentions",
        policy(spec={"endpointSelector": SERVER, "ingress": 5}),
        "in",
        "",
        "",
    ),
    ("its subject, by a deny list", policy(spec={"endpointSelector": SERVER, "egressDeny": "x"}), "out", "", ""),
    (
        "its subject, both ways",
        policy(spec={"endpointSelector": SERVER, "ingress": [], "egress": []}),
        "in out",
        "",
        "",
    ),
    (
        "its subject, both ways when it mentions none",
        policy(spec={"endpointSelector": SERVER, "ingres": []}),
        "in out",
        "",
        "",
    ),
    (
        "its namespace when the selector cannot be read",
        policy(spec={"endpointSelector": {"matchLabels": 5}, "ingress": []}),
        "in",
        "in",
        "",
    ),
    ("its namespace when there is no selector", policy(spec={"ingress": []}), "in", "in", ""),
    ("its namespace when there is no spec", policy(), "in out", "in out", ""),
    ("its namespace when the spec is no mapping", policy(spec=[1]), "in out", "in out", ""),
    ("its namespace when specs is no list", policy(specs=5), "in out", "in out", ""),
    (
        "every spec's subject",
        policy(
            specs=[
                {"endpointSelector": SERVER, "ingress": [{}]},
                {"endpointSelector": {"matchLabels": {"app": "z"}}, "egress": []},
            ]
        ),
        "in out",
        "in out",
        "",
    ),
    ("Kubernetes' podSelector", policy(**K8S, spec={"podSelector": SERVER, "policyTypes": ["Ingress"]}), "in", "", ""),
    ("Kubernetes' empty podSelector", policy(**K8S, spec={"podSelector": {}, "egress": []}), "in out", "in out", ""),
    ("Kubernetes' without types or egress", policy(**K8S, spec={"podSelector": {}}), "in", "in", ""),
    (
        "Kubernetes' egress type only",
        policy(**K8S, spec={"podSelector": SERVER, "policyTypes": ["Egress"]}),
        "out",
        "",
        "",
    ),
    (
        "Kubernetes' types that are none",
        policy(**K8S, spec={"podSelector": SERVER, "policyTypes": ["Sideways"]}),
        "in out",
        "",
        "",
    ),
    (
        "Kubernetes' selector that cannot be read",
        policy(**K8S, spec={"podSelector": "all", "policyTypes": ["Ingress"]}),
        "in",
        "in",
        "",
    ),
    (
        "Kubernetes' selector with a source, which it does not know",
        policy(**K8S, spec={"podSelector": {"matchLabels": {"reserved:host": ""}}, "policyTypes": ["Ingress"]}),
        "in",
        "in",
        "",
    ),
    (
        "Calico's that cannot be read, for its namespace",
        policy(kind="NetworkPolicy", api="projectcalico.org/v3", spec={"selector": "app = 'z'", "types": ["Up"]}),
        "in out",
        "in out",
        "",
    ),
    (
        "a cluster-wide one, for its subject anywhere",
        policy(kind="CiliumClusterwideNetworkPolicy", spec={"endpointSelector": SERVER, "ingress": []}),
        "in",
        "",
        "in",
    ),
    (
        "a cluster-wide one for nodes, for no pod",
        policy(kind="CiliumClusterwideNetworkPolicy", spec={"nodeSelector": {}, "ingress": []}),
        "",
        "",
        "",
    ),
    (
        "a cluster-wide one that cannot be read, for every pod",
        policy(kind="CiliumClusterwideNetworkPolicy", spec=None),
        "in out",
        "in out",
        "in out",
    ),
    (
        "an admin's, for every pod",
        policy(kind="AdminNetworkPolicy", api="policy.networking.k8s.io/v1alpha1"),
        "in out",
        "in out",
        "in out",
    ),
    ("what is no policy, for nobody", policy(kind="Deployment", api="apps/v1"), "", "", ""),
]


@pytest.mark.parametrize(
    ("document", "server", "z", "elsewhere"), [row[1:] for row in WHOM], ids=[row[0] for row in WHOM]
)
def test_whom_a_refused_document_refuses(
    document: dict[str, Any], server: str, z: str, elsewhere: str, bench: Bench
) -> None:
    assert refused(document, bench) == server
    assert refused(document, bench, app="z") == z
    assert refused(document, bench, namespace="other") == elsewhere


def test_a_refusal_beats_every_allow_but_lets_the_local_host_in(bench: Bench) -> None:
    allow = lang.parse(bench.cnp("{ingress: [{fromEntities: [all]}], egress: [{toEntities: [all]}]}", name="all"))
    rules = (*allow, *lang.refuse(policy(spec={"endpointSelector": SERVER}), "spec.ingress: unknown"))
    table = compile_policies(rules, [bench.server()], bench.identities_for(rules))[1]
    answer = decide.port(table.ingress, 301, 6, 80).l4
    assert (answer.verdict, answer.drop_reason) == (Verdict.DROPPED, DropReason.POLICY_DENY)
    assert answer.reason == "policy default/p cannot be enforced: spec.ingress: unknown"
    assert decide.port(table.ingress, 2, 6, 80).l4.verdict is Verdict.DROPPED
    assert decide.port(table.egress, 2, 6, 80).l4.verdict is Verdict.DROPPED
    assert decide.port(table.ingress, 1, 6, 80).l4.verdict is Verdict.FORWARDED


def test_the_local_host_is_let_in_by_default(bench: Bench) -> None:
    rules = lang.refuse(policy(), "because")
    table = compile_policies(rules, [bench.server()], bench.identities_for(rules))[1]
    assert decide.port(table.ingress, 1, 6, 80).l4.verdict is Verdict.FORWARDED


def test_a_refusal_knows_its_document_and_reason() -> None:
    rules = lang.refuse(
        policy(specs=[{"endpointSelector": SERVER, "ingress": 1}]), "why", locate=lambda at: ("f.yaml", len(at))
    )
    (rule,) = rules
    assert str(rule.ref) == "CiliumNetworkPolicy default/p specs[0]"
    assert (rule.ref.file, rule.ref.line, rule.refusal, rule.direction) == ("f.yaml", 8, "why", Direction.INGRESS)


def test_a_refusal_without_a_reason_is_one_all_the_same() -> None:
    assert {rule.refusal for rule in lang.refuse(policy(), "")} == {"it cannot be enforced"}


KINDS = [
    ("cilium.io/v2", "CiliumNetworkPolicy", True),
    ("cilium.io/v2alpha1", "CiliumNetworkPolicy", True),
    ("cilium.io/v2", "CiliumClusterwideNetworkPolicy", True),
    ("networking.k8s.io/v1", "NetworkPolicy", True),
    ("projectcalico.org/v3", "NetworkPolicy", True),
    ("crd.projectcalico.org/v1", "GlobalNetworkPolicy", True),
    ("policy.networking.k8s.io/v1alpha1", "BaselineAdminNetworkPolicy", True),
    ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy", True),
    ("networking.k8s.io/v1", "Ingress", False),
    ("v1", "NetworkPolicy", False),
    ("cilium.io/v2", "CiliumEndpoint", False),
]


@pytest.mark.parametrize(("api", "kind", "expected"), KINDS)
def test_which_documents_are_policies(api: str, kind: str, expected: bool) -> None:
    assert lang.is_policy({"apiVersion": api, "kind": kind}) is expected


@pytest.mark.parametrize("document", [None, 5, "x", [], {}, {"kind": []}, {"kind": "NetworkPolicy", "apiVersion": {}}])
def test_what_is_no_document_is_no_policy(document: Any) -> None:
    assert not lang.is_policy(document)
    assert lang.refuse(document, "x") == ()
