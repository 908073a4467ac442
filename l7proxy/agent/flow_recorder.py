"""What was judged, into the ring: the workers' records, and the kernel's events once they have their rule.

The kernel tells which direction's policy spoke and how; the rule behind it comes from the same door that workers ask
(law 5). Where the two differ, because an event is older than the picture, the kernel's word is the verdict: it is what
happened. One connection gives one record: when both directions are asked on this node, the ingress event tells it,
since it comes last.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from l7proxy.agent.dataplane.reconciler import Published
from l7proxy.cluster.names import Names
from l7proxy.flows import timestamp
from l7proxy.flows.batch import Flows
from l7proxy.flows.enrich import Enricher
from l7proxy.flows.records import Connection
from l7proxy.flows.redaction import LEAST, FlowRedaction
from l7proxy.flows.ring import NOT_DELIVERED, RATE_LIMITED, Ring
from l7proxy.flows.template import TemplateCache, Uuids
from l7proxy.model.net import PrefixTable
from l7proxy.model.policy_verdict import Conn, PolicyVerdict
from l7proxy.model.verdict import Direction, DropReason, Verdict
from l7proxy.policy import decide
from l7proxy.policy.combine import evaluate_l4
from l7proxy.policy.tables import EndpointPolicy
from tproxy_rules.backend import Suppressed
from tproxy_rules.marks import LogDirection, LogEvent
from tproxy_rules.nflog import NflogEvent, NflogReader

log = logging.getLogger(__name__)

REMEMBERED: Final = 16384
"""Judgements kept per picture; past that all are forgotten. A pod can choose the keys."""
DIRECTIONS: Final = {LogDirection.INGRESS: Direction.INGRESS, LogDirection.EGRESS: Direction.EGRESS}
PASSED: Final = {LogEvent.ALLOW: Verdict.FORWARDED, LogEvent.STEER: Verdict.REDIRECTED}
REASONS: Final[Mapping[LogEvent, tuple[DropReason, str]]] = {
    LogEvent.DENY: (DropReason.POLICY_DENY, "denied by a rule of an earlier policy revision"),
    LogEvent.NONE: (DropReason.POLICY_DENIED, "no rule of the policy revision in force at the time allowed it"),
    LogEvent.SPOOF: (DropReason.INVALID_SOURCE_IP, "source address, MAC or interface does not belong to the pod"),
    LogEvent.GROUP: (
        DropReason.POLICY_DENIED,
        "multicast and broadcast cannot be allowed by a policy, and a policy selects this pod",
    ),
    LogEvent.LINK_LOCAL: (
        DropReason.POLICY_DENIED,
        "IPv6 link-local: a pod may send and receive only neighbour discovery and multicast listener discovery",
    ),
    LogEvent.STRAY: (DropReason.POLICY_DENIED, "destination address does not belong to the receiving pod"),
    LogEvent.UNSERVED: (DropReason.UNKNOWN, "an L7 rule redirects it to the proxy, but no worker is listening"),
}
ASKED: Final = frozenset((LogEvent.ALLOW, LogEvent.STEER, LogEvent.DENY, LogEvent.NONE))
"""What a policy answered; the rest the kernel refuses before any policy is asked."""


class EventEvaluator:
    """The answers of one picture on what the kernel saw. `before` spares reading what is alike in another."""

    def __init__(
        self,
        identities: Mapping[str, int],
        endpoints: Mapping[str, EndpointPolicy],
        before: EventEvaluator | None = None,
    ) -> None:
        known = before._identities if before is not None else None
        self._identities: PrefixTable[int] = PrefixTable(identities, known)
        self._endpoints = endpoints
        self._known: dict[tuple[str, str, int, int], tuple[int, int, PolicyVerdict]] = {}

    @classmethod
    def of(cls, published: Published, before: EventEvaluator) -> EventEvaluator:
        policies, unknown = published.policies, published.pictures.unknown
        endpoints = {
            address: policies[endpoint.id] for endpoint in published.view.endpoints for address in endpoint.addresses
        }
        endpoints |= {address: one.policy for one in unknown for address in one.addresses}
        return cls(published.view.by_prefix, endpoints, before)

    def record(self, event: NflogEvent, now_ns: int) -> Connection | None:
        """The record of one event; None when the other direction's event tells the same."""
        passed = PASSED.get(event.told)
        if passed is not None and event.way is LogDirection.EGRESS and self._ingress(event.destination) is not None:
            return None
        key = (event.source, event.destination, event.protocol, _port(event))
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            known = self._known[key] = self._judge(*key)
        source, destination, judgement = known
        conn = Conn(
            event.source,
            event.source_port,
            event.destination,
            event.destination_port,
            source,
            destination,
            max(event.protocol, 0),
        )
        return Connection(
            now_ns,
            conn,
            _agreed(event, judgement),
            event.tcp_flags,
            max(event.icmp_type, 0),
            max(event.icmp_code, 0),
        )

    def _ingress(self, address: str) -> object | None:
        policy = self._endpoints.get(address)
        return policy.ingress if policy is not None else None

    def _judge(self, source: str, destination: str, protocol: int, port: int) -> tuple[int, int, PolicyVerdict]:
        who, whom = self._identity(source), self._identity(destination)
        sender, receiver = self._endpoints.get(source), self._endpoints.get(destination)
        egress = decide.port(sender.egress, whom, protocol, port) if sender is not None else None
        ingress = decide.port(receiver.ingress, who, protocol, port) if receiver is not None else None
        return who, whom, evaluate_l4(egress, ingress)

    def _identity(self, address: str) -> int:
        return (self._identities.get(address) if address else None) or 0


