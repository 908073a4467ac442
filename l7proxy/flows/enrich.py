"""Makes a flow of a record: adds names to addresses and numbers, and sets Hubble's fields from the verdict.

One record gives one flow; a packet that policy judged gives two (`packet`). The policy that allowed or denied is named
for L7 too (Hubble names policies for L3/L4 only), and a default deny names the policies that caused it. An enricher
belongs to one policy snapshot: it caches lookups and is discarded with the snapshot.

Secrets are never exported: user information never, queries and header values only where the configuration allows it.
The workers redact too; this is the second check.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Any, Final, Protocol

import msgspec

from l7proxy import __version__
from l7proxy.flows import hubble_constants as hubble
from l7proxy.flows import timestamp
from l7proxy.flows.flow import (
    IP,
    CiliumEventType,
    Emitter,
    Endpoint,
    Flags,
    Flow,
    Header,
    Http,
    Icmp,
    Layer4,
    Layer7,
    NetworkInterface,
    Policy,
    Ports,
    Service,
    TraceContext,
    TraceParent,
    Workload,
    node_name,
)
from l7proxy.flows.records import Connection, HttpRequest, HttpResponse, Malformed, Record
from l7proxy.model import verdict as words
from l7proxy.model.cache import remember
from l7proxy.model.endpoint import NamedPod
from l7proxy.model.labels import CLUSTER_KEY, K8S
from l7proxy.model.net import family_of
from l7proxy.model.policy_verdict import Conn, PolicyVerdict
from l7proxy.model.ref import RuleRef
from l7proxy.model.secret import REDACTED
from l7proxy.model.verdict import Direction, DropReason, Verdict

EMITTER: Final = Emitter(name="l7proxy", version=__version__)
DROP_EVENTS: Final = {reason: CiliumEventType(type=hubble.EventType.DROP, sub_type=reason) for reason in DropReason}
VERDICT_EVENT: Final = CiliumEventType(type=hubble.EventType.POLICY_VERDICT)
TRACE_EVENTS: Final = [
    CiliumEventType(type=hubble.EventType.TRACE, sub_type=point) for point in range(len(hubble.TRACE_POINTS))
]
OUTCOME: Final[dict[str, Any]] = {
    "policy_match_type": 0,
    "ingress_allowed_by": (),
    "egress_allowed_by": (),
    "ingress_denied_by": (),
    "egress_denied_by": (),
}
"""Of the event of a packet beside its policy verdict: only the verdict names policies."""
MATCH_ALL: Final = hubble.MATCH_TYPES.index("all")
L7_EVENT: Final = CiliumEventType(type=hubble.EventType.L7)
REMEMBERED: Final = 65_536
"""Connection ends cached by an enricher: a scan must not exhaust memory."""


class Names(Protocol):
    """Names of addresses and numbers, in one policy snapshot."""

    def pod(self, address: str) -> NamedPod | None:
        """The pod on this or another node with this pod IP."""

    def identity_labels(self, identity: int) -> Sequence[str]:
        """Sorted `source:key=value`; empty for an unknown number."""

    def service(self, address: str, port: int, protocol: int) -> tuple[str, str] | None:
        """(namespace, name) of the Service with exactly this frontend."""


class Enricher:
    """Makes a flow of each record. `revision` is that of the policy snapshot the records were evaluated with.

    `node_labels`: sorted `key=value`. `proxy_port`: where redirected connections go. `interface`: the name of a network
    interface by its index, "" if there is none.
    """

    def __init__(
        self,
        names: Names,
        *,
        node: str = "",
        cluster: str = "",
        node_labels: tuple[str, ...] = (),
        revision: int = 0,
        proxy_port: int = 0,
        interface: Callable[[int], str] = lambda index: "",
        query: bool = False,
        headers: frozenset[str] = frozenset(),
        secret_headers: frozenset[str] = frozenset(),
        remembered: int = REMEMBERED,
        new_uuid: Callable[[], object] = uuid.uuid4,
    ) -> None:
        self._names = names
        self.node_name = node_name(node, cluster)
        self._node_labels = node_labels
        self._revision = str(revision) if revision else ""
        self._proxy_port = proxy_port
        self._interface_name = interface
        self.query = query
        self._headers = frozenset(name.lower() for name in headers)
        self._secret_headers = secret_headers
        self._remembered = remembered
        self._new_uuid = new_uuid
        self._ends: dict[tuple[str, int], Endpoint] = {}
        self._policies: dict[RuleRef, Policy] = {}
        self._interfaces: dict[int, NetworkInterface] = {}

    def flow(self, record: Record) -> Flow:
        """The complete flow of a record."""
        if isinstance(record, HttpRequest):
            return self._request(record)
        if isinstance(record, HttpResponse):
            return self._response(record)
        if isinstance(record, Connection):
            return self._connection(record)
        return self._malformed(record)

    def packet(self, record: Connection) -> tuple[Flow, ...]:
        """The flows of a packet that policy judged, as Cilium's datapath reports them: the policy verdict, then what
        became of the packet (a drop, or the point that it was traced at)."""
        flow, policy_verdict = self._connection(record), record.policy_verdict
        if policy_verdict.verdict is not Verdict.DROPPED:
            return flow, self._traced(flow, policy_verdict)
        verdict = msgspec.structs.replace(flow, uuid=str(self._new_uuid()), event_type=VERDICT_EVENT)
        return verdict, msgspec.structs.replace(flow, **OUTCOME)

    def _traced(self, flow: Flow, policy_verdict: PolicyVerdict) -> Flow:
        """The packet goes on: to the proxy, to a pod of this node, or to another node."""
        direction, port = flow.traffic_direction, 0
        if policy_verdict.verdict is Verdict.REDIRECTED:
            point, port = hubble.TO_PROXY, self._proxy_port
        elif policy_verdict.direction is Direction.INGRESS or (flow.destination is not None and flow.destination.id):
            point, direction = hubble.TO_ENDPOINT, Direction.INGRESS.name
        else:
            point, direction = hubble.TO_STACK, Direction.EGRESS.name
        return msgspec.structs.replace(
            flow,
            uuid=str(self._new_uuid()),
            verdict=Verdict.FORWARDED.name,
            event_type=TRACE_EVENTS[point],
            traffic_direction=direction,
            trace_observation_point=hubble.TRACE_POINTS[point].upper().replace("-", "_"),
            trace_reason="NEW",
            proxy_port=port,
            policy_log=(),
            **OUTCOME,
        )

    def _request(self, record: HttpRequest) -> Flow:
        url = self._url(record.url)
        headers = self._header_list(record.headers)
        http = Http(method=record.method, url=url, protocol=record.protocol, headers=headers)
        return self._l7_request(record, http=http, summary=f"{record.protocol} {record.method} {url}")

    def _response(self, record: HttpResponse) -> Flow:
        """Source and destination are swapped: the response goes the other way.

        The response itself is forwarded, even when it is the proxy's own 403 (as Envoy's are in Hubble); it was the
        request that was refused. So exactly one flow reports a refusal, with its policy and its reason.
        """
        url = self._url(record.url)
        http = Http(
            code=record.status,
            method=record.method,
            url=url,
            protocol=record.protocol,
            headers=self._header_list(record.headers),
        )
        policy_verdict, conn = record.policy_verdict, record.conn
        refused = policy_verdict.verdict in (Verdict.DROPPED, Verdict.ERROR)
        summary = f"{record.protocol} {record.status} {record.latency_ns // 1_000_000}ms ({record.method} {url})"
        return Flow(
            time=timestamp.text(record.time_ns),
            uuid=str(self._new_uuid()),
            emitter=EMITTER,
            verdict=Verdict.FORWARDED.name,
            ip=_ip(conn.destination, conn.source),
            l4=_layer4(conn.protocol, conn.destination_port, conn.source_port),
            source=self._end(conn.destination, conn.destination_identity),
            destination=self._end(conn.source, conn.source_identity),
            type="L7",
            node_name=self.node_name,
            node_labels=self._node_labels,
            l7=Layer7(type="RESPONSE", latency_ns=str(record.latency_ns) if record.latency_ns else "", http=http),
            reply=True,
            is_reply=True,
            event_type=L7_EVENT,
            source_service=self._service(conn),
            traffic_direction=_direction(policy_verdict),
            trace_context=trace_context(record.trace_id),
            ingress_allowed_by=() if refused else self._named(policy_verdict, Direction.INGRESS),
            egress_allowed_by=() if refused else self._named(policy_verdict, Direction.EGRESS),
            policy_log=(policy_verdict.reason,) if policy_verdict.reason and not refused else (),
            summary=summary,
        )

    def _malformed(self, record: Malformed) -> Flow:
        """A request that could not be parsed has no method and no URL, but the status of its response is shown."""
        answer = f"answered {record.status}" if record.status else "closed"
        http = Http(code=record.status, protocol=record.protocol)
        return self._l7_request(record, http=http, summary=f"{record.protocol} malformed request, {answer}")

    def _connection(self, record: Connection) -> Flow:
        """A policy verdict event if allowed, a drop event if not. Whether a dropped packet is a reply is unknown."""
        policy_verdict = record.policy_verdict
        dropped = policy_verdict.verdict in (Verdict.DROPPED, Verdict.ERROR)
        return self._judged(
            record,
            type="L3_L4",
            event=DROP_EVENTS[policy_verdict.drop_reason] if dropped else VERDICT_EVENT,
            is_reply=None if dropped else False,
            l4=_packet(record),
            match_type=_match_type(policy_verdict),
            interface=self._interface(record.interface),
            summary=_packet_summary(record),
        )

    def _l7_request(self, record: HttpRequest | Malformed, *, http: Http, summary: str) -> Flow:
        conn = record.conn
        return self._judged(
            record,
            type="L7",
            event=L7_EVENT,
            is_reply=False,
            l4=_layer4(conn.protocol, conn.source_port, conn.destination_port),
            l7=Layer7(type="REQUEST", http=http),
            summary=summary,
        )

    def _judged(
        self,
        record: HttpRequest | Malformed | Connection,
        *,
        type: str,  # noqa: A002  (the field's name)
        event: CiliumEventType,
        is_reply: bool | None,
        l4: Layer4 | None,
        l7: Layer7 | None = None,
        match_type: int = 0,
        interface: NetworkInterface | None = None,
        summary: str,
    ) -> Flow:
        """A flow with its verdict. Hubble leaves the drop reason of an L7 flow empty; here it is set."""
        policy_verdict, conn = record.policy_verdict, record.conn
        return Flow(
            time=timestamp.text(record.time_ns),
            uuid=str(self._new_uuid()),
            emitter=EMITTER,
            verdict=hubble.VERDICTS[policy_verdict.verdict],
            drop_reason=policy_verdict.drop_reason if policy_verdict.verdict is Verdict.DROPPED else 0,
            drop_reason_desc=_drop_reason(policy_verdict),
            ip=_ip(conn.source, conn.destination),
            l4=l4,
            source=self._end(conn.source, conn.source_identity),
            destination=self._end(conn.destination, conn.destination_identity),
            type=type,
            node_name=self.node_name,
            node_labels=self._node_labels,
            l7=l7,
            event_type=event,
            is_reply=is_reply,
            destination_service=self._service(conn),
            traffic_direction=_direction(policy_verdict),
            policy_match_type=match_type,
            interface=interface,
            trace_context=trace_context(record.trace_id) if isinstance(record, HttpRequest) else None,
            ingress_allowed_by=self._allowed(policy_verdict, Direction.INGRESS),
            egress_allowed_by=self._allowed(policy_verdict, Direction.EGRESS),
            ingress_denied_by=self._denied(policy_verdict, Direction.INGRESS),
            egress_denied_by=self._denied(policy_verdict, Direction.EGRESS),
            policy_log=_words(record),
            summary=summary,
        )

    def _allowed(self, policy_verdict: PolicyVerdict, direction: Direction) -> tuple[Policy, ...]:
        return () if _refuses(policy_verdict, direction) else self._named(policy_verdict, direction)

    def _denied(self, policy_verdict: PolicyVerdict, direction: Direction) -> tuple[Policy, ...]:
        return self._named(policy_verdict, direction) if _refuses(policy_verdict, direction) else ()

    def _named(self, policy_verdict: PolicyVerdict, direction: Direction) -> tuple[Policy, ...]:
        """The rule that decided in this direction, then others with the same result."""
        if direction is Direction.INGRESS:
            ref, also = policy_verdict.ingress, policy_verdict.ingress_also
        else:
            ref, also = policy_verdict.egress, policy_verdict.egress_also
        if ref is None:
            return ()
        return (self._policy(ref), *map(self._policy, also)) if also else (self._policy(ref),)

    def _policy(self, ref: RuleRef) -> Policy:
        policy = self._policies.get(ref)
        if policy is None:
            policy = self._policies[ref] = _policy(ref, self._revision)
        return policy

    def _interface(self, index: int) -> NetworkInterface | None:
        if not index:
            return None
        known = self._interfaces.get(index)
        if known is None:
            found = NetworkInterface(index=index, name=self._interface_name(index))
            known = remember(self._interfaces, index, found, self._remembered)
        return known

    def _end(self, address: str, identity: int) -> Endpoint:
        key = (address, identity)
        end = self._ends.get(key)
        if end is None:
            end = remember(self._ends, key, self._look_up(address, identity), self._remembered)
        return end

    def _look_up(self, address: str, identity: int) -> Endpoint:
        """The identity is the one the verdict used, even if the address belongs to another pod now.

        An address is empty where the packet could not be parsed. ValueError for any other text that is no address.
        """
        if address:
            ip_address(address)
        labels = tuple(self._names.identity_labels(identity))
        pod = self._names.pod(address)
        workload = pod.workload if pod else None
        return Endpoint(
            id=pod.id if pod else 0,
            identity=identity,
            cluster_name=_cluster(labels),
            namespace=pod.namespace if pod else "",
            labels=labels,
            pod_name=pod.name if pod else "",
            workloads=(Workload(name=workload.name, kind=workload.kind),) if workload else (),
        )

    def _service(self, conn: Conn) -> Service | None:
        found = self._names.service(conn.destination, conn.destination_port, conn.protocol)
        return Service(namespace=found[0], name=found[1]) if found else None

    def _url(self, url: str) -> str:
        return _redacted(url, query=self.query) if "@" in url or "?" in url or "#" in url else url

    def _header_list(self, headers: Sequence[tuple[str, str]]) -> tuple[Header, ...]:
        """The headers that the configuration allows, in Go's canonical spelling, sorted."""
        if not headers or not self._headers:
            return ()
        allowed = sorted(
            (_canonical(name), REDACTED if name.lower() in self._secret_headers else value)
            for name, value in headers
            if name.lower() in self._headers
        )
        return tuple(Header(key=name, value=value) for name, value in allowed)


