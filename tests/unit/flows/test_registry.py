"""Which sinks the settings ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

from l7proxy.errors import ConfigError
from l7proxy.flows.flow import Flow
from l7proxy.flows.sinks import registry
from l7proxy.flows.sinks.jsonl import JsonLinesFile, JsonLinesStream
from l7proxy.setting_definitions import Settings


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
