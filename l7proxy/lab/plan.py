"""Assigns networks to nodes, nodes and addresses to pods, and ClusterIPs to Services.

Pure. Values that a manifest already has (in spec or status) are kept; the others are assigned in the order of the
manifests, so that the same manifests always give the same lab. The result is the manifests with spec and status filled
in, as a real cluster's control plane would do, and the `Cluster` read from them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final

from l7proxy.errors import SourceError
from l7proxy.lab.cluster import Cluster, Pod, node_of, of_family, pod_of, read_cluster, service_of
from l7proxy.lab.manifests import Document, Key, Manifest
from l7proxy.model.net import family_of
from l7proxy.model.resources import Node, Service

DEFAULT_NODES: Final = ("node-1", "node-2")
UNDERLAY: Final = {4: ip_network("172.18.0.0/16"), 6: ip_network("fd00:172:18::/64")}
"""The underlay networks. They can be the same in every lab: each lab's underlay is in its own namespace."""
POD_NETWORK: Final = {4: ip_network("10.244.0.0/16"), 6: ip_network("fd00:10:244::/48")}
POD_PREFIX: Final = {4: 24, 6: 64}
SERVICE_NETWORK: Final = {4: ip_network("10.96.0.0/16"), 6: ip_network("fd00:10:96::/112")}
FIRST: Final = 10
"""First host number to assign: those below are for gateways and for manifests with fixed addresses."""


@dataclass(frozen=True, slots=True)
class Plan:
    manifests: tuple[Manifest, ...]
    cluster: Cluster


def plan(manifests: Iterable[Manifest], families: tuple[int, ...]) -> Plan:
    """The plan of the whole lab. SourceError when there is none: two pods with one address, an unknown node."""
    given = [*manifests]
    given = [*_missing_nodes(given), *_missing_namespaces(given), *given]
    cluster = read_cluster(given)
    nodes = _place_nodes(cluster.nodes, families)
    pods = _place_pods(cluster.pods, nodes, families)
    services = _place_services(cluster.services, families)
    placed = Cluster(nodes, pods, services, cluster.slices)
    return Plan(tuple(_written(manifest, placed) for manifest in given), placed)


def _missing_nodes(manifests: list[Manifest]) -> Iterator[Manifest]:
    if not any(manifest.key.kind == "Node" for manifest in manifests):
        yield from (_object("Node", name) for name in DEFAULT_NODES)


def _missing_namespaces(manifests: list[Manifest]) -> Iterator[Manifest]:
    """Namespaces that objects are in but that no manifest defines."""
    known = {manifest.key.name for manifest in manifests if manifest.key.kind == "Namespace"}
    used = dict.fromkeys(manifest.key.namespace for manifest in manifests if manifest.key.namespace)
    yield from (_object("Namespace", name) for name in used if name not in known)


def _object(kind: str, name: str) -> Manifest:
    document: Document = {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}}
    return Manifest(Key(kind, "", "", name), document, "", "(the lab)").rewritten(document)


# Nodes


def _place_nodes(nodes: tuple[Node, ...], families: tuple[int, ...]) -> tuple[Node, ...]:
    taken = {address for node in nodes for address in node.addresses}
    taken_cidrs = {cidr for node in nodes for cidr in node.pod_cidrs}
    placed = []
    for index, node in enumerate(nodes, start=1):
        addresses, cidrs = [], []
        for family in families:
            own = of_family(node.addresses, (family,)) or (_free(UNDERLAY[family], taken, FIRST + index),)
            addresses.append(_on_the_wire(node, own[0]))
            ranges = [cidr for cidr in node.pod_cidrs if ip_network(cidr).version == family]
            cidrs.append(ranges[0] if ranges else _free_range(family, index, taken_cidrs))
        taken.update(addresses)
        taken_cidrs.update(cidrs)
        placed.append(replace(node, addresses=tuple(addresses), pod_cidrs=tuple(cidrs)))
    _check_ranges(placed)
    return tuple(placed)


def _on_the_wire(node: Node, address: str) -> str:
    network = UNDERLAY[family_of(address)]
    if ip_address(address) not in network:
        raise SourceError(f"Node {node.name}: {address} is not in the lab's {network}", field="status.addresses")
    return address


def _free_range(family: int, index: int, taken: set[str]) -> str:
    base, prefix = POD_NETWORK[family], POD_PREFIX[family]
    size = 1 << (base.max_prefixlen - prefix)
    while (text := f"{base.network_address + index * size}/{prefix}") in taken:
        index += 1
    return text


def _check_ranges(nodes: list[Node]) -> None:
    networks = [(node, ip_network(cidr)) for node in nodes for cidr in node.pod_cidrs]
    for index, (node, network) in enumerate(networks):
        for other, theirs in networks[:index]:
            if network.overlaps(theirs):
                raise SourceError(
                    f"Nodes {other.name} and {node.name}: {theirs} and {network} overlap", field="spec.podCIDR"
                )


# Pods