def trace_context(trace_id: str) -> TraceContext | None:
    return TraceContext(parent=TraceParent(trace_id=trace_id)) if trace_id else None


def _words(record: HttpRequest | Malformed | Connection) -> tuple[str, ...]:
    reason = record.policy_verdict.reason
    remarks = record.remarks if isinstance(record, HttpRequest) else ()
    said = (*remarks, *record.policy_verdict.log)
    return (reason, *said) if reason else said


def _refuses(policy_verdict: PolicyVerdict, direction: Direction) -> bool:
    """Whether the rule of this direction refused (or, in audit, would have refused)."""
    return policy_verdict.direction is direction and policy_verdict.verdict not in (
        Verdict.FORWARDED,
        Verdict.REDIRECTED,
    )


def _policy(ref: RuleRef, revision: str) -> Policy:
    """The labels are those of a Cilium rule, and `l7proxy:rule`, which names the rule inside the policy."""
    labels = {
        "k8s:io.cilium.k8s.policy.derived-from": ref.kind,
        "k8s:io.cilium.k8s.policy.name": ref.name,
        "k8s:io.cilium.k8s.policy.namespace": ref.namespace,
        "l7proxy:rule": ref.rule,
    }
    return Policy(
        name=ref.name,
        namespace=ref.namespace,
        kind=ref.kind,
        labels=tuple(f"{key}={value}" for key, value in labels.items() if value),
        revision=revision,
    )


