"""Builds frontends from Services: each address and port of a Service, with its backends.

The backends come from the Service's EndpointSlices if it has any, else from the pods that it selects.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from l7proxy.cluster.service_pods import selected
from l7proxy.model.endpoint import Backend, Frontend
from l7proxy.model.net import family_of
from l7proxy.model.resources import EndpointSlice, Pod, Service, ServicePort


def frontends(
    services: Iterable[Service], slices: Iterable[EndpointSlice], pods: Iterable[Pod]
) -> tuple[Frontend, ...]:
    """Sorted. A headless Service has no frontend."""
    by_service: dict[tuple[str, str], list[EndpointSlice]] = {}
    for piece in slices:
        by_service.setdefault((piece.namespace, piece.service), []).append(piece)
    by_namespace: dict[str, list[Pod]] = {}
    for pod in pods:
        by_namespace.setdefault(pod.namespace, []).append(pod)
    found = []
    for service in services:
        pieces = by_service.get((service.namespace, service.name), [])
        found_pods = [] if pieces else list(selected(service, by_namespace.get(service.namespace, [])))
        for port in service.ports:
            behind = {*_from_slices(port, pieces), *_from_pods(port, found_pods)}
            found += [_frontend(service, address, port, behind) for address in service.addresses]
    return tuple(sorted(found, key=lambda one: (one.namespace, one.service, one.address, one.protocol, one.port)))


def _frontend(service: Service, address: str, port: ServicePort, behind: set[tuple[str, int]]) -> Frontend:
    family = family_of(address)
    backends = tuple(Backend(*one) for one in sorted(behind) if family_of(one[0]) == family)
    return Frontend(service.namespace, service.name, address, port.port, port.protocol, backends)


def _from_slices(port: ServicePort, pieces: Iterable[EndpointSlice]) -> Iterator[tuple[str, int]]:
    for piece in pieces:
        for target in piece.ports:
            if target.name == port.name and target.protocol == port.protocol:
                yield from ((address, target.port) for address in piece.addresses)


def _from_pods(port: ServicePort, found: Iterable[tuple[Pod, Mapping[ServicePort, int]]]) -> Iterator[tuple[str, int]]:
    for pod, numbers in found:
        if port in numbers:
            yield from ((address, numbers[port]) for address in pod.addresses)
