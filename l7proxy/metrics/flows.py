"""Which series a flow counts in: Hubble's metrics (names, labels and rules as its own), and three of Cilium's agent.

A counted flow must not be known by its time, uuid, client port, URL or latency: flows of one template have one result
(`sink`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, TypeAlias

from l7proxy.flows import hubble_constants as hubble
from l7proxy.flows.flow import Flow, Layer7
from l7proxy.metrics.contexts import Contexts, direction
from l7proxy.metrics.families import BOUNDS, Family
from l7proxy.metrics.options import Metric

Counted: TypeAlias = tuple[Family, tuple[str, ...]]
"""A family and label values. Of a histogram: the flow's latency is observed."""
Counter: TypeAlias = Callable[[Flow], Iterable[Counted]]
PASSED: Final = frozenset({"FORWARDED", "REDIRECTED"})
REPORTERS: Final[Mapping[str, str]] = {"INGRESS": "server", "EGRESS": "client"}
EVENTS: Final[Mapping[int, str]] = {
    hubble.EventType.DROP: "Drop",
    hubble.EventType.CAPTURE: "Capture",
    hubble.EventType.TRACE: "Trace",
    hubble.EventType.POLICY_VERDICT: "PolicyVerdict",
    hubble.EventType.L7: "L7",
}
POLICY_DROPS: Final = frozenset({"POLICY_DENIED", "POLICY_DENY"})
WORLD: Final = frozenset({"reserved:world", "reserved:world-ipv4", "reserved:world-ipv6"})
HOST: Final = hubble.RESERVED_NAMES.index("host")
RCODES: Final[Mapping[int, str]] = {
    0: "No Error",
    1: "Format Error",
    2: "Server Failure",
    3: "Non-Existent Domain",
    4: "Not Implemented",
    5: "Query Refused",
    9: "Not Authorized",
}


class Registry:
    """Makes the families of the configured metrics, and their counters."""

    def __init__(self, metrics: Iterable[Metric], *, limit: int) -> None:
        self.families: list[Family] = []
        self._limit = limit
        self.counters: list[Counter] = [COUNTERS[metric.name](self, metric) for metric in metrics]

    def family(
        self,
        name: str,
        about: str,
        fixed: Sequence[str],
        contexts: Contexts | None = None,
        *,
        first: bool = False,
        free: Iterable[str] = (),
        bounds: Sequence[float] = (),
        exemplars: bool = False,
    ) -> Family:
        """`first`: context labels come before the fixed ones. `free`: fixed labels without a fixed vocabulary."""
        own = contexts.names if contexts else ()
        labels = (*own, *fixed) if first else (*fixed, *own)
        made = Family(
            name,
            about,
            labels,
            open_labels=(*own, *free),
            pod_labels=contexts.pod_labels if contexts else (),
            limit=self._limit,
            bounds=bounds,
            exemplars=exemplars,
        )
        self.families.append(made)
        return made


def protocol(flow: Flow) -> str:
    """As Hubble names the innermost known protocol."""
    if flow.l7 is not None:
        return _l7(flow.l7) or "Unknown L7"
    l4 = flow.l4
    if l4 is None:
        return "Unknown flow"
    known = (("TCP", l4.tcp), ("UDP", l4.udp), ("ICMPv4", l4.icmpv4), ("ICMPv6", l4.icmpv6), ("SCTP", l4.sctp))
    return next((name for name, part in known if part is not None), "Unknown L4")


def _l7(layer: Layer7) -> str:
    known = (("DNS", layer.dns), ("HTTP", layer.http), ("Kafka", layer.kafka))
    return next((name for name, part in known if part is not None), "")


def _reporter(flow: Flow) -> str:
    return REPORTERS.get(flow.traffic_direction, "unknown")


def _kind(flow: Flow) -> tuple[str, str]:
    """(type, subtype)"""
    if flow.l7 is not None:
        return "L7", _l7(flow.l7)
    event = flow.event_type
    name = EVENTS.get(event.type, "Unknown") if event else "Unknown"
    if name == "Trace" and event is not None and 0 <= event.sub_type < len(hubble.TRACE_POINTS):
        return name, hubble.TRACE_POINTS[event.sub_type]
    return name, ""


def _flow(registry: Registry, metric: Metric) -> Counter:
    contexts = Contexts(metric)
    family = registry.family(
        "hubble_flows_processed", "Flows.", ("protocol", "type", "subtype", "verdict"), contexts
    )  # fmt: skip
    return lambda flow: [(family, (protocol(flow), *_kind(flow), flow.verdict, *contexts.values(flow)))]


def _drop(registry: Registry, metric: Metric) -> Counter:
    contexts = Contexts(metric)
    family = registry.family("hubble_drop", "Refused flows.", ("reason", "protocol"), contexts, first=True)

    def count(flow: Flow) -> Iterator[Counted]:
        if flow.verdict == "DROPPED":
            yield family, (*contexts.values(flow), flow.drop_reason_desc or "DROP_REASON_UNKNOWN", protocol(flow))

    return count


