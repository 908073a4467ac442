"""Node settings of other software: what must work with them, and what must stay closed despite them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from tests.contract.conftest import HOST, Namespace, Proxy, Server, World, entry
from tproxy_rules.desired import Settings, Verdict, union

pytestmark = pytest.mark.lab

ALLOW, STEER = Verdict.ALLOW, Verdict.STEER
SETTINGS = Settings(nflog_group=78)


@contextmanager
def sysctls(node: Namespace, **values: str) -> Iterator[None]:
    """IPv4 settings of the node (a dot is a double underscore), restored afterwards."""
    paths = {f"/proc/sys/net/ipv4/{name.replace('__', '/')}": value for name, value in values.items()}
    before = {path: node.sh(f"cat {path}").strip() for path in paths}
    for path, value in paths.items():
        node.write(path, value)
    try:
        yield
    finally:
        for path, value in before.items():
            node.write(path, value)


def test_strict_reverse_paths_with_marks(world: World) -> None:
    """As WireGuard sets them: the reverse path of a marked packet is looked up with its mark."""
    target, client = world.server.addresses[4], world.client.addresses[4]
    node = replace(world.outside, namespace=world.node)
    with sysctls(world.node, conf__all__rp_filter="1", conf__all__src_valid_mark="1"):
        world.apply(world.snapshot(server_ingress=union((entry(STEER, 80), entry(ALLOW, 8080)))))
        with Proxy(world.node, 4, SETTINGS) as proxy:
            assert world.client.connect(target, 80) == f"proxy hello {client}", proxy.failures
            assert world.outside.connect(target, 80) == "proxy hello 10.9.0.2", proxy.failures
            assert node.connect(target, 80) == f"proxy hello {world.node_address(4)}", proxy.failures
            assert world.client.connect(target, 8080) == f"hello {client}"


@pytest.mark.parametrize("who", ["client", "outside", "node"])
def test_without_the_routing_rules_nothing_steered_gets_past_the_proxy(world: World, family: int, who: str) -> None:
    """systemd-networkd, for example, removes rules it does not know."""
    target = world.server.addresses[family]
    source = replace(world.outside, namespace=world.node) if who == "node" else getattr(world, who)
    world.apply(world.snapshot(server_ingress=union((entry(STEER, 80),))))
    for priority in (98, 99, 100):
        if family == 4 or priority != 99:
            world.node.sh(f"ip -{family} rule del priority {priority}")
    found = world.node.do(world.backend.read)
    assert found and not found.intact
    with Proxy(world.node, family, SETTINGS) as proxy:
        assert not source.connect(target, 80, timeout=0.6).startswith("hello")
        assert proxy.seen == []
        world.apply(world.snapshot(server_ingress=union((entry(STEER, 80),))))
        assert source.connect(target, 80).startswith("proxy hello"), proxy.failures


def test_loopback_addresses_do_not_come_in_by_an_interface(world: World) -> None:
    """kube-proxy sets route_localnet, so a pod could reach addresses that the node treats as its own."""
    with _loopback_elsewhere(world.client.namespace), sysctls(world.node, conf__all__route_localnet="1"):
        server = Server(world.node, 4, 7100)
        try:
            world.node.do(world.backend.remove)
            assert world.client.connect("127.0.0.9", 7100, timeout=0.6).startswith("hello"), "it works without us"
            world.apply(world.snapshot())
            assert not world.client.connect("127.0.0.9", 7100, timeout=0.6).startswith("hello")
        finally:
            server.close()


@contextmanager
def _loopback_elsewhere(pod: Namespace) -> Iterator[None]:
    """A pod with its own network setup: it routes 127.0.0.9 to the node."""
    pod.sh(
        "ip route add 127.0.0.9/32 via 10.1.0.1 dev eth0 src 10.1.0.11",
        "ip rule add to 127.0.0.9/32 lookup main priority 1",
        "ip rule add lookup local priority 10",
        "ip rule del lookup local priority 0",
    )
    try:
        with sysctls(pod, conf__all__route_localnet="1"):
            yield
    finally:
        pod.sh(
            "ip rule add lookup local priority 0",
            "ip rule del lookup local priority 10",
            "ip rule del to 127.0.0.9/32 lookup main priority 1",
            "ip route del 127.0.0.9/32 via 10.1.0.1 dev eth0",
        )


def test_another_mark_survives(world: World, family: int) -> None:
    """kube-proxy sets marks before our rules and reads them after: we change our bits only."""
    tool = "iptables" if family == 4 else "ip6tables"
    target = world.server.addresses[family]
    marking = "PREROUTING -p tcp --dport 8080 -j MARK --set-xmark 0x4000/0x4000"
    reading = "POSTROUTING -p tcp --dport 8080 -m mark --mark 0x4000/0x4000"
    world.apply(world.snapshot(server_ingress=union((entry(STEER, 80), entry(ALLOW, 8080, peers=(1001, HOST))))))
    world.node.sh(f"{tool} -t raw -A {marking}", f"{tool} -t mangle -A {reading}")
    try:
        assert world.client.connect(target, 8080).startswith("hello")
        counted = world.node.sh(f"{tool} -t mangle -nvxL POSTROUTING").splitlines()
        (line,) = [one for one in counted if "0x4000" in one]
        assert int(line.split()[0]) >= 2
    finally:
        world.node.sh(f"{tool} -t raw -D {marking}", f"{tool} -t mangle -D {reading}")
