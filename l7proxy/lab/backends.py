"""The backends of a Service: its EndpointSlices, or without any the pods that its selector matches. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from l7proxy.lab.cluster import Cluster, Pod, Service, ServicePort
from l7proxy.model.net import family_of


@dataclass(frozen=True, slots=True, order=True)
class Backend:
    address: str
    port: int


def backends(cluster: Cluster, service: Service, port: ServicePort, family: int) -> tuple[Backend, ...]:
    """The backends of this port of the Service, sorted."""
    slices = [s for s in cluster.slices if (s.namespace, s.service) == (service.namespace, service.name)]
    if slices:
        found = [Backend(a, s.ports[port.name]) for s in slices if port.name in s.ports for a in s.addresses]
    else:
        found = [
            Backend(address, number)
            for pod in selected(cluster, service)
            if (number := _number(pod, port)) is not None
            for address in pod.addresses
        ]
    return tuple(sorted({backend for backend in found if family_of(backend.address) == family}))


def selected(cluster: Cluster, service: Service) -> list[Pod]:
    """The pods that the Service's selector matches; none if the Service has no selector."""
    return [
        pod
        for pod in cluster.pods
        if service.selector
        and pod.namespace == service.namespace
        and all(pod.labels.get(key) == value for key, value in service.selector.items())
    ]


def _number(pod: Pod, port: ServicePort) -> int | None:
    return port.target if isinstance(port.target, int) else pod.named_ports.get(port.target)


def addresses_of(cluster: Cluster, service: Service) -> tuple[str, ...]:
    """The addresses of the Service's name: its ClusterIPs, or every backend if it is headless."""
    if not service.headless:
        return service.addresses
    slices = [s for s in cluster.slices if (s.namespace, s.service) == (service.namespace, service.name)]
    if slices:
        return tuple(dict.fromkeys(address for s in slices for address in s.addresses))
    return tuple(address for pod in selected(cluster, service) for address in pod.addresses)
