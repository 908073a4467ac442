"""Writes flows to the ring: from workers' records, and from kernel events after their rule has been looked up.

A kernel event contains the direction and the verdict; the rule comes from the same function that workers use (law 5).
If the two differ, because the event is older than the policy snapshot, the kernel's verdict counts: it is what
happened. One connection gives one record: if both directions are evaluated on this node, the ingress event gives it,
since it comes last. Where policy was asked, the record gives two flows (`Enricher.packet`).

Kernel events come before the requests of their connection: when a worker's records arrive, the events of their
connections are in the reader, and are appended first.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec

from l7proxy.agent.dataplane.reconciler import Published
from l7proxy.cluster.names import Names
from l7proxy.flows.batch import Flows
from l7proxy.flows.enrich import DROP_EVENTS, VERDICT_EVENT, Enricher
from l7proxy.flows.flow import IP, Endpoint, Flow
from l7proxy.flows.records import Connection
from l7proxy.flows.ring import NOT_DELIVERED, RATE_LIMITED, Ring
from l7proxy.flows.template import TemplateCache, Uuids
from l7proxy.gate.options import DEFAULT_OPTIONS, HttpOptions
from l7proxy.model.policy_verdict import Conn, PolicyVerdict
from l7proxy.model.verdict import Direction, DropReason, Verdict
from l7proxy.policy.endpoints import EndpointIndex
from tproxy_rules.backend import Suppressed
from tproxy_rules.marks import LogDirection, LogEvent
from tproxy_rules.nflog import NflogEvent, NflogReader

log = logging.getLogger(__name__)

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
HELD: Final = (DropReason.POLICY_DENIED, "unknown pod: an address of this node's pods that no pod was known to have")
PLAUSIBLE_NS: Final = 1_000_000_000
"""Age of an event: longer than the agent may be busy, so rarely wrong, and too short to hide a flow among old ones."""
ASKED: Final = frozenset((LogEvent.ALLOW, LogEvent.STEER, LogEvent.DENY, LogEvent.NONE))
"""Events with a policy verdict; the others are refused by the kernel before policy is evaluated."""


def judged(event: NflogEvent) -> bool:
    """Whether policy was asked: no policy speaks for an address that no pod is known to have."""
    return event.kind in ASKED and (event.endpoint != 0 or event.kind is not LogEvent.NONE)


def record_of(event: NflogEvent, ends: EndpointIndex, now_ns: int) -> Connection | None:
    """The record of one event; None if the event of the other direction gives the same record."""
    if event.kind in PASSED and event.way is LogDirection.EGRESS and _has_ingress(ends, event.destination):
        return None
    found = ends.lookup(event.source, event.destination, event.protocol, _port(event))
    conn = Conn(
        event.source,
        event.source_port,
        event.destination,
        event.destination_port,
        found.source_identity,
        found.destination_identity,
        max(event.protocol, 0),
    )
    return Connection(
        now_ns,
        conn,
        _agreed(event, found.l4),
        event.tcp_flags,
        max(event.icmp_type, 0),
        max(event.icmp_code, 0),
        event.interface,
    )


def interface_name(index: int) -> str:
    """The name of a network interface, "" if it is gone."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""


def _has_ingress(ends: EndpointIndex, address: str) -> bool:
    endpoint = ends.endpoint(address)
    return endpoint is not None and endpoint.policy.ingress is not None


def _port(event: NflogEvent) -> int:
    """The port number that policy matches; for ICMP: type * 256 + code."""
    return event.destination_port if event.icmp_type < 0 else event.icmp_type << 8 | max(event.icmp_code, 0)


def _agreed(event: NflogEvent, policy_verdict: PolicyVerdict) -> PolicyVerdict:
    """The rule's verdict if the kernel's verdict agrees; else the kernel's verdict, without a rule."""
    direction = DIRECTIONS[event.way]
    passed = PASSED.get(event.kind)
    if passed is not None:
        if policy_verdict.verdict in (Verdict.REDIRECTED, Verdict.AUDIT, passed):
            return policy_verdict
        if policy_verdict.verdict is Verdict.DROPPED:
            return PolicyVerdict(passed, direction)
        return msgspec.structs.replace(policy_verdict, verdict=passed)
    if event.kind in ASKED and policy_verdict.verdict is Verdict.DROPPED:
        return policy_verdict
    held = event.kind is LogEvent.NONE and not judged(event)
    drop_reason, reason = HELD if held else REASONS[event.kind]
    return PolicyVerdict(Verdict.DROPPED, direction, drop_reason=drop_reason, reason=reason)


def moment(event: NflogEvent, now_ns: int) -> int:
    """When the packet came. A time that is not plausible is not believed: pods can set the one of their packets."""
    return event.time_ns if now_ns - PLAUSIBLE_NS <= event.time_ns <= now_ns else now_ns