def _family_of(flow: Flow) -> str:
    return flow.ip.version if flow.ip else ""


def _tcp(registry: Registry, metric: Metric) -> Counter:
    contexts = Contexts(metric)
    family = registry.family("hubble_tcp_flags", "TCP flags of flows.", ("flag", "family"), contexts)

    def count(flow: Flow) -> Iterator[Counted]:
        flags = flow.l4.tcp.flags if flow.l4 is not None and flow.l4.tcp is not None else None
        if flags is None or flow.verdict not in PASSED:
            return
        found = (("FIN", flags.fin), ("SYN-ACK" if flags.ack else "SYN", flags.syn), ("RST", flags.rst))
        rest = (_family_of(flow), *contexts.values(flow))
        yield from ((family, (name, *rest)) for name, on in found if on)

    return count


def _icmp(registry: Registry, metric: Metric) -> Counter:
    contexts = Contexts(metric)
    family = registry.family("hubble_icmp", "ICMP messages.", ("family", "type"), contexts, free=("type",))

    def count(flow: Flow) -> Iterator[Counted]:
        l4 = flow.l4
        if l4 is not None and l4.icmpv4 is not None:
            number, names = l4.icmpv4.type, hubble.ICMPV4_TYPES
        elif l4 is not None and l4.icmpv6 is not None:
            number, names = l4.icmpv6.type, hubble.ICMPV6_TYPES
        else:
            return
        yield family, (_family_of(flow), names.get(number, f"Unknown({number})"), *contexts.values(flow))

    return count


def _ports(registry: Registry, metric: Metric) -> Counter:
    contexts = Contexts(metric)
    family = registry.family(
        "hubble_port_distribution", "Flows by destination port.", ("protocol", "port"), contexts, free=("port",)
    )

    def count(flow: Flow) -> Iterator[Counted]:
        if flow.verdict in PASSED and flow.is_reply is False and flow.l4 is not None:
            ports = flow.l4.ports
            port = str(ports.destination_port) if ports else "0"
            yield family, (protocol(flow), port, *contexts.values(flow))

    return count


def _world(registry: Registry, metric: Metric) -> Counter:
    contexts = Contexts(metric)
    with_port = "port" in metric.flags
    fixed = ("protocol", "verdict", *(("port",) if with_port else ()))
    family = registry.family(
        "hubble_flows_to_world", "Flows to outside of the cluster.", fixed, contexts, free=("port",)
    )

    def count(flow: Flow) -> Iterator[Counted]:
        if flow.destination is None or flow.event_type is None or flow.l4 is None:
            return
        if WORLD.isdisjoint(flow.destination.labels) or not _towards(flow, metric.flags):
            return
        ports = flow.l4.ports
        port = (str(ports.destination_port) if ports else "",) if with_port else ()
        yield family, (protocol(flow), flow.verdict, *port, *contexts.values(flow))

    return count


def _towards(flow: Flow, flags: frozenset[str]) -> bool:
    """Neither a reply nor a drop for another reason than policy, and the first packet if only that is wanted."""
    if flow.verdict == "DROPPED":
        if "any-drop" not in flags and flow.drop_reason_desc not in POLICY_DROPS:
            return False
    elif flow.is_reply is not False:
        return False
    tcp = flow.l4.tcp if flow.l4 else None
    return "syn-only" not in flags or tcp is None or (tcp.flags is not None and tcp.flags.syn and not tcp.flags.ack)


def _policy(registry: Registry, metric: Metric) -> Counter:
    contexts = Contexts(metric)
    family = registry.family(
        "hubble_policy_verdicts", "Policy verdicts.", ("direction", "match", "action"), contexts
    )  # fmt: skip

    def count(flow: Flow) -> Iterator[Counted]:
        if flow.l7 is not None:
            match = f"l7/{_l7(flow.l7).lower() or 'unknown'}"
        elif _judged(flow):
            known = flow.policy_match_type
            match = hubble.MATCH_TYPES[known].lower() if 0 <= known < len(hubble.MATCH_TYPES) else "unknown"
        else:
            return
        yield family, (direction(flow), match, flow.verdict.lower(), *contexts.values(flow))

    return count


def _judged(flow: Flow) -> bool:
    host = flow.source is not None and flow.source.identity == HOST
    return not host and _event(flow) == hubble.EventType.POLICY_VERDICT


def _event(flow: Flow) -> int:
    return flow.event_type.type if flow.event_type else 0


