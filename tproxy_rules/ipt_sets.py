"""The ipsets of the iptables picture. Named by content, so that a set in use never changes.

A picture that needs other members needs another set, and the rules move over to it in one commit. Nothing is swapped
or flushed under live rules.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network

from tproxy_rules.marks import CHAIN_PREFIX
from tproxy_rules.networks import Network, family

_MIN_MAXELEM = 65536


@dataclass(frozen=True, slots=True)
class IpSet:
    """One set: what `ipset restore` is told to make."""

    name: str
    kind: str
    version: int
    members: tuple[str, ...]

    def text(self, name: str = "") -> str:
        """Commands that make it, under another name if one is given."""
        name = name or self.name
        inet = "inet" if self.version == 4 else "inet6"
        room = max(_MIN_MAXELEM, len(self.members))
        lines = [f"create {name} {self.kind} family {inet} maxelem {room} -exist"]
        lines += [f"add {name} {member} -exist" for member in self.members]
        return "\n".join(lines) + "\n"


def ip_set(role: str, kind: str, version: int, members: Iterable[str]) -> IpSet:
    """A set under its content's name (ipset allows 31 characters)."""
    listed = tuple(sorted(set(members)))
    mark = hashlib.sha256("\n".join((kind, str(version), *listed)).encode()).hexdigest()[:12]
    return IpSet(f"{CHAIN_PREFIX}{role}{version}-{mark}", kind, version, listed)


def addresses(role: str, version: int, members: Iterable[str]) -> IpSet:
    """A set of host addresses of one family."""
    return ip_set(role, "hash:net", version, (one for one in members if family(one) == version))


class PeerSets:
    """Sets of the addresses that have one of some identities, longest prefix first.

    `hash:net` looks from the longest prefix to the shortest and stops at an exception (`nomatch`), which is exactly
    the law of identities: a prefix of another identity inside one of ours is such an exception.
    """

    def __init__(self, identities: Sequence[tuple[str, int]], version: int) -> None:
        self._version = version
        self._made: dict[tuple[int, ...], IpSet] = {}
        self._of: dict[int, list[_Prefix]] = defaultdict(list)
        networks = ((ip_network(prefix), number) for prefix, number in identities if family(prefix) == version)
        within: list[_Prefix] = []
        for network, number in sorted(networks, key=lambda item: (item[0].network_address, item[0].prefixlen)):
            one = _Prefix(network, number)
            while within and not within[-1].holds(one):
                within.pop()
            if within:
                within[-1].inside.append(one)
            within.append(one)
            self._of[number].append(one)

    def of(self, peers: tuple[int, ...]) -> IpSet:
        """The set of these peers, the same object for the same peers."""
        if peers not in self._made:
            self._made[peers] = ip_set("p", "hash:net", self._version, self._members(frozenset(peers)))
        return self._made[peers]

    def made(self) -> tuple[IpSet, ...]:
        return tuple(self._made.values())

    def _members(self, peers: frozenset[int]) -> Iterable[str]:
        """Work grows with the members, not with the identities there are."""
        found: dict[int, _Prefix] = {}
        waiting = [one for peer in peers for one in self._of.get(peer, ())]
        while waiting:
            one = waiting.pop()
            if id(one) not in found:
                found[id(one)] = one
                waiting += one.inside
        members: dict[str, bool] = {}
        # The default first: hash:net has no /0, and a /1 of its own overrides the half it is put for.
        for one in sorted(found.values(), key=lambda one: one.network.prefixlen):
            for part in one.network.subnets() if one.network.prefixlen == 0 else (one.network,):
                members[str(part)] = one.identity in peers
        return (prefix if ours else f"{prefix} nomatch" for prefix, ours in members.items())


@dataclass(slots=True, eq=False)
class _Prefix:
    """A prefix and those directly inside it."""

    network: Network
    identity: int
    inside: list[_Prefix] = field(default_factory=list)

    def holds(self, other: _Prefix) -> bool:
        bits = self.network.max_prefixlen - self.network.prefixlen
        return int(self.network.network_address) >> bits == int(other.network.network_address) >> bits
