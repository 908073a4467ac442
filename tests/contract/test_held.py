"""A pod that starts: its address is in a prefix of this node's pods, and has no identity yet."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.contract.conftest import OUTSIDE, Proxy, World, entry
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
