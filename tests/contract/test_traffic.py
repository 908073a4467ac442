"""Real packets against the written semantics, for every backend, topology and family.

The pods: `client` and `stranger` talk to `server`, which listens on TCP 80, 8080 and 9000; `outside` is another node's
pod. A redirected connection is recognised by the proxy's marker before the server's greeting.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from tests.contract.conftest import HOST, IDENTITY, OUTSIDE, Proxy, World, entry
from tproxy_rules.desired import Frontend, Settings, Table, Verdict, union

pytestmark = pytest.mark.lab

ALLOW, STEER, DENY = Verdict.ALLOW, Verdict.STEER, Verdict.DENY
CLIENT = (IDENTITY["client"],)
SERVER = (IDENTITY["server"],)
NOBODY = union(())
SETTINGS = Settings(nflog_group=78)


def table(*entries: object) -> Table:
    return union(tuple(entries))  # type: ignore[arg-type]


def test_without_policy_everything_passes(world: World, family: int) -> None:
    world.apply(world.snapshot())
    target = world.server.addresses[family]
    assert world.client.connect(target, 80) == f"hello {world.client.addresses[family]}"
    assert world.outside.connect(target, 80) == f"hello {world.outside.addresses[family]}"
    assert world.client.ping(target)


def test_allowed_by_identity_and_port_and_refused_at_once_otherwise(world: World, family: int) -> None:
    world.apply(world.snapshot(server_ingress=table(entry(ALLOW, 80, peers=CLIENT), entry(ALLOW, range(8000, 8101)))))
    target = world.server.addresses[family]
    assert world.client.connect(target, 80) == f"hello {world.client.addresses[family]}"
    assert world.stranger.connect(target, 8080) == f"hello {world.stranger.addresses[family]}"
    started = time.monotonic()
    assert world.stranger.connect(target, 80) == "refused"
    assert world.client.connect(target, 9000) == "refused"
    assert world.outside.connect(target, 80) == "refused"
    assert time.monotonic() - started < 0.5, "a refusal is told at once"


def test_a_range_is_an_identity_and_its_hosts_are_not(world: World, family: int) -> None:
    world.apply(world.snapshot(server_ingress=table(entry(ALLOW, 80, peers=(OUTSIDE,)))))
    target = world.server.addresses[family]
    assert world.outside.connect(target, 80) == f"hello {world.outside.addresses[family]}"
    assert world.client.connect(target, 80) == "refused"


def test_refusals_are_silent_where_so_configured(world: World, family: int) -> None:
    world.apply(world.snapshot(settings=replace(SETTINGS, refuse_with_reset=False), server_ingress=NOBODY))
    assert world.client.connect(world.server.addresses[family], 80, timeout=0.5) == "timeout"


def test_egress_policy_covers_pods_the_outside_and_the_node(world: World, family: int) -> None:
    world.apply(
        world.snapshot(client_egress=table(entry(ALLOW, 80, peers=(*SERVER,)), entry(ALLOW, 7000, peers=(HOST,))))
    )
    assert world.client.connect(world.server.addresses[family], 80).startswith("hello")
    assert world.client.connect(world.server.addresses[family], 8080) == "refused"
    assert world.client.connect(world.outside.addresses[family], 80) == "refused"
    assert world.client.connect(world.node_address(family), 7000).startswith("hello")
    world.apply(world.snapshot(client_egress=NOBODY))
    assert world.client.connect(world.node_address(family), 7000) == "refused"
    assert world.server.connect(world.outside.addresses[family], 80).startswith("hello"), "others are not concerned"


def test_deny_beats_all_and_either_direction_may_refuse(world: World, family: int) -> None:
    target = world.server.addresses[family]
    deny = table(entry(ALLOW, protocol=-1), entry(STEER, 80), entry(DENY, 80, peers=CLIENT))
    with Proxy(world.node, family, SETTINGS) as proxy:
        world.apply(world.snapshot(server_ingress=deny))
        assert world.client.connect(target, 80) == "refused"
        assert world.stranger.connect(target, 80).startswith("proxy hello")
        world.apply(world.snapshot(client_egress=table(entry(STEER, 80)), server_ingress=NOBODY))
        assert world.client.connect(target, 80) == "refused"
        world.apply(world.snapshot(client_egress=NOBODY, server_ingress=table(entry(STEER, 80))))
        assert world.client.connect(target, 80) == "refused"
        assert [client for client, _, _ in proxy.seen] == [world.stranger.addresses[family]]


@pytest.mark.parametrize("way", ["server_ingress", "client_egress"])
def test_steered_to_the_proxy_which_answers_for_the_client(world: World, family: int, way: str) -> None:
    policy = table(entry(STEER, 80), entry(ALLOW, 8080))
    of_server, of_client = (policy, None) if way == "server_ingress" else (None, policy)
    world.apply(world.snapshot(server_ingress=of_server, client_egress=of_client))
    client, target = world.client.addresses[family], world.server.addresses[family]
    with Proxy(world.node, family, SETTINGS) as proxy:
        assert world.client.connect(target, 80) == f"proxy hello {client}", proxy.failures
        assert proxy.seen == [(client, target, 80)]
        assert world.client.connect(target, 8080) == f"hello {client}"
    started = time.monotonic()
    assert world.client.connect(target, 80, timeout=0.6) == world.unserved, "nobody listens: closed"
    if world.unserved == "refused":
        assert time.monotonic() - started < 0.5


def test_steered_from_and_to_the_outside(world: World, family: int) -> None:
    world.apply(world.snapshot(server_ingress=table(entry(STEER, 80)), client_egress=table(entry(STEER, 80))))
    outside, target = world.outside.addresses[family], world.server.addresses[family]
    with Proxy(world.node, family, SETTINGS) as proxy:
        assert world.outside.connect(target, 80) == f"proxy hello {outside}", proxy.failures
        assert world.client.connect(outside, 80) == f"proxy hello {world.client.addresses[family]}", proxy.failures
    assert world.outside.connect(target, 80, timeout=0.6) == world.unserved


def test_a_pod_reaches_a_service_of_the_node_through_the_proxy(world: World, family: int) -> None:
    world.apply(world.snapshot(client_egress=table(entry(STEER, 7000))))
    with Proxy(world.node, family, SETTINGS) as proxy:
        seen = world.client.connect(world.node_address(family), 7000)
        assert seen == f"proxy hello {world.client.addresses[family]}", proxy.failures


def test_the_node_itself_is_judged_on_its_way_to_a_pod(world: World, family: int) -> None:
    target = world.server.addresses[family]
    node = replace(world.outside, namespace=world.node)
    world.apply(
        world.snapshot(server_ingress=table(entry(ALLOW, 80, peers=(HOST,)), entry(STEER, 8080, peers=(HOST,))))
    )
    assert node.connect(target, 80).startswith("hello")
    assert node.connect(target, 9000) == "refused"
    with Proxy(world.node, family, SETTINGS) as proxy:
        assert node.connect(target, 8080) == f"proxy hello {world.node_address(family)}", proxy.failures
    assert node.connect(target, 8080, timeout=0.6) == world.unserved


def test_the_proxy_cannot_be_dialled(world: World, family: int) -> None:
    world.apply(world.snapshot(server_ingress=table(entry(STEER, 80))))
    with Proxy(world.node, family, SETTINGS) as proxy:
        assert not world.client.connect(world.node_address(family), 15001, timeout=0.5).startswith("proxy")
        assert proxy.seen == []


def test_a_policy_change_resets_an_open_connection(world: World, family: int) -> None:
    _open_connection_is_reset(world, family, world.server.addresses[family], port=8080)


def _open_connection_is_reset(world: World, family: int, address: str, *, port: int) -> None:
    world.apply(world.snapshot(server_ingress=table(entry(ALLOW, 8080))))
    with world.client.namespace.socket(family) as client:
        client.connect((address, port))
        assert client.recv(100).startswith(b"hello")
        client.sendall(b"one")
        assert client.recv(100) == b"one"
        world.apply(world.snapshot(server_ingress=table(entry(STEER, 80), entry(ALLOW, 8080, peers=(OUTSIDE,)))))
        with pytest.raises(ConnectionResetError):
            client.sendall(b"two")
            client.recv(100)
        world.apply(world.snapshot(server_ingress=table(entry(STEER, 8080))))


def test_an_open_connection_lives_through_a_change_that_allows_it(world: World, family: int) -> None:
    with world.client.namespace.socket(family) as client:
        world.apply(world.snapshot(server_ingress=table(entry(ALLOW, 80))))
        client.connect((world.server.addresses[family], 80))
        assert client.recv(100).startswith(b"hello")
        for port in range(9001, 9006):
            world.apply(world.snapshot(server_ingress=table(entry(ALLOW, 80), entry(ALLOW, port))))
            client.sendall(b"still")
            assert client.recv(100) == b"still"


def test_only_entries_without_a_port_admit_ping(world: World, family: int) -> None:
    target = world.server.addresses[family]
    world.apply(world.snapshot(server_ingress=table(entry(ALLOW, 80), entry(ALLOW, protocol=17))))
    assert not world.client.ping(target)
    world.apply(world.snapshot(server_ingress=table(entry(ALLOW, protocol=-1, peers=CLIENT))))
    assert world.client.ping(target)
    assert not world.stranger.ping(target)
    world.apply(world.snapshot(server_ingress=table(entry(ALLOW, protocol=1 if family == 4 else 58))))
    assert world.stranger.ping(target)


def test_neighbour_discovery_passes_whatever_the_policy(world: World, family: int) -> None:
    world.apply(
        world.snapshot(
            client_egress=table(entry(ALLOW, 80)), client_ingress=NOBODY, server_ingress=table(entry(ALLOW, 80))
        )
    )
    for pod in world.pods:
        pod.namespace.sh("ip neigh flush dev eth0", "ip -6 neigh flush dev eth0")
    world.node.sh("ip neigh flush all", "ip -6 neigh flush all")
    assert world.client.connect(world.server.addresses[family], 80, timeout=3).startswith("hello")


def test_a_pod_may_talk_to_itself(world: World, family: int) -> None:
    world.apply(world.snapshot(server_ingress=NOBODY, server_egress=NOBODY))
    assert world.server.connect(world.server.addresses[family], 80).startswith("hello")


def test_a_foreign_source_address_does_not_get_in(world: World, family: int) -> None:
    """The stranger forges the client's address; the client's own policy would let it pass."""
    world.apply(world.snapshot(server_ingress=table(entry(ALLOW, protocol=-1, peers=CLIENT))))
    forged, target = world.client.addresses[family], world.server.addresses[family]
    bits = 32 if family == 4 else 128
    with world.server.namespace.socket(family, socket.SOCK_DGRAM) as server:
        server.bind((target, 5353))
        server.settimeout(0.5)
        with world.client.namespace.socket(family, socket.SOCK_DGRAM) as honest:
            honest.sendto(b"honest", (target, 5353))
        assert server.recvfrom(100)[0] == b"honest"
        world.stranger.namespace.sh(f"ip addr add {forged}/{bits} dev eth0" + (" nodad" if family == 6 else ""))
        try:
            with world.stranger.namespace.socket(family, socket.SOCK_DGRAM) as liar:
                liar.bind((forged, 0))
                for _ in range(3):
                    liar.sendto(b"forged", (target, 5353))
            with pytest.raises(TimeoutError):
                server.recvfrom(100)
        finally:
            world.stranger.namespace.sh(f"ip addr del {forged}/{bits} dev eth0")
    world.warm()


@contextmanager
def service(world: World, family: int) -> Iterator[tuple[str, str]]:
    """A Service address whose port 80 is the server's 8080, by DNAT as kube-proxy does it."""
    address, target = ("10.96.0.9", "10.1.0.12") if family == 4 else ("fd00:96::9", "fd00:1::c")
    tool, to = ("iptables", f"{target}:8080") if family == 4 else ("ip6tables", f"[{target}]:8080")
    rules = [
        f"{hook} -d {address} -p tcp --dport 80 -j DNAT --to-destination {to}" for hook in ("PREROUTING", "OUTPUT")
    ]
    for rule in rules:
        world.node.sh(f"{tool} -t nat -A {rule}")
    try:
        yield address, target
    finally:
        for rule in rules:
            world.node.sh(f"{tool} -t nat -D {rule}")


