"""Both ends of a connection: the identity, endpoint and policy of each address, and the verdict of both directions.

Workers ask for connections, the agent for kernel events, and `policy trace` for questions of users (law 5).

- An endpoint may always reach itself, by any of its addresses: no policy applies.
- The policy of an address of several endpoints is unknown: traffic from it and to it is refused.
- A pod interface without a Pod object is an endpoint like any other; its policy refuses.
- An address that is no endpoint of this node has an identity only, and no policy applies to it here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from l7proxy.model.cache import remember
from l7proxy.model.identity import UNKNOWN
from l7proxy.model.net import HostPort, PrefixTable
from l7proxy.model.policy_verdict import Conn, PolicyVerdict
from l7proxy.model.verdict import Verdict
from l7proxy.policy import decide
from l7proxy.policy.combine import VerdictCache, evaluate_l4, evaluate_l7
from l7proxy.policy.decide import Decision, PortPolicy
from l7proxy.policy.http_table import HttpTables
from l7proxy.policy.l7 import Kind
from l7proxy.policy.tables import LocalEndpoint

REMEMBERED: Final = 16384
"""Most lookups that an index caches: pods choose the addresses and ports."""


@dataclass(frozen=True, slots=True)
class ConnectionEnd:
    """One end. `endpoint` is None when the address is not an endpoint of this node, or when `conflict` says why it
    cannot be known which one."""

    identity: int
    endpoint: LocalEndpoint | None = None
    conflict: str = ""

    def is_same_endpoint(self, other: ConnectionEnd) -> bool:
        return self.endpoint is not None and self.endpoint is other.endpoint


@dataclass(frozen=True, slots=True)
class ConnectionPolicy:
    """A connection under one policy snapshot: the identities of both ends, and the policy of each.

    `egress` is None when the source is not an endpoint of this node; `ingress` likewise for the destination.
    """

    source_identity: int
    destination_identity: int
    egress: PortPolicy | None
    ingress: PortPolicy | None
    l4: PolicyVerdict
    combined: VerdictCache = field(default_factory=VerdictCache, compare=False, repr=False)

    @property
    def refused(self) -> bool:
        return self.l4.verdict is Verdict.DROPPED

    @property
    def kind(self) -> Kind | None:
        """The kind of the requests that must be evaluated one by one; None: the connection is decided as a whole."""
        if self.refused:
            return None
        egress, ingress = self.egress, self.ingress
        found = egress.kind if egress is not None else None
        return found if found is not None or ingress is None else ingress.kind

    @property
    def governed(self) -> bool:
        """At least one direction is enforced: a policy selects its endpoint."""
        egress, ingress = self.egress, self.ingress
        return (egress is not None and egress.enforced) or (ingress is not None and ingress.enforced)

    def judge(self, asked: object) -> PolicyVerdict:
        return evaluate_l7(self.egress, self.ingress, asked, self.combined)

    def conn(self, source: HostPort, destination: HostPort) -> Conn:
        return Conn(
            source.address,
            source.port,
            destination.address,
            destination.port,
            self.source_identity,
            self.destination_identity,
        )


class EndpointIndex:
    """Finds both ends of connections in one policy snapshot. ValueError when a prefix of `identities` is invalid.

    `before` is the previous index: prefixes and HTTP rules that are in both are not parsed again.
    """

    def __init__(
        self, endpoints: Iterable[LocalEndpoint], identities: Mapping[str, int], before: EndpointIndex | None = None
    ) -> None:
        known = before._identities if before is not None else None
        self._identities: PrefixTable[int] = PrefixTable(identities, known)
        self._endpoints: dict[str, LocalEndpoint] = {}
        self._conflicts: dict[str, str] = {}
        self._known: dict[tuple[str, str, int, int], ConnectionPolicy] = {}
        self._combined = VerdictCache()
        self.tables: HttpTables = before.tables.following() if before is not None else HttpTables()
        self.problems: tuple[str, ...] = ()
        for endpoint in endpoints:
            for address in endpoint.addresses:
                self._claim(address, endpoint)
        for address in self._conflicts:
            del self._endpoints[address]

    def _claim(self, address: str, endpoint: LocalEndpoint) -> None:
        other = self._endpoints.setdefault(address, endpoint)
        if other is not endpoint:
            self._conflicts[address] = f"{address} is claimed by more than one endpoint"
            claims = f"{address} is claimed by {endpoint.name} and {other.name}"
            self.problems += (f"{claims}: its traffic is refused",)

    def identity(self, address: str) -> int:
        return (self._identities.get(address) if address else None) or UNKNOWN

    def endpoint(self, address: str) -> LocalEndpoint | None:
        return self._endpoints.get(address)

    def end(self, address: str) -> ConnectionEnd:
        """`address`: canonical text."""
        return ConnectionEnd(self.identity(address), self.endpoint(address), self._conflicts.get(address, ""))

    def lookup(self, source: str, destination: str, protocol: int, port: int) -> ConnectionPolicy:
        """The policy of a connection between two addresses (canonical text). Cached.

        `port` is the destination port; for ICMP type * 256 + code.
        """
        key = (source, destination, protocol, port)
        known = self._known.get(key)
        if known is None:
            found = self.between(self.end(source), self.end(destination), protocol, port)
            known = remember(self._known, key, found, REMEMBERED)
        return known

    def between(self, source: ConnectionEnd, destination: ConnectionEnd, protocol: int, port: int) -> ConnectionPolicy:
        """The same for two ends of this index, or for an identity without an address."""
        who, whom = source.identity, destination.identity
        if source.is_same_endpoint(destination):
            return ConnectionPolicy(who, whom, None, None, evaluate_l4(None, None))
        conflict = source.conflict or destination.conflict
        if conflict:  # as a policy, so that requests are refused, too
            refusal = PortPolicy(Decision(Verdict.DROPPED, reason=conflict))
            return ConnectionPolicy(who, whom, None, refusal, evaluate_l4(None, refusal))
        sender, receiver, tables = source.endpoint, destination.endpoint, self.tables
        egress = decide.port(sender.policy.egress, whom, protocol, port, tables) if sender is not None else None
        ingress = decide.port(receiver.policy.ingress, who, protocol, port, tables) if receiver is not None else None
        return ConnectionPolicy(who, whom, egress, ingress, evaluate_l4(egress, ingress), self._combined)
