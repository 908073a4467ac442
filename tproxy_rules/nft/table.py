"""An nftables table as data: renders the full text, or the difference from another table of the same name.

Each text is for one transaction. The difference has only members added or removed, chains and sets added or removed,
and the rules of changed chains. Sets and chains are identified by name, so a name must not change its kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, Protocol

from tproxy_rules.networks import Range, changed, family
from tproxy_rules.nft.text import absent, as_bits, identity
from tproxy_rules.shapes import Cells

TOGETHER: Final = 1000
"""Members of a set that are one piece of its text."""


class Members(Protocol):
    """The members of a set: text per member, and the difference to another set."""

    def __iter__(self) -> Iterator[str]: ...

    def without(self, other: Members) -> Iterable[str]:
        """The members that `other` lacks. Both must be of the same class."""


@dataclass(frozen=True, slots=True)
class Lines:
    """Members as text."""

    lines: frozenset[str]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.lines))

    def without(self, other: Members) -> Iterable[str]:
        return sorted(self.lines - other.lines) if isinstance(other, Lines) else self


@dataclass(frozen=True, slots=True)
class Hosts:
    """Addresses with identities, for maps."""

    identities: Mapping[str, int]

    def __iter__(self) -> Iterator[str]:
        return self.without(Hosts({}))

    def without(self, other: Members) -> Iterator[str]:
        theirs: Mapping[str, int] = other.identities if isinstance(other, Hosts) else {}
        found = ((one, ours, theirs.get(one)) for one, ours in _numbered(self.identities, theirs))
        return (f"{address} : {identity(ours)}" for address, ours, other in found if ours != other)


@dataclass(frozen=True, slots=True)
class Listed:
    """Addresses only, as text or as the 128 bits of an IPv6 address in a message."""

    identities: Mapping[str, int]
    as_bits: bool = False

    def __iter__(self) -> Iterator[str]:
        return self.without(Listed({}))

    def without(self, other: Members) -> Iterator[str]:
        theirs: Mapping[str, int] = other.identities if isinstance(other, Listed) else {}
        found = (address for address, _ in _numbered(self.identities, theirs) if address not in theirs)
        return (as_bits(address) if self.as_bits else address for address in found)


@dataclass(frozen=True, slots=True)
class Ranges:
    """Ranges of addresses with identities, for interval maps."""

    ranges: tuple[Range, ...]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(f"{one.first}-{one.last} : {identity(one.identity)}" for one in self.ranges))

    def without(self, other: Members) -> Iterable[str]:
        theirs = other.ranges if isinstance(other, Ranges) else ()
        return () if theirs is self.ranges else sorted(set(self) - set(other))


def _numbered(identities: Mapping[str, int], theirs: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Those of the identities that may differ from others, sorted."""
    for address in sorted(changed(theirs, identities)):
        number = identities.get(address)
        if number is not None:
            yield address, number


@dataclass(frozen=True, slots=True)
class Peers:
    """The cells of a policy stage. Cells with equal peers are skipped in a difference."""

    cells: Cells

    def __iter__(self) -> Iterator[str]:
        return iter(self.without(self))

    def without(self, other: Members) -> Iterable[str]:
        theirs: Cells = other.cells if isinstance(other, Peers) and other is not self else {}
        if theirs is self.cells:
            return
        for cell, peers in sorted(self.cells.items()):
            known = theirs.get(cell, ())
            if peers is not known and peers != known:
                words = [_ports(cell)] if cell[0] >= 0 else []
                if peers is None:
                    yield " . ".join(words)
                for peer in sorted(set(peers or ()).difference(known or ())):
                    yield " . ".join((identity(peer), *words))


def _ports(cell: tuple[int, int, int]) -> str:
    protocol, first, last = cell
    if first < 0:
        return str(protocol)
    return f"{protocol} . {first}" if first == last else f"{protocol} . {first}-{last}"


