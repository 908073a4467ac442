"""Flags become filters, as in Hubble's command line."""

from __future__ import annotations

from typing import Any

import pytest

from l7proxy.cli import observe, observe_filters
from l7proxy.errors import ConfigError
from l7proxy.flows import filters, timestamp


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, []),
        ({"verdict": ["DROPPED"]}, [{"verdict": ["DROPPED"]}]),
        ({"verdict": ["dropped"]}, [{"verdict": ["DROPPED"]}]),
        ({"pod": ["a"]}, [{"source_pod": ["a"]}, {"destination_pod": ["a"]}]),
        ({"from-pod": ["a"], "to-pod": ["b"]}, [{"source_pod": ["a"], "destination_pod": ["b"]}]),
        (
            {"pod": ["a"], "to-port": ["80"]},
            [{"source_pod": ["a"], "destination_port": ["80"]}, {"destination_pod": ["a"], "destination_port": ["80"]}],
        ),
        ({"namespace": ["x"]}, [{"source_pod": ["x/"]}, {"destination_pod": ["x/"]}]),
        ({"namespace": ["x"], "pod": ["a"]}, [{"source_pod": ["x/a"]}, {"destination_pod": ["x/a"]}]),
        ({"from-namespace": ["x"], "from-pod": ["y/a"]}, [{"source_pod": ["y/a"]}]),
        ({"to-namespace": ["x"], "to-service": ["s"]}, [{"destination_service": ["x/s"]}]),
        ({"type": ["l7"]}, [{"event_type": [{"type": 129}]}]),
        ({"type": ["trace:to-proxy"]}, [{"event_type": [{"type": 4, "match_sub_type": True, "sub_type": 1}]}]),
        ({"type": ["1:133"]}, [{"event_type": [{"type": 1, "match_sub_type": True, "sub_type": 133}]}]),
        ({"to-identity": ["world", "77"]}, [{"destination_identity": [2, 77]}]),
        ({"from-identity": ["reserved:host"]}, [{"source_identity": [1]}]),
        ({"from-workload": ["Deployment/web"]}, [{"source_workload": [{"kind": "Deployment", "name": "web"}]}]),
        ({"http-header": ["X-A: b"]}, [{"http_header": [{"key": "X-A", "value": "b"}]}]),
        ({"tcp-flags": ["syn,ACK"]}, [{"tcp_flags": [{"SYN": True, "ACK": True}]}]),
        ({"ip-version": ["v6"]}, [{"ip_version": ["IPv6"]}]),
        ({"traffic-direction": ["ingress"]}, [{"traffic_direction": ["INGRESS"]}]),
        ({"to-cluster": ["kind"]}, [{"destination_cluster_name": ["kind"]}]),
    ],
)
def test_flags_make_filters(flags: dict[str, list[str]], expected: list[dict[str, Any]]) -> None:
    found = observe_filters.filters(flags)
    assert found == expected
    filters.build({"whitelist": found})


@pytest.mark.parametrize("name", sorted(observe_filters.NAMES))
def test_every_flag_sets_a_field_that_filters_know(name: str) -> None:
    values = {"type": "l7", "verdict": "DROPPED", "protocol": "tcp", "http-status": "200", "http-header": "a:b"}
    values |= {"tcp-flags": "SYN", "ip-version": "v4", "traffic-direction": "egress"}
    kind = name.removeprefix("from-").removeprefix("to-")
    value = values.get(kind) or {"ip": "10.0.0.1", "port": "80", "identity": "1"}.get(kind, "x")
    found = observe_filters.filters({name: [value]})
    assert len(found) == (2 if kind == name and name not in {flag.name for flag in observe_filters.PLAIN} else 1)
    filters.build({"whitelist": found})


def test_negations_make_a_blacklist() -> None:
    negated = observe.negations(["--verdict=FORWARDED", "-t=l7", "--verdict=AUDIT"])
    assert observe_filters.request({}, negated) == {
        "blacklist": [{"verdict": ["FORWARDED", "AUDIT"], "event_type": [{"type": 129}]}]
    }


@pytest.mark.parametrize(
    ("arguments", "joined"),
    [
        (["observe", "--not", "--pod", "a", "-f"], ["observe", "--not", "--pod=a", "-f"]),
        (["--not", "-n", "x", "--not", "--port=80"], ["--not", "-n=x", "--not", "--port=80"]),
        (["--pod", "a"], ["--pod", "a"]),
        (["--not"], ["--not"]),
        (["--not", "--pod"], ["--not", "--pod"]),
    ],
)
def test_not_takes_the_next_flag_with_its_value(arguments: list[str], joined: list[str]) -> None:
    assert observe.join_negations(arguments) == joined


@pytest.mark.parametrize("value", ["--pod", "--follow", "--nosuch=x", "pod"])
def test_not_without_a_filter_flag_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="must be followed by a filter flag"):
        observe.negations([value])


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        ({"label": ["a"], "from-label": ["b"]}, "--label covers both ends"),
        ({"pod": ["a"], "ip": ["10.0.0.1"]}, "--pod cannot be combined with --ip"),
        ({"from-pod": ["a"], "from-fqdn": ["b"]}, "--from-pod cannot be combined with --from-fqdn"),
        ({"namespace": ["a"], "to-pod": ["b"]}, "use --to-namespace"),
        ({"namespace": ["a"], "ip": ["10.0.0.1"]}, "--namespace cannot be combined with --ip"),
        ({"type": ["nosuch"]}, "unknown type"),
        ({"type": ["drop:nosuch"]}, "unknown sub type"),
        ({"identity": ["nosuch"]}, "a number or one of"),
        ({"http-header": ["x"]}, "KEY:VALUE"),
    ],
)
def test_what_cannot_be_meant_is_refused(flags: dict[str, list[str]], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        observe_filters.filters(flags)


NOW = timestamp.parse("2025-11-23T20:00:00Z")


@pytest.mark.parametrize(
    ("value", "time"),
    [
        ("5m", "2025-11-23T19:55:00Z"),
        ("1h30m", "2025-11-23T18:30:00Z"),
        ("1.5s", "2025-11-23T19:59:58.500Z"),
        ("250ms", "2025-11-23T19:59:59.750Z"),
        ("2025-11-20", "2025-11-20T00:00:00Z"),
        ("2025-11-20T01:02:03.5+01:00", "2025-11-20T00:02:03.500Z"),
        ("Thu, 20 Nov 2025 01:02:03 +0100", "2025-11-20T00:02:03Z"),
    ],
)
def test_times(value: str, time: str) -> None:
    assert observe.moment(value, option="since", now_ns=NOW) == timestamp.parse(time)


@pytest.mark.parametrize("value", ["5", "m", "5 m", "-5m", "yesterday", "5m5", "2025-31-12", ""])
def test_what_is_no_time(value: str) -> None:
    with pytest.raises(ConfigError, match="--since"):
        observe.moment(value, option="since", now_ns=NOW)
