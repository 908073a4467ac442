"""Closes CNI interfaces without a Pod object (unknown pods) until a Pod object has their address. Pure.

A container starts before its node receives the pod's address from the API server, may outlive its Pod object, and may
not belong to Kubernetes at all. Until a Pod of this node has the address, only the node itself (kubelet probes) may
connect to it, and only replies may leave it. Other container tools cannot be distinguished: podman's plugins get the
same K8S_POD_NAME, so interfaces are closed whatever the arguments in the CNI result are; the setting
`cni_ignored_networks` excludes networks by name.

Two kinds of addresses have no Pod object although the pod is known:
- another address of the interface of a known pod: closed, too;
- an address of another interface of the same container, i.e. a secondary network (Multus): policies cover the pod
  network only, so it is neither bound to its port nor closed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from ipaddress import ip_address
from typing import Final

from l7proxy.agent.dataplane.pod_interfaces import LiveAttachment, PodInterfaces, one_port
from l7proxy.model.endpoint import Endpoint
from l7proxy.model.identity import HOST, allocate
from l7proxy.model.ref import BUILT_IN, RuleRef
from l7proxy.model.verdict import Action
from l7proxy.policy.compile import ALLOW_LOCALHOST
from l7proxy.policy.tables import DirectionPolicy, EndpointPolicy, Entry, TierPolicy
from l7proxy.policy.tiers import DEFAULT
from tproxy_rules.desired import Port

FIRST_ID: Final = 1 << 24
"""Endpoint numbers of known pods are lower: at most 2^16, or twice the number of pods."""
UNKNOWN_POD: Final = RuleRef(BUILT_IN, "", "unknown-pod")
NODE_ONLY: Final = Entry(Action.ALLOW, ALLOW_LOCALHOST, (HOST,))


@dataclass(frozen=True, slots=True)
class UnknownPod:
    """One pod interface without a Pod object. `pod`: NAMESPACE/NAME from the container runtime, or "".

    `port` is None if the interface belongs to a known pod, or if its port is ambiguous.
    """

    interface: str
    addresses: tuple[str, ...]
    pod: str
    port: Port | None
    policy: EndpointPolicy

    @property
    def id(self) -> int:
        return self.policy.endpoint

    def __str__(self) -> str:
        return self.pod or f"pod interface {self.interface}"


def unknown_pods(
    endpoints: Iterable[Endpoint], interfaces: PodInterfaces, *, node: str, node_addresses: Iterable[str], audit: bool
) -> tuple[UnknownPod, ...]:
    """`audit`: the node is in audit mode, so traffic that would be refused passes and is reported."""
    known = {address for endpoint in endpoints for address in endpoint.addresses}
    of_known = [attachment for attachment in interfaces.live if not known.isdisjoint(attachment.addresses)]
    taken = {attachment.interface for attachment in of_known}
    taken |= {port.interface for address, port in interfaces.ports.items() if address in known}  # by a route
    containers = {attachment.container for attachment in of_known if attachment.container}
    suspect = (one for one in interfaces.live if one.interface in taken or one.container not in containers)
    closed = _missing(suspect, known.union(interfaces.local_addresses, node_addresses))
    ids = allocate(closed, first=FIRST_ID, end=2 * FIRST_ID)
    return tuple(
        UnknownPod(
            interface,
            found.addresses,
            found.pod,
            None if interface in taken else one_port(found.addresses, interfaces.ports),
            _closed(ids[interface], found.addresses, node, audit=audit),
        )
        for interface, found in sorted(closed.items())
    )


def _missing(live: Iterable[LiveAttachment], known: set[str]) -> dict[str, LiveAttachment]:
    """Interface → its addresses without a pod. An address of two interfaces is closed on the first one."""
    claimed = set(known)
    found: dict[str, LiveAttachment] = {}
    for attachment in live:
        addresses = tuple(sorted(one for one in attachment.addresses if one not in claimed and _is_possible(one)))
        claimed.update(addresses)
        before = found.get(attachment.interface)
        if before is not None:
            addresses = tuple(sorted({*before.addresses, *addresses}))
        if addresses:
            found[attachment.interface] = replace(attachment, addresses=addresses)
    return found


def _is_possible(address: str) -> bool:
    """Whether the kernel's desired state accepts it as a pod address."""
    parsed = ip_address(address)
    return not (parsed.is_unspecified or parsed.is_multicast or parsed.is_loopback)


@lru_cache(maxsize=1024)
def _closed(number: int, addresses: tuple[str, ...], node: str, *, audit: bool) -> EndpointPolicy:
    """Cached, so that the same pod gets the same object and its kernel tables are not rendered again."""
    reason = f"unknown pod: no Pod object with address {' or '.join(addresses)} on node {node}"
    refusing = Entry(Action.DENY, UNKNOWN_POD, refusal=reason, audit=audit)
    return EndpointPolicy(number, ingress=_direction((NODE_ONLY,), (refusing,)), egress=_direction((refusing,)))


def _direction(*stages: tuple[Entry, ...]) -> DirectionPolicy:
    return DirectionPolicy((TierPolicy(DEFAULT.name, stages),))
