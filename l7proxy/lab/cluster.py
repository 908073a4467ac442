"""The cluster of the lab: nodes, pods, Services, read as the agent reads them. Decides nothing.

A pod has its containers and echo servers besides (`containers`). What the lab does not implement (controllers, Services
of other types than ClusterIP) is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Final, TypeVar

from l7proxy.cluster.frontends import frontends
from l7proxy.errors import SourceError
from l7proxy.lab.containers import Container, Listener, containers, listeners
from l7proxy.lab.manifests import Manifest
from l7proxy.model import resources
from l7proxy.model.endpoint import Frontend
from l7proxy.model.net import family_of
from l7proxy.model.resources import EndpointSlice, Node, Resource, Service, SourceLocation
from l7proxy.sources import objects
from l7proxy.sources.fields import Fields

WORKLOADS: Final = frozenset(
    {("apps", kind) for kind in ("DaemonSet", "Deployment", "ReplicaSet", "StatefulSet")}
    | {("batch", kind) for kind in ("CronJob", "Job")}
    | {("", "ReplicationController")}
)
R = TypeVar("R", bound=Resource)


@dataclass(frozen=True, slots=True)
class Pod(resources.Pod):
    """A Pod, and what it runs."""

    containers: tuple[Container, ...] = ()
    listeners: tuple[Listener, ...] = ()

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Cluster:
    nodes: tuple[Node, ...] = ()
    pods: tuple[Pod, ...] = ()
    services: tuple[Service, ...] = ()
    slices: tuple[EndpointSlice, ...] = ()

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def frontends(self, family: int) -> Iterator[Frontend]:
        """Each address and port of each Service, with its backends, as the agent knows them."""
        found = frontends(self.services, self.slices, self.pods)
        return (one for one in found if family_of(one.address) == family)


def node_of(manifest: Manifest) -> Node:
    return _read(manifest, Node)


def pod_of(manifest: Manifest) -> Pod:
    read, document = _read(manifest, resources.Pod), Fields(manifest.document)
    try:
        own = containers(document.inside("spec")), listeners(document.inside("metadata"))
    except SourceError as error:
        raise manifest.error(error.message, error.field) from error
    known = {one.name: getattr(read, one.name) for one in fields(read) if one.init}
    return Pod(**known, containers=own[0], listeners=own[1])


def service_of(manifest: Manifest) -> Service:
    if (kind := Fields(manifest.document).inside("spec").text("type", "ClusterIP")) != "ClusterIP":
        raise manifest.error(f"{kind}: not supported yet, the lab supports only ClusterIP", "spec.type")
    return _read(manifest, Service)


def _read(manifest: Manifest, kind: type[R]) -> R:
    try:
        found = objects.read(manifest.document, SourceLocation(manifest.file, manifest.line), dict)
    except SourceError as error:
        raise manifest.error(error.message, error.field) from error
    if not isinstance(found, kind):
        raise manifest.error(f"{manifest.document['apiVersion']} is not a supported version", "apiVersion")
    return found


def of_family(addresses: tuple[str, ...], families: tuple[int, ...]) -> tuple[str, ...]:
    """The addresses of the lab's address families, IPv4 first or in the order of `families`."""
    return tuple(address for family in families for address in addresses if family_of(address) == family)


def read_cluster(manifests: list[Manifest]) -> Cluster:
    """All objects that the lab uses. SourceError names the first one that is not supported."""
    for manifest in manifests:
        if (manifest.key.group, manifest.key.kind) in WORKLOADS:
            raise manifest.error("the lab has no controllers: define the pods instead", "kind")
    kinds: dict[tuple[str, str], list[Manifest]] = {}
    for manifest in manifests:
        kinds.setdefault((manifest.key.group, manifest.key.kind), []).append(manifest)
    slices = kinds.get(("discovery.k8s.io", "EndpointSlice"), [])
    cluster = Cluster(
        nodes=tuple(map(node_of, kinds.get(("", "Node"), []))),
        pods=tuple(map(pod_of, kinds.get(("", "Pod"), []))),
        services=tuple(map(service_of, kinds.get(("", "Service"), []))),
        slices=tuple(_read(manifest, EndpointSlice) for manifest in slices),
    )
    _check_addresses(cluster)
    return cluster


def _check_addresses(cluster: Cluster) -> None:
    owners: dict[str, str] = {}
    for pod in cluster.pods:
        for address in () if pod.host_network else pod.addresses:
            if (other := owners.setdefault(address, str(pod))) != str(pod):
                raise SourceError(f"Pod {pod} and Pod {other} have the same address {address}", field="status.podIP")
