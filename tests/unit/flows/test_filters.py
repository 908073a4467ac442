"""Hubble's filters, one row per rule. `BASE` is an HTTP request from default/client to shop/cart-7d-x1."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from l7proxy.errors import ConfigError
from l7proxy.flows import filters
from l7proxy.flows.flow import (
    IP,
    CiliumEventType,
    Dns,
    Endpoint,
    Flags,
    Flow,
    Header,
    Http,
    Icmp,
    IPTraceId,
    Layer4,
    Layer7,
    NetworkInterface,
    Ports,
    Service,
    TraceContext,
    TraceParent,
    Workload,
)

BASE = Flow(
    uuid="u-1",
    verdict="DROPPED",
    drop_reason_desc="POLICY_DENIED",
    ip=IP(source="10.0.0.10", destination="10.0.0.20", version="IPv4", source_xlated="192.0.2.1"),
    l4=Layer4(tcp=Ports(source_port=50000, destination_port=80)),
    source=Endpoint(
        identity=1234,
        namespace="default",
        pod_name="client",
        labels=("k8s:app=client", "k8s:tier="),
        cluster_name="kind",
    ),
    destination=Endpoint(
        identity=5678,
        namespace="shop",
        pod_name="cart-7d-x1",
        labels=("k8s:app=cart", "k8s:io.kubernetes.pod.namespace=shop", "reserved:world"),
        workloads=(Workload(name="cart", kind="Deployment"),),
    ),
    type="L7",
    node_name="kind/node-a",
    node_labels=("zone=a",),
    destination_names=("cart.example.com",),
    l7=Layer7(
        type="REQUEST",
        http=Http(
            method="GET", url="http://cart/v1/items?id=7", protocol="HTTP/1.1", headers=(Header(key="X-A", value="b"),)
        ),
    ),
    event_type=CiliumEventType(type=129),
    destination_service=Service(namespace="shop", name="cart"),
    traffic_direction="INGRESS",
    is_reply=False,
)
ANSWER = msgspec.structs.replace(
    BASE, is_reply=True, verdict="FORWARDED", l7=Layer7(type="RESPONSE", http=Http(code=404, url="http://cart/x"))
)
DROP = msgspec.structs.replace(
    BASE,
    l7=None,
    type="L3_L4",
    is_reply=None,
    event_type=CiliumEventType(type=1, sub_type=133),
    l4=Layer4(tcp=Ports(source_port=50000, destination_port=80, flags=Flags(syn=True, ack=True))),
)
DNS = msgspec.structs.replace(
    BASE, l4=Layer4(udp=Ports(source_port=4, destination_port=53)), l7=Layer7(dns=Dns(query="example.com."))
)
PING = msgspec.structs.replace(BASE, l4=Layer4(icmpv6=Icmp(type=128)), l7=None)
ON_ETH0 = Flow(
    interface=NetworkInterface(index=2, name="eth0"),
    trace_context=TraceContext(parent=TraceParent(trace_id="4bf92f")),
    ip_trace_id=IPTraceId(trace_id="9"),
)
NOTHING = Flow()


@pytest.mark.parametrize(
    ("field", "values", "flow", "expected"),
    [
        # addresses: text equality, or a prefix that may have host bits
        ("source_ip", ["10.0.0.10"], BASE, True),
        ("source_ip", ["10.0.0.1"], BASE, False),
        ("source_ip", ["10.0.0.99/24"], BASE, True),
        ("source_ip", ["fd00::/8"], BASE, False),
        ("source_ip", ["::ffff:10.0.0.10"], BASE, False),
        ("destination_ip", ["10.0.0.10", "10.0.0.20"], BASE, True),
        ("destination_ip", ["0.0.0.0/0"], NOTHING, False),
        ("source_ip_xlated", ["192.0.2.1"], BASE, True),
        # pods and Services: [namespace/]name-prefix
        ("source_pod", ["client"], BASE, True),
        ("source_pod", ["cli"], BASE, True),
        ("source_pod", ["Client"], BASE, False),
        ("source_pod", ["shop/"], BASE, False),
        ("destination_pod", ["cart"], BASE, False),
        ("destination_pod", ["shop/cart"], BASE, True),
        ("destination_pod", ["shop/"], BASE, True),
        ("destination_pod", ["sho/"], BASE, False),
        ("destination_pod", ["/cart"], BASE, True),
        ("destination_pod", ["/"], BASE, True),
        ("destination_pod", ["/"], NOTHING, False),
        ("destination_pod", ["shop/cart/ignored"], BASE, True),
        ("destination_service", ["shop/cart"], BASE, True),
        ("source_service", ["/"], BASE, False),
        # workloads: every field given must equal
        ("destination_workload", [{"name": "cart", "kind": "Deployment"}], BASE, True),
        ("destination_workload", [{"name": "cart", "kind": "Job"}], BASE, False),
        ("destination_workload", [{"name": "", "kind": "Deployment"}], BASE, True),
        ("source_workload", [{"name": "cart"}], BASE, False),
        # labels: Kubernetes selectors, keys with or without a source
        ("source_label", ["app"], BASE, True),
        ("source_label", ["!app"], BASE, False),
        ("source_label", ["!k8s:gone"], BASE, True),
        ("source_label", ["app=client"], BASE, True),
        ("source_label", ["k8s:app==client"], BASE, True),
        ("source_label", ["container:app=client"], BASE, False),
        ("source_label", ["app=cart", "app=client"], BASE, True),
        ("source_label", ["app=client,tier"], BASE, True),
        ("source_label", ["app=client,gone"], BASE, False),
        ("source_label", ["app!=cart"], BASE, True),
        ("source_label", ["gone!=x"], BASE, True),
        ("source_label", ["tier="], BASE, True),
        ("source_label", ["app in (client, cart)"], BASE, True),
        ("source_label", ["app in (cart)"], BASE, False),
        ("source_label", ["app notin (cart)"], BASE, True),
        ("source_label", ["gone notin (cart)"], BASE, True),
        ("source_label", [""], BASE, True),
        ("destination_label", ["reserved:world"], BASE, True),
        ("destination_label", ["k8s:io.kubernetes.pod.namespace=shop"], BASE, True),
        ("destination_label", ["any:world"], BASE, True),
        ("node_labels", ["zone=a"], BASE, True),
        ("node_labels", ["k8s:zone=a"], BASE, False),
        # names: whole, `*` crosses dots, case and a final dot do not count
        ("destination_fqdn", ["cart.example.com."], BASE, True),
        ("destination_fqdn", ["CART.example.com"], BASE, True),
        ("destination_fqdn", ["*.com"], BASE, True),
        ("destination_fqdn", ["example.com"], BASE, False),
        ("destination_fqdn", ["cartXexample.com"], BASE, False),
        ("source_fqdn", ["*"], BASE, False),
        ("node_name", ["node-a"], BASE, True),
        ("node_name", ["kind/node-a"], BASE, True),
        ("node_name", ["kind/"], BASE, True),
        ("node_name", ["other/"], BASE, False),
        ("node_name", ["/node-*"], BASE, True),
        ("node_name", ["default/n"], Flow(node_name="n"), True),
        ("node_name", ["*"], NOTHING, False),
        ("source_cluster_name", ["kind"], BASE, True),
        ("source_cluster_name", ["ki*"], BASE, False),
        # enums: equality, unset is zero
        ("verdict", ["DROPPED"], BASE, True),
        ("verdict", ["FORWARDED", "AUDIT"], BASE, False),
        ("verdict", [2], BASE, True),
        ("verdict", ["VERDICT_UNKNOWN"], NOTHING, True),
        ("traffic_direction", ["INGRESS"], BASE, True),
        ("traffic_direction", ["EGRESS"], BASE, False),
        ("traffic_direction", ["TRAFFIC_DIRECTION_UNKNOWN"], NOTHING, True),
        ("ip_version", ["IPv4"], BASE, True),
        ("ip_version", ["IP_NOT_USED"], NOTHING, True),
        ("drop_reason_desc", ["POLICY_DENIED"], BASE, True),
        ("drop_reason_desc", ["POLICY_DENY"], BASE, False),
        ("drop_reason_desc", ["POLICY_DENIED"], msgspec.structs.replace(BASE, verdict="FORWARDED"), False),
        # events
        ("event_type", [{"type": 129}], BASE, True),
        ("event_type", [{"type": 1}], BASE, False),
        ("event_type", [{"type": 1, "match_sub_type": True, "sub_type": 133}], DROP, True),
        ("event_type", [{"type": 1, "match_sub_type": True, "sub_type": 0}], DROP, False),
        ("event_type", [{"type": 1, "sub_type": 7}], DROP, True),
        ("event_type", [{"type": 0}], DROP, True),
        ("event_type", [{"type": 0}], NOTHING, False),
        # HTTP
        ("http_status_code", ["404"], ANSWER, True),
        ("http_status_code", ["4+"], ANSWER, True),
        ("http_status_code", ["40+"], ANSWER, True),
        ("http_status_code", ["41+", "5+"], ANSWER, False),
        ("http_status_code", ["4+"], BASE, False),
        ("http_method", ["get"], BASE, True),
        ("http_method", ["POST"], BASE, False),
        ("http_path", ["^/v1/items$"], BASE, True),
        ("http_path", ["items"], BASE, True),
        ("http_path", ["id=7"], BASE, False),
        ("http_path", [".*"], DROP, False),
        ("http_path", [".*"], msgspec.structs.replace(BASE, l7=Layer7(http=Http(url="http://[::"))), False),
        ("http_url", ["id=7"], BASE, True),
        ("http_header", [{"key": "X-A", "value": "b"}], BASE, True),
        ("http_header", [{"key": "x-a", "value": "b"}], BASE, False),
        ("dns_query", ["example"], DNS, True),
        ("dns_query", [".*"], BASE, False),
        # protocols, derived from the flow's content
        ("protocol", ["TCP"], BASE, True),
        ("protocol", ["http"], BASE, True),
        ("protocol", ["udp"], BASE, False),
        ("protocol", ["udp"], DNS, True),
        ("protocol", ["dns"], DNS, True),
        ("protocol", ["icmp"], PING, True),
        ("protocol", ["icmpv6"], PING, True),
        ("protocol", ["icmpv4"], PING, False),
        ("source_port", ["50000"], BASE, True),
        ("destination_port", ["80", "443"], BASE, True),
        ("destination_port", [80], BASE, True),
        ("destination_port", ["8"], BASE, False),
        ("destination_port", ["0"], PING, False),
        ("tcp_flags", [{"SYN": True}], DROP, True),
        ("tcp_flags", [{"SYN": True, "RST": True}], DROP, False),
        ("tcp_flags", [{"SYN": True}], BASE, False),
        # either end
        ("source_identity", [1234], BASE, True),
        ("source_identity", [0], NOTHING, False),
        ("destination_identity", ["5678", 1], BASE, True),
        ("uuid", ["u-1"], BASE, True),
        # replies: a dropped flow with unknown direction is not a reply
        ("reply", [False], BASE, True),
        ("reply", [True], ANSWER, True),
        ("reply", [False], DROP, True),
        ("reply", [False], NOTHING, False),
        ("encrypted", [False], BASE, True),
        ("encrypted", [True], BASE, False),
        ("encrypted", [True], Flow(ip=IP(encrypted=True)), True),
        ("encrypted", [False], NOTHING, True),
        ("interface", [{"name": "eth0"}], ON_ETH0, True),
        ("interface", [{"index": 2}], ON_ETH0, True),
        ("interface", [{"index": 3, "name": "eth0"}], ON_ETH0, False),
        ("interface", [{"name": "eth0"}], BASE, False),
        ("trace_id", ["4bf92f"], ON_ETH0, True),
        ("trace_id", ["4bf92f"], BASE, False),
        ("ip_trace_id", [9], ON_ETH0, True),
        ("ip_trace_id", [9], BASE, False),
        ("experimental", [{}], BASE, True),
    ],
)
def test_field(field: str, values: list[Any], flow: Flow, expected: bool) -> None:
    assert filters.build({"whitelist": [{field: values}]})(flow) is expected
    assert filters.build({"blacklist": [{field: values}]})(flow) is not expected


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (None, True),
        ({}, True),
        ({"whitelist": []}, True),
        ({"whitelist": [{}]}, True),
        ({"blacklist": [{}]}, False),
        ({"whitelist": [{"verdict": []}]}, True),
        ({"whitelist": [{"verdict": ["DROPPED"], "source_pod": ["client"]}]}, True),
        ({"whitelist": [{"verdict": ["DROPPED"], "source_pod": ["other"]}]}, False),
        ({"whitelist": [{"source_pod": ["other"]}, {"verdict": ["DROPPED"]}]}, True),
        ({"whitelist": [{"verdict": ["DROPPED"]}], "blacklist": [{"source_pod": ["client"]}]}, False),
        ({"blacklist": [{"source_pod": ["other"]}, {"verdict": ["DROPPED"]}]}, False),
        ({"blacklist": [{"verdict": ["DROPPED"], "source_pod": ["other"]}]}, True),
    ],
)
def test_lists_and_fields_combine(request_: dict[str, Any] | None, expected: bool) -> None:
    assert filters.build(request_)(BASE) is expected


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"sauce_pod": ["x"]}, "unknown field 'sauce_pod'"),
        ({"source_ip": ["10.0.0"]}, 'invalid IP address "10.0.0" in filter'),
        ({"source_ip": ["10.0.0.0/33"]}, 'invalid IP prefix "10.0.0.0/33"'),
        ({"source_pod": [""]}, "name must not be empty"),
        ({"source_label": ["a b"]}, "invalid source label filter"),
        ({"source_label": ["a in x"]}, "invalid source label filter"),
        ({"destination_label": ["=x"]}, "invalid destination label filter"),
        ({"source_label": ["a" + " " * 60_000 + "!"]}, "longer than 4096"),
        ({"source_fqdn": ["a..b.."]}, "DNS name"),
        ({"source_fqdn": ["a/b"]}, "DNS name"),
        ({"node_name": ["a/b/c"]}, "too many slashes"),
        ({"node_name": [""]}, "empty pattern"),
        ({"verdict": ["dropped"]}, "must be one of FORWARDED"),
        ({"verdict": [99]}, "must be one of FORWARDED"),
        ({"verdict": [[]]}, "must be one of FORWARDED"),
        ({"http_status_code": ["4xx"]}, 'invalid status code prefix: "4xx"'),
        ({"http_status_code": ["600"]}, "invalid status code prefix"),
        ({"http_path": ["("]}, "invalid http path filter"),
        ({"protocol": ["foo"]}, 'unknown protocol: "foo"'),
        ({"source_port": ["99999"]}, 'invalid port "99999"'),
        ({"source_port": ["-1"]}, "invalid port"),
        ({"source_port": ["\u0661"]}, "invalid port"),
        ({"source_identity": ["x"]}, "expected a number"),
        ({"tcp_flags": [{"XXX": True}]}, "unknown flag"),
        ({"source_pod": [1]}, "expected a string"),
        ({"event_type": ["l7"]}, "expected an object"),
        ({"http_header": ["a"]}, "expected an object"),
        ({"http_url": ["a" * 4097]}, "invalid http url filter: longer than 4096 characters"),
        ({"http_url": ["((a{100}){100}){100}"]}, "invalid http url filter"),
        ({"source_cluster_name": [""]}, "invalid source_cluster_name filter: must not be empty"),
        ({"destination_port": ["x"]}, 'invalid destination port filter: invalid port "x"'),
        ({"experimental": {"cel_expression": ["true"]}}, "error compiling CEL expression"),
        ({"uuid": ["x"] * 2000}, "the limit is 1024"),
        ({"http_status_code": ["404"], "event_type": [{"type": 1}]}, "only match 'l7' events"),
    ],
)
def test_a_wrong_filter_is_refused_with_its_fault(fields: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        filters.build({"whitelist": [fields]})


def test_an_expensive_pattern_is_cheap() -> None:
    """Backtracking would take exponential time on these."""
    keep = filters.build({"whitelist": [{"http_url": ["(a*)*b"], "destination_fqdn": ["*" * 40 + "b"]}]})
    url, name = "http://x/" + "a" * 5000, "a" * 250
    assert not keep(msgspec.structs.replace(BASE, l7=Layer7(http=Http(url=url)), destination_names=(name,)))
    assert not filters.build({"whitelist": [{"destination_fqdn": ["*a" * 60 + "b"]}]})(
        msgspec.structs.replace(BASE, destination_names=(name,))
    )
