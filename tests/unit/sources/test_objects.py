"""Kubernetes objects become resources; each wrong field is reported with its line."""

from __future__ import annotations

import textwrap

import pytest

from l7proxy.model.endpoint import Workload
from l7proxy.model.resources import (
    EndpointSlice,
    Namespace,
    Node,
    Pod,
    Resource,
    Service,
    ServicePort,
    SlicePort,
    SourceLocation,
)
from l7proxy.sources.files.manifest import parse

POD = """
apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: shop
  labels: {app: web, pod-template-hash: abc}
  ownerReferences:
  - {kind: ReplicaSet, name: web-abc, controller: true}
spec:
  nodeName: n1
  serviceAccountName: seller
  initContainers:
  - {name: sidecar, restartPolicy: Always, ports: [{name: mesh, containerPort: 15}]}
  - {name: once, ports: [{name: gone, containerPort: 16}]}
  containers:
  - name: c
    ports:
    - {name: http, containerPort: 8080}
    - {name: dns, containerPort: 53, protocol: UDP}
    - {containerPort: 9}
  - name: d
    ports: [{name: http, containerPort: 9090}]
status:
  phase: Running
  podIP: 10.0.0.5
  podIPs: [{ip: 10.0.0.5}, {ip: "FD00::05"}]
"""


def resources(text: str) -> tuple[Resource, ...]:
    manifest = parse(textwrap.dedent(text).encode(), "a.yaml")
    assert manifest.faults == ()
    return manifest.resources


def fault(text: str) -> tuple[int | None, str, str]:
    (one,) = parse(textwrap.dedent(text).encode(), "a.yaml").faults
    assert one.error.file == "a.yaml"
    return one.error.line, one.error.field, one.error.message


def test_a_pod() -> None:
    assert resources(POD) == (
        Pod(
            namespace="shop",
            name="web",
            node="n1",
            addresses=("10.0.0.5", "fd00::5"),
            labels={"app": "web", "pod-template-hash": "abc"},
            named_ports=frozenset({("http", 6, 8080), ("dns", 17, 53), ("mesh", 6, 15)}),
            service_account="seller",
            workload=Workload("web", "Deployment"),
            phase="Running",
            origin=SourceLocation("a.yaml", 2),
        ),
    )


def test_a_pods_uid_is_kept_until_it_has_an_address() -> None:
    head = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, uid: u1"
    texts = (
        f"{head}}}\n",
        f'{head}, deletionTimestamp: "2026-01-01T00:00:00Z"}}\nstatus: {{podIP: 10.0.0.5}}\n',
        f"{head}}}\nspec: {{hostNetwork: true}}\n",
    )
    found = [pod for text in texts for pod in resources(text) if isinstance(pod, Pod)]
    assert [(pod.uid, pod.terminating) for pod in found] == [("u1", False), ("", True), ("", False)]


def test_a_pod_in_short_lives_in_default() -> None:
    (pod,) = resources("{apiVersion: v1, kind: Pod, metadata: {name: a}}")
    assert pod == Pod("default", "a", origin=SourceLocation("a.yaml", 1))


@pytest.mark.parametrize(
    ("owner", "workload"),
    [
        ("{kind: StatefulSet, name: db, controller: true}", Workload("db", "StatefulSet")),
        ("{kind: Job, name: nightly-28900000, controller: true}", Workload("nightly", "CronJob")),
        ("{kind: Job, name: once, controller: true}", Workload("once", "Job")),
        ("{kind: ReplicaSet, name: lone-xyz, controller: true}", Workload("lone-xyz", "ReplicaSet")),
        ("{kind: Node, name: n1}", None),
    ],
)
def test_the_workload_is_the_controlling_owner(owner: str, workload: Workload | None) -> None:
    (pod,) = resources(f"{{apiVersion: v1, kind: Pod, metadata: {{name: a, ownerReferences: [{owner}]}}}}")
    assert isinstance(pod, Pod)
    assert pod.workload == workload


def test_a_node_and_a_namespace() -> None:
    text = """
    apiVersion: v1
    kind: List
    items:
    - apiVersion: v1
      kind: Node
      metadata: {name: n1, labels: {zone: a}}
      spec: {podCIDR: 10.0.0.0/24, podCIDRs: [10.0.0.0/24, "fd00::1/64"]}
      status:
        addresses:
        - {type: InternalIP, address: 192.168.0.1}
        - {type: Hostname, address: n1}
    - apiVersion: v1
      kind: Namespace
      metadata: {name: shop, labels: {team: x}, annotations: {l7proxy.io/audit: "true", other: y}}
    """
    assert resources(text) == (
        Node("n1", ("192.168.0.1",), ("10.0.0.0/24", "fd00::/64"), {"zone": "a"}, SourceLocation("a.yaml", 5)),
        Namespace("shop", {"team": "x"}, {"l7proxy.io/audit": "true"}, SourceLocation("a.yaml", 13)),
    )


