"""The fields of each kind that are decoded; msgspec skips all others, which are most of an object.

The results are plain dictionaries, as `sources.decode` takes them. A policy keeps its whole spec, and the metadata that
its status needs; not what changes with every write of a status. An object with a field of another type is decoded
whole, so that `sources.decode` can name the field.
"""

from __future__ import annotations

from typing import Any, TypedDict

import msgspec


class Owner(TypedDict, total=False):
    kind: str
    name: str
    controller: bool


class Meta(TypedDict, total=False):
    name: str
    namespace: str
    resourceVersion: str


class LabelledMeta(Meta, total=False):
    labels: dict[str, str]


class AnnotatedMeta(LabelledMeta, total=False):
    annotations: dict[str, str]


class PolicyMeta(AnnotatedMeta, total=False):
    uid: str
    generation: int


class PodMeta(LabelledMeta, total=False):
    uid: str
    deletionTimestamp: str
    ownerReferences: list[Owner]


class Plain(TypedDict, total=False):
    metadata: LabelledMeta


class Spec(Plain, total=False):
    spec: Any


class Policy(TypedDict, total=False):
    metadata: PolicyMeta
    spec: Any
    specs: Any


class Namespace(TypedDict, total=False):
    metadata: AnnotatedMeta


class NodeSpec(TypedDict, total=False):
    podCIDR: str
    podCIDRs: list[str]


class NodeAddress(TypedDict, total=False):
    type: str
    address: str


class NodeStatus(TypedDict, total=False):
    addresses: list[NodeAddress]


class Node(Plain, total=False):
    spec: NodeSpec
    status: NodeStatus


class ContainerPort(TypedDict, total=False):
    name: str
    containerPort: int
    protocol: str


class Container(TypedDict, total=False):
    ports: list[ContainerPort]
    restartPolicy: str


class HttpGet(TypedDict, total=False):
    host: str
    path: str
    port: int | str
    scheme: str


class TcpSocket(TypedDict, total=False):
    host: str
    port: int | str


class Grpc(TypedDict, total=False):
    port: int


class Handler(TypedDict, total=False):
    httpGet: HttpGet
    tcpSocket: TcpSocket
    grpc: Grpc


class Lifecycle(TypedDict, total=False):
    postStart: Handler
    preStop: Handler


class ProbedContainer(Container, total=False):
    livenessProbe: Handler
    readinessProbe: Handler
    startupProbe: Handler
    lifecycle: Lifecycle


class PodPlace(TypedDict, total=False):
    nodeName: str
    serviceAccountName: str
    hostNetwork: bool


class PodSpec(PodPlace, total=False):
    containers: list[Container]
    initContainers: list[Container]


class ProbedPodSpec(PodPlace, total=False):
    containers: list[ProbedContainer]
    initContainers: list[ProbedContainer]


class PodAddress(TypedDict, total=False):
    ip: str


class PodStatus(TypedDict, total=False):
    phase: str
    podIP: str
    podIPs: list[PodAddress]


class Pod(TypedDict, total=False):
    metadata: PodMeta
    spec: PodSpec
    status: PodStatus


class ProbedPod(TypedDict, total=False):
    """Where probes count (`Options.probes_only`)."""

    metadata: PodMeta
    spec: ProbedPodSpec
    status: PodStatus


class ServicePort(TypedDict, total=False):
    name: str
    port: int
    protocol: str
    targetPort: int | str


class ServiceSpec(TypedDict, total=False):
    type: str
    clusterIP: str
    clusterIPs: list[str]
    externalIPs: list[str]
    selector: dict[str, str]
    ports: list[ServicePort]


class Service(Plain, total=False):
    spec: ServiceSpec
    status: Any


class Conditions(TypedDict, total=False):
    ready: bool


class Endpoint(TypedDict, total=False):
    addresses: list[str]
    conditions: Conditions


class SlicePort(TypedDict, total=False):
    name: str
    port: int
    protocol: str


class EndpointSlice(Plain, total=False):
    addressType: str
    endpoints: list[Endpoint]
    ports: list[SlicePort]


class Secret(TypedDict, total=False):
    metadata: Meta
    data: dict[str, str]


class Trimmer:
    """Decodes objects of one shape, one by one. `api`, `version`: what a list does not repeat for each object."""

    def __init__(self, shape: Any, api: str, version: str) -> None:
        self._decode = msgspec.json.Decoder(shape).decode
        self._head = {"apiVersion": version, "kind": api}

    def __call__(self, raw: bytes | msgspec.Raw) -> tuple[dict[str, Any], str]:
        """(the object, its resourceVersion). msgspec.DecodeError if it is no JSON."""
        try:
            value: Any = self._decode(raw)
        except msgspec.ValidationError:
            value = msgspec.json.decode(raw)
            if not isinstance(value, dict):
                value = {}
        metadata = value.get("metadata")
        version = metadata.pop("resourceVersion", "") if isinstance(metadata, dict) else ""
        return self._head | value | self._head, version if isinstance(version, str) else ""