class Recorder:
    """Makes flows and appends them to the ring. Used by one event loop; never blocks."""

    def __init__(self, ring: Ring, *, node: str, cluster: str = "default") -> None:
        self.ring = ring
        self._node = node
        self._cluster = cluster
        self._ends = EndpointIndex((), {})
        self._names = Names()
        self._proxy_port = 0
        self._uuids = Uuids()
        self._use(Names(), 0, DEFAULT_OPTIONS)
        self._reader: NflogReader | None = None
        self._lost = 0
        self._suppressed = 0
        self.not_reported: Mapping[Suppressed, int] = {}
        """Packets since the start for which the kernel's rate limits suppressed the event."""
        self.on_suppressed: Callable[[Flow, int], None] = lambda flow, times: None
        """Called with what is known of such packets, and how many more there are: metrics count them, too."""
        self._counted: dict[Suppressed, int] = {}

    def published(self, published: Published) -> None:
        """Use the names and rules of this revision from now on."""
        snapshot = published.snapshots.workers
        self._ends = EndpointIndex(snapshot.endpoints, snapshot.identities, self._ends)
        self._proxy_port = next((port for _, port in published.snapshots.kernel.settings.listeners), 0)
        self._use(published.view.names, published.revision, snapshot.http)

    def knows(self, address: str, namespace: str, name: str) -> bool:
        """Whether the pod exists and has this address. From any thread."""
        pod = self._names.pod(address)
        return pod is not None and (pod.namespace, pod.name) == (namespace, name)

    def ingest(self, flows: Flows) -> None:
        """Append a batch of a worker. LinkError when it is invalid."""
        self.read()
        self._missed(flows.lost)
        self.ring.extend(self._templates.items(flows))

    def _missed(self, count: int, source: str = NOT_DELIVERED) -> None:
        """Note in the ring that `count` records were lost before they reached it."""
        if count:
            self.ring.append_lost(count, time_ns=time.time_ns(), source=source)

    def suppressed(self, counts: Mapping[Suppressed, int]) -> None:
        """`counts`: totals since the start. Counters are not read atomically, so a total may decrease for a while."""
        total = sum(counts.values())
        if total > self._suppressed:
            self._missed(total - self._suppressed, RATE_LIMITED)
            self._suppressed = total
        self.not_reported = counts
        for one, count in counts.items():
            before = self._counted.get(one, 0)
            if count > before:
                self.on_suppressed(self._flow_of(one), count - before)
        self._counted = {one: max(count, self._counted.get(one, 0)) for one, count in counts.items()}

    def _flow_of(self, suppressed: Suppressed) -> Flow:
        """A flow without what is not known of the packets: destination, protocol and ports."""
        passed = PASSED.get(suppressed.kind)
        reason = DropReason.UNKNOWN if passed is not None else REASONS[suppressed.kind][0]
        pod = self._names.pod(suppressed.source)
        return Flow(
            verdict=(Verdict.DROPPED if passed is None else passed).name,
            drop_reason=reason,
            drop_reason_desc=reason.name if reason else "",
            type="L3_L4",
            ip=IP(source=suppressed.source) if pod else None,
            source=Endpoint(namespace=pod.namespace, pod_name=pod.name) if pod else None,
            event_type=VERDICT_EVENT if passed is not None else DROP_EVENTS[reason],
            traffic_direction=DIRECTIONS[suppressed.way].name,
        )

    def packets(self, events: Iterable[NflogEvent], lost_so_far: int = 0) -> None:
        """Append kernel events. `lost_so_far`: events since the start that the kernel could not deliver.

        An event that cannot be recorded is a defect; it is logged and counted as lost, so that no packet can hide
        the others of its batch.
        """
        now_ns = time.time_ns()
        self._missed(lost_so_far - self._lost)
        self._lost = lost_so_far
        for event in events:
            try:
                self._packet(event, now_ns)
            except Exception:
                log.exception("kernel event not recorded: %s", event)
                self._missed(1)

    def _packet(self, event: NflogEvent, now_ns: int) -> None:
        record = record_of(event, self._ends, moment(event, now_ns))
        if record is not None:
            flows = self._enricher.packet(record) if judged(event) else (self._enricher.flow(record),)
            self.ring.extend(flows)

    def listen(self, reader: NflogReader | None) -> None:
        """Read kernel events from this reader from now on."""
        self._reader = reader

    def read(self) -> None:
        """Append all events that the reader has."""
        if self._reader is not None:
            self.packets(self._reader.read(), self._reader.lost)

    def _use(self, names: Names, revision: int, options: HttpOptions) -> None:
        """Flows get the names and options of this policy snapshot from now on."""
        self._names = names
        self._enricher = Enricher(
            names,
            node=self._node,
            cluster=self._cluster,
            node_labels=names.node_labels,
            revision=revision,
            proxy_port=self._proxy_port,
            interface=interface_name,
            query=options.flow_query,
            headers=frozenset(name.decode() for name in options.flow_headers),
            secret_headers=frozenset(name.decode() for name in options.secret_headers),
        )
        self._templates = TemplateCache(self._enricher, self._uuids)
