"""Names without DNS: the content of each pod's /etc/hosts (as `svc`, `svc.ns`, `svc.ns.svc.cluster.local` resolve).

Pure. A short name is looked up in the pod's own namespace, as by a cluster's search path; Services precede pods.
"""

from __future__ import annotations

from collections.abc import Iterator

from l7proxy.cluster.service_pods import selected
from l7proxy.lab.cluster import Cluster, Pod
from l7proxy.model.net import family_of
from l7proxy.model.resources import Service

LOCAL = ("127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback")


def lookup(cluster: Cluster, namespace: str) -> dict[str, tuple[str, ...]]:
    """name → addresses, as seen from a pod of this namespace."""
    table: dict[str, tuple[str, ...]] = {}
    named: list[tuple[Service | Pod, str, tuple[str, ...]]]
    named = [(service, "svc", addresses_of(cluster, service)) for service in cluster.services]
    named += [(pod, "pod", pod.addresses) for pod in cluster.pods]
    for one, kind, addresses in named:
        full = f"{one.name}.{one.namespace}"
        for name in (full, f"{full}.{kind}", f"{full}.{kind}.cluster.local"):
            table.setdefault(name, addresses)
        if one.namespace == namespace:
            table.setdefault(one.name, addresses)
    for node in cluster.nodes:
        table.setdefault(node.name, node.addresses)
    return table


def addresses_of(cluster: Cluster, service: Service) -> tuple[str, ...]:
    """The addresses of the Service's name: its ClusterIPs, or every backend if it is headless."""
    if not service.headless:
        return service.addresses
    own = (service.namespace, service.name)
    found = [one.addresses for one in cluster.slices if (one.namespace, one.service) == own]
    found = found or [pod.addresses for pod, _ in selected(service, cluster.pods)]
    return tuple(dict.fromkeys(address for addresses in found for address in addresses))


def resolve(cluster: Cluster, namespace: str, name: str, family: int) -> str | None:
    """The first address of a name in one family."""
    return next((a for a in lookup(cluster, namespace).get(name, ()) if family_of(a) == family), None)


def hosts_file(cluster: Cluster, pod: Pod) -> str:
    return "\n".join([*LOCAL, *_lines(lookup(cluster, pod.namespace)), ""])


def _lines(table: dict[str, tuple[str, ...]]) -> Iterator[str]:
    by_address: dict[str, list[str]] = {}
    for name, addresses in table.items():
        for address in addresses:
            by_address.setdefault(address, []).append(name)
    for address, names in by_address.items():
        yield f"{address} {' '.join(names)}"
