"""Connects Hubble's API with the agent: its settings, the flow ring, and the nodes of the cluster."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from l7proxy.flows.flow import node_name
from l7proxy.flows.ring import Ring
from l7proxy.hubble.certificates import CertificateFiles
from l7proxy.hubble.peers import Peer, Peers, peer, server_name
from l7proxy.hubble.server import HubbleServer, Tcp
from l7proxy.hubble.service import Service
from l7proxy.model.resources import Node
from l7proxy.setting_definitions import Settings
from l7proxy.settings.address import listener


class Hubble:
    """`async with Hubble(settings, ring).serving(): …`. Until `nodes` is called, this node is the only one known."""

    def __init__(self, settings: Settings, ring: Ring) -> None:
        self._settings = settings
        tcp = _tcp(settings)
        self._port = tcp.port if tcp else 0
        own = () if tcp is None or tcp.address.is_unspecified else (str(tcp.address),)
        self._own = self._peer(settings.node, own)
        self._peers = Peers()
        self.nodes(())
        service = Service(ring, self._peers, node_name=node_name(settings.node, settings.cluster))
        socket = Path(settings.hubble_socket_path) if settings.hubble_socket_path else None
        self._server = HubbleServer(service, socket=socket, tcp=tcp)

    def serving(self) -> AbstractAsyncContextManager[None]:
        return self._server.serving()

    def nodes(self, nodes: Iterable[Node]) -> None:
        """Peers are all nodes, this one included, each with the port of this one: settings are those of the cluster."""
        found = {node.name: self._peer(node.name, node.addresses) for node in nodes}
        if self._own.address or self._settings.node not in found:
            found[self._settings.node] = self._own
        self._peers.replace({node_name(name, self._settings.cluster): one for name, one in found.items()})

    def _peer(self, node: str, addresses: Iterable[str]) -> Peer:
        return peer(addresses, self._port, server_name(node, self._settings.cluster) if self._port else "")


def _tcp(settings: Settings) -> Tcp | None:
    if not settings.hubble_listen_address:
        return None
    files = CertificateFiles(
        Path(settings.hubble_tls_cert_file),
        Path(settings.hubble_tls_key_file),
        tuple(map(Path, settings.hubble_tls_client_ca_files)),
    )
    return Tcp(*listener(settings.hubble_listen_address), files)
