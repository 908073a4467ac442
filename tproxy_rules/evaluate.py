"""The semantics of `desired` as a pure function: the verdict on a connection's original direction.

`fake.FakeBackend` implements the same semantics for single packets; this module is fast enough for 100 000 connections.
Tests compare both.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address, ip_network
from itertools import zip_longest
from typing import Final

from tproxy_rules.desired import Desired, Endpoint, Entry, Stage, Table, Tier, Verdict
from tproxy_rules.digest import canonical
from tproxy_rules.networks import Identities, family, split
from tproxy_rules.validate import ANY_PROTOCOL, WITH_PORTS


@dataclass(frozen=True, slots=True)
class Connection:
    """The original direction as policy sees it: source before masquerading, destination after Service DNAT.

    Addresses are canonical text. For ICMP the port is type · 256 + code.
    """

    source: str
    destination: str
    protocol: int
    port: int


class Evaluator:
    """Verdicts of one desired state. `local` are this node's addresses: packets from them have the host identity."""

    def __init__(self, desired: Desired, local: Collection[str] = ()) -> None:
        self._host = desired.host_identity
        self._redirected: Final = desired.settings.redirected
        self._local: Final = frozenset(local)
        self._held: Final = [ip_network(prefix) for prefix in desired.held]
        self._endpoints: Final = {address: one for one in desired.endpoints for address in one.addresses}
        self._frontends: Final = {(one.address, one.protocol, one.port) for one in desired.frontends}
        self._identities: Final = desired.identities
        self._canonical: Final[dict[tuple[int, bool], Table]] = {}
        self._answers: Final[dict[tuple[int, bool, int, int, int], Verdict]] = {}

    @cached_property
    def _nets(self) -> Mapping[int, _Net]:
        """Made when a connection asks for an identity: there are many prefixes, and mostly no connection is asked for
        after a change."""
        return {version: _Net(found) for version, found in split(self._identities).items()}

    def of(self, one: Connection) -> Verdict:
        """DENY, STEER or ALLOW. STEER for Service addresses, which only the proxy resolves and evaluates."""
        verdict = self._verdict(one)
        return Verdict.DENY if verdict is Verdict.STEER and one.protocol not in self._redirected else verdict

    def _verdict(self, one: Connection) -> Verdict:
        if (one.destination, one.protocol, one.port) in self._frontends:
            return Verdict.STEER
        from_here = one.source in self._local
        source, target = self._endpoints.get(one.source), self._endpoints.get(one.destination)
        if source is not None and source is target:
            return Verdict.ALLOW
        if not from_here and (self._is_held(one.source) or self._is_held(one.destination)):
            return Verdict.DENY
        return max(self._asked(one, source, target, from_here), default=Verdict.ALLOW)

    def _asked(
        self, one: Connection, source: Endpoint | None, target: Endpoint | None, from_here: bool
    ) -> Iterable[Verdict]:
        if source is not None and source.egress is not None and not from_here:
            yield self._ask(source.id, source.egress, self._identity(one.destination), one, egress=True)
        if target is not None and target.ingress is not None:
            who = self._host if from_here else self._identity(one.source)
            yield self._ask(target.id, target.ingress, who, one, egress=False)

    def _ask(self, number: int, table: Table, identity: int, one: Connection, *, egress: bool) -> Verdict:
        """Cached by endpoint and direction, because hashing a table is slower than evaluating it."""
        question = number, egress, identity, one.protocol, one.port
        answer = self._answers.get(question)
        if answer is None:
            whole = self._canonical.get((number, egress)) or canonical(table)
            self._canonical[number, egress] = whole
            answer = self._answers[question] = _ask(whole, identity, one.protocol, one.port)
        return answer

    def _is_held(self, address: str) -> bool:
        """Whether it is in a prefix of this node's pods, without an identity of its own."""
        if not self._held or self._nets[family(address)].lists(address):
            return False
        parsed = ip_address(address)
        return address not in self._local and any(parsed in one for one in self._held)

    def _identity(self, address: str) -> int:
        return self._nets[family(address)].of(address)


class _Net:
    """Longest prefix match in one IP family."""

    def __init__(self, found: Identities) -> None:
        self._hosts: Mapping[str, int] = found.hosts
        self._ranges = found.ranges
        self._firsts = [int(one.first) for one in found.ranges]
        self._default = found.default

    def lists(self, address: str) -> bool:
        return address in self._hosts

    def of(self, address: str) -> int:
        host = self._hosts.get(address)
        if host is not None:
            return host
        number = int(ip_address(address))
        at = bisect_right(self._firsts, number) - 1
        if at >= 0 and number <= int(self._ranges[at].last):
            return self._ranges[at].identity
        return self._default


def _ask(table: Table, identity: int, protocol: int, port: int) -> Verdict:
    """DENY, STEER or ALLOW: by tier, then the first stage that covers the packet, then the highest verdict."""
    for tier in table.tiers:
        found = next((one for stage in tier.stages if (one := _strongest(stage, identity, protocol, port)) >= 0), None)
        if found is None and tier.closed:
            return Verdict.DENY
        if found is not None and found != Verdict.PASS:
            return Verdict(found)
    return Verdict.ALLOW


def _strongest(stage: Stage, identity: int, protocol: int, port: int) -> int:
    """The highest verdict, or -1 if no entry covers the packet."""
    return max((int(one.verdict) for one in stage if _covers(one, identity, protocol, port)), default=-1)


def _covers(entry: Entry, identity: int, protocol: int, port: int) -> bool:
    if entry.protocol != ANY_PROTOCOL:
        if entry.protocol != protocol:
            return False
        if protocol in WITH_PORTS and not entry.first <= port <= entry.last:
            return False
    if entry.any_peer:
        return True
    at = bisect_left(entry.peers, identity)
    return at < len(entry.peers) and entry.peers[at] == identity


def is_wider(before: Table, after: Table, redirected: Collection[int]) -> bool:
    """True if `after` provably refuses nothing that `before` accepted: only ALLOW entries are added, and STEER entries
    of protocols that are redirected."""
    return len(before.tiers) == len(after.tiers) and all(
        _is_wider_tier(old, new, redirected) for old, new in zip(before.tiers, after.tiers, strict=True)
    )


def _is_wider_tier(before: Tier, after: Tier, redirected: Collection[int]) -> bool:
    stages = zip_longest(before.stages, after.stages, fillvalue=())
    return before.closed >= after.closed and all(_is_wider_stage(old, new, redirected) for old, new in stages)


def _is_wider_stage(before: Stage, after: Stage, redirected: Collection[int]) -> bool:
    gone, come = set(before) - set(after), set(after) - set(before)
    return not gone and all(
        one.verdict is Verdict.ALLOW or (one.verdict is Verdict.STEER and one.protocol in redirected) for one in come
    )
