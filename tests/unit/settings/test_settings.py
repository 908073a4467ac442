"""Settings: file, flags, and an error that names each wrong one."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest

from l7proxy.cli import service
from l7proxy.errors import ConfigError
from l7proxy.setting_definitions import DEFINITIONS, Settings, parse
from l7proxy.settings.derived import kernel
from l7proxy.settings.read import load
from tests import pages


def config(path: Path, text: str) -> Path:
    file = path / "c.yaml"
    file.write_text(text)
    return file


def test_flags_win_over_the_file_and_none_is_no_flag(tmp_path: Path) -> None:
    file = config(tmp_path, "source: /m\nrun-dir: /run/x\nworkers: 3\nmark_proxy: 0x10\nrefuse: drop\ndrain: 5\n")
    settings = load(file, {"workers": "2", "node": None, "source": Path("/n").as_posix()})
    assert (settings.source, settings.run_dir, settings.workers) == ("/n", Path("/run/x"), 2)
    assert settings.mark_proxy == 16
    assert not kernel(settings).refuse_with_reset
    assert settings.link_socket == Path("/run/x/link.sock")


def test_the_defaults_are_sound_and_an_empty_file_is_fine(tmp_path: Path) -> None:
    assert load(config(tmp_path, "# nothing\n")) == load(None)
    assert load(None).workers >= 1


def test_what_is_dumped_is_parsed_as_the_same(tmp_path: Path) -> None:
    settings = Settings(source="/m", node="n1", flow_headers=("a",), run_dir=Path("/r"), drain=1.5)
    assert load(config(tmp_path, settings.dump())) == settings
    assert parse(settings.dump(), Settings) == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("worker: 2", "unknown setting 'worker'; did you mean workers?"),
        ("nonsense: 2", "unknown setting 'nonsense'"),
        ("workers: two", "c.yaml:1: workers: must be a whole number from 1 to 256, not 'two'"),
        ("workers: true", "workers: must be a whole number from 1 to 256, not True"),
        ("workers: 0", "workers: must be a whole number from 1 to 256, not 0"),
        ("proxy-port: 70000", "proxy-port: must be a whole number from 1 to 65535, not 70000"),
        ("mark-proxy: 3", "mark-proxy: must be a single bit of the packet mark, as 0x1000000, not 3"),
        (
            "mark-proxy: 1\nmark-upstream: 1",
            "c.yaml:2: mark-upstream: must be another bit than that of",
        ),
        ("route-table: 254", "route-table: 254 is reserved by the kernel"),
        ("refuse: politely", "refuse: must be one of reset, drop, not 'politely'"),
        ("backend: ebpf", "backend: must be one of auto, nftables, iptables, not 'ebpf'"),
        ("node: 10.0.0.1", "node: '10.0.0.1' is not a valid node name"),
        ("run-dir: 7", "run-dir: must be a path, not 7"),
        ("tunnel-ports: [1, 65536]", "tunnel-ports: must be a list of numbers from 1 to 65535, not [1, 65536]"),
        ("tunnel-protocols: [6]", "tunnel-protocols: 6 is not an IP protocol without ports"),
        ("namespace: ../nodes", "namespace: '../nodes' is not the name of a namespace"),
        ("health-address: localhost", "health-address: must be ADDRESS:PORT, as 127.0.0.1:9878 or [::1]:9878"),
        ("flow-ring: 4096", "flow-ring: must be one less than a power of two, not 4096"),
        ("proxy-port: 1\nproxy_port: 2", "c.yaml:2: proxy_port: is set twice"),
        (f"run-dir: /{'x' * 120}", "is too long for the path of a Unix socket"),
        ("- a", "must be a mapping of settings"),
        ("a: [", "c.yaml:2: not valid YAML"),
        ("workers: 1\nworkers: 2", "c.yaml:2: duplicate key 'workers'"),
        ("{workers: 1}\n---\n{workers: 2}", "must be a mapping of settings"),
    ],
)
def test_each_wrong_setting_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = config(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert str(caught.value).startswith(str(file))
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.yaml: cannot read the configuration: No such file"):
        load(tmp_path / "none.yaml")


def test_a_flag_wins_over_a_variable_that_over_the_file_that_over_the_default(tmp_path: Path) -> None:
    file = config(tmp_path, "log-rate: 1\nnflog-group: 1\nrule-priority: 11\n")
    environment = {"L7PROXY_LOG_RATE": "2", "L7PROXY_NFLOG_GROUP": "2", "L7PROXY_MARK_PROXY": "0x10"}
    settings = load(file, {"log_rate": "3"}, environment=environment)
    assert (settings.log_rate, settings.nflog_group, settings.rule_priority) == (3, 2, 11)
    assert (settings.mark_proxy, settings.route_table) == (16, 7777)


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        (
            "L7PROXY_WORKERS",
            "two",
            "variable L7PROXY_WORKERS: must be a whole number from 1 to 256, not 'two'",
        ),
        ("L7PROXY_AUDIT", "yes", "environment variable L7PROXY_AUDIT: must be true or false, not 'yes'"),
        (
            "L7PROXY_DRAIN",
            "nan",
            "variable L7PROXY_DRAIN: must be a number from 0 to 3600 seconds, not 'nan'",
        ),
        ("L7PROXY_NODE", "fd00::1", "environment variable L7PROXY_NODE: 'fd00::1' is not a valid node name"),
        (
            "L7PROXY_PROXY_PORT",
            "tcp://10.96.0.9:80",
            "Kubernetes sets this variable for a Service named l7proxy-proxy: set enableServiceLinks: false",
        ),
    ],
)
def test_a_wrong_variable_is_named(variable: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, environment={variable: text})
    assert message in str(caught.value)


def test_variables_are_read_as_their_type() -> None:
    environment = {
        "L7PROXY_TUNNEL_PORTS": "1, 2",
        "L7PROXY_LABELS": "",
        "L7PROXY_AUDIT": "true",
        "L7PROXY_DRAIN": "1.5",
    }
    settings = load(None, environment=environment)
    assert (settings.tunnel_ports, settings.labels, settings.audit, settings.drain) == ((1, 2), (), True, 1.5)


def test_a_command_reads_only_the_variables_of_its_settings() -> None:
    environment = {"L7PROXY_PROXY_PORT": "tcp://10.96.0.9:80", "L7PROXY_BACKEND": "iptables", "L7PROXY_AUDIT": "true"}
    assert load(None, environment=environment, used_by="cleanup").backend == "iptables"
    assert load(None, environment=environment, used_by="policy").audit


def test_a_mistyped_variable_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    load(
        None,
        environment={"L7PROXY_WORKRES": "2", "L7PROXY_SERVICE_HOST": "10.96.0.9", "L7PROXY_PORT": "tcp://10.96.0.9:80"},
    )
    assert [record.getMessage() for record in caplog.records] == [
        "environment variable L7PROXY_WORKRES is not a setting: ignored; did you mean L7PROXY_WORKERS?"
    ]


@pytest.mark.parametrize("name", DEFINITIONS)
def test_each_definition_has_help_and_numbers_have_a_range(name: str) -> None:
    one = DEFINITIONS[name]
    assert len(one.about.help) > 10 and one.about.help.endswith(".")
    assert one.kind not in (int, float) or (one.about.low is not None and one.about.high is not None)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_each_definition_is_a_flag_a_variable_a_key_and_documentation(name: str, tmp_path: Path) -> None:
    one, value = DEFINITIONS[name], getattr(Settings(node="n1"), name)
    text = (
        ",".join(map(str, value))
        if isinstance(value, tuple)
        else str(value).lower()
        if one.kind is bool
        else str(value)
    )
    for used_by, command in (("agent", "run"), ("worker", "proxy"), ("cleanup", "cleanup")):
        flags = inspect.signature(getattr(service, command)).parameters
        assert (name in flags) is (used_by in one.used_by)
    assert getattr(load(None, environment={one.variable: text}), name) == value
    assert getattr(load(config(tmp_path, f"{one.key}: {json.dumps(value, default=str)}")), name) == value
    assert one.key in pages.schema()["properties"]
    assert f"| `{one.key}` | `{one.variable}` |" in pages.settings_table()