def _http(registry: Registry, metric: Metric) -> Counter:
    contexts = Contexts(metric)
    requests = registry.family(
        "hubble_http_requests", "HTTP requests.", ("method", "protocol", "reporter"), contexts, first=True,
        free=("method", "protocol"), exemplars="exemplars" in metric.flags,
    )  # fmt: skip
    responses = registry.family(
        "hubble_http_responses", "HTTP responses.", ("method", "protocol", "status", "reporter"), contexts, first=True,
        free=("method", "protocol", "status"),
    )  # fmt: skip
    durations = _durations(registry, contexts, exemplars="exemplars" in metric.flags)

    def count(flow: Flow) -> Iterator[Counted]:
        http = flow.l7.http if flow.l7 else None
        if flow.l7 is None or http is None:
            return
        own, reporter = contexts.values(flow), _reporter(flow)
        if flow.l7.type == "REQUEST":
            yield requests, (*own, http.method, http.protocol, reporter)
        elif flow.l7.type == "RESPONSE":
            yield responses, (*own, http.method, http.protocol, str(http.code), reporter)
            yield durations, (*own, http.method, reporter)

    return count


def _http_v2(registry: Registry, metric: Metric) -> Counter:
    contexts = Contexts(metric)
    requests = registry.family(
        "hubble_http_requests", "HTTP requests, by the status of their response.",
        ("method", "protocol", "status", "reporter"), contexts, first=True, free=("method", "protocol", "status"),
        exemplars="exemplars" in metric.flags,
    )  # fmt: skip
    durations = _durations(registry, contexts, exemplars="exemplars" in metric.flags)

    def count(flow: Flow) -> Iterator[Counted]:
        http = flow.l7.http if flow.l7 else None
        if flow.l7 is None or http is None or flow.l7.type != "RESPONSE":
            return
        own, reporter = contexts.values(flow, swapped=True), _reporter(flow)
        yield requests, (*own, http.method, http.protocol, str(http.code), reporter)
        yield durations, (*own, http.method, reporter)

    return count


def _durations(registry: Registry, contexts: Contexts, *, exemplars: bool) -> Family:
    return registry.family(
        "hubble_http_request_duration_seconds", "Time from a request to its response.", ("method", "reporter"),
        contexts, first=True, free=("method",), bounds=BOUNDS, exemplars=exemplars,
    )  # fmt: skip


def _dns(registry: Registry, metric: Metric) -> Counter:
    contexts = Contexts(metric)
    extra = ("query",) if "query" in metric.flags else ()
    fixed = ("rcode", "qtypes", "ips_returned", *extra)
    free = ("qtypes", "ips_returned", "query", "type")
    queries = registry.family("hubble_dns_queries", "DNS queries.", fixed, contexts, first=True, free=free)
    responses = registry.family("hubble_dns_responses", "DNS responses.", fixed, contexts, first=True, free=free)
    types = registry.family(
        "hubble_dns_response_types", "Records of DNS responses.", ("type", "qtypes", *extra), contexts, first=True,
        free=free,
    )  # fmt: skip

    def count(flow: Flow) -> Iterator[Counted]:
        dns = flow.l7.dns if flow.l7 else None
        if dns is None or ("ignoreAAAA" in metric.flags and dns.qtypes == ("AAAA",)):
            return
        own, qtypes, query = contexts.values(flow), ",".join(dns.qtypes), (dns.query,) if extra else ()
        counts = str(len(dns.ips))
        if flow.verdict == "DROPPED":
            yield queries, (*own, "Policy denied", qtypes, counts, *query)
        elif flow.is_reply is False:
            yield queries, (*own, "", qtypes, counts, *query)
        elif flow.is_reply:
            yield responses, (*own, RCODES.get(dns.rcode, ""), qtypes, counts, *query)
            for one in dns.rrtypes:
                yield types, (*own, one, qtypes, *query)

    return count


def _cilium(registry: Registry, metric: Metric) -> Counter:
    """What dashboards for Cilium's agent query, as far as flows know it."""
    messages = registry.family(
        "cilium_policy_l7", "L7 messages that policy judged.", ("rule", "proxy_type")
    )  # fmt: skip
    drops = registry.family("cilium_drop_count", "Refused flows of L3 and L4.", ("reason", "direction"))

    def count(flow: Flow) -> Iterator[Counted]:
        if flow.l7 is not None:
            http = flow.l7.http
            if http is not None and flow.l7.type == "REQUEST":
                yield messages, ("received", "envoy")
                yield messages, (_rule(flow.verdict, http.method), "envoy")
        elif flow.verdict == "DROPPED" and _event(flow) == hubble.EventType.DROP:
            reason = hubble.DROP_TEXTS.get(flow.drop_reason, str(flow.drop_reason))
            yield drops, (reason, flow.traffic_direction or "UNKNOWN")

    return count


def _rule(verdict: str, method: str) -> str:
    if not method:
        return "parse_errors"
    return "denied" if verdict == "DROPPED" else "forwarded"


COUNTERS: Final[Mapping[str, Callable[[Registry, Metric], Counter]]] = {
    "flow": _flow,
    "drop": _drop,
    "tcp": _tcp,
    "icmp": _icmp,
    "dns": _dns,
    "http": _http,
    "httpV2": _http_v2,
    "port-distribution": _ports,
    "flows-to-world": _world,
    "policy": _policy,
    "cilium": _cilium,
}
