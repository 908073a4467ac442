"""Allocates identity numbers to label sets and to the networks that policies name (Cilium identities).

A CIDR in a policy may match pod and node addresses (`Reach.ANYWHERE`). Then addresses with equal labels that lie in
different networks of this kind get different numbers, and a pod with two addresses may have two identities.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

from l7proxy.model.identity import (
    CONTESTED,
    HOST,
    LOCAL_SCOPE,
    RESERVED_IDENTITIES,
    WORLD,
    WORLD_IPV4,
    WORLD_IPV6,
    Identity,
    allocate,
    cidr_labels,
)
from l7proxy.model.ids import IdentityId
from l7proxy.model.labels import RESERVED, Label, LabelSet
from l7proxy.model.net import Network, Networks
from l7proxy.policy.rules import Reach

NODE_SCOPE: Final = 2 * LOCAL_SCOPE
"""First identity number of nodes that a policy distinguishes, as in Cilium."""
CONTESTED_KEY: Final = "l7proxy-contested-address"
APISERVER_LABEL: Final = Label(RESERVED, "kube-apiserver")


def worlds(*, dual: bool) -> dict[Network, IdentityId]:
    """The `world` identity of each IP version: `world` for both with one version in use, one each in dual stack."""
    v4, v6 = IPv4Network("0.0.0.0/0"), IPv6Network("::/0")
    return {v4: WORLD_IPV4 if dual else WORLD, v6: WORLD_IPV6 if dual else WORLD}


def reserved(*, dual: bool, host_is_apiserver: bool, contested: bool) -> dict[int, Identity]:
    """Cilium's reserved identities; `host` also has the label kube-apiserver if an API server runs on this node.
    `contested`: there is an address that two pods claim."""
    found: dict[int, Identity] = {number: Identity(number, labels) for number, labels in RESERVED_IDENTITIES.items()}
    if dual:
        for network, number in worlds(dual=True).items():
            found[number] = replace(found[number], cidr=network)
    found[HOST] = Identity(HOST, host_labels(is_apiserver=host_is_apiserver))
    if contested:
        found[CONTESTED] = Identity(CONTESTED, LabelSet.reserved(CONTESTED_KEY))
    return found


def host_labels(*, is_apiserver: bool) -> LabelSet:
    """Labels of the identity `host`, which all of this node's addresses have on this node."""
    labels = RESERVED_IDENTITIES[HOST]
    return LabelSet.of((*labels.labels, APISERVER_LABEL)) if is_apiserver else labels


@dataclass(frozen=True)
class Named:
    """The networks that policies match against pod addresses (`far`) and against node addresses (`of_nodes`)."""

    far: frozenset[Network]
    of_nodes: Networks

    @classmethod
    def among(cls, reaches: Mapping[Network, Reach]) -> Named:
        far = [network for network, reach in reaches.items() if reach is Reach.ANYWHERE]
        return cls(frozenset(far), Networks(far + [one for one, reach in reaches.items() if reach is Reach.NODES]))


def of_places(
    places: Mapping[Network, tuple[IdentityId, LabelSet]], named: Named
) -> tuple[dict[Network, IdentityId], dict[int, Identity]]:
    """Identities of node addresses, and of pod CIDRs for addresses without a known pod: the given reserved ones.

    A place inside a network that policies name, or with additional labels, gets its own number instead.
    The host has number 1 at addresses that no policy names.
    """
    spelled: dict[Network, str] = {}
    meant: dict[str, Identity] = {}
    numbers: dict[Network, IdentityId] = {}
    for place, (number, labels) in places.items():
        networks = named.of_nodes.holding(place)
        if not networks and (number == HOST or labels == RESERVED_IDENTITIES[number]):
            numbers[place] = number
        else:
            spelling = spelled[place] = repr(labels.text) + _spelling(networks)
            meant[spelling] = Identity(IdentityId(0), labels, networks=networks)
    own = allocate(meant, first=NODE_SCOPE, end=NODE_SCOPE + LOCAL_SCOPE)
    identities: dict[int, Identity] = {own[text]: replace(one, id=IdentityId(own[text])) for text, one in meant.items()}
    return numbers | {place: IdentityId(own[text]) for place, text in spelled.items()}, identities


def _spelling(networks: frozenset[Network]) -> str:
    return repr(sorted(map(str, networks))) if networks else ""


def of_networks(networks: Iterable[Network], apiservers: Iterable[str], *, dual: bool) -> dict[Network, Identity]:
    """Local identities: one per network that a policy names, and one per API server address outside the cluster."""
    outside = {ip_network(address) for address in apiservers}
    wanted = {network for network in networks if network.prefixlen} | outside
    numbers = allocate((str(network) for network in wanted), first=LOCAL_SCOPE, end=2 * LOCAL_SCOPE)
    names = {network.version: _world_name(number) for network, number in worlds(dual=dual).items()}
    found: dict[Network, Identity] = {}
    for network in sorted(wanted, key=str):
        labels = cidr_labels(network, names[network.version])
        if network in outside:
            labels = LabelSet.of((*labels.labels, APISERVER_LABEL))
        found[network] = Identity(IdentityId(numbers[str(network)]), labels, cidr=network)
    return found


def _world_name(number: IdentityId) -> str:
    return next(label.key for label in RESERVED_IDENTITIES[number].labels)


def table(*parts: Mapping[int, Identity], networks: Mapping[Network, Identity]) -> dict[int, Identity]:
    """Number → identity for all of them, in ascending order."""
    everyone: dict[int, Identity] = {identity.id: identity for identity in networks.values()}
    for part in parts:
        everyone |= part
    return dict(sorted(everyone.items()))
