"""Services and their backends."""

from __future__ import annotations

from l7proxy.cluster.frontends import frontends
from l7proxy.model.endpoint import Backend, Frontend
from l7proxy.model.resources import EndpointSlice, Pod, Service, ServicePort, SlicePort

HTTP = ServicePort(80, 6, "http", "web")
SERVICE = Service("shop", "web", ("10.96.0.1", "fd96::1"), (HTTP,), {"app": "web"})
POD = Pod("shop", "a", "n1", ("10.0.0.5", "fd00::5"), {"app": "web", "x": "y"}, frozenset({("http", 6, 8080)}))


def backends(*pods: Pod, service: Service = SERVICE, slices: tuple[EndpointSlice, ...] = ()) -> dict[str, list[str]]:
    found = frontends([service], slices, pods)
    return {one.address: [f"{behind.address} {behind.port}" for behind in one.backends] for one in found}


def test_each_family_has_its_own_backends() -> None:
    assert frontends([SERVICE], [], [POD]) == (
        Frontend("shop", "web", "10.96.0.1", 80, 6, (Backend("10.0.0.5", 8080),)),
        Frontend("shop", "web", "fd96::1", 80, 6, (Backend("fd00::5", 8080),)),
    )


def test_a_port_name_is_each_pods_own_and_who_lacks_it_is_out() -> None:
    other = Pod("shop", "b", "n1", ("10.0.0.6",), {"app": "web"}, frozenset({("http", 6, 9090)}))
    udp = Pod("shop", "c", "n1", ("10.0.0.7",), {"app": "web"}, frozenset({("http", 17, 9090)}))
    assert backends(POD, other, udp)["10.96.0.1"] == ["10.0.0.5 8080", "10.0.0.6 9090"]


def test_only_live_pods_of_the_namespace_with_all_labels() -> None:
    elsewhere = Pod("other", "a", "n1", ("10.0.0.8",), POD.labels, POD.named_ports)
    done = Pod("shop", "d", "n1", ("10.0.0.9",), POD.labels, POD.named_ports, phase="Failed")
    half = Pod("shop", "e", "n1", ("10.0.0.10",), {"x": "y"}, POD.named_ports)
    assert backends(POD, elsewhere, done, half)["10.96.0.1"] == ["10.0.0.5 8080"]


def test_slices_are_believed_where_there_are_any() -> None:
    one = EndpointSlice("shop", "web-1", "web", ("10.0.0.77",), (SlicePort("web", 81, 6), SlicePort("other", 82, 6)))
    two = EndpointSlice("shop", "web-2", "web", ("10.0.0.78",), (SlicePort("web", 83, 6),))
    foreign = EndpointSlice("other", "web-3", "web", ("10.0.0.79",), (SlicePort("web", 84, 6),))
    assert backends(POD, slices=(one, two, foreign))["10.96.0.1"] == ["10.0.0.77 81", "10.0.0.78 83"]


def test_without_a_selector_nobody_is_guessed() -> None:
    assert backends(POD, service=Service("shop", "web", ("10.96.0.1",), (HTTP,))) == {"10.96.0.1": []}
