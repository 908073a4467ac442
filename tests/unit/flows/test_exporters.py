"""Exporters by configuration: filters, masks, end and sampling, and what is wrong with a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from l7proxy.errors import ConfigError
from l7proxy.flows import field_mask
from l7proxy.flows.event import Event, Lost
from l7proxy.flows.flow import Endpoint, Flow, Http, Layer7
from l7proxy.flows.sinks import exporters

SECOND = 10**9
FLOW = Flow(
    uuid="1",
    time="1970-01-01T00:00:05Z",
    node_name="n1",
    verdict="FORWARDED",
    source=Endpoint(namespace="shop", labels=("a", "b")),
    l7=Layer7(type="REQUEST", http=Http(method="GET", url="http://a/")),
)


def written(tmp_path: Path, events: list[Event], **entry: Any) -> list[Any]:
    path = tmp_path / "flows.jsonl"
    (exporter,) = exporters.read({"flowLogs": [{"name": "one", "filePath": str(path)} | entry]})
    sink = exporters.sink_of(exporter)
    sink.consume(events)
    sink.close()
    assert (sink.lost, sink.problem) == (0, "")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_mask_keeps_its_fields_and_the_outer_ones_follow_it(tmp_path: Path) -> None:
    mask = ["time", "source.labels", "source.namespace", "l7.http.method", "destination.labels", "tunnel"]
    assert written(tmp_path, [FLOW], fieldMask=mask) == [
        {
            "flow": {
                "time": "1970-01-01T00:00:05Z",
                "source": {"namespace": "shop", "labels": ["a", "b"]},
                "l7": {"http": {"method": "GET"}},
            },
            "time": "1970-01-01T00:00:05Z",
        }
    ]


@pytest.mark.parametrize("paths", [["source", "source.labels"], ["source.labels", "source"]])
def test_a_whole_field_is_wider_than_its_parts(paths: list[str]) -> None:
    mask = field_mask.build(paths)
    assert mask is not None and mask(FLOW) == Flow(source=FLOW.source)
    assert field_mask.build([]) is None


def test_a_mask_of_fields_that_no_flow_has_leaves_nothing() -> None:
    mask = field_mask.build(["ethernet.source"])
    assert mask is not None and mask(FLOW) == Flow()


def test_filters_end_and_lost_events(tmp_path: Path) -> None:
    late = Flow(uuid="2", time="1970-01-01T00:01:00Z", verdict="DROPPED")
    dropped = Flow(uuid="3", time="1970-01-01T00:00:06Z", verdict="DROPPED")
    lost = Lost(3, "HUBBLE_RING_BUFFER", 7 * SECOND)
    entry = {"includeFilters": [{"verdict": ["DROPPED"]}], "excludeFilters": [{"uuid": ["9"]}]}
    found = written(tmp_path, [FLOW, dropped, late, lost], **entry, end="1970-01-01T00:00:30Z")
    assert [one["flow"]["uuid"] for one in found if "flow" in one] == ["3"]
    assert found[-1]["lost_events"]["num_events_lost"] == "3"


def test_of_allowed_flows_one_in_so_many_is_written_and_each_refused_one(tmp_path: Path) -> None:
    verdicts = ["FORWARDED", "REDIRECTED", "DROPPED", "ERROR", "AUDIT"]
    events: list[Event] = [Flow(uuid=f"{n}", verdict=verdicts[n % 5]) for n in range(1000)]
    found = written(tmp_path, events, sampling=10)
    by_verdict = {word: sum(one["flow"]["verdict"] == word for one in found) for word in verdicts}
    assert by_verdict["DROPPED"] == by_verdict["ERROR"] == by_verdict["AUDIT"] == 200
    assert by_verdict["FORWARDED"] + by_verdict["REDIRECTED"] == 40


@pytest.mark.parametrize(
    ("document", "fault"),
    [
        ([], "must have the one field flowLogs"),
        ({"flowlogs": []}, "must have the one field flowLogs"),
        ({"flowLogs": {}}, "must be a list of at most 64"),
        ({"flowLogs": [{"name": "a"}]}, r"flowLogs\[0\]: .*filePath"),
        ({"flowLogs": [{"name": "", "filePath": "/a"}]}, r"flowLogs\[0\]: name and filePath must not be empty"),
        ({"flowLogs": [{"name": "a", "filePath": "/a", "colour": 1}]}, r"flowLogs\[0\]: .*colour"),
        ({"flowLogs": [{"name": "a", "filePath": "a"}]}, "exporter 'a': filePath: must be an absolute path"),
        ({"flowLogs": [{"name": "a", "filePath": "/a", "fieldMask": ["b"]}]}, "exporter 'a': field mask: 'b' is no"),
        ({"flowLogs": [{"name": "a", "filePath": "/a", "fieldMask": ["source.workloads.name"]}]}, "has no parts"),
        ({"flowLogs": [{"name": "a", "filePath": "/a", "end": "soon"}]}, "exporter 'a': end: expected a time"),
        ({"flowLogs": [{"name": "a", "filePath": "/a", "sampling": 0}]}, "exporter 'a': sampling: must be 1 or more"),
        ({"flowLogs": [{"name": "a", "filePath": "/a", "includeFilters": [{"x": [1]}]}]}, "unknown field 'x'"),
        ({"flowLogs": [{"name": "a", "filePath": "/a"}, {"name": "a", "filePath": "/b"}]}, "the same name, 'a'"),
        ({"flowLogs": [{"name": "a", "filePath": "/a"}, {"name": "b", "filePath": "/a"}]}, "the same filePath, '/a'"),
    ],
)
def test_what_is_wrong_is_named(document: object, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        exporters.read(document)


def test_an_empty_file_asks_for_nothing() -> None:
    assert exporters.read({}) == exporters.read({"flowLogs": None}) == []
