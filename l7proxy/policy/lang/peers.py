"""Parses the peers of a rule item. One kind of peer per item; an empty list is no peer, an absent one every peer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from ipaddress import IPv4Network, IPv6Network
from itertools import chain
from typing import Final

from l7proxy.model.labels import EVERYTHING, RESERVED, Operator, Requirement, Selector
from l7proxy.model.verdict import Direction
from l7proxy.policy.lang import cidrs, dns, selectors
from l7proxy.policy.lang.document import Document
from l7proxy.policy.lang.fields import Field, quoted
from l7proxy.policy.lang.services import services
from l7proxy.policy.rules import CidrPeer, Peer, SelectorPeer


def _reserved(*names: str) -> tuple[Peer, ...]:
    return tuple(SelectorPeer(Selector((Requirement(RESERVED, name, Operator.EXISTS),))) for name in names)


_CLUSTER: Final = (
    *_reserved("host", "remote-node", "init", "ingress", "health", "unmanaged", "kube-apiserver"),
    SelectorPeer(Selector((selectors.IS_POD,))),
)

ENTITIES: Final[Mapping[str, tuple[Peer, ...]]] = {
    "all": (SelectorPeer(EVERYTHING),),
    "world": _reserved("world", "world-ipv4", "world-ipv6"),
    "world-ipv4": (CidrPeer(IPv4Network("0.0.0.0/0")),),  # in single stack both are the world
    "world-ipv6": (CidrPeer(IPv6Network("::/0")),),
    "cluster": _CLUSTER,
    "cluster-mesh": _CLUSTER,  # the pods of all clusters; only one is supported
    "host": _reserved("host"),
    "remote-node": _reserved("remote-node"),
    "kube-apiserver": _reserved("kube-apiserver"),
    "ingress": _reserved("ingress"),
    "init": _reserved("init"),
    "health": _reserved("health"),
    "unmanaged": _reserved("unmanaged"),
    "none": _reserved("none"),  # a label that no identity has
}


HOST: Final = ENTITIES["host"]
WORLD: Final = ENTITIES["world"]

PEER_FIELD: Final = {Direction.INGRESS: "from", Direction.EGRESS: "to"}
_KINDS: Final = ("Endpoints", "CIDR", "CIDRSet", "Entities", "Nodes", "Groups", "Services", "FQDNs", "Requires")
_ONLY_TO: Final = ("Services", "FQDNs")
_GONE: Final = "Requires"
_ABSENT_WHEN_EMPTY: Final = ("FQDNs", "Groups", _GONE)
"""Lists for which Cilium treats empty and absent the same."""


def names(direction: Direction, *, deny: bool) -> dict[str, str]:
    """The peer fields of an item, with the kind of each."""
    side = PEER_FIELD[direction]
    kinds = [each for each in _KINDS if direction is Direction.EGRESS or each not in _ONLY_TO]
    return {f"{side}{each}": each for each in kinds if not (deny and each == "FQDNs")}


def peers(
    item: Field, found: dict[str, Field], direction: Direction, document: Document, *, deny: bool, for_init: bool
) -> tuple[Peer, ...] | None:
    """The peers of a rule item; None when it names none, which is every peer."""
    kinds = names(direction, deny=deny)
    given = {name: found[name] for name in kinds if name in found and not _absent(found[name], kinds[name], document)}
    used = [name for name, field in given.items() if field.items()]
    if len(used) > 1:
        item.fail(f"combining {_title(used[0])} and {_title(used[1])} is not supported yet")
    if not given:
        return None
    read = [peer for name in used for peer in _read(kinds[name], given[name], document, deny=deny, for_init=for_init)]
    # An empty list selects no peer, also next to a non-empty one: absent and empty must never mean the same.
    return tuple(read) if len(used) == len(given) else ()


def all_known(found: dict[str, Field]) -> bool:
    """False for an item with peers outside whose addresses are unknown."""
    return not any(found[name].items() for name in ("toFQDNs", "fromGroups", "toGroups") if name in found)


def _absent(field: Field, kind: str, document: Document) -> bool:
    if field.items() or kind not in _ABSENT_WHEN_EMPTY:
        return False
    if kind != _GONE:
        document.note(field, "is empty, the same as an absent field: every peer")
    return True


def _read(kind: str, field: Field, document: Document, *, deny: bool, for_init: bool) -> Iterable[Peer]:
    match kind:
        case "Endpoints":
            return map(SelectorPeer, field.each(partial(selectors.peer, document=document, for_init=for_init)))
        case "CIDR":
            return field.each(partial(cidrs.cidr, document=document))
        case "CIDRSet":
            return field.each(partial(cidrs.cidr_set, document=document))
        case "Entities":
            return chain.from_iterable(field.each(_entity))
        case "Nodes":
            return _nodes(field, document)
        case "Services":
            return chain.from_iterable(field.each(partial(services, document=document)))
        case "FQDNs":
            dns.check_peers(field.items())
            document.unenforceable(field, "is not supported yet: it matches no peer")
            return ()
        case "Groups":
            return _groups(field, document, deny=deny)
    name = field.at.rpartition(".")[2]
    return field.fail(f"{name} was removed from Cilium; use matchExpressions in the selectors instead")


def _nodes(field: Field, document: Document) -> Iterable[Peer]:
    found = [SelectorPeer(one) for one in field.each(selectors.node)]
    if found and not document.options.node_selectors:
        what = 'FromNodes/ToNodes rules can only be applied when the "enable-node-selector-labels" flag is set'
        field.fail(what, unsupported=True)
    return found


def _groups(field: Field, document: Document, *, deny: bool) -> Iterable[Peer]:
    """Cloud provider groups: their addresses are unknown. An allow rule matches no peer; a deny rule is rejected."""
    field.each(partial(Field.mapping, known=("aws",)))
    if deny:
        field.fail("cloud provider groups are not supported", unsupported=True)
    document.unenforceable(field, "is not supported: cloud provider groups match no peer")
    return ()


def _title(name: str) -> str:
    return name[0].upper() + name[1:]


def _entity(field: Field) -> tuple[Peer, ...]:
    name = field.text()
    if name not in ENTITIES:
        field.fail(f"unsupported entity: {name if name.isalnum() else quoted(name)}")
    return ENTITIES[name]
