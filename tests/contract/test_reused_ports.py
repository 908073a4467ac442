"""A client port is reused while the proxy's socket of its last use is in TIME_WAIT (RFC 9293, 3.6.1)."""

from __future__ import annotations

import socket

import pytest

from tests.contract.conftest import Proxy, Server, World, entry
from tproxy_rules.desired import Settings, Verdict, union

pytestmark = pytest.mark.lab

STEER = Verdict.STEER
SETTINGS = Settings(nflog_group=78)


def from_port(world: World, family: int, own: int, port: int) -> str:
    """What the client receives, read to the end: the other side closes first and keeps TIME_WAIT."""
    with world.client.namespace.socket(family) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind((world.client.addresses[family], own))
        client.settimeout(0.9)
        try:
            client.connect((world.server.addresses[family], port))
            told = client.recv(200).decode()
            while client.recv(200):
                pass
        except OSError as error:
            return f"error: {error}"
        return told


def test_a_syn_that_meets_time_wait_goes_to_the_proxy_and_not_to_the_node(world: World, family: int) -> None:
    """The node has a listener on the same port number, which a packet delivered locally without TPROXY would reach."""
    steered = world.snapshot(server_ingress=union((entry(STEER, 7300),)))
    refused = world.snapshot(server_ingress=union(()))
    greeting = f"proxy hello {world.client.addresses[family]}"
    servers = [Server(one, family, 7300) for one in (world.server.namespace, world.node)]
    try:
        with Proxy(world.node, family, SETTINGS) as proxy:
            world.apply(steered)
            for turn in range(3):
                told = from_port(world, family, 33_101, 7300)
                assert told == greeting, f"connection {turn}: {proxy.failures}"
            world.apply(refused)
            assert from_port(world, family, 33_101, 7300).startswith("error"), "neither the node nor the pod answers"
    finally:
        for one in servers:
            one.close()
