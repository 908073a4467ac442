"""The nodes of the cluster, for Hubble Relay: whom to connect to, and the name in each node's certificate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from l7proxy.flows.flow import DEFAULT_CLUSTER
from l7proxy.hubble.api.peer import peer_pb2
from l7proxy.model.net import HostPort

DOMAIN: Final = "hubble-grpc.cilium.io"
"""Of the names in certificates: Hubble's, since Relay and its certificates are Hubble's."""


@dataclass(frozen=True, slots=True)
class Peer:
    """`address`: `ip:port`, or empty if the node cannot be reached. `server_name`: empty without TLS."""

    address: str = ""
    server_name: str = ""

    def change(self, name: str, kind: peer_pb2.ChangeNotificationType) -> peer_pb2.ChangeNotification:
        tls = peer_pb2.TLS(server_name=self.server_name) if self.server_name else None
        return peer_pb2.ChangeNotification(name=name, address=self.address, type=kind, tls=tls)


def server_name(node: str, cluster: str) -> str:
    """The name that Relay expects in the node's certificate. Dots would be levels of a wildcard name."""
    return ".".join((node.replace(".", "-"), (cluster or DEFAULT_CLUSTER).replace(".", "-"), DOMAIN))


def peer(addresses: Iterable[str], port: int, server: str) -> Peer:
    """IPv4 is preferred, as Hubble does. `port` 0: the node listens on a unix socket only."""
    found = sorted(map(ip_address, addresses), key=lambda one: one.version)
    if not found or not port:
        return Peer()
    return Peer(str(HostPort(str(found[0]), port)), server)


class Peers:
    """The present peers by name. Readers get all of them, then the differences."""

    def __init__(self) -> None:
        self._peers: Mapping[str, Peer] = {}
        self._waiting: set[asyncio.Event] = set()

    def replace(self, peers: Mapping[str, Peer]) -> None:
        if peers != self._peers:
            self._peers = dict(peers)
            for one in self._waiting:
                one.set()

    def of(self, name: str) -> Peer:
        """How a node is reached."""
        return self._peers.get(name, Peer())

    async def notifications(self) -> AsyncGenerator[peer_pb2.ChangeNotification, None]:
        """Never ends: Relay takes an end for a failure. A slow reader gets fewer, newer differences."""
        changed = asyncio.Event()
        self._waiting.add(changed)
        told: Mapping[str, Peer] = {}
        try:
            while True:
                changed.clear()
                now = self._peers
                for one in differences(told, now):
                    yield one
                told = now
                await changed.wait()
        finally:
            self._waiting.discard(changed)


def differences(before: Mapping[str, Peer], after: Mapping[str, Peer]) -> list[peer_pb2.ChangeNotification]:
    """What Relay must be told, sorted by name."""
    found = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if new is None and old is not None:
            found.append(old.change(name, peer_pb2.PEER_DELETED))
        elif new is not None and old is None:
            found.append(new.change(name, peer_pb2.PEER_ADDED))
        elif new is not None and new != old:
            found.append(new.change(name, peer_pb2.PEER_UPDATED))
    return found
