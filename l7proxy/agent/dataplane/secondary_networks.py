"""Names the interfaces of known pods on further networks (Multus), to which no policy applies. Pure.

A NetworkPolicy of any language is about the pod network: the addresses in `status.podIPs`. A secondary network has its
own interface in the pod, and packets there never meet the rules of the pod network. They cannot be enforced: macvlan,
ipvlan and SR-IOV interfaces do not even pass the node. So they are reported.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from l7proxy.agent.dataplane.pod_interfaces import PodInterfaces
from l7proxy.model.endpoint import Endpoint

LOOPBACK = "lo"
"""Runtimes cache a result for it, too."""


@dataclass(frozen=True, slots=True, order=True)
class SecondaryInterface:
    """`pod`: NAMESPACE/NAME. `interface`: its name in the pod. `host`: its other end on this node, "" if there is none.
    `network`: the CNI network. Names that the CNI result lacks are ""."""

    pod: str
    interface: str
    network: str = ""
    host: str = ""
    addresses: tuple[str, ...] = ()

    def __str__(self) -> str:
        named = " ".join(filter(None, (self.interface or self.host, f"({', '.join(self.addresses) or 'no address'})")))
        return f"pod {self.pod}: interface {named} of network {self.network or 'unknown'}: no policy applies to it"


def secondary_interfaces(endpoints: Iterable[Endpoint], interfaces: PodInterfaces) -> tuple[SecondaryInterface, ...]:
    """Sorted. An interface with an address of a known pod is its primary one."""
    owners = {address: str(one) for one in endpoints for address in one.addresses}
    primary = {port.interface for address, port in interfaces.ports.items() if address in owners}
    pods: dict[str, str] = {}
    for one in interfaces.live:
        owner = next((owners[address] for address in one.addresses if address in owners), None)
        if owner is not None:
            primary.add(one.interface)
            pods[one.container] = owner
    pods.pop("", None)
    found = {
        SecondaryInterface(pods[one.container], one.inside, one.network, one.interface, one.addresses)
        for one in (*interfaces.live, *interfaces.direct)
        if one.container in pods and one.interface not in primary and one.inside != LOOPBACK
        if not any(address in owners for address in one.addresses)
    }
    return tuple(sorted(found))
