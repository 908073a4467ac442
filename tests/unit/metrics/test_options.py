"""What `flow-metrics` accepts, and that each error names the metric, the option and what is allowed."""

from __future__ import annotations

import pytest

from l7proxy.errors import ConfigError
from l7proxy.metrics.flows import COUNTERS
from l7proxy.metrics.options import FLAGS, parse
from l7proxy.setting_definitions import Settings
from l7proxy.settings.read import load


def test_names_options_and_contexts_are_read() -> None:
    flow, dns = parse(
        "flow dns:query;ignoreAAAA=false;sourceContext=workload|ip;labelsContext=destination_pod,source_ip"
    )
    assert (flow.name, flow.labels, flow.flags) == ("flow", (), frozenset())
    assert dns.flags == {"query"}
    assert dns.labels == ("source_ip", "destination_pod")
    assert dns.ends == {"sourceContext": ("workload", "ip")}


def test_the_example_of_hubbles_documentation_is_read() -> None:
    text = (
        "dns drop tcp flow port-distribution icmp httpV2:labelsContext=source_ip,source_namespace,source_workload,"
        "destination_ip,destination_namespace,destination_workload,traffic_direction"
    )
    assert [one.name for one in parse(text)] == [
        "dns", "drop", "tcp", "flow", "port-distribution", "icmp", "httpV2",
    ]  # fmt: skip


def test_the_default_and_nothing_are_valid() -> None:
    assert parse("") == ()
    assert parse(Settings().flow_metrics)
    assert FLAGS.keys() == COUNTERS.keys()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flows", "unknown metric 'flows': must be one of flow, drop, "),
        ("flow flow", "flow: is listed twice"),
        ("http httpV2", "http and httpV2 have metrics of one name: choose one of them"),
        ("drop:query", "drop: unknown option 'query': must be one of labelsContext, sourceContext, "),
        ("dns:querry=1", "dns: unknown option 'querry': must be one of query, ignoreAAAA, labelsContext"),
        ("dns:query=yes", "dns: query: must be true or false, not 'yes'"),
        ("cilium:sourceContext=ip", "cilium: unknown option 'sourceContext': must be one of none"),
        ("tcp:sourceContext=pods", "tcp: sourceContext: unknown identifier 'pods': must be one of identity, "),
        ("tcp:labelsContext=pod", "tcp: labelsContext: unknown label 'pod': must be one of source_ip, "),
    ],
)
def test_errors_name_what_is_wrong_and_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert str(caught.value).startswith(message)
    with pytest.raises(ConfigError, match=r"^flag --flow-metrics: "):
        load(None, {"flow_metrics": text}, environment={})


def test_a_wrong_address_names_the_setting() -> None:
    with pytest.raises(ConfigError, match=r"^flag --metrics-address: must be ADDRESS:PORT"):
        load(None, {"metrics_address": "9965"}, environment={})
