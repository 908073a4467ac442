"""The lab's manifests as frozen values: nodes, pods, Services. Reads documents, decides nothing.

Fields that the lab would have to implement but does not (init containers, other restart policies) are refused by name;
those that only matter in a real cluster (images, resources, probes, volumes) are ignored.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any, Final

from l7proxy.errors import SourceError
from l7proxy.lab.manifests import Document, Manifest
from l7proxy.model.net import canonical, family_of

SERVE_ANNOTATION: Final = "lab.l7proxy.io/serve"
SERVED: Final = ("http", "https", "h2c", "grpc", "tcp", "udp", "ws")
SERVICE_NAME_LABEL: Final = "kubernetes.io/service-name"
PROTOCOLS: Final = ("TCP", "UDP", "SCTP")
WORKLOADS: Final = frozenset(
    {("apps", kind) for kind in ("DaemonSet", "Deployment", "ReplicaSet", "StatefulSet")}
    | {("batch", kind) for kind in ("CronJob", "Job")}
    | {("", "ReplicationController")}
)
_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    addresses: tuple[str, ...] = ()
    pod_cidrs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Listener:
    """One built-in echo server."""

    kind: str
    port: int


@dataclass(frozen=True, slots=True)
class Container:
    """`argv` is empty when the image would define the command: then the container idles."""

    name: str
    argv: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    directory: str = ""


@dataclass(frozen=True, slots=True)
class Pod:
    namespace: str
    name: str
    node: str = ""
    addresses: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    containers: tuple[Container, ...] = ()
    listeners: tuple[Listener, ...] = ()
    named_ports: Mapping[str, int] = field(default_factory=dict)
    host_network: bool = False

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class ServicePort:
    """`target` is a port number or the name of a container port."""

    name: str
    protocol: str
    port: int
    target: int | str


@dataclass(frozen=True, slots=True)
class Service:
    namespace: str
    name: str
    addresses: tuple[str, ...] = ()
    headless: bool = False
    selector: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[ServicePort, ...] = ()

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Slice:
    """An EndpointSlice: ready addresses, and the port numbers of a Service's port names."""

    namespace: str
    service: str
    addresses: tuple[str, ...]
    ports: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Cluster:
    nodes: tuple[Node, ...] = ()
    pods: tuple[Pod, ...] = ()
    services: tuple[Service, ...] = ()
    slices: tuple[Slice, ...] = ()

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)


def field_of(manifest: Manifest, path: str, kind: type, default: Any) -> Any:
    """The value at `a.b.c`, checked to be of `kind`; `default` when it is absent or null."""
    value: object = manifest.document
    done: list[str] = []
    for part in path.split("."):
        if not isinstance(value, dict):
            raise manifest.error(f"must be a mapping, not {type(value).__name__}", ".".join(done))
        value = value.get(part)
        if value is None:
            return default
        done.append(part)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise manifest.error(f"must be a {kind.__name__}, not {type(value).__name__}", path)
    return value


def _addresses(manifest: Manifest, path: str, texts: list[Any]) -> tuple[str, ...]:
    try:
        return tuple(dict.fromkeys(canonical(str(text)) for text in texts if text))
    except ValueError as error:
        raise manifest.error(str(error), path) from error


def _strings(manifest: Manifest, path: str) -> dict[str, str]:
    mapping = field_of(manifest, path, dict, {})
    for key, value in mapping.items():
        if not isinstance(value, str):
            raise manifest.error(f"{key}: must be a string (put {value!r} in quotes)", path)
    return dict(mapping)


def _items(manifest: Manifest, path: str) -> list[Document]:
    values = field_of(manifest, path, list, [])
    if not all(isinstance(value, dict) for value in values):
        raise manifest.error("must be a list of mappings", path)
    return list(values)


def node_of(manifest: Manifest) -> Node:
    cidrs = field_of(manifest, "spec.podCIDRs", list, []) or [field_of(manifest, "spec.podCIDR", str, "")]
    try:
        networks = tuple(str(ip_network(cidr)) for cidr in cidrs if cidr)
    except ValueError as error:
        raise manifest.error(str(error), "spec.podCIDR") from error
    inner = [item.get("address") for item in _items(manifest, "status.addresses") if item.get("type") == "InternalIP"]
    return Node(manifest.key.name, _addresses(manifest, "status.addresses", inner), networks)


def pod_of(manifest: Manifest) -> Pod:
    if field_of(manifest, "spec.initContainers", list, []):
        raise manifest.error("init containers are not supported by the lab yet", "spec.initContainers")
    containers = _items(manifest, "spec.containers")
    names = [item.get("name") for item in containers]
    if len(set(map(str, names))) != len(names):
        raise manifest.error("duplicate container name", "spec.containers")
    listed = [item.get("ip") for item in _items(manifest, "status.podIPs")] or [
        field_of(manifest, "status.podIP", str, "")
    ]
    return Pod(
        namespace=manifest.key.namespace,
        name=manifest.key.name,
        node=field_of(manifest, "spec.nodeName", str, ""),
        addresses=_addresses(manifest, "status.podIP", listed),
        labels=_strings(manifest, "metadata.labels"),
        containers=tuple(_container(manifest, index, item) for index, item in enumerate(containers)),
        listeners=_listeners(manifest),
        named_ports=_named_ports(manifest, containers),
        host_network=field_of(manifest, "spec.hostNetwork", bool, False),
    )


