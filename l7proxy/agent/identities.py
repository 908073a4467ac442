"""Numbers for label sets and for the networks that policies name (Cilium's identities)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

from l7proxy.model.facts import Key, Pod
from l7proxy.model.identity import (
    FIRST_POD_IDENTITY,
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
from l7proxy.model.net import Network

APISERVER_LABEL: Final = Label(RESERVED, "kube-apiserver")


def worlds(*, dual: bool) -> dict[Network, IdentityId]:
    """The outside of each family. With one family in use both are `world`; in dual stack each has its own."""
    v4, v6 = IPv4Network("0.0.0.0/0"), IPv6Network("::/0")
    return {v4: WORLD_IPV4 if dual else WORLD, v6: WORLD_IPV6 if dual else WORLD}


def reserved(*, dual: bool, host_is_apiserver: bool) -> dict[int, Identity]:
    """Cilium's reserved identities; the local host's also says whether an API server runs on it."""
    found: dict[int, Identity] = {number: Identity(number, labels) for number, labels in RESERVED_IDENTITIES.items()}
    if dual:
        for network, number in worlds(dual=True).items():
            found[number] = replace(found[number], cidr=network)
    if host_is_apiserver:
        labels = LabelSet(RESERVED_IDENTITIES[HOST].labels | {APISERVER_LABEL})
        found[HOST] = Identity(HOST, labels)
    return found


def of_pods(pods: Iterable[tuple[Pod, LabelSet]]) -> tuple[dict[Key, IdentityId], dict[int, Identity]]:
    """(identity number of each pod, identities). Pods with the same labels and the same named ports share one."""
    spelled = {pod.key: (_spelling(pod, labels), pod, labels) for pod, labels in pods}
    numbers = allocate((text for text, _, _ in spelled.values()), first=FIRST_POD_IDENTITY, end=LOCAL_SCOPE)
    by_pod = {key: IdentityId(numbers[text]) for key, (text, _, _) in spelled.items()}
    identities: dict[int, Identity] = {
        by_pod[key]: Identity(by_pod[key], labels, pod.named_ports) for key, (_, pod, labels) in spelled.items()
    }
    return by_pod, identities


def _spelling(pod: Pod, labels: LabelSet) -> str:
    return repr((labels.text, sorted(pod.named_ports)))


def of_networks(networks: Iterable[Network], apiservers: Iterable[str], *, dual: bool) -> dict[Network, Identity]:
    """Local identities: each network that a policy names, and each address of an API server outside the cluster."""
    outside = {ip_network(address) for address in apiservers}
    wanted = {network for network in networks if network.prefixlen} | outside
    numbers = allocate((str(network) for network in wanted), first=LOCAL_SCOPE, end=2 * LOCAL_SCOPE)
    names = {network.version: _world_name(number) for network, number in worlds(dual=dual).items()}
    found: dict[Network, Identity] = {}
    for network in sorted(wanted, key=str):
        labels = cidr_labels(network, names[network.version])
        if network in outside:
            labels = LabelSet(labels.labels | {APISERVER_LABEL})
        found[network] = Identity(IdentityId(numbers[str(network)]), labels, cidr=network)
    return found


def _world_name(number: IdentityId) -> str:
    return next(label.key for label in RESERVED_IDENTITIES[number].labels)


def is_dual(addresses: Iterable[str]) -> bool:
    """True when pods and nodes have addresses of both families."""
    return len({":" in address for address in addresses}) == 2


def table(*parts: Mapping[int, Identity], networks: Mapping[Network, Identity]) -> dict[int, Identity]:
    """All identities by number, ascending."""
    everyone: dict[int, Identity] = {identity.id: identity for identity in networks.values()}
    for part in parts:
        everyone |= part
    return dict(sorted(everyone.items()))
