"""Flags become filters, as in Hubble's command line."""

from __future__ import annotations

from typing import Any

import pytest

from l7proxy.cli import flow_time, observe, observe_filters
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
        ({"to-namespace": ["x"], "from-pod": ["y/a"]}, [{"source_pod": ["y/a"], "destination_pod": ["x/"]}]),
        ({"to-namespace": ["x"], "to-service": ["s"]}, [{"destination_service": ["x/s"]}]),
        ({"type": ["l7"]}, [{"event_type": [{"type": 129}]}]),
        ({"type": ["trace:to-proxy"]}, [{"event_type": [{"type": 4, "match_sub_type": True, "sub_type": 1}]}]),
        ({"type": ["1:133"]}, [{"event_type": [{"type": 1, "match_sub_type": True, "sub_type": 133}]}]),
        ({"to-identity": ["world", "77"]}, [{"destination_identity": [2, 77]}]),
        ({"from-identity": ["reserved:host"]}, [{"source_identity": [1]}]),
        ({"from-workload": ["Deployment/web"]}, [{"source_workload": [{"kind": "Deployment", "name": "web"}]}]),
        (
            {"to-namespace": ["x"], "pod": ["a"]},
            [
                {"source_pod": ["a"], "destination_pod": ["x/"]},
                {"destination_pod": ["x/a"]},
            ],
        ),
        ({"all-namespaces": ["true"]}, [{"source_pod": ["/"]}, {"destination_pod": ["/"]}]),
        (
            {"from-all-namespaces": ["true"], "ipv4": ["v4"], "ipv6": ["v6"]},
            [
                {"source_pod": ["/"], "ip_version": ["IPv4", "IPv6"]},
            ],
        ),
        ({"ip-version": ["none"]}, [{"ip_version": ["IP_NOT_USED"]}]),
        ({"unencrypted": ["false"]}, [{"encrypted": [False]}]),
        ({"interface": ["eth0"]}, [{"interface": [{"name": "eth0"}]}]),
        ({"type": ["agent:policy-updated"]}, [{"event_type": [{"type": 130, "match_sub_type": True, "sub_type": 5}]}]),
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


VALUES = {"type": "l7", "verdict": "DROPPED", "protocol": "tcp", "http-status": "200", "http-header": "a:b"}
VALUES |= {"tcp-flags": "SYN", "ip-version": "v4", "traffic-direction": "egress", "drop-reason-desc": "POLICY_DENY"}
VALUES |= {"ip": "10.0.0.1", "snat-ip": "10.0.0.0/8", "port": "80", "identity": "1", "ip-trace-id": "7"}


@pytest.mark.parametrize("name", sorted(set(observe_filters.FLAGS) - {"cel-expression"}))
def test_every_flag_sets_a_field_that_filters_know(name: str) -> None:
    flag = observe_filters.FLAGS[name]
    value = flag.value or VALUES.get(flag.name, "x")
    found = observe_filters.filters({name: [value]})
    assert len(found) == (2 if flag.name == name and flag in observe_filters.SIDED else 1)
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
        (["--not", "-4", "--not", "--encrypted", "-f"], ["--not", "-4", "--not", "--encrypted", "-f"]),
        (["--not"], ["--not"]),
        (["--not", "--pod"], ["--not", "--pod"]),
    ],
)
def test_not_takes_the_next_flag_with_its_value(arguments: list[str], joined: list[str]) -> None:
    assert observe.join_negations(arguments) == joined


@pytest.mark.parametrize("value", ["--pod", "--follow", "--nosuch=x", "pod", "pod=x"])
def test_not_without_a_filter_flag_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="must be followed by a filter flag"):
        observe.negations([value])


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        ({"label": ["a"], "from-label": ["b"]}, "filters --label and --from-label cannot be combined"),
        ({"pod": ["a"], "ip": ["10.0.0.1"]}, "filters --ip and --pod cannot be combined"),
        ({"from-pod": ["a"], "from-fqdn": ["b"]}, "filters --from-fqdn and --from-pod cannot be combined"),
        ({"namespace": ["a"], "to-pod": ["b"]}, "filters --to-pod and --namespace cannot be combined"),
        ({"namespace": ["a"], "ip": ["10.0.0.1"]}, "filters --ip and --namespace cannot be combined"),
        ({"encrypted": ["true"], "unencrypted": ["false"]}, "filters --encrypted and --unencrypted cannot be"),
        ({"namespace": ["a"], "pod": ["b/c"]}, 'namespace conflict: "a" does not contain "b/c"'),
        ({"from-namespace": ["x"], "from-pod": ["y/a"]}, 'namespace conflict: "x" does not contain "y/a"'),
        ({"pod": ["a/b"], "service": ["c/d"]}, 'namespace of service "c/d" conflict with pod "a"'),
        ({"type": ["nosuch"]}, 'invalid argument "nosuch" for "-t, --type" flag: unable to parse type \'nosuch\''),
        ({"type": ["drop:nosuch"]}, "unable to parse event sub-type 'nosuch'"),
        ({"identity": ["nosuch"]}, "or a numeric value"),
        ({"http-header": ["x"]}, 'flag: invalid http-header value "x", expected name:value'),
        ({"tcp-flags": ["x"]}, "unknown tcp flag: x"),
        ({"verdict": ["x"]}, "invalid --verdict value: x"),
        ({"drop-reason-desc": ["x"]}, "invalid --drop-reason-desc value: x"),
        ({"traffic-direction": ["x"]}, "x: invalid traffic direction, expected ingress or egress"),
        ({"ip-trace-id": ["0"]}, "must be greater than 0"),
        ({"ip-version": ["x"]}, "must be v4, v6 or none"),
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
        ("2025-11-20T01Z", "2025-11-20T01:00:00Z"),
        ("2025-11-20T01:02+01:00", "2025-11-20T00:02:00Z"),
        ("2025-11-20T01:02:03.5+01:00", "2025-11-20T00:02:03.500Z"),
        ("Thu, 20 Nov 2025 01:02:03 +0100", "2025-11-20T00:02:03Z"),
    ],
)
def test_times(value: str, time: str) -> None:
    assert flow_time.moment(value, option="since", now_ns=NOW) == timestamp.parse(time)


@pytest.mark.parametrize("value", ["5", "m", "5 m", "-5m", "yesterday", "5m5", "2025-31-12", ""])
def test_what_is_no_time(value: str) -> None:
    with pytest.raises(ConfigError, match="--since"):
        flow_time.moment(value, option="since", now_ns=NOW)


def test_raw_filters_are_added_and_shown_as_hubble_shows_them() -> None:
    found = observe_filters.request(
        {"verdict": ["DROPPED"], "to-port": ["80"]},
        {},
        ['{"sourcePod":["it\'s"]}{"httpUrl":["<"]}'],
        ['{"uuid":["x"]}'],
    )
    filters.build(found)
    assert list(observe_filters.as_yaml(found)) == [
        "allowlist:",
        """    - '{"verdict":["DROPPED"],"destination_port":["80"]}'""",
        """    - '{"source_pod":["it''s"]}'""",
        """    - '{"http_url":["\\u003c"]}'""",
        "denylist:",
        """    - '{"uuid":["x"]}'""",
    ]
    assert list(observe_filters.as_yaml({})) == ["{}"]


@pytest.mark.parametrize("value", ["{x", "[]", '{"nosuch":1}'])
def test_raw_filters_that_cannot_be_read(value: str) -> None:
    with pytest.raises(ConfigError, match="invalid --denylist flag: failed to decode"):
        observe_filters.request({}, {}, [], [value])