def _direction(policy_verdict: PolicyVerdict) -> str:
    return policy_verdict.direction.name if policy_verdict.direction is not Direction.UNKNOWN else ""


def _drop_reason(policy_verdict: PolicyVerdict) -> str:
    dropped = policy_verdict.verdict is Verdict.DROPPED and policy_verdict.drop_reason is not DropReason.UNKNOWN
    return policy_verdict.drop_reason.name if dropped else ""


def _match_type(policy_verdict: PolicyVerdict) -> int:
    """Without a policy everything matches, so the match type is `all`, not `none`."""
    unasked = (
        policy_verdict.ingress is None and policy_verdict.egress is None and policy_verdict.verdict is Verdict.FORWARDED
    )
    return policy_verdict.match_type or (MATCH_ALL if unasked else 0)


def _cluster(labels: Sequence[str]) -> str:
    prefix = f"{K8S}:{CLUSTER_KEY}="
    return next((label[len(prefix) :] for label in labels if label.startswith(prefix)), "")


def _ip(source: str, destination: str) -> IP:
    return IP(source=source, destination=destination, version="IPv6" if family_of(source) == 6 else "IPv4")


def _layer4(protocol: int, source_port: int, destination_port: int, flags: Flags | None = None) -> Layer4 | None:
    ports = Ports(source_port=source_port, destination_port=destination_port, flags=flags)
    match protocol:
        case words.Protocol.TCP:
            return Layer4(tcp=ports)
        case words.Protocol.UDP:
            return Layer4(udp=ports)
        case words.Protocol.SCTP:
            return Layer4(sctp=ports)
    return None


