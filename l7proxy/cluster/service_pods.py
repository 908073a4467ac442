"""Finds the pods of a Service without EndpointSlices by its selector, like the EndpointSlice controller."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from l7proxy.model.resources import EndpointSlice, Pod, Service, ServicePort, SlicePort


def selected(service: Service, pods: Iterable[Pod]) -> Iterator[tuple[Pod, Mapping[ServicePort, int]]]:
    """Each selected pod, with its port numbers for the Service ports that it has.

    A Service without a selector selects no pod: its EndpointSlices have to be created manually.
    """
    if service.selector:
        for pod in pods:
            if pod.namespace == service.namespace and not pod.finished and _holds(service.selector, pod.labels):
                yield pod, {port: number for port in service.ports if (number := _target(port, pod))}


def slices(service: Service, pods: Iterable[Pod]) -> Iterator[EndpointSlice]:
    """One slice per set of port numbers: pods may use the same port name for different numbers."""
    by_ports: dict[tuple[SlicePort, ...], list[str]] = {}
    for pod, numbers in selected(service, pods):
        ports = tuple(SlicePort(port.name, number, port.protocol) for port, number in numbers.items())
        by_ports.setdefault(ports, []).extend(pod.addresses)
    for number, (ports, addresses) in enumerate(by_ports.items()):
        yield EndpointSlice(service.namespace, f"{service.name}-{number}", service.name, tuple(addresses), ports)


def _target(port: ServicePort, pod: Pod) -> int | None:
    """The port number on this pod; None for a port name that the pod does not define."""
    if isinstance(port.target, int):
        return port.target
    numbers = {name: number for name, protocol, number in pod.named_ports if protocol == port.protocol}
    return numbers.get(port.target)


def _holds(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector.items())
