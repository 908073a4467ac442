"""The picture: what the kernel of one node shall enforce. Frozen, canonical, backend-neutral.

Semantics every backend must give it, for one packet of the original direction:
  1. From the address of an endpoint that has a port, it must come in by that port with that MAC (anti-spoofing); and a
     known port sends from its own addresses only, and gets by the bridge what is for them only. Else dropped.
     IPv6 link-local unicast from or to a pod is nobody's in `identities`: it carries neighbour discovery (RFC 4861, hop
     limit 255) and group membership (RFC 3810, hop limit 1), else dropped. Router advertisements and redirects never
     come from a pod, and duplicate address detection only for the pod's own addresses (RFC 4862, RFC 5227).
     IP in a frame to a reserved bridge address (01:80:c2:00:00:00 to :0f) is dropped: the bridge hands it up from the
     port itself, past its own hooks. So is all IP whose input interface is a bridge port, and IP from or to loopback
     and IPv4-mapped addresses.
     A bridge port that is neither a known pod's, nor an uplink, nor one of `other_ports` is taken for a pod's that is
     not known yet: it sends ARP, IPv4 and IPv6 only, as no address that `identities` lists as a single one, and it
     neither claims such an address nor is a router.
  2. source == destination address of one endpoint: passes.
  3. identity(address) = the longest prefix in `identities` that holds it.
  4. If the source is an endpoint with `egress`, that is asked with the destination's identity; if the destination is an
     endpoint with `ingress`, that is asked with the source's identity. Tiers are walked in order, within a tier its
     stages. In the first stage that has entries covering (identity, protocol, destination port) the highest `Verdict`
     of those wins: DENY refuses, STEER steers, ALLOW lets pass, PASS goes on with the next tier. When no stage of a
     tier covers the packet, `closed` refuses it; else the next tier is asked. What the last tier leaves passes.
  5. Refused in either: RST or drop as `refuse_with_reset` says. Else, if either said STEER (TCP only): TPROXY to the
     listener, and a reset when nobody listens. Else it passes. STEER ends the walk: the proxy walks on per request.
  6. Neighbour discovery, group membership of the link, and errors about flows that were let through pass in any case.
Replies pass by conntrack's direction. The original direction is judged per packet, so a new picture bites at once; the
replies to what it refuses, or to the last owner of an address, end by `revoke`, which follows a picture in force.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

MAX_TIERS: Final = 11
"""In a table. Going on from tier to tier nests chains, which the kernel allows to a depth of 16 (too many links)."""


class Verdict(IntEnum):
    """A higher number beats a lower one of the same stage."""

    PASS = 0
    ALLOW = 1
    STEER = 2
    DENY = 3


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """(peers × protocol × ports) → verdict.

    `peers` are identity numbers, ascending, and empty when `any_peer` says everyone. `protocol` -1 is every protocol.
    Ports are inclusive; of ICMP and ICMPv6 the port is type · 256 + code, the first 16 bits of the message. Where there
    are none they are 0–65535. STEER needs protocol 6.
    """

    verdict: Verdict
    protocol: int
    first: int
    last: int
    any_peer: bool
    peers: tuple[int, ...]


Stage = tuple[Entry, ...]
"""Entries of equal standing, sorted and unique."""


@dataclass(frozen=True, slots=True)
class Tier:
    """Stages in the order in which they are asked. `closed`: what none of them covers is refused."""

    stages: tuple[Stage, ...]
    closed: bool


@dataclass(frozen=True, slots=True)
class Table:
    """One direction of one endpoint. Without tiers everything passes.

    `governed` False, for egress only: there is no policy, just refusals that hold for whatever peer, of other protocols
    than TCP. What they leave passes as if there were no table: it is not logged, and multicast and broadcast pass, too.
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
    """A table in which all entries stand equal, as Cilium's and Kubernetes' policies do."""
    stage = tuple(entries)
    return Table((Tier((stage,) if stage else (), closed),))


@dataclass(frozen=True, slots=True)
class Port:
    """The node's side of a pod's cable: the interface the pod's packets come in by, and the pod's MAC.

    `mac` is checked where the interface is a bridge port (`bridge` set); a routed veth is told by its name alone.
    """

    interface: str
    mac: str = ""
    bridge: str = ""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A local pod. `ingress`/`egress` None: no policy that way, everything passes."""

    id: int
    addresses: tuple[str, ...]
    port: Port | None = None
    ingress: Table | None = None
    egress: Table | None = None


@dataclass(frozen=True, slots=True)
class Bridge:
    """A Linux bridge that pods are ports of: its frames must be sent up to the IP layer to be judged.

    `ports` are all its ports. `uplinks` are those that lead to other hosts, as a network card or a VXLAN link does.
    """

    name: str
    mac: str
    ports: tuple[str, ...] = ()
    uplinks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Frontend:
    """A Service address. Only backends that must steer before Service DNAT look at these.

    `steer`: some connection to it may have to be judged by the proxy, so all of them go there.
    """

    address: str
    protocol: int
    port: int
    steer: bool


@dataclass(frozen=True, slots=True)
class Settings:
    """The node-wide facts. Marks are single bits; every use is value/mask."""

    proxy_port: int = 15001
    mark_proxy: int = 0x01000000
    mark_upstream: int = 0x02000000
    route_table: int = 7777
    rule_priority: int = 100
    nflog_group: int = 77
    families: tuple[int, ...] = (4, 6)
    refuse_with_reset: bool = True
    log_rate: int = 1000
    """NFLOG events per second: a tenth for each sender, all for what senders elsewhere are refused and for what passes.
    Packets over a limit are judged the same, and counted instead of told."""


Prefixes = tuple[tuple[str, int], ...]
"""(prefix, identity)"""


@dataclass(frozen=True, slots=True)
class Desired:
    """The whole picture. Two equal pictures render equally: that is how `apply` knows there is nothing to do."""

    settings: Settings = Settings()
    identities: Prefixes = ()
    """Sorted. `0.0.0.0/0` and `::/0` give the default; without them it is 0, which no peer is."""
    endpoints: tuple[Endpoint, ...] = ()
    bridges: tuple[Bridge, ...] = ()
    other_ports: tuple[str, ...] = ()
    """Ports of bridges that have no pod, as docker0: what they send among themselves is no matter of ours."""
    frontends: tuple[Frontend, ...] = ()
    host_identity: int = 1
    """Identity of this node itself: the source of packets in OUTPUT that are not the proxy's."""
