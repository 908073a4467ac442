"""Neutral rules: the content of a policy document, independent of its language.

A language module turns one document into a tuple of frozen `Rule`s. One rule is one (peers × ports) cell: each
`toPorts` item of a document becomes its own rule, because its L7 rules apply only to its own ports and peers.
None and empty differ everywhere: None means "not given, so any", an empty tuple means "no peer" or "no port".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

import msgspec

from l7proxy.model.labels import EVERYTHING, RESERVED, Operator, Requirement, Selector, Selects
from l7proxy.model.net import Network
from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import Action, Direction
from l7proxy.policy.headers import HeaderRule
from l7proxy.policy.tiers import UNION, Level


@dataclass(frozen=True, slots=True)
class SelectorPeer:
    """All peers whose identity labels match. Entities are selectors over `reserved:` labels."""

    selector: Selects


class Reach(Enum):
    """Which addresses a CIDR matches. Cilium: outside, optionally also nodes; Kubernetes and Calico: any address."""

    OUTSIDE = "outside"
    NODES = "nodes"
    ANYWHERE = "anywhere"


@dataclass(frozen=True, slots=True)
class CidrPeer:
    """Addresses in `network` but in none of `excepts`, within `reach`."""

    network: Network
    excepts: tuple[Network, ...] = ()
    reach: Reach = Reach.OUTSIDE


@dataclass(frozen=True, slots=True)
class EveryPeer:
    """Peers that match all of `all_of` (every peer, if empty) and none of `none_of`."""

    all_of: tuple[Peer, ...] = ()
    none_of: tuple[Peer, ...] = ()


@dataclass(frozen=True, slots=True)
class AnyPeer:
    """Peers that match at least one of `any_of`."""

    any_of: tuple[Peer, ...]


@dataclass(frozen=True, slots=True)
class ServicePeer:
    """The backends of the Services with this name and namespace ("" is any) that `selector` selects.

    They depend on other objects: `policy.references` resolves them before rules are compiled.
    """

    namespace: str
    name: str = ""
    selector: Selects = EVERYTHING
    reach: Reach = Reach.OUTSIDE


@dataclass(frozen=True, slots=True)
class CidrGroupPeer:
    """The addresses of CIDR groups, by name or selector as in `ServicePeer`, without those in `excepts`."""

    name: str = ""
    selector: Selects = EVERYTHING
    excepts: tuple[Network, ...] = ()
    reach: Reach = Reach.OUTSIDE


@dataclass(frozen=True, slots=True)
class NetworkSetPeer:
    """Peers with an address in a Calico network set that `selector` selects."""

    selector: Selects


@dataclass(frozen=True, slots=True)
class NodePeer:
    """The addresses of the nodes whose labels (`node:…`) `selector` selects."""

    selector: Selects


@dataclass(frozen=True, slots=True)
class ServicePortPeer:
    """The backends of this Service; with `on_ports` only on their Service ports. The only peer of its rule."""

    namespace: str
    name: str
    on_ports: bool = True


Peer = (
    SelectorPeer | CidrPeer | EveryPeer | AnyPeer
    | ServicePeer | CidrGroupPeer | NetworkSetPeer | NodePeer | ServicePortPeer
)  # fmt: skip


def leaves(peers: Iterable[Peer]) -> Iterator[Peer]:
    """All peers in these that are not composed of others, excluded ones too."""
    for peer in peers:
        match peer:
            case EveryPeer(all_of, none_of):
                yield from leaves((*all_of, *none_of))
            case AnyPeer(any_of):
                yield from leaves(any_of)
            case _:
                yield peer


EVERYONE_BUT_THE_HOST: Final[Mapping[Direction, tuple[Peer, ...] | None]] = {
    Direction.INGRESS: (SelectorPeer(Selector((Requirement(RESERVED, "host", Operator.DOES_NOT_EXIST),))),),
    Direction.EGRESS: None,
}
"""The peers that a rule denies when it fails closed: on ingress all except this node itself, for kubelet's probes."""


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

    Without `value` the header must be present. With `value`, the header's value (repeated headers joined by a comma)
    must equal it, or match `pattern` (whole-string RE2) if that is set.
    """

    name: str
    value: str | None = None
    pattern: str | None = None

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name}: {self.value}"


@dataclass(frozen=True, slots=True)
class HttpRule:
    """One item of `rules.http`: all set fields must match. method, path and host are whole-string RE2 patterns.

    `header_matches` are evaluated last; they may change the request instead of denying it.
    `number` counts the HTTP rules of one document from 1, in its order, for messages. `log` is `Rule.log`.
    """

    ref: RuleRef
    method: str | None = None
    path: str | None = None
    host: str | None = None
    headers: tuple[HeaderMatch, ...] = ()
    number: int = 0
    header_matches: tuple[HeaderRule, ...] = ()
    log: str = ""


class HttpRules(msgspec.Struct, frozen=True, tag_field="kind", tag="http"):
    """HTTP requests of which one rule must match. Never empty: languages write None instead."""

    rules: tuple[HttpRule, ...]


@dataclass(frozen=True, slots=True)
class DnsRule:
    """One item of `rules.dns`: queries for `name` or for names that match `pattern`; "" if absent."""

    name: str = ""
    pattern: str = ""


class DnsRules(msgspec.Struct, frozen=True, tag_field="kind", tag="dns"):
    """DNS queries of which one rule must match."""

    rules: tuple[DnsRule, ...]


class ServerNames(msgspec.Struct, frozen=True, tag_field="kind", tag="server_names"):
    """TLS connections whose server name (SNI, RFC 6066 section 3) matches one of these patterns."""

    names: tuple[str, ...]


L7Rules = HttpRules | DnsRules | ServerNames
"""The L7 rules of one rule or entry. What each kind needs is in `policy.l7`."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One cell of a policy: subject, direction, action, peers and ports.

    `l7` None means plain L4. L7 rules have an effect only in a rule that allows.
    `default_deny`: this rule puts its direction into default deny for the endpoints it selects.
    `refusal` is set on rules that replace a document or part that cannot be enforced: the reason.
    `level` is its place in the order (`policy.tiers`). `audit`: what it would deny is allowed, and reported as AUDIT.
    `log` is the text that its policy adds to the flows it decides.
    """

    ref: RuleRef
    subject: Selects
    direction: Direction
    action: Action = Action.ALLOW
    peers: tuple[Peer, ...] | None = None
    ports: tuple[PortMatch, ...] | None = None
    l7: L7Rules | None = None
    default_deny: bool = True
    refusal: str = ""
    level: Level = UNION
    audit: bool = False
    log: str = ""

    @property
    def http(self) -> tuple[HttpRule, ...]:
        """Its HTTP rules, if they have an effect."""
        return self.l7.rules if isinstance(self.l7, HttpRules) and self.action is Action.ALLOW else ()