def test_a_service_and_its_slices() -> None:
    text = """
    apiVersion: v1
    kind: Service
    metadata: {name: web}
    spec:
      clusterIP: 10.96.0.1
      externalIPs: [203.0.113.9]
      selector: {app: web}
      ports:
      - {name: http, port: 80, targetPort: http}
      - {name: alt, port: 81, targetPort: "8081"}
      - {name: dns, port: 53, protocol: UDP}
    status: {loadBalancer: {ingress: [{ip: 203.0.113.10}, {hostname: x}]}}
    ---
    apiVersion: discovery.k8s.io/v1
    kind: EndpointSlice
    metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
    addressType: IPv4
    endpoints:
    - {addresses: [10.0.0.5]}
    - {addresses: [10.0.0.6], conditions: {ready: false}}
    - {addresses: [10.0.0.7], conditions: {ready: true}}
    ports: [{name: http, port: 8080}, {name: any}]
    """
    assert resources(text) == (
        Service(
            "default",
            "web",
            ("10.96.0.1", "203.0.113.9", "203.0.113.10"),
            (ServicePort(80, 6, "http", "http"), ServicePort(81, 6, 8081, "alt"), ServicePort(53, 17, 53, "dns")),
            {"app": "web"},
            origin=SourceLocation("a.yaml", 2),
        ),
        EndpointSlice(
            "default",
            "web-1",
            "web",
            ("10.0.0.5", "10.0.0.7"),
            (SlicePort("http", 8080, 6),),
            SourceLocation("a.yaml", 15),
        ),
    )


def test_services_without_an_address_have_none() -> None:
    headless, external = resources(
        """
        {apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: None, ports: [{port: 1}]}}
        ---
        {apiVersion: v1, kind: Service, metadata: {name: b}, spec: {type: ExternalName, externalName: example.org}}
        """
    )
    assert isinstance(headless, Service)
    assert isinstance(external, Service)
    assert (headless.addresses, headless.headless) == ((), True)
    assert external.addresses == ()


def pod_with(line: str) -> str:
    return f"apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\n{line}\n"


@pytest.mark.parametrize(
    ("text", "line", "field", "message"),
    [
        ("just text", 1, "", "must be a mapping with kind"),
        ("- a", 1, "", "must be a mapping with kind"),
        ("metadata: {name: a}", 1, "kind", "is missing"),
        ("kind: Pod\nmetadata: {name: a}", 1, "apiVersion", "is missing"),
        ("apiVersion: v1\nkind: 7", 2, "kind", "must be a string, not a number"),
        ("apiVersion: v1\nkind: Pod", 1, "metadata.name", "is missing"),
        ("apiVersion: v1\nkind: Pod\nmetadata:\n  name:", 4, "metadata.name", "is missing"),
        ("apiVersion: v1\nkind: Pod\nmetadata: [a]", 3, "metadata", "must be a mapping, not a list"),
        (
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  labels: {x: 1}",
            5,
            "metadata.labels.x",
            "must be a string",
        ),
        (pod_with("status:\n  podIP: 10.0.0.256"), 5, "status.podIP", "'10.0.0.256' is not a valid IP address"),
        (pod_with("status: {podIP: 127.0.0.1}"), 4, "status.podIP", "127.0.0.1 cannot be an address of a pod"),
        (pod_with("status: {podIP: 0.0.0.0}"), 4, "status.podIP", "cannot be an address of a pod"),
        (pod_with("status: {podIP: '::ffff:127.0.0.1'}"), 4, "status.podIP", "cannot be an address of a pod"),
        (pod_with("status: {podIP: 'fe80::1%eth0'}"), 4, "status.podIP", "cannot be an address of a pod"),
        (
            pod_with("status:\n  podIPs:\n  - ip: 10.0.0.1\n  - ip: x"),
            7,
            "status.podIPs[1].ip",
            "is not a valid IP address",
        ),
        (pod_with("spec: {hostNetwork: 'yes'}"), 4, "spec.hostNetwork", "must be true or false"),
        (pod_with("spec: {nodeName: 1}"), 4, "spec.nodeName", "must be a string"),
        (
            pod_with("spec:\n  containers:\n  - ports:\n    - containerPort: 70000"),
            7,
            "spec.containers[0].ports[0].containerPort",
            "must be a port from 1 to 65535, not 70000",
        ),
        (
            pod_with("spec:\n  containers:\n  - ports:\n    - {containerPort: 1, protocol: TPC}"),
            7,
            "spec.containers[0].ports[0].protocol",
            "unknown protocol 'TPC'",
        ),
        (
            "apiVersion: v1\nkind: Node\nmetadata: {name: a}\nspec:\n  podCIDR: 10.0.0.0/33",
            5,
            "spec.podCIDR",
            "is not a valid CIDR",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  clusterIP: x",
            5,
            "spec.clusterIP",
            "is not a valid IP address",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  ports:\n  - port: http",
            6,
            "spec.ports[0].port",
            "must be a port",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  ports:\n  - {port: 1, targetPort: 99999}",
            6,
            "spec.ports[0].targetPort",
            "must be a port",
        ),
        (
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a}\naddressType: IPv5",
            4,
            "addressType",
            "must be IPv4, IPv6 or FQDN",
        ),
        (
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a}\naddressType: IPv6\n"
            "endpoints:\n- addresses: [10.0.0.1]",
            6,
            "endpoints[0].addresses[0]",
            "10.0.0.1 is not IPv6",
        ),
    ],
)
def test_each_wrong_field_is_named_with_its_line(text: str, line: int, field: str, message: str) -> None:
    found = fault(text)
    assert found[:2] == (line, field)
    assert message in found[2]
