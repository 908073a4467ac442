"""Random flows that have everything that flows can have, the same for the same seed."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator, Sequence
from typing import TypeVar

from l7proxy.flows import hubble_constants as hubble
from l7proxy.flows import timestamp
from l7proxy.flows.flow import (
    IP,
    CiliumEventType,
    Dns,
    Emitter,
    Endpoint,
    Ethernet,
    Flags,
    Flow,
    Header,
    Http,
    Icmp,
    Igmp,
    IPTraceId,
    Kafka,
    Layer4,
    Layer7,
    LostEvents,
    NetworkInterface,
    NodeStatus,
    Policy,
    Ports,
    Response,
    Service,
    TraceContext,
    TraceParent,
    Vrrp,
    Workload,
)

T = TypeVar("T")
START = timestamp.parse("2025-11-23T20:00:00Z")
NAMES = ("client", "backend", "shop-7d9f8b6c5-x2x4z", "coredns-0", "a")
NAMESPACES = ("default", "kube-system", "shop", "")
NODES = ("node-1", "kind/node-a", "prod/very-long-node-name.example.com", "")
URLS = (
    "http://backend/v1/items?id=7&x=<1>",
    "http://10.0.0.20:8080/admin",
    "/",
    'http://shop.example.com/%22quoted%22"',
    "http://b/é/ü?q=a\\b",
)
CAPTURES = ("DBG_CAPTURE_DELIVERY", "DBG_CAPTURE_PROXY_PRE", "DBG_CAPTURE_SNAT_POST", "")


def responses(seed: int, count: int) -> Iterator[Response]:
    chance = random.Random(seed)
    at = START
    for _ in range(count):
        at += chance.choice((0, 1, 999, 1_000, 1_000_000, 123_456_789, 86_400_000_000_000))
        yield _response(chance, at)


def _response(chance: random.Random, at: int) -> Response:
    time, node = timestamp.text(at), chance.choice(NODES)
    kind = chance.random()
    if kind < 0.02:
        states = ("NODE_UNAVAILABLE", "NODE_ERROR", "NODE_CONNECTED", "NODE_GONE")
        names = tuple(f"kind/node-{number}" for number in range(chance.randrange(1, 9)))
        message = chance.choice(("", 'dial "tcp": no route', "timeout"))
        status = NodeStatus(state_change=chance.choice(states), node_names=names, message=message)
        return Response(node_status=status, node_name="relay", time=time)
    if kind < 0.05:
        span = chance.choice((time, ""))
        lost = LostEvents(
            source=chance.choice(hubble.LOST_SOURCES[1:]),
            num_events_lost=str(chance.randrange(1, 10 ** chance.randrange(1, 19))),
            cpu=chance.choice((None, 0, 3)),
            first=span,
            last=span,
        )
        return Response(lost_events=lost, node_name=node, time=time)
    flow = _flow(chance, time, node)
    return Response(flow=flow, node_name=flow.node_name, time=flow.time)


def _flow(chance: random.Random, time: str, node: str) -> Flow:
    kind = chance.choice(tuple(hubble.EventType))
    l7 = _layer7(chance) if kind is hubble.EventType.L7 or chance.random() < 0.02 else None
    verdict = chance.choice(hubble.VERDICTS[1:])
    reason = chance.choice(tuple(hubble.DROP_REASONS)[1:]) if verdict == "DROPPED" and chance.random() < 0.8 else ""
    return Flow(
        time=time,
        uuid=str(uuid.UUID(int=chance.getrandbits(128), version=4)),
        emitter=Emitter(name="l7proxy", version="0.1.0"),
        verdict=verdict,
        drop_reason=hubble.DROP_REASONS.get(reason, 0),
        drop_reason_desc=reason,
        auth_type=_sometimes(chance, 0.1, chance.choice(("SPIRE", "TEST_ALWAYS_FAIL")), ""),
        ethernet=_sometimes(chance, 0.3, Ethernet(source="0a:58:0a:00:00:01", destination="0a:58:0a:00:00:02"), None),
        ip=_sometimes(chance, 0.95, _ip(chance), None),
        l4=_sometimes(chance, 0.95, _layer4(chance), None),
        source=_sometimes(chance, 0.9, _endpoint(chance), None),
        destination=_sometimes(chance, 0.9, _endpoint(chance), None),
        type="L7" if l7 else "L3_L4",
        node_name=node,
        node_labels=_sometimes(chance, 0.2, ("kubernetes.io/hostname=node-1", "zone=a"), ()),
        source_names=_sometimes(chance, 0.2, ("example.com",), ()),
        destination_names=_sometimes(chance, 0.2, ("a.example.com", "b.example.com"), ()),
        l7=l7,
        reply=chance.random() < 0.3,
        event_type=_sometimes(chance, 0.97, _event_type(chance, kind), None),
        source_service=_sometimes(chance, 0.2, _service(chance), None),
        destination_service=_sometimes(chance, 0.2, _service(chance), None),
        traffic_direction=chance.choice(("INGRESS", "EGRESS", "")),
        policy_match_type=chance.randrange(9),
        trace_observation_point=_sometimes(chance, 0.2, "TO_ENDPOINT", ""),
        trace_reason=_sometimes(chance, 0.2, "NEW", ""),
        ip_trace_id=_sometimes(
            chance, 0.1, IPTraceId(trace_id=str(chance.randrange(1, 2**64)), ip_option_type=136), None
        ),
        is_reply=chance.choice((None, True, False)),
        debug_capture_point=chance.choice(CAPTURES) if kind is hubble.EventType.CAPTURE else "",
        sock_xlate_point=chance.choice((*hubble.SOCKET_POINTS, "")) if kind is hubble.EventType.TRACE_SOCK else "",
        interface=_sometimes(chance, 0.2, NetworkInterface(index=7, name="lxc1234"), None),
        proxy_port=_sometimes(chance, 0.1, 15001, 0),
        trace_context=_sometimes(
            chance, 0.1, TraceContext(parent=TraceParent(trace_id="4bf92f3577b34da6a3ce929d0e0e4736")), None
        ),
        summary=_summary(chance, l7),
        policy_log=_sometimes(chance, 0.3, ("no rule of policy shop/cart allows identity 7 to 80/TCP",), ()),
        egress_allowed_by=_policies(chance),
        ingress_allowed_by=_policies(chance),
        egress_denied_by=_policies(chance),
        ingress_denied_by=_policies(chance),
    )


def _sometimes(chance: random.Random, how_often: float, value: T, other: T) -> T:
    return value if chance.random() < how_often else other


def _event_type(chance: random.Random, kind: hubble.EventType) -> CiliumEventType:
    sub_types: Sequence[int] = (0,)
    if kind is hubble.EventType.DROP:
        sub_types = (*hubble.DROP_TEXTS, 207, 255)
    elif kind is hubble.EventType.TRACE:
        sub_types = range(16)
    return CiliumEventType(type=kind, sub_type=chance.choice(sub_types))


def _ip(chance: random.Random) -> IP:
    address = chance.choice(("10.0.0.{}", "192.168.100.{}", "fd00:10::{:x}"))
    version = "IPv6" if ":" in address else "IPv4"
    source, destination = (address.format(chance.randrange(256)) for _ in range(2))
    return IP(
        source=source,
        destination=destination,
        version=version,
        encrypted=chance.random() < 0.1,
        source_xlated=_sometimes(chance, 0.1, "172.18.0.2", ""),
    )


def _layer4(chance: random.Random) -> Layer4:
    ports = Ports(source_port=chance.choice((0, 1, 50000, 65535)), destination_port=chance.choice((0, 53, 80, 8080)))
    flags = Flags(**{name.lower(): chance.random() < 0.2 for name, _ in hubble.TCP_FLAGS})
    tcp = Ports(
        source_port=ports.source_port, destination_port=ports.destination_port, flags=chance.choice((None, flags))
    )
    return chance.choice(
        (
            Layer4(tcp=tcp),
            Layer4(tcp=tcp),
            Layer4(udp=ports),
            Layer4(sctp=ports),
            Layer4(icmpv4=Icmp(type=8)),
            Layer4(icmpv6=Icmp(type=135, code=1)),
            Layer4(vrrp=Vrrp(type=1, vrid=7, priority=100)),
            Layer4(igmp=Igmp(type=22, group_address="224.0.0.22")),
        )
    )


def _endpoint(chance: random.Random) -> Endpoint:
    number = chance.choice((*range(12), 1234, 16777217, 2**32 - 1))
    pod = chance.choice((*NAMES, "", ""))
    return Endpoint(
        id=_sometimes(chance, 0.5, 101, 0),
        identity=number,
        cluster_name=chance.choice(("", "kind")),
        namespace=chance.choice(NAMESPACES),
        labels=(f"k8s:app={pod}", "k8s:io.kubernetes.pod.namespace=default") if pod else (),
        pod_name=pod,
        workloads=(Workload(name=pod, kind="Deployment"),) if pod else (),
    )


def _service(chance: random.Random) -> Service:
    return Service(name=chance.choice((*NAMES, "")), namespace=chance.choice(NAMESPACES))


def _policies(chance: random.Random) -> tuple[Policy, ...]:
    return tuple(_policy(chance) for _ in range(chance.choice((0, 0, 1, 2))))


def _policy(chance: random.Random) -> Policy:
    return Policy(
        name=chance.choice(("allow-client", "deny-all", "")),
        namespace=chance.choice(NAMESPACES),
        labels=("k8s:io.cilium.k8s.policy.name=allow-client",),
        revision=chance.choice(("", "3")),
        kind=chance.choice(("CiliumNetworkPolicy", "NetworkPolicy", "")),
    )


def _layer7(chance: random.Random) -> Layer7:
    kind = chance.choice((*hubble.L7_TYPES[1:], ""))
    latency = chance.choice(("", "5250000"))
    http = Http(
        code=chance.choice((0, 200, 403)),
        method=chance.choice(("GET", "POST", "")),
        url=chance.choice(URLS),
        protocol="HTTP/1.1",
        headers=_sometimes(chance, 0.3, (Header(key="X-Request-Id", value="1"),), ()),
    )
    dns = Dns(
        query="example.com.",
        ips=chance.choice(((), ("93.184.216.34", "2606:2800::1"))),
        ttl=chance.choice((0, 300, 4294967295)),
        cnames=chance.choice(((), ("a.example.com.",))),
        observation_source=chance.choice(("proxy", "agent", "")),
        rcode=chance.choice((0, 3, 5)),
        qtypes=("A", "AAAA"),
        rrtypes=("A",),
    )
    kafka = Kafka(error_code=3, api_version=7, api_key="produce", correlation_id=9, topic="orders")
    records: tuple[Layer7, ...] = (
        Layer7(type=kind, latency_ns=latency, http=http),
        Layer7(type=kind, latency_ns=latency, http=http),
        Layer7(type=kind, latency_ns=latency, dns=dns),
        Layer7(type=kind, kafka=kafka),
        Layer7(type=kind),
    )
    return chance.choice(records)


def _summary(chance: random.Random, l7: Layer7 | None) -> str:
    if l7 is not None and l7.http is not None:
        return f"{l7.http.protocol} {l7.http.method} {l7.http.url}"
    if l7 is not None and l7.dns is not None:
        return 'DNS Answer "93.184.216.34" TTL: 300 (Proxy example.com. A)'
    return chance.choice(("TCP Flags: SYN", "TCP Flags: SYN, ACK", "UDP", "ICMPv4 EchoRequest", ""))