def _place_pods(pods: tuple[Pod, ...], nodes: tuple[Node, ...], families: tuple[int, ...]) -> tuple[Pod, ...]:
    by_name = {node.name: node for node in nodes}
    crowd = dict.fromkeys(by_name, 0)
    for pod in pods:
        if pod.node and pod.node not in by_name:
            raise SourceError(
                f"Pod {pod}: node {pod.node!r} not found (nodes: {', '.join(by_name)})", field="spec.nodeName"
            )
        if pod.node:
            crowd[pod.node] += 1
    taken = {address for pod in pods for address in pod.addresses}
    placed = []
    for pod in pods:
        name = pod.node or min(crowd, key=lambda node: crowd[node])
        if not pod.node:
            crowd[name] += 1
        node = by_name[name]
        addresses = node.addresses if pod.host_network else _pod_addresses(pod, node, families, taken)
        placed.append(replace(pod, node=name, addresses=addresses, phase="Running"))
    return tuple(placed)


def _pod_addresses(pod: Pod, node: Node, families: tuple[int, ...], taken: set[str]) -> tuple[str, ...]:
    addresses = []
    for family in families:
        cidr = next(ip_network(cidr) for cidr in node.pod_cidrs if ip_network(cidr).version == family)
        own = of_family(pod.addresses, (family,)) or (_free(cidr, taken, FIRST),)
        if ip_address(own[0]) not in cidr:
            raise SourceError(f"Pod {pod}: {own[0]} is not in {cidr}, the podCIDR of {node.name}", field="status.podIP")
        addresses.append(own[0])
        taken.add(own[0])
    return tuple(addresses)


# Services


def _place_services(services: tuple[Service, ...], families: tuple[int, ...]) -> tuple[Service, ...]:
    taken = {address for service in services for address in service.addresses}
    placed = []
    for service in services:
        if service.headless:
            placed.append(service)
            continue
        addresses = []
        for family in families:
            own = of_family(service.addresses, (family,)) or (_free(SERVICE_NETWORK[family], taken, FIRST),)
            addresses.append(own[0])
            taken.add(own[0])
        placed.append(replace(service, addresses=tuple(addresses)))
    return tuple(placed)


def _free(network: IPv4Network | IPv6Network, taken: set[str], start: int) -> str:
    """The first unused address, starting with the `start`-th."""
    for number in range(start, min(network.num_addresses - 1, start + 65536)):
        if (address := str(network.network_address + number)) not in taken:
            return address
    raise SourceError(f"{network} has no free address")


# Writing the plan into the documents


def _written(manifest: Manifest, cluster: Cluster) -> Manifest:
    """The manifest with its assigned values."""
    if manifest.key.group:
        return manifest
    document = copy.deepcopy(manifest.document)
    match manifest.key.kind:
        case "Node":
            node = cluster.node(manifest.key.name)
            _section(document, "spec").update(podCIDR=node.pod_cidrs[0], podCIDRs=list(node.pod_cidrs))
            named = {"type": "Hostname", "address": node.name}
            inner = [{"type": "InternalIP", "address": address} for address in node.addresses]
            _section(document, "status")["addresses"] = [*inner, named]
        case "Pod":
            pod = next(p for p in cluster.pods if (p.namespace, p.name) == (manifest.key.namespace, manifest.key.name))
            hosts = cluster.node(pod.node).addresses
            _section(document, "spec")["nodeName"] = pod.node
            _section(document, "status").update(
                phase=pod.phase,
                hostIP=hosts[0],
                hostIPs=[{"ip": address} for address in hosts],
                podIP=pod.addresses[0],
                podIPs=[{"ip": address} for address in pod.addresses],
            )
        case "Service":
            service = next(
                s for s in cluster.services if (s.namespace, s.name) == (manifest.key.namespace, manifest.key.name)
            )
            if service.headless:
                return manifest
            _section(document, "spec").update(clusterIP=service.addresses[0], clusterIPs=list(service.addresses))
        case "Namespace":
            labels = _section(document, "metadata").setdefault("labels", {})
            labels["kubernetes.io/metadata.name"] = manifest.key.name
        case _:
            return manifest
    return manifest if document == manifest.document else manifest.rewritten(document)


def _section(document: Document, name: str) -> Document:
    section = document.get(name)
    if not isinstance(section, dict):
        section = document[name] = {}
    return section


def merged(stored: dict[Key, Manifest], new: Iterable[Manifest]) -> list[Manifest]:
    """All objects after `apply`: an object keeps its assigned values unless the new manifest sets others."""
    result = dict(stored)
    for manifest in new:
        old = stored.get(manifest.key)
        result[manifest.key] = _keeping_place(old, manifest) if old else manifest
    return list(result.values())


def _keeping_place(old: Manifest, new: Manifest) -> Manifest:
    document = copy.deepcopy(new.document)
    match new.key.kind, new.key.group:
        case "Pod", "":
            before, now = pod_of(old), pod_of(new)
            if not now.node:
                _section(document, "spec")["nodeName"] = before.node
            if not now.addresses and now.node in {"", before.node} and now.host_network == before.host_network:
                _section(document, "status")["podIPs"] = [{"ip": address} for address in before.addresses]
        case "Service", "":
            before_service, now_service = service_of(old), service_of(new)
            if not now_service.addresses and not now_service.headless and before_service.addresses:
                _section(document, "spec")["clusterIPs"] = list(before_service.addresses)
        case "Node", "":
            before_node, now_node = node_of(old), node_of(new)
            if not now_node.addresses:
                inner = [{"type": "InternalIP", "address": address} for address in before_node.addresses]
                _section(document, "status")["addresses"] = inner
            if not now_node.pod_cidrs:
                _section(document, "spec")["podCIDRs"] = list(before_node.pod_cidrs)
        case _:
            return new
    return new if document == new.document else new.rewritten(document)
