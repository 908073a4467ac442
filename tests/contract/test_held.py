"""A pod that starts: its address is in a prefix of this node's pods, and has no identity yet."""

from __future__ import annotations

import socket
import struct
from contextlib import closing
from dataclasses import replace

import pytest

from tests.contract.conftest import OUTSIDE, Pod, Proxy, Server, World, entry
from tproxy_rules.desired import Desired, Settings, Verdict, union

pytestmark = [pytest.mark.lab, pytest.mark.pairwise]

SETTINGS = Settings(nflog_group=78)
PODS = ("10.1.0.0/24", "fd00:1::/64")
EVERYONE = union((entry(Verdict.ALLOW, protocol=-1),))
STEERED = union((entry(Verdict.STEER, 80),))


def without(known: Desired, world: World, name: str) -> Desired:
    """The state before the pod is known."""
    addresses = {*next(pod for pod in world.pods if pod.name == name).addresses.values()}
    return replace(
        known,
        identities=tuple(one for one in known.identities if one[0].partition("/")[0] not in addresses),
        endpoints=tuple(one for one in known.endpoints if addresses.isdisjoint(one.addresses)),
    )


def test_only_the_node_reaches_an_unknown_address_and_only_replies_leave_it(world: World, family: int) -> None:
    known = replace(world.snapshot(server_ingress=EVERYONE), held=PODS)
    world.apply(without(known, world, "stranger"))
    stranger, server, client = (one.addresses[family] for one in (world.stranger, world.server, world.client))
    for target, port in ((server, 80), (world.outside.addresses[family], 80), (world.node_address(family), 7000)):
        assert world.stranger.connect(target, port) == "refused"
    assert not world.stranger.ping(client)
    assert not world.client.ping(stranger)
    assert not world.outside.ping(stranger)
    node = replace(world.outside, namespace=world.node)
    assert node.ping(stranger), "the kubelet"
    assert world.client.connect(server, 80) == f"hello {client}", "others are not concerned"
    assert world.client.connect(world.node_address(family), 7000).startswith("hello")
    world.apply(known)
    assert world.stranger.connect(server, 80) == f"hello {stranger}"
    assert world.client.ping(stranger)


def test_it_does_not_reach_the_proxy_either(world: World, family: int) -> None:
    known = replace(world.snapshot(server_ingress=STEERED, client_egress=STEERED), held=PODS)
    with Proxy(world.node, family, SETTINGS) as proxy:
        world.apply(without(known, world, "stranger"))
        assert world.stranger.connect(world.server.addresses[family], 80) == "refused"
        assert world.client.connect(world.stranger.addresses[family], 80) == "refused"
        assert proxy.seen == []
        assert world.client.connect(world.server.addresses[family], 80).startswith("proxy hello"), proxy.failures


def test_an_address_with_an_identity_is_known_without_an_endpoint(world: World, family: int) -> None:
    """A pod without policy and without a known interface is no endpoint."""
    outside = world.outside.addresses[family]
    state = replace(world.snapshot(), held=("10.9.0.0/24", "fd00:9::/64"))
    world.apply(state)
    assert world.client.connect(outside, 80) == "refused"
    assert world.outside.connect(world.server.addresses[family], 80) == "refused"
    single = (f"{outside}/{32 if family == 4 else 128}", OUTSIDE)
    world.apply(replace(state, identities=(*state.identities, single)))
    assert world.client.connect(outside, 80).startswith("hello")
    assert world.outside.connect(world.server.addresses[family], 80).startswith("hello")


def solicited(sender: Pod, receiver: Pod) -> bool:
    """Whether a message in the form of a neighbour solicitation with hop limit 255 arrives."""
    with (
        sender.namespace.socket(6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as source,
        receiver.namespace.socket(6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as target,
    ):
        target.settimeout(0.7)
        source.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 255)
        secret = b"what nobody may hear"
        body = struct.pack(">BBHI", 135, 0, 0, 0) + socket.inet_pton(socket.AF_INET6, receiver.addresses[6])
        source.sendto(body + secret, (receiver.addresses[6], 0))
        try:
            while secret not in target.recv(2000):
                pass
        except TimeoutError:
            return False
        return True


def test_neighbour_discovery_passes_on_the_link_only(world: World) -> None:
    """Linux forwards a solicitation to a remote address like any packet."""
    assert solicited(world.stranger, world.outside), "without held prefixes"
    world.apply(without(replace(world.snapshot(), held=PODS), world, "stranger"))
    assert not solicited(world.stranger, world.outside)
    assert not solicited(world.outside, world.stranger)


def test_a_routed_pod_reaches_no_other_by_neighbour_discovery(world: World) -> None:
    """Its only neighbour is the node: under policy, such a message to another pod is traffic like any other."""
    if world.bridge:
        pytest.skip("pods of a bridge are neighbours")
    world.apply(world.snapshot(client_egress=union(())))
    assert not solicited(world.client, world.server)
    assert solicited(world.stranger, world.server)


def heard(receiver: Pod, family: int, source: socket.socket, target: str, *, scope: int = 0) -> bool:
    """Whether a datagram from `source` to `target` arrives."""
    with receiver.namespace.socket(family, socket.SOCK_DGRAM) as listener:
        listener.bind(("", 5555))
        listener.settimeout(0.5)
        source.sendto(b"secret", (target, 5555) if family == 4 else (target, 5555, 0, scope))
        try:
            return listener.recv(100) == b"secret"
        except TimeoutError:
            return False


def test_unknown_pods_of_a_bridge_reach_neither_each_other_nor_a_group(world: World, family: int) -> None:
    """Such frames stay on the bridge, where no policy of theirs is known."""
    if not world.bridge:
        pytest.skip("routed pods share no link")
    known = replace(world.snapshot(), held=PODS)
    everyone = "255.255.255.255" if family == 4 else "ff02::1"
    scope = world.stranger.namespace.do(lambda: socket.if_nametoindex("eth0"))
    with world.stranger.namespace.socket(family, socket.SOCK_DGRAM) as source:
        source.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        for state, passes in ((known, True), (without(without(known, world, "stranger"), world, "server"), False)):
            world.apply(state)
            answer = world.stranger.connect(world.server.addresses[family], 80)
            assert answer.startswith("hello") is passes, answer
            assert heard(world.client, family, source, everyone, scope=scope) is passes


def test_a_proxy_that_resolves_a_service_does_not_reach_it(world: World, family: int) -> None:
    """An EndpointSlice may name the address before the Pod is known."""
    if not world.backend.steers_before_dnat:
        pytest.skip("the kernel has judged the pod's address before the proxy gets the connection")
    service, stranger = world.outside.addresses[family], world.stranger.addresses[family]
    known = replace(world.snapshot(client_egress=STEERED), held=PODS)
    with Proxy(world.node, family, SETTINGS) as proxy, closing(Server(world.stranger.namespace, family, 80)):
        proxy.resolves[service] = (stranger, 80)
        world.apply(without(known, world, "stranger"))
        world.client.connect(service, 80)
        assert proxy.failures == [f"{stranger}:80: [Errno 111] Connection refused"]
        world.apply(known)
        assert world.client.connect(service, 80) == f"proxy hello {world.client.addresses[family]}"
