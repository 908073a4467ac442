"""What one flow says about traffic: both ends, the direction that judged it, its port, and its request.

Works on flows of l7proxy and of Cilium alike. What says nothing that a policy could be made of, or be judged by, is
left out, with the reason: replies, packets seen before they were judged, drops for other reasons than policy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Final

from l7proxy.flows import hubble_constants as hubble
from l7proxy.flows.flow import Endpoint, Flow, Icmp, Layer4
from l7proxy.model.labels import CLUSTER_KEY, K8S, NAMESPACE_KEY, RESERVED
from l7proxy.model.net import canonical
from l7proxy.model.verdict import Direction, Protocol

OURS: Final = "l7proxy"
"""The emitter of our own flows, which are the verdict of both directions on their node."""
POLICY_DROPS: Final = frozenset(("", "DROP_REASON_UNKNOWN", "POLICY_DENIED", "POLICY_DENY"))
DELIVERED: Final = frozenset(("", "TO_ENDPOINT", "TO_STACK", "TO_HOST", "TO_OVERLAY", "TO_NETWORK"))
"""Where Cilium sees a packet after it was judged."""
WORLDS: Final = frozenset(("world", "world-ipv4", "world-ipv6"))
CUT: Final = "…"
"""The last character of a URL that was too long to be recorded whole."""
_AUTHORITY: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://([^/?#]*)(.*)", re.DOTALL)


class Outcome(Enum):
    """What came of it. REDIRECTED: the connection was allowed, each of its requests has a verdict of its own."""

    ALLOWED = "allowed"
    REDIRECTED = "redirected"
    AUDITED = "audited"
    DENIED = "denied"


OUTCOMES: Final[Mapping[str, Outcome]] = {
    "FORWARDED": Outcome.ALLOWED,
    "REDIRECTED": Outcome.REDIRECTED,
    "AUDIT": Outcome.AUDITED,
    "DROPPED": Outcome.DENIED,
}


@dataclass(frozen=True, slots=True)
class End:
    """One end of a flow.

    `labels` as recorded, `source:key=value`, sorted. `here`: it is an endpoint of the node that recorded the flow;
    None if the flow does not say so of either end.
    """

    namespace: str = ""
    labels: tuple[str, ...] = ()
    address: str = ""
    name: str = ""
    here: bool | None = None

    @property
    def reserved(self) -> frozenset[str]:
        """The names of its reserved identity: `world`, `kube-apiserver`…; empty for pods."""
        return _reserved(self.labels)

    @property
    def cluster(self) -> str:
        return label(self.labels, CLUSTER_KEY)

    @property
    def is_known(self) -> bool:
        """Whether the flow says who it is."""
        return bool(self.reserved - {"unknown"}) or bool(self.namespace and self.labels)

    def __str__(self) -> str:
        if self.reserved:
            return "+".join(sorted(self.reserved)) + (f" {self.address}" if "world" in " ".join(self.reserved) else "")
        return f"{self.namespace}/{self.name}" if self.name else self.namespace or self.address or "unknown"


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """`path` with its query, if that was recorded; None if the URL has none that can be judged. `host` as sent."""

    method: str
    host: str
    path: str | None
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def has_query(self) -> bool:
        return self.path is not None and "?" in self.path


@dataclass(frozen=True, slots=True)
class Observation:
    """`port` is the destination's; for ICMP type · 256 + code. `connection`: addresses and ports, to find its requests.

    `both`: the verdict is that of both directions, as far as their ends are pods of the node.
    """

    outcome: Outcome
    direction: Direction
    source: End
    destination: End
    protocol: int
    port: int
    request: HttpRequest | None = None
    dns_query: str = ""
    connection: tuple[str, int, str, int] = ("", 0, "", 0)
    both: bool = False
    time_ns: int = 0
    reason: str = ""


def observe(flow: Flow) -> Observation | str:
    """What the flow says, or why it says nothing (in words that are counted)."""
    why = _says_nothing(flow)
    if why:
        return why
    assert flow.l4 is not None and flow.source is not None and flow.destination is not None
    protocol, port = _port(flow.l4)
    outcome = OUTCOMES[flow.verdict]
    here = _here(flow.source, flow.destination)
    source, destination = (flow.ip.source, flow.ip.destination) if flow.ip else ("", "")
    ports = flow.l4.ports
    return Observation(
        outcome,
        _direction(flow.traffic_direction),
        _end(flow.source, source, here and bool(flow.source.id)),
        _end(flow.destination, destination, here and bool(flow.destination.id)),
        protocol,
        port,
        _request(flow),
        flow.l7.dns.query if flow.l7 and flow.l7.dns else "",
        (source, ports.source_port, destination, ports.destination_port) if ports else (source, 0, destination, 0),
        flow.emitter is not None and flow.emitter.name == OURS,
        flow.time_ns,
        flow.policy_log[0] if flow.policy_log and outcome in (Outcome.DENIED, Outcome.AUDITED) else "",
    )


def _says_nothing(flow: Flow) -> str:
    event = flow.event_type.type if flow.event_type else 0
    if flow.verdict not in OUTCOMES:
        return "not a verdict of a policy"
    if flow.source is None or flow.destination is None or flow.l4 is None or _port(flow.l4) == NO_PORT:
        return "no port, or no source or destination"
    if flow.is_reply or flow.reply or (flow.l7 is not None and flow.l7.type == "RESPONSE"):
        return "a reply"
    if flow.type == "SOCK" or event in (hubble.EventType.DEBUG, hubble.EventType.CAPTURE, hubble.EventType.TRACE_SOCK):
        return "not a packet that was judged"
    if event == hubble.EventType.TRACE and flow.trace_observation_point not in DELIVERED:
        return "seen before it was judged"
    if flow.is_reply is None and flow.verdict != "DROPPED" and flow.l7 is None and not _opens(flow.l4):
        return "maybe a reply"
    if flow.verdict == "DROPPED" and flow.drop_reason_desc not in POLICY_DROPS:
        return "dropped for another reason than policy"
    if flow.l7 is not None and flow.l7.http is None and flow.l7.dns is None:
        return "a request of another protocol than HTTP and DNS"
    if flow.l7 is not None and flow.l7.http is not None and not (flow.l7.http.method and flow.l7.http.url):
        return "a request that could not be read"
    if flow.verdict == "DROPPED" and flow.l7 is None and not flow.drop_reason_desc and flow.drop_reason == 0:
        return "dropped for another reason than policy"
    return ""


def _opens(l4: Layer4) -> bool:
    """Whether a packet must be the first of its connection."""
    flags = l4.tcp.flags if l4.tcp is not None else None
    return flags is not None and flags.syn and not flags.ack


NO_PORT: Final = (0, 0)


def _port(l4: Layer4) -> tuple[int, int]:
    """(IP protocol, destination port)."""
    for ports, protocol in ((l4.tcp, Protocol.TCP), (l4.udp, Protocol.UDP), (l4.sctp, Protocol.SCTP)):
        if ports is not None:
            number = ports.destination_port
            return (int(protocol), number) if 0 < number < 1 << 16 else NO_PORT
    for message, protocol in ((l4.icmpv4, Protocol.ICMP), (l4.icmpv6, Protocol.ICMPV6)):
        if message is not None:
            return (int(protocol), message.type << 8 | message.code) if _is_icmp(message) else NO_PORT
    return NO_PORT


def _is_icmp(message: Icmp) -> bool:
    return 0 <= message.type < 256 and 0 <= message.code < 256


def _direction(word: str) -> Direction:
    return {"INGRESS": Direction.INGRESS, "EGRESS": Direction.EGRESS}.get(word, Direction.UNKNOWN)


def _here(source: Endpoint, destination: Endpoint) -> bool | None:
    """True if endpoint numbers say which ends are on the node; None if there are none."""
    return True if source.id or destination.id else None


def _end(endpoint: Endpoint, address: str, here: bool | None) -> End:
    namespace = endpoint.namespace or label(endpoint.labels, NAMESPACE_KEY)
    workload = endpoint.workloads[0].name if endpoint.workloads else ""
    return End(namespace, endpoint.labels, _canonical(address), workload or endpoint.pod_name, here)


def _canonical(address: str) -> str:
    try:
        return canonical(address)
    except ValueError:
        return ""


def _request(flow: Flow) -> HttpRequest | None:
    http = flow.l7.http if flow.l7 is not None else None
    if http is None:
        return None
    host, path = _split(http.url)
    if path == "" and http.method == "OPTIONS":
        path = "*"
    usable = path is not None and not http.url.endswith(CUT) and http.method != "CONNECT"
    headers = tuple((header.key, header.value) for header in http.headers)
    return HttpRequest(http.method, host, (path or "/") if usable else None, headers)


def _split(url: str) -> tuple[str, str | None]:
    """(authority, path with query); the path is None if this is no URL."""
    found = _AUTHORITY.fullmatch(url)
    if found is None:
        return "", url if url.startswith("/") else None
    return found[1].rpartition("@")[2], found[2] if found[2].startswith("/") or not found[2] else f"/{found[2]}"


@lru_cache(maxsize=4096)
def _reserved(labels: tuple[str, ...]) -> frozenset[str]:
    return frozenset(one.partition(":")[2].partition("=")[0] for one in labels if one.startswith(f"{RESERVED}:"))


@lru_cache(maxsize=4096)
def label(labels: tuple[str, ...], key: str) -> str:
    """The value of a Kubernetes label; "" if absent."""
    prefix = f"{K8S}:{key}="
    return next((one[len(prefix) :] for one in labels if one.startswith(prefix)), "")
