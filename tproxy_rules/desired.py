"""The desired state: what the kernel of one node must enforce. Frozen, canonical, independent of the backend.

Semantics that every backend must implement, for one packet of the original direction:
  1. Anti-spoofing: a packet from the address of an endpoint with a port must enter by that port, with its MAC. A known
     port may send only from its own addresses, and receives from the bridge only packets to them. Else drop.
     IPv6 link-local unicast from or to a pod has no identity in `identities`. It may carry neighbour discovery (RFC
     4861, hop limit 255) and group membership (RFC 3810, hop limit 1); else drop. A pod may not send router
     advertisements or redirects, and duplicate address detection only for its own addresses (RFC 4862, RFC 5227).
     IP in a frame to a reserved bridge address (01:80:c2:00:00:00 to :0f) is dropped: the bridge delivers it on the
     port itself and skips the bridge hooks. So is all IP whose input interface is a bridge port, and IP from or to
     loopback and IPv4-mapped addresses.
     A bridge port that is no known pod's, no uplink and not in `other_ports` is treated as an unknown pod's: it sends
     ARP, IPv4 and IPv6 only, must not use or claim an address that `identities` lists singly, and is no router.
  2. If source and destination are addresses of the same endpoint, the packet passes. Else a packet that is not this
     node's own, from or to a unicast address in `held` that `identities` does not list singly, is refused.
  3. identity(address) = the longest prefix in `identities` that contains it.
  4. If the source is an endpoint with `egress`, that table is evaluated with the destination's identity. If the
     destination is an endpoint with `ingress`, that table is evaluated with the source's identity. Tiers are evaluated
     in order, and the stages of a tier in order. In the first stage with entries that cover (identity, protocol,
     destination port) the highest `Verdict` wins: DENY refuses, STEER redirects to the proxy, ALLOW accepts, PASS
     continues with the next tier. If no stage covers the packet, a `closed` tier refuses it; else the next tier
     follows. After the last tier the packet passes.
  5. Refused by either table: RST or drop, see `refuse_with_reset`. Else STEER in either: TPROXY to the listener of its
     protocol; refused if the protocol has none, or if nothing listens. Else it passes. After STEER the proxy evaluates
     each request.
  6. Neighbour discovery, group membership of the link, and ICMP errors about accepted flows always pass.
Replies pass by conntrack direction. The original direction is evaluated per packet, so a new state takes effect at
once. Once a state is applied, `revoke` ends replies to flows that it refuses and to the last owner of an address.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Protocol, runtime_checkable

MAX_TIERS: Final = 11
"""Per table. Each tier adds a nested jump, and the kernel allows a depth of 16 (error: too many links)."""


class Verdict(IntEnum):
    """Within one stage the highest number wins."""

    PASS = 0
    ALLOW = 1
    STEER = 2
    DENY = 3


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """(peers × protocol × ports) → verdict.

    `peers` are identity numbers, ascending; empty if `any_peer` is set. `protocol` -1 means every protocol. Ports are
    inclusive. For ICMP and ICMPv6 the port is type · 256 + code, the first 16 bits of the message. For protocols
    without ports the range is 0–65535. STEER requires TCP or UDP, which TPROXY supports.
    """

    verdict: Verdict
    protocol: int
    first: int
    last: int
    any_peer: bool
    peers: tuple[int, ...]


Stage = tuple[Entry, ...]
"""Entries of equal precedence, sorted and unique."""


@dataclass(frozen=True, slots=True)
class Tier:
    """Stages in order of evaluation. `closed`: packets that no stage covers are refused."""

    stages: tuple[Stage, ...]
    closed: bool


@dataclass(frozen=True, slots=True)
class Table:
    """One direction of one endpoint. Without tiers everything passes.

    `governed` False, for egress only: there is no policy, only denials for every peer, of protocols other than TCP. All
    other packets pass as if there were no table: they are not logged, and multicast and broadcast pass, too.
    """

    tiers: tuple[Tier, ...]
    governed: bool = True

    @property
    def entries(self) -> Iterator[Entry]:
        return (entry for tier in self.tiers for stage in tier.stages for entry in stage)

    @property
    def steers(self) -> bool:
        return any(entry.verdict is Verdict.STEER for entry in self.entries)


def union(entries: Iterable[Entry], *, closed: bool = True) -> Table:
    """A table of one stage, as Cilium's and Kubernetes' policies need it: all entries have equal precedence."""
    stage = tuple(entries)
    return Table((Tier((stage,) if stage else (), closed),))


@dataclass(frozen=True, slots=True)
class Port:
    """The node's side of a pod interface: its name, and the pod's MAC.

    `mac` is checked on bridge ports (`bridge` set); a routed veth is identified by its name alone.
    """

    interface: str
    mac: str = ""
    bridge: str = ""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A local pod. `ingress`/`egress` None: no policy in that direction, everything passes."""

    id: int
    addresses: tuple[str, ...]
    port: Port | None = None
    ingress: Table | None = None
    egress: Table | None = None