@dataclass(frozen=True, slots=True)
class Set:
    """A set, or a map if `kind` contains ` : `. `of` says how the kind is written: as types or as expressions."""

    name: str
    kind: str
    members: Members
    interval: bool = False
    of: str = "type"
    dynamic: str = ""
    """nft flags of a set that packets fill; its members are not part of the state."""

    @property
    def sort(self) -> str:
        return "map" if " : " in self.kind else "set"

    @property
    def is_tree(self) -> bool:
        """True for adjacent ranges of one field, where removing a single member can fail."""
        return self.interval and " . " not in self.kind

    def pieces(self) -> Iterator[str]:
        """Its text in parts: there may be a hundred thousand members."""
        flags = "\t\tflags interval\n" if self.interval else self.dynamic
        yield f"\t{self.sort} {self.name} {{\n\t\t{self.of} {self.kind}\n{flags}"
        before = "\t\telements = {\n\t\t\t"
        members = iter(self.members)
        while some := list(islice(members, TOGETHER)):
            yield before + ",\n\t\t\t".join(some)
            before = ",\n\t\t\t"
        yield "\n\t\t}\n\t}\n" if before.startswith(",") else "\t}\n"

    def text(self) -> str:
        return "".join(self.pieces())


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain. With a hook it is a base chain with policy accept: refusals are always rules."""

    name: str
    rules: tuple[str, ...]
    hook: str = ""
    priority: int = 0
    kind: str = "filter"

    def text(self) -> str:
        base = [f"type {self.kind} hook {self.hook} priority {self.priority}; policy accept;"] if self.hook else []
        return f"\tchain {self.name} {{\n" + "".join(f"\t\t{line}\n" for line in (*base, *self.rules)) + "\t}\n"


@dataclass(frozen=True, slots=True)
class NftTable:
    """`head` holds named limits, which cannot be changed in place."""

    family: str
    name: str
    head: str
    sets: Mapping[str, Set] = field(default_factory=dict)
    chains: Mapping[str, Chain] = field(default_factory=dict)

    def pieces(self) -> Iterator[str]:
        """The full text in parts, which replaces any table of this name: declare, delete, define.

        Deleting and adding in two transactions would let packets pass in between. The declaration makes the deletion
        succeed if there is no table yet.
        """
        yield f"{absent(self.family, self.name)}table {self.family} {self.name} {{\n{self.head}"
        for one in self.sets.values():
            yield "\n"
            yield from one.pieces()
        for chain in self.chains.values():
            yield "\n" + chain.text()
        yield "}\n"

    def text(self) -> str:
        return "".join(self.pieces())


def chain(name: str, rules: Iterable[str], *, hook: str = "", priority: int = 0, kind: str = "filter") -> Chain:
    """A rule may hold several, one per line."""
    return Chain(name, tuple(line for rule in rules for line in rule.split("\n")), hook, priority, kind)


def named_set(name: str, kind: str, elements: Iterable[str], *, interval: bool = False, of: str = "type") -> Set:
    return Set(name, kind, Lines(frozenset(elements)), interval, of)


def prefix_sets(name: str, prefixes: Sequence[str]) -> Iterator[Set]:
    """A set for each IP version, also if it is empty; no sets if there are no prefixes at all."""
    for version in (4, 6) if prefixes else ():
        members = [prefix for prefix in prefixes if family(prefix) == version]
        yield named_set(f"{name}{version}", f"ipv{version}_addr", members, interval=True)


def dynamic_set(name: str, kind: str, *, seconds: int = 0) -> Set:
    """A set that rules fill, limited to 65535 members; unused members expire after `seconds`."""
    lines = f"\t\tflags dynamic,timeout\n\t\ttimeout {seconds}s\n" if seconds else "\t\tflags dynamic\n"
    return Set(name, kind, Lines(frozenset()), dynamic="\t\tsize 65535\n" + lines)


def made(family: str, name: str, head: str, parts: Iterable[Set | Chain]) -> NftTable:
    listed = list(parts)
    sets = {one.name: one for one in listed if isinstance(one, Set)}
    chains = {one.name: one for one in listed if isinstance(one, Chain)}
    return NftTable(family, name, head, sets, chains)


def alike(old: NftTable, new: NftTable) -> bool:
    """True if `delta` can convert one into the other: hooks and heads cannot be changed in place."""
    before, after = (
        {(chain.name, chain.hook, chain.priority, chain.kind) for chain in one.chains.values() if chain.hook}
        for one in (old, new)
    )
    return (old.family, old.name, old.head) == (new.family, new.name, new.head) and before == after


def delta(old: NftTable, new: NftTable) -> str:
    """The commands that convert `old` into `new`, if both are `alike`.

    References are removed before their targets and added after them.
    """
    at = f"{new.family} {new.name}"
    changed = [chain for chain in new.chains.values() if old.chains.get(chain.name) != chain]
    stale_chains = [name for name in old.chains if name not in new.chains]
    stale_sets = [one for one in old.sets.values() if one.name not in new.sets]
    fresh_sets = [one for one in new.sets.values() if one.name not in old.sets]
    differences = [_difference(at, old.sets[one.name], one) for one in new.sets.values() if one.name in old.sets]
    lines = [f"flush chain {at} {chain.name}" for chain in changed if chain.name in old.chains]
    lines += [f"flush chain {at} {name}" for name in stale_chains]
    lines += [gone for gone, _ in differences if gone]
    lines += [f"delete chain {at} {name}" for name in stale_chains]
    lines += [f"delete {one.sort} {at} {one.name}" for one in stale_sets]
    lines += [f"add chain {at} {chain.name}" for chain in changed if chain.name not in old.chains]
    if fresh_sets:
        lines.append(f"table {at} {{\n" + "\n".join(one.text() for one in fresh_sets) + "}")
    lines += [come for _, come in differences if come]
    lines += [f"add rule {at} {chain.name} {rule}" for chain in changed for rule in chain.rules]
    return "".join(f"{line}\n" for line in lines)


def _difference(at: str, before: Set, one: Set) -> tuple[str, str]:
    """The commands that remove old members, and those that add new ones."""
    gone, come = list(before.members.without(one.members)), list(one.members.without(before.members))
    if one.is_tree and (gone or come):
        return f"flush {one.sort} {at} {one.name}", _adding(at, one, one.members)
    keys = ", ".join(member.partition(" : ")[0] for member in gone)
    return keys and f"delete element {at} {one.name} {{ {keys} }}", _adding(at, one, come)


def _adding(at: str, one: Set, members: Iterable[str]) -> str:
    listed = ", ".join(members)
    return listed and f"add element {at} {one.name} {{ {listed} }}"
