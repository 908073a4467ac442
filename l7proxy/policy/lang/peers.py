"""Who a rule item speaks of: endpoints, entities, CIDRs. One kind per item; an explicit empty list is nobody."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv6Network, ip_network
from typing import Final

from l7proxy.model.labels import EVERYTHING, RESERVED, Operator, Requirement, Selector
from l7proxy.model.net import Network, within
from l7proxy.model.verdict import Direction
from l7proxy.policy.lang import selectors
from l7proxy.policy.lang.document import Document
from l7proxy.policy.lang.fields import Field, quoted
from l7proxy.policy.rules import CidrPeer, Peer, SelectorPeer


def _reserved(*names: str) -> tuple[Selector, ...]:
    return tuple(Selector((Requirement(RESERVED, name, Operator.EXISTS),)) for name in names)


_CLUSTER: Final = (
    *_reserved("host", "remote-node", "init", "ingress", "health", "unmanaged", "kube-apiserver"),
    Selector((selectors.IS_POD,)),
)

ENTITIES: Final[Mapping[str, tuple[Selector, ...]]] = {
    "all": (EVERYTHING,),
    "world": _reserved("world", "world-ipv4", "world-ipv6"),
    "world-ipv4": _reserved("world-ipv4"),
    "world-ipv6": _reserved("world-ipv6"),
    "cluster": _CLUSTER,
    "cluster-mesh": _CLUSTER,  # the pods of any cluster; we know one
    "host": _reserved("host"),
    "remote-node": _reserved("remote-node"),
    "kube-apiserver": _reserved("kube-apiserver"),
    "ingress": _reserved("ingress"),
    "init": _reserved("init"),
    "health": _reserved("health"),
    "unmanaged": _reserved("unmanaged"),
    "none": _reserved("none"),  # a label that nobody has
}


@dataclass(frozen=True, slots=True)
class Names:
    """What the peer fields of one direction are called."""

    endpoints: str
    cidr: str
    cidr_set: str
    entities: str
    later: tuple[str, ...]
    gone: str

    @property
    def read(self) -> tuple[str, ...]:
        return (self.endpoints, self.cidr, self.cidr_set, self.entities)


NAMES: Final[Mapping[Direction, Names]] = {
    Direction.INGRESS: Names(
        "fromEndpoints", "fromCIDR", "fromCIDRSet", "fromEntities", ("fromNodes", "fromGroups"), "fromRequires"
    ),
    Direction.EGRESS: Names(
        "toEndpoints", "toCIDR", "toCIDRSet", "toEntities", ("toNodes", "toGroups", "toServices"), "toRequires"
    ),
}


def peers(
    item: Field, found: dict[str, Field], names: Names, document: Document, *, for_init: bool
) -> tuple[Peer, ...] | None:
    """The peers of a rule item; None when it names none, which is anyone."""
    lists = {name: found[name].items() for name in names.read if name in found}
    used = [_title(name) for name, items in lists.items() if items]
    if len(used) > 1:
        item.fail(f"combining {used[0]} and {used[1]} is not supported yet")
    read: list[Peer] = [
        *(SelectorPeer(selectors.peer(field, document, for_init=for_init)) for field in lists.get(names.endpoints, ())),
        *(CidrPeer(prefix(field)) for field in lists.get(names.cidr, ())),
        *(_cidr_set(field) for field in lists.get(names.cidr_set, ())),
        *(SelectorPeer(each) for field in lists.get(names.entities, ()) for each in _entity(field)),
    ]
    if not lists:
        return None
    # An empty list selects nobody, also beside one that is not empty: absent and empty must never mean the same.
    return tuple(read) if all(lists.values()) else ()


def _title(name: str) -> str:
    return name[0].upper() + name[1:]


def _entity(field: Field) -> tuple[Selector, ...]:
    name = field.text()
    if name not in ENTITIES:
        field.fail(f"unsupported entity: {name if name.isalnum() else quoted(name)}")
    return ENTITIES[name]


def _cidr_set(field: Field) -> CidrPeer:
    choices = ("cidr", "cidrGroupRef", "cidrGroupSelector")
    found = field.mapping((*choices, "except"))
    chosen = [name for name in choices if name in found]
    if not chosen:
        field.fail("one of cidr, cidrGroupRef, or cidrGroupSelector is required")
    if len(chosen) > 1:
        field.fail("more than one of cidr, cidrGroupRef, or cidrGroupSelector may not be set")
    if chosen != ["cidr"]:
        found[chosen[0]].fail(f"{chosen[0]} is not supported yet", unsupported=True)
    network = prefix(found["cidr"])
    excepts: set[Network] = set()
    for each in found["except"].items() if "except" in found else ():
        hole = prefix(each)
        if not within(hole, network):
            wide, narrow = found["cidr"].text(), each.text()
            each.fail(f"allow CIDR prefix {wide} does not contain exclude CIDR prefix {narrow}")
        excepts.add(hole)
    return CidrPeer(network, tuple(sorted(excepts, key=lambda hole: (int(hole.network_address), hole.prefixlen))))


_PREFIX: Final = re.compile(r"[0-9A-Fa-f:.]{2,45}/(0|[1-9][0-9]{0,2})")
_MAPPED: Final = IPv6Network("::ffff:0:0/96")


def prefix(field: Field) -> Network:
    """A prefix with its length in figures; bits of the host part are dropped, a bare address is refused."""
    text = field.text()
    if not text:
        field.fail("IP must be specified")
    try:
        if not _PREFIX.fullmatch(text):
            raise ValueError("expected an address and a prefix length, as 10.0.0.0/8 or 2001:db8::/32")
        network = ip_network(text, strict=False)
    except ValueError as error:
        field.fail(f"unable to parse CIDR: {quoted(text)}: {error}")
    if within(network, _MAPPED):
        field.fail(f"unable to parse CIDR: {quoted(text)}: write IPv4-mapped addresses as IPv4")
    return network