def _container(manifest: Manifest, index: int, item: Document) -> Container:
    path = f"spec.containers[{index}]"
    command, arguments = item.get("command") or [], item.get("args") or []
    for key, value in (("command", command), ("args", arguments)):
        if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
            raise manifest.error("must be a list of strings", f"{path}.{key}")
    environment = []
    for entry in item.get("env") or []:
        if not isinstance(entry, dict) or not isinstance(entry.get("value", ""), str) or "valueFrom" in entry:
            raise manifest.error("the lab supports only entries with name and a string value", f"{path}.env")
        environment.append((str(entry.get("name")), str(entry.get("value", ""))))
    argv = tuple(command + arguments) if command else ()  # without command the image's entry point is meant
    name: object = item.get("name")
    if not isinstance(name, str) or not _LABEL.fullmatch(name):
        raise manifest.error(f"{name!r} is not a valid name (lower case letters, digits and '-')", f"{path}.name")
    return Container(name, argv, tuple(environment), str(item.get("workingDir") or ""))


def _named_ports(manifest: Manifest, containers: list[Document]) -> dict[str, int]:
    ports = {}
    for index, item in enumerate(containers):
        for port in item.get("ports") or []:
            number = port.get("containerPort") if isinstance(port, dict) else None
            if not isinstance(number, int) or not 0 < number < 65536:
                raise manifest.error("containerPort must be 1 to 65535", f"spec.containers[{index}].ports")
            if port.get("name"):
                ports[str(port["name"])] = number
    return ports


def _listeners(manifest: Manifest) -> tuple[Listener, ...]:
    text = _strings(manifest, "metadata.annotations").get(SERVE_ANNOTATION, "")
    try:
        return tuple(parse_listener(item.strip()) for item in text.split(",") if item.strip())
    except ValueError as error:
        raise manifest.error(str(error), f"metadata.annotations[{SERVE_ANNOTATION}]") from error


def parse_listener(text: str) -> Listener:
    """`http:8080` → Listener. ValueError names what is accepted."""
    kind, _, port = text.partition(":")
    if kind not in SERVED or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{shlex.quote(text)} must be KIND:PORT with KIND one of {', '.join(SERVED)}")
    return Listener(kind, int(port))


def service_of(manifest: Manifest) -> Service:
    if (kind := field_of(manifest, "spec.type", str, "ClusterIP")) != "ClusterIP":
        raise manifest.error(f"{kind}: not supported yet, the lab supports only ClusterIP", "spec.type")
    listed = field_of(manifest, "spec.clusterIPs", list, []) or [field_of(manifest, "spec.clusterIP", str, "")]
    headless = listed == ["None"]
    return Service(
        namespace=manifest.key.namespace,
        name=manifest.key.name,
        addresses=() if headless else _addresses(manifest, "spec.clusterIP", listed),
        headless=headless,
        selector=_strings(manifest, "spec.selector"),
        ports=tuple(_service_port(manifest, item) for item in _items(manifest, "spec.ports")),
    )


def _service_port(manifest: Manifest, item: Document) -> ServicePort:
    port: object = item.get("port")
    protocol: object = item.get("protocol") or "TCP"
    target: object = item.get("targetPort") or port
    if not isinstance(port, int) or not 0 < port < 65536:
        raise manifest.error("must be 1 to 65535", "spec.ports.port")
    if not isinstance(protocol, str) or protocol not in PROTOCOLS:
        raise manifest.error(f"{protocol!r} must be one of {', '.join(PROTOCOLS)}", "spec.ports.protocol")
    if not isinstance(target, int | str):
        raise manifest.error("must be a number or the name of a container port", "spec.ports.targetPort")
    return ServicePort(str(item.get("name") or ""), protocol, port, target)


def slice_of(manifest: Manifest) -> Slice:
    service = _strings(manifest, "metadata.labels").get(SERVICE_NAME_LABEL, "")
    ready: list[Any] = []
    for item in _items(manifest, "endpoints"):
        conditions = item.get("conditions") or {}
        if conditions.get("ready") is not False:
            ready.extend(item.get("addresses") or [])
    ports = {str(item.get("name") or ""): item.get("port") for item in _items(manifest, "ports")}
    numbers = {name: port for name, port in ports.items() if isinstance(port, int)}
    return Slice(manifest.key.namespace, service, _addresses(manifest, "endpoints", ready), numbers)


def of_family(addresses: tuple[str, ...], families: tuple[int, ...]) -> tuple[str, ...]:
    """The addresses of the lab's address families, IPv4 first or in the order of `families`."""
    return tuple(address for family in families for address in addresses if family_of(address) == family)


def read_cluster(manifests: list[Manifest]) -> Cluster:
    """All objects that the lab uses. SourceError names the first one that is not supported."""
    for manifest in manifests:
        if (manifest.key.group, manifest.key.kind) in WORKLOADS:
            raise manifest.error("the lab has no controllers: define the pods instead", "kind")
    kinds: dict[str, list[Manifest]] = {}
    for manifest in manifests:
        if manifest.key.group in {"", "discovery.k8s.io"}:
            kinds.setdefault(manifest.key.kind, []).append(manifest)
    cluster = Cluster(
        nodes=tuple(node_of(manifest) for manifest in kinds.get("Node", [])),
        pods=tuple(pod_of(manifest) for manifest in kinds.get("Pod", [])),
        services=tuple(service_of(manifest) for manifest in kinds.get("Service", [])),
        slices=tuple(slice_of(manifest) for manifest in kinds.get("EndpointSlice", [])),
    )
    _check_addresses(cluster)
    return cluster


def _check_addresses(cluster: Cluster) -> None:
    owners: dict[str, str] = {}
    for pod in cluster.pods:
        for address in () if pod.host_network else pod.addresses:
            ip_address(address)
            if (other := owners.setdefault(address, str(pod))) != str(pod):
                raise SourceError(f"Pod {pod} and Pod {other} have the same address {address}", field="status.podIP")
