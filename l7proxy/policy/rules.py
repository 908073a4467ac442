"""Neutral rules: what a policy document says, whatever language it was written in.

A language module turns one document into a tuple of frozen `Rule`s. One rule is one (peers × ports) cell: each
`toPorts` item of a document becomes a rule of its own, because its L7 rules bind to its own ports and peers only.
Emptiness is significant everywhere: None means "not said, so any", an empty tuple means "nobody" or "no port".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from l7proxy.model.labels import EVERYTHING, Selects
from l7proxy.model.net import Network
from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import Action, Direction
from l7proxy.policy.headers import HeaderRule
from l7proxy.policy.tiers import UNION, Level


@dataclass(frozen=True, slots=True)
class SelectorPeer:
    """Everyone whose identity's labels match. Entities are selectors over `reserved:` labels."""

    selector: Selects


class Reach(Enum):
    """Whom a CIDR can mean. Cilium: addresses outside, by choice nodes too; Kubernetes and Calico: any address."""

    OUTSIDE = "outside"
    NODES = "nodes"
    ANYWHERE = "anywhere"


@dataclass(frozen=True, slots=True)
class CidrPeer:
    """Addresses in `network` but in none of `excepts`, as far as `reach` goes."""

    network: Network
    excepts: tuple[Network, ...] = ()
    reach: Reach = Reach.OUTSIDE


@dataclass(frozen=True, slots=True)
class EveryPeer:
    """Those that every one of `all_of` means (everyone, if there is none), less those that one of `none_of` means."""

    all_of: tuple[Peer, ...] = ()
    none_of: tuple[Peer, ...] = ()


@dataclass(frozen=True, slots=True)
class AnyPeer:
    """Those that one of `any_of` means."""

    any_of: tuple[Peer, ...]


@dataclass(frozen=True, slots=True)
class ServicePeer:
    """Whoever is behind the Services of this name and namespace (any, when "") that `selector` selects.

    Only the rest of the cluster tells who that is: `policy.references` puts them in place before rules are compiled.
    """

    namespace: str
    name: str = ""
    selector: Selects = EVERYTHING
    reach: Reach = Reach.OUTSIDE


@dataclass(frozen=True, slots=True)
class CidrGroupPeer:
    """The addresses of CIDR groups, named or selected as `ServicePeer` does it, but for those in `excepts`."""

    name: str = ""
    selector: Selects = EVERYTHING
    excepts: tuple[Network, ...] = ()
    reach: Reach = Reach.OUTSIDE


@dataclass(frozen=True, slots=True)
class NetworkSetPeer:
    """Whoever has an address in one of Calico's network sets that `selector` selects."""

    selector: Selects


@dataclass(frozen=True, slots=True)
class NodePeer:
    """The addresses of the nodes whose labels (`node:…`) `selector` selects."""

    selector: Selects


@dataclass(frozen=True, slots=True)
class ServicePortPeer:
    """Whoever is behind this Service, and `on_ports` only on those that it has there. It stands alone in its rule."""

    namespace: str
    name: str
    on_ports: bool = True


Peer = (
    SelectorPeer | CidrPeer | EveryPeer | AnyPeer
    | ServicePeer | CidrGroupPeer | NetworkSetPeer | NodePeer | ServicePortPeer
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PortMatch:
    """Ports of some protocols: `first` to `last` inclusive, or those that `name` resolves to.

    `protocols` holds IP protocol numbers; ports 0 to 65535 mean every port of them. For ICMP and ICMPv6 the number is
    type · 256 + code (the first 16 bits of the header): `8 << 8` to `8 << 8 | 255` is echo request.
    """

    protocols: frozenset[int]
    first: int = 0
    last: int = 65535
    name: str = ""


@dataclass(frozen=True, slots=True)
class HeaderMatch:
    """One required header. `name` is lower case.

    Without `value` the header must be present. With one, the header's value (repeats joined by a comma) must equal it;
    when `pattern` is set too, a whole-string RE2 match of it counts as well.
    """

    name: str
    value: str | None = None
    pattern: str | None = None

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name}: {self.value}"


@dataclass(frozen=True, slots=True)
class HttpRule:
    """One item of `rules.http`: all that is set must hold. method, path and host are whole-string RE2 patterns.

    `header_matches` are asked when all else holds; they may change the request instead of refusing it.
    `number` counts the HTTP rules of one document from 1, in its order: how people name them. `log` is `Rule.log`.
    """

    ref: RuleRef
    method: str | None = None
    path: str | None = None
    host: str | None = None
    headers: tuple[HeaderMatch, ...] = ()
    number: int = 0
    header_matches: tuple[HeaderRule, ...] = ()
    log: str = ""

    @property
    def matches_everything(self) -> bool:
        plain = self.method is None and self.path is None and self.host is None
        return plain and not self.headers and not self.header_matches


@dataclass(frozen=True, slots=True)
class Rule:
    """One cell of a policy: for whom, which way, whom with, on which ports, and what then.

    `http` None means plain L4; an empty tuple never occurs (it means the same, so languages write None).
    `default_deny` tells whether this rule puts its direction into default deny for those it selects.
    `refusal` is set on the rules that stand in for a document we could not honour: why it was refused.
    `level` is where it stands among the others (`policy.tiers`). `audit`: what it would refuse is let through and told.
    `log` is what its policy wants to read in the flows it decides.
    """

    ref: RuleRef
    subject: Selects
    direction: Direction
    action: Action = Action.ALLOW
    peers: tuple[Peer, ...] | None = None
    ports: tuple[PortMatch, ...] | None = None
    http: tuple[HttpRule, ...] | None = None
    default_deny: bool = True
    refusal: str = ""
    level: Level = UNION
    audit: bool = False
    log: str = ""
