"""The backends of a Service, the DNS names, and the rules that kube-proxy would write."""

from __future__ import annotations

from l7proxy.lab import kube_proxy
from l7proxy.lab.cluster import Cluster, Pod
from l7proxy.lab.names import addresses_of, hosts_file, lookup, resolve
from l7proxy.model.endpoint import Backend
from l7proxy.model.resources import EndpointSlice, Node, Service, ServicePort, SlicePort

NODE = Node("n", ("172.18.0.11",), ("10.244.1.0/24",))
WEB = {"app": "web"}
ONE = Pod("default", "one", "n", ("10.244.1.10", "fd00::a"), WEB, named_ports=frozenset({("http", 6, 8080)}))
TWO = Pod("default", "two", "n", ("10.244.1.11", "fd00::b"), WEB, named_ports=frozenset({("http", 6, 9090)}))
OTHER = Pod("shop", "one", "n", ("10.244.1.12", "fd00::c"), WEB)
PORT = ServicePort(80, 6, "http", "http")
SERVICE = Service("default", "web", ("10.96.0.10", "fd00:10:96::a"), (PORT,), WEB)
CLUSTER = Cluster((NODE,), (ONE, TWO, OTHER), (SERVICE,))


def backends(cluster: Cluster, family: int) -> tuple[Backend, ...]:
    (frontend,) = cluster.frontends(family)
    return frontend.backends


def test_a_selector_finds_pods_of_its_namespace_and_their_own_port_of_that_name() -> None:
    assert backends(CLUSTER, 4) == (Backend("10.244.1.10", 8080), Backend("10.244.1.11", 9090))
    assert backends(CLUSTER, 6) == (Backend("fd00::a", 8080), Backend("fd00::b", 9090))


def test_endpoint_slices_go_before_the_selector() -> None:
    piece = EndpointSlice("default", "web-1", "web", ("192.0.2.1",), (SlicePort("http", 81, 6),))
    assert backends(Cluster((NODE,), (ONE,), (SERVICE,), (piece,)), 4) == (Backend("192.0.2.1", 81),)


def test_a_service_without_selector_has_nobody_behind_it() -> None:
    assert backends(Cluster((NODE,), (ONE,), (Service("default", "web", ("10.96.0.10",), (PORT,)),)), 4) == ()


def test_a_headless_service_is_called_by_its_pods() -> None:
    headless = Service("default", "web", headless=True, selector=WEB, ports=(PORT,))
    assert addresses_of(CLUSTER, headless) == (*ONE.addresses, *TWO.addresses)


def test_short_names_are_of_the_pods_own_namespace() -> None:
    assert resolve(CLUSTER, "default", "web", 4) == "10.96.0.10"
    assert resolve(CLUSTER, "shop", "web", 4) is None
    assert resolve(CLUSTER, "shop", "web.default.svc.cluster.local", 6) == "fd00:10:96::a"
    assert lookup(CLUSTER, "shop")["one"] == OTHER.addresses
    assert lookup(CLUSTER, "default")["one"] == ONE.addresses


def test_a_hosts_file_has_one_line_per_address() -> None:
    lines = hosts_file(CLUSTER, OTHER).splitlines()
    assert "10.96.0.10 web.default web.default.svc web.default.svc.cluster.local" in lines
    addresses = [line.split()[0] for line in lines]
    assert len(addresses) == len(set(addresses))


def test_each_backend_gets_its_share_and_hairpins_are_masqueraded() -> None:
    text = kube_proxy.render(CLUSTER, NODE, 4)
    lines = text.splitlines()
    (service,) = [line.split()[-1] for line in lines if line.startswith("-A KUBE-SERVICES")]
    shares = [line for line in lines if line.startswith(f"-A {service} ") and "KUBE-SEP" in line]
    assert ["--probability 0.5000000000" in line for line in shares] == [True, False]
    assert "-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp --dport 80" in text
    assert f"-A {service} ! -s 10.244.1.0/24 -d 10.96.0.10/32 -p tcp --dport 80 -j KUBE-MARK-MASQ" in lines
    assert sum("-s 10.244.1.10/32 -j KUBE-MARK-MASQ" in line for line in lines) == 1
    assert sum("-j DNAT --to-destination 10.244.1.11:9090" in line for line in lines) == 1


def test_ipv6_backends_are_written_in_brackets() -> None:
    assert "-j DNAT --to-destination [fd00::a]:8080" in kube_proxy.render(CLUSTER, NODE, 6)


def test_nobody_behind_a_service_is_a_refusal_not_a_silence() -> None:
    text = kube_proxy.render(Cluster((NODE,), (), (SERVICE,)), NODE, 4)
    assert "-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp --dport 80 -j REJECT" in text.partition("*filter")[2]


def test_chains_of_an_earlier_state_are_deleted() -> None:
    lines = kube_proxy.render(CLUSTER, NODE, 4, frozenset({"KUBE-SVC-OLD"})).splitlines()
    assert lines.index(":KUBE-SVC-OLD - [0:0]") < lines.index("-X KUBE-SVC-OLD") < lines.index("COMMIT")
