"""Identities: one number for one set of labels.

Numbers are a pure function of the current label sets (no store, no counter): nodes that see the same objects compute
the same numbers, and so does a restarted agent (law 4, no hysteresis).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from l7proxy.model.ids import IdentityId
from l7proxy.model.labels import CIDR, RESERVED, Label, LabelSet

UNKNOWN: Final = IdentityId(0)
HOST: Final = IdentityId(1)
WORLD: Final = IdentityId(2)
UNMANAGED: Final = IdentityId(3)
HEALTH: Final = IdentityId(4)
INIT: Final = IdentityId(5)
REMOTE_NODE: Final = IdentityId(6)
KUBE_APISERVER: Final = IdentityId(7)
INGRESS: Final = IdentityId(8)
WORLD_IPV4: Final = IdentityId(9)
WORLD_IPV6: Final = IdentityId(10)
CONTESTED: Final = IdentityId(255)
"""An address that several pods claim. It may belong to any of them, so deny rules for any peer match it and allow
rules do not. Our own number: Cilium reserves 128 to 255 for users."""

RESERVED_IDENTITIES: Final[Mapping[IdentityId, LabelSet]] = {
    HOST: LabelSet.reserved("host"),
    WORLD: LabelSet.reserved("world"),
    UNMANAGED: LabelSet.reserved("unmanaged"),
    HEALTH: LabelSet.reserved("health"),
    INIT: LabelSet.reserved("init"),
    REMOTE_NODE: LabelSet.reserved("remote-node"),
    KUBE_APISERVER: LabelSet.reserved("kube-apiserver", "remote-node"),
    INGRESS: LabelSet.reserved("ingress"),
    WORLD_IPV4: LabelSet.reserved("world-ipv4"),
    WORLD_IPV6: LabelSet.reserved("world-ipv6"),
}
"""Cilium's reserved identities."""

FIRST_POD_IDENTITY: Final = 256
LOCAL_SCOPE: Final = 1 << 24
"""Identities of CIDRs have this bit set, as in Cilium; those of pods are below it."""

NamedPort = tuple[str, int, int]
"""(name, protocol, port) of a container port. Part of the identity, because egress rules may name it."""


NO_NAMED_PORTS: Final[frozenset[NamedPort]] = frozenset()
NO_NETWORKS: Final[frozenset[IPv4Network | IPv6Network]] = frozenset()
"""Constants, since each empty frozenset takes 216 bytes."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A number, its labels, and for pods the named ports that all pods with this number have.

    `networks` are the prefixes in policies that match any address (`Reach.ANYWHERE`, for nodes also `NODES`) and
    contain the addresses of this number. They distinguish pods with equal labels when a policy names addresses.
    """

    id: IdentityId
    labels: LabelSet
    named_ports: frozenset[NamedPort] = NO_NAMED_PORTS
    networks: frozenset[IPv4Network | IPv6Network] = NO_NETWORKS
    cidr: IPv4Network | IPv6Network | None = None
    """Set for the identity of a CIDR that a policy names; its labels then include `reserved:world…`."""


def cidr_labels(network: IPv4Network | IPv6Network, world: str) -> LabelSet:
    """The labels of a CIDR identity: its prefix (with `-` for colons) and its world label."""
    text = f"{network.network_address}".replace(":", "-")
    return LabelSet.of([Label(CIDR, f"{text}/{network.prefixlen}"), Label(RESERVED, world)])


def allocate(keys: Iterable[str], *, first: int, end: int) -> dict[str, int]:
    """Give each key a number in [first, end): its hash, or the next free one. A pure function of the set of keys."""
    digests = {key: digest(key) for key in keys}
    numbers = allocated(digests.values(), first=first, end=end)
    return {key: numbers[found] for key, found in digests.items()}


def allocated(digests: Iterable[bytes], *, first: int, end: int) -> dict[bytes, int]:
    """The same by digest, for keys that are long and many, and numbered again whenever one is added or removed."""
    taken: set[int] = set()
    numbers: dict[bytes, int] = {}
    for one in sorted(set(digests)):
        number = first + int.from_bytes(one[:8], "big") % (end - first)
        while number in taken:
            number = number + 1 if number + 1 < end else first
        taken.add(number)
        numbers[one] = number
    return numbers


def digest(key: str) -> bytes:
    """The same in every process. SHA-256: who chooses labels must not find two sets with one digest."""
    return hashlib.sha256(key.encode()).digest()
