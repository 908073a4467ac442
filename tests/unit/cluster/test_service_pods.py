"""The pods of a Service without EndpointSlices."""

from __future__ import annotations

from l7proxy.cluster.service_pods import selected, slices
from l7proxy.model.resources import Pod, Service, ServicePort, SlicePort

HTTP, METRICS = ServicePort(80, 6, "http", "web"), ServicePort(9100, 6, 9100, "metrics")
SERVICE = Service("shop", "web", ("10.96.0.1",), (HTTP, METRICS), {"app": "web"})


def pod(name: str, place: int, port: int | None, protocol: int = 6, phase: str = "Running") -> Pod:
    ports = frozenset({("http", protocol, port)} if port else ())
    return Pod("shop", name, "n1", (f"10.0.0.{place}",), {"app": "web"}, ports, phase=phase)


def test_a_port_name_means_each_pods_own_number_of_that_protocol() -> None:
    pods = [pod("a", 1, 8080), pod("b", 2, 8080, protocol=17), pod("c", 3, None), pod("d", 4, 8080, phase="Failed")]
    assert [(one.name, dict(ports)) for one, ports in selected(SERVICE, pods)] == [
        ("a", {HTTP: 8080, METRICS: 9100}),
        ("b", {METRICS: 9100}),
        ("c", {METRICS: 9100}),
    ]


def test_pods_with_the_same_numbers_share_a_slice() -> None:
    made = list(slices(SERVICE, [pod("a", 1, 8080), pod("b", 2, 9090), pod("c", 3, 8080)]))
    assert [(one.name, one.addresses, one.ports[0]) for one in made] == [
        ("web-0", ("10.0.0.1", "10.0.0.3"), SlicePort("web", 8080, 6)),
        ("web-1", ("10.0.0.2",), SlicePort("web", 9090, 6)),
    ]
    assert {(one.namespace, one.service) for one in made} == {("shop", "web")}