@dataclass(frozen=True, slots=True)
class Bridge:
    """A Linux bridge with pods as ports. Its frames must be handed to the IP layer to be evaluated.

    `ports` are all its ports. `uplinks` are those that lead to other hosts, e.g. a network card or a VXLAN interface.
    """

    name: str
    mac: str
    ports: tuple[str, ...] = ()
    uplinks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Frontend:
    """A Service address. Only backends that redirect before Service DNAT use it.

    `steer`: some connection to it may need the proxy, so all are redirected.
    """

    address: str
    protocol: int
    port: int
    steer: bool


@dataclass(frozen=True, slots=True)
class Settings:
    """Node-wide settings. Marks are single bits, always used as value/mask."""

    listeners: tuple[tuple[int, int], ...] = ((6, 15001),)
    """(protocol, port) of the proxy's transparent sockets on 127.0.0.1 and ::1, sorted. A UDP socket that answers a
    client must not have `mark_upstream`, or its packets would not count as replies."""
    mark_proxy: int = 0x01000000
    mark_upstream: int = 0x02000000
    route_table: int = 7777
    rule_priority: int = 100
    nflog_group: int = 77
    families: tuple[int, ...] = (4, 6)
    refuse_with_reset: bool = True
    log_rate: int = 1000
    """NFLOG events per second. Each sender gets a tenth; refused packets of remote senders share the whole, and so do
    accepted packets. A limit does not change verdicts: packets over it are counted instead of logged."""

    @property
    def redirected(self) -> frozenset[int]:
        """The protocols that have a listener."""
        return frozenset(protocol for protocol, _ in self.listeners)


Prefixes = Collection[tuple[str, int]]
"""(prefix, identity)"""


@runtime_checkable
class VersionedPrefixes(Protocol):
    """Prefixes with their history, each in canonical form and once: of a new version only the changes are looked at."""

    def changed_since(self, before: object) -> Collection[str] | None:
        """The prefixes that may differ from those in `before`; None if it is not another version of these."""

    def get(self, prefix: str) -> int | None: ...
    def __iter__(self) -> Iterator[tuple[str, int]]: ...
    def __len__(self) -> int: ...
    def __contains__(self, pair: object) -> bool: ...


@dataclass(frozen=True, slots=True)
class Desired:
    """The whole desired state. Equal states render to equal rules, so that `apply` can detect that nothing changed."""

    settings: Settings = Settings()
    identities: Prefixes = ()
    """Sorted, or VersionedPrefixes. `0.0.0.0/0` and `::/0` give the default identity; without them it is 0, which no
    peer has."""
    endpoints: tuple[Endpoint, ...] = ()
    bridges: tuple[Bridge, ...] = ()
    other_ports: tuple[str, ...] = ()
    """Bridge ports without pods, such as those of docker0; traffic among them is not checked."""
    frontends: tuple[Frontend, ...] = ()
    held: tuple[str, ...] = ()
    """Prefixes of this node's pods, sorted. A pod that starts has an address that is not known yet, and none may become
    known while nobody applies states: until then nothing but this node may reach it, and only replies may leave it."""
    host_identity: int = 1
    """Identity of this node: the source of packets in OUTPUT that the proxy did not send."""