def _port(event: NflogEvent) -> int:
    """What policy calls the port: of ICMP, type and code."""
    return event.destination_port if event.icmp_type < 0 else event.icmp_type << 8 | max(event.icmp_code, 0)


def _agreed(event: NflogEvent, judgement: PolicyVerdict) -> PolicyVerdict:
    """The rule's answer if it says what the kernel did; else what the kernel did, without a rule."""
    direction = DIRECTIONS[event.way]
    passed = PASSED.get(event.told)
    if passed is not None:
        if judgement.verdict in (Verdict.REDIRECTED, Verdict.AUDIT, passed):
            return judgement
        if judgement.verdict is Verdict.DROPPED:
            return PolicyVerdict(passed, direction)
        return msgspec.structs.replace(judgement, verdict=passed)
    if event.told in ASKED and judgement.verdict is Verdict.DROPPED:
        return judgement
    drop_reason, reason = REASONS[event.told]
    return PolicyVerdict(Verdict.DROPPED, direction, drop_reason=drop_reason, reason=reason)


class Recorder:
    """Makes flows and puts them on the ring. Lives in one loop; nothing here waits or fails."""

    def __init__(self, ring: Ring, *, node: str, cluster: str = "default", redaction: FlowRedaction = LEAST) -> None:
        self.ring = ring
        self._node = node
        self._cluster = cluster
        self._redaction = redaction
        self._judge = EventEvaluator({}, {})
        self._uuids = Uuids()
        self._enricher = self._make(Names(), 0, frozenset())
        self._templates = TemplateCache(self._enricher, self._uuids)
        self._lost = 0
        self._suppressed = 0
        self.not_told: Mapping[Suppressed, int] = {}
        """Packets that the kernel judged and its limits kept it from telling, since the start."""

    def published(self, published: Published) -> None:
        """From now on names and rules are those of this picture."""
        self._judge = EventEvaluator.of(published, self._judge)
        secret = frozenset(published.pictures.workers.secret_headers)
        self._enricher = self._make(published.view.names, published.revision, secret)
        self._templates = TemplateCache(self._enricher, self._uuids)

    def told(self, flows: Flows) -> None:
        """A batch of a worker. LinkError when it makes no sense."""
        self._missed(flows.lost)
        self.ring.extend(self._templates.items(flows))

    def _missed(self, count: int, source: str = NOT_DELIVERED) -> None:
        """So many records were lost on their way here."""
        if count:
            self.ring.append_lost(count, time=timestamp.text(time.time_ns()), source=source)

    def suppressed(self, counts: Mapping[Suppressed, int]) -> None:
        """`counts` are sums since the start. Counters are not read all at one moment: a sum may dip for a while."""
        total = sum(counts.values())
        if total > self._suppressed:
            self._missed(total - self._suppressed, RATE_LIMITED)
            self._suppressed = total
        self.not_told = counts

    def packets(self, events: Iterable[NflogEvent], lost_so_far: int = 0) -> None:
        """Events of the kernel. `lost_so_far` counts what it could not tell us since the start."""
        now_ns = time.time_ns()
        self._missed(lost_so_far - self._lost)
        self._lost = lost_so_far
        for event in events:
            record = self._judge.record(event, now_ns)
            if record is not None:
                self.ring.append(self._enricher.flow(record))

    def read(self, reader: NflogReader) -> None:
        """Everything that the reader has. For `loop.add_reader`."""
        self.packets(reader.read(), reader.lost)

    def _make(self, names: Names, revision: int, secret_headers: frozenset[str]) -> Enricher:
        return Enricher(
            names,
            node=self._node,
            cluster=self._cluster,
            revision=revision,
            query=self._redaction.query,
            headers=frozenset(self._redaction.headers),
            secret_headers=secret_headers,
        )
