"""The ipsets of the iptables backend, named by content, so that a set in use never changes.

Other members need another set, to which the rules move in one commit. Sets used by rules are never swapped, changed or
flushed: packets could pass between the changes of two sets.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import ip_network

from tproxy_rules.marks import CHAIN_PREFIX
from tproxy_rules.networks import family

_MIN_MAXELEM = 65536


@dataclass(frozen=True, slots=True, eq=False)
class IpSet:
    """One set, as input for `ipset restore`. Members are computed only on demand."""

    name: str
    kind: str
    version: int
    make: Callable[[], tuple[str, ...]]

    @property
    def members(self) -> tuple[str, ...]:
        return self.make()

    def text(self, name: str = "") -> str:
        """Commands that create the set, optionally under another name."""
        name, members = name or self.name, self.members
        inet = "inet" if self.version == 4 else "inet6"
        room = max(_MIN_MAXELEM, len(members))
        lines = [f"create {name} {self.kind} family {inet} maxelem {room} -exist"]
        lines += [f"add {name} {member} -exist" for member in members]
        return "\n".join(lines) + "\n"


def ip_set(role: str, kind: str, version: int, members: Iterable[str]) -> IpSet:
    """A set named by a digest of its content (ipset allows 31 characters)."""
    listed = tuple(sorted(set(members)))
    return IpSet(_name(role, kind, version, listed), kind, version, lambda: listed)


def addresses(role: str, version: int, members: Iterable[str]) -> IpSet:
    """A set of host addresses of one IP family."""
    return ip_set(role, "hash:net", version, (one for one in members if family(one) == version))


def _name(role: str, kind: str, version: int, content: Iterable[str]) -> str:
    mark = hashlib.sha256("\n".join((kind, str(version), *content)).encode()).hexdigest()[:12]
    return f"{CHAIN_PREFIX}{role}{version}-{mark}"


class PeerSets:
    """Sets of the addresses of given identities, by longest prefix.

    `hash:net` searches from the longest prefix to the shortest and stops at an exception (`nomatch`). This is the rule
    for identities: a prefix of another identity inside one of the given identities is an exception.
    """

    def __init__(self, identities: Iterable[tuple[str, int]], version: int) -> None:
        self._version = version
        self._made: dict[tuple[int, ...], IpSet | None] = {}
        self._contents: dict[int, str] = {}
        self._of: dict[int, list[_Prefix]] = defaultdict(list)
        found = [(*_parsed(text), text, number) for text, number in identities if family(text) == version]
        bits = 32 if version == 4 else 128
        within: list[_Prefix] = []
        for first, length, text, number in sorted(found):
            one = _Prefix(first >> (bits - length), length, text, number)
            while within and within[-1].start != first >> (bits - within[-1].length):
                within.pop()
            if within:
                within[-1].inside.append(one)
            if length < bits:
                within.append(one)
            self._of[number].append(one)

    def of(self, peers: tuple[int, ...]) -> IpSet | None:
        """The set of these peers, the same object for the same peers; None if they have no address."""
        if peers not in self._made:
            known = [self._content(peer) for peer in peers if peer in self._of]
            name = _name("p", "hash:net", self._version, sorted(known))
            made = IpSet(name, "hash:net", self._version, lambda: tuple(sorted(self._members(frozenset(peers)))))
            self._made[peers] = made if known else None
        return self._made[peers]

    def made(self) -> tuple[IpSet, ...]:
        return tuple(one for one in self._made.values() if one is not None)

    def _content(self, peer: int) -> str:
        """A digest of one identity's prefixes and those inside them. All peers of a set determine the exceptions."""
        if peer not in self._contents:
            texts = (text for one in self._of[peer] for text in (one.text, *one.texts_inside(), ""))
            self._contents[peer] = hashlib.sha256("\n".join(texts).encode()).hexdigest()
        return self._contents[peer]

    def _members(self, peers: frozenset[int]) -> Iterable[str]:
        """Work grows with the members, not with all identities."""
        found: dict[str, _Prefix] = {}
        waiting = [one for peer in peers for one in self._of.get(peer, ())]
        while waiting:
            one = waiting.pop()
            if one.text not in found:
                found[one.text] = one
                waiting += one.inside
        members: dict[str, bool] = {}
        # The default first: hash:net has no /0, so it becomes two /1, which real /1 prefixes override.
        for one in sorted(found.values(), key=lambda one: one.length):
            for part in map(str, ip_network(one.text).subnets()) if one.length == 0 else (one.text,):
                members[part] = one.identity in peers
        return (prefix if ours else f"{prefix} nomatch" for prefix, ours in members.items())


@lru_cache(maxsize=1 << 16)
def _parsed(prefix: str) -> tuple[int, int]:
    network = ip_network(prefix)
    return int(network.network_address), network.prefixlen


@dataclass(slots=True, eq=False)
class _Prefix:
    """A prefix and the prefixes directly inside it. `start` is its first `length` bits."""

    start: int
    length: int
    text: str
    identity: int
    inside: list[_Prefix] = field(default_factory=list)

    def texts_inside(self) -> Iterator[str]:
        for one in self.inside:
            yield one.text
            yield from one.texts_inside()