def _packet(record: Connection) -> Layer4 | None:
    conn = record.conn
    if conn.protocol == words.Protocol.ICMP:
        return Layer4(icmpv4=Icmp(type=record.icmp_type, code=record.icmp_code))
    if conn.protocol == words.Protocol.ICMPV6:
        return Layer4(icmpv6=Icmp(type=record.icmp_type, code=record.icmp_code))
    flags = _flags(record.flags) if conn.protocol == words.Protocol.TCP else None
    return _layer4(conn.protocol, conn.source_port, conn.destination_port, flags)


def _flags(bits: int) -> Flags | None:
    found = {name.lower(): True for name, bit in hubble.TCP_FLAGS if bits & bit}
    return Flags(**found) if found else None


def _packet_summary(record: Connection) -> str:
    protocol = record.conn.protocol
    match protocol:
        case words.Protocol.TCP:
            return "TCP Flags: " + ", ".join(name for name, bit in hubble.TCP_FLAGS if record.flags & bit)
        case words.Protocol.UDP | words.Protocol.SCTP:
            return words.Protocol(protocol).name
        case words.Protocol.ICMP:
            return f"ICMPv4 {hubble.icmp_text(4, record.icmp_type, record.icmp_code)}"
        case words.Protocol.ICMPV6:
            return f"ICMPv6 {hubble.icmp_text(6, record.icmp_type, record.icmp_code)}"
    return f"IP protocol {protocol}"


def _redacted(url: str, *, query: bool) -> str:
    """Without user information (RFC 3986 section 3.2.1), and without query and fragment unless `query` is set.

    A request target need not be a URL (`*`, `host:443`, a path): only the part between `//` and the path is an
    authority.
    """
    if not query:
        url = url.partition("?")[0].partition("#")[0]
    scheme, mark, rest = url.partition("://")
    if not mark:
        return url
    end = min((at for at in map(rest.find, "/?#") if at >= 0), default=len(rest))
    authority = rest[:end].rpartition("@")[2]
    return f"{scheme}://{authority}{rest[end:]}"


def _canonical(name: str) -> str:
    """`x-request-id` → `X-Request-Id`."""
    return "-".join(part.capitalize() for part in name.split("-"))