def test_a_service_is_judged_by_the_pod_behind_it(world: World, family: int) -> None:
    """Policy sees the backend, the client sees the Service."""
    with service(world, family) as (address, _):
        node = replace(world.outside, namespace=world.node)
        world.apply(world.snapshot(server_ingress=table(entry(ALLOW, 8080, peers=CLIENT))))
        assert world.client.connect(address, 80) == f"hello {world.client.addresses[family]}"
        assert world.stranger.connect(address, 80) == "refused"
        assert world.outside.connect(address, 80) == "refused"
        assert node.connect(address, 80) == "refused"


def test_a_service_is_steered_to_the_pod_behind_it(world: World, family: int) -> None:
    """After DNAT where the kernel allows it; else the whole Service address goes to the proxy, which resolves it."""
    with service(world, family) as (address, target):
        early = world.backend.steers_before_dnat
        snapshot = world.snapshot(server_ingress=table(entry(STEER, 8080)))
        if early:
            world.apply(snapshot)
            assert world.client.connect(address, 80) == "refused", "not told of the Service: closed"
            snapshot = replace(snapshot, frontends=(Frontend(address, 6, 80, steer=True),))
        world.apply(snapshot)
        with Proxy(world.node, family, SETTINGS) as proxy:
            proxy.resolves[address] = (target, 8080)
            assert world.client.connect(address, 80) == f"proxy hello {world.client.addresses[family]}", proxy.failures
            assert proxy.seen == [(world.client.addresses[family], *((address, 80) if early else (target, 8080)))]
        # On a bridge the client gets an ICMP error. Over a veth it may arrive while connect() holds the socket; the
        # kernel then handles it only with the answer to the second SYN, a second later.
        assert world.client.connect(address, 80, timeout=1.8) == world.unserved, "nobody listens: closed"


def test_a_service_that_needs_no_proxy_is_left_alone(world: World, family: int) -> None:
    with service(world, family) as (address, _):
        snapshot = world.snapshot(server_ingress=table(entry(STEER, 80), entry(ALLOW, 8080)))
        world.apply(replace(snapshot, frontends=(Frontend(address, 6, 80, steer=False),)))
        assert world.client.connect(address, 80) == f"hello {world.client.addresses[family]}"


def test_a_connection_through_a_service_is_reset_while_a_proxy_runs(world: World, family: int) -> None:
    with service(world, family) as (address, _), Proxy(world.node, family, SETTINGS):
        _open_connection_is_reset(world, family, address, port=80)
