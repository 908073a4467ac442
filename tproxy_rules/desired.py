"""The picture: what the kernel of one node shall enforce. Frozen, canonical, backend-neutral.

Semantics every backend must give it, for one packet of the original direction:
  1. From the address of an endpoint that has a port, it must come in by that port with that MAC (anti-spoofing); and a
     known port sends from its own addresses only. Else dropped.
  2. source == destination address of one endpoint: passes.
  3. identity(address) = the longest prefix in `identities` that holds it.
  4. If the source is an endpoint with `egress`, that is asked with the destination's identity; if the destination is an
     endpoint with `ingress`, that is asked with the source's identity. Of the entries covering (identity, protocol,
     destination port) the highest `Verdict` wins; without any the packet is refused.
  5. Refused in either: RST or drop as `refuse_with_reset` says. Else, if either said STEER (TCP only): TPROXY to the
     listener, and a reset when nobody listens. Else it passes.
Replies pass by conntrack's direction. The original direction is judged per packet, so a new picture bites at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Verdict(IntEnum):
    """A higher number beats a lower one."""

    ALLOW = 1
    STEER = 2
    DENY = 3


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """Entries of a `Table` are sorted and unique. None sorts nothing: use -1 for "any" in `protocol`.

    `peers` is an ascending tuple of identity numbers, or None for everyone. `protocol` -1 is every protocol (then ports
    are 0–65535). Ports are inclusive; STEER needs protocol 6.
    """

    verdict: Verdict
    protocol: int
    first: int
    last: int
    any_peer: bool
    peers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """One direction of one endpoint."""

    entries: tuple[Entry, ...]


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
    """A Linux bridge that pods are ports of: its frames must be sent up to the IP layer to be judged."""

    name: str
    mac: str


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
    """NFLOG events per second at most; packets over the rate are judged the same, only not told."""


@dataclass(frozen=True, slots=True)
class Desired:
    """The whole picture. Two equal pictures render equally: that is how `apply` knows there is nothing to do."""

    settings: Settings = Settings()
    identities: tuple[tuple[str, int], ...] = ()
    """(prefix, identity), sorted. `0.0.0.0/0` and `::/0` give the default; without them it is 0, which no peer is."""
    endpoints: tuple[Endpoint, ...] = ()
    bridges: tuple[Bridge, ...] = ()
    frontends: tuple[Frontend, ...] = ()
    host_identity: int = 1
    """Identity of this node itself: the source of packets in OUTPUT that are not the proxy's."""
