"""Which sinks the settings ask for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from l7proxy.errors import ConfigError
from l7proxy.flows.event import Lost
from l7proxy.flows.flow import Endpoint, Flow, Http, Layer7, from_json
from l7proxy.flows.sinks import registry
from l7proxy.flows.sinks.jsonl import JsonLinesFile, JsonLinesStream
from l7proxy.setting_definitions import Settings
from l7proxy.settings.read import load


def test_without_settings_there_is_no_sink() -> None:
    assert registry.make(Settings()) == {}


@pytest.mark.parametrize("name", ["stdout", "-"])
def test_standard_output_has_two_names(name: str) -> None:
    made = registry.make(Settings(flow_log=name))
    assert list(made) == ["flow log"]
    assert isinstance(made["flow log"], JsonLinesStream)


def test_a_file_has_the_limits_of_its_settings(tmp_path: Path) -> None:
    path = tmp_path / "flows.jsonl"
    sink = registry.make(Settings(flow_log=str(path), flow_log_max_bytes=4096, flow_log_backups=1))["flow log"]
    assert isinstance(sink, JsonLinesFile)
    sink.consume([Flow(uuid=str(number), summary="x" * 1000) for number in range(30)])
    sink.close()
    assert len(list(tmp_path.iterdir())) == 2
    assert all(2000 < one.stat().st_size <= 4096 for one in tmp_path.iterdir())


def test_an_unknown_kind_of_sink_is_an_error_that_names_the_setting() -> None:
    with pytest.raises(ConfigError, match=r"^flow_log: unknown kind of sink 'kafka://a:9092/flows': must be a file or"):
        registry.make(Settings(flow_log="kafka://a:9092/flows"))


def test_filters_choose_what_is_logged(tmp_path: Path) -> None:
    path = tmp_path / "flows.jsonl"
    settings = Settings(
        flow_log=str(path),
        flow_log_allow='[{"verdict":["DROPPED"]},{"protocol":["http"]}]',
        flow_log_deny='[{"source_pod":["kube-system/"]}]',
    )
    sink = registry.make(settings)["flow log"]
    other, system = Endpoint(namespace="shop", pod_name="web"), Endpoint(namespace="kube-system", pod_name="dns")
    http = Layer7(type="REQUEST", http=Http(method="GET"))
    sink.consume(
        [
            Flow(uuid="dropped", verdict="DROPPED", source=other),
            Flow(uuid="forwarded", verdict="FORWARDED", source=other),
            Flow(uuid="http", verdict="FORWARDED", source=other, l7=http),
            Flow(uuid="system", verdict="DROPPED", source=system),
            Lost(3, "HUBBLE_RING_BUFFER", 1),
        ]
    )
    sink.close()
    found = [from_json(line) for line in path.read_bytes().splitlines()]
    assert [one.flow.uuid for one in found if one.flow] == ["dropped", "http"]
    assert found[-1].lost_events is not None, "a gap is always told"
    assert (sink.lost, sink.problem) == (0, "")


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("flow_log_allow", "DROPPED", "flow_log_allow: must be a JSON list of Hubble's filters, as "),
        ("flow_log_deny", "{}", "flow_log_deny: must be a JSON list of Hubble's filters, as "),
        ("flow_log_deny", '[{"verdicts":["DROPPED"]}]', "flow_log_deny: invalid filter: unknown field 'verdicts'"),
        ("flow_log_allow", "[1]", "flow_log_allow: "),
    ],
)
def test_an_invalid_filter_is_an_error_that_names_the_setting(setting: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        registry.make(load(None, {"flow_log": "stdout", setting: value}, environment={}))
    assert str(caught.value).startswith(message)


def test_without_the_exporter_of_opentelemetry_it_says_what_to_install() -> None:
    code = """import sys
sys.modules["opentelemetry"] = None
from l7proxy.flows.sinks import registry
from l7proxy.setting_definitions import Settings
registry.make(Settings())
try:
    registry.make(Settings(flow_otlp_endpoint="http://a"))
except registry.ConfigError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("flow_otlp_endpoint: opentelemetry")
    assert done.stdout.endswith("is not installed: pip install 'l7proxy[otlp]'\n")
