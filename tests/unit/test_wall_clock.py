"""No wait, limit or decision depends on the wall clock, which may be set at any time."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WALL = {"time.time", "time.time_ns", "time.localtime", "time.gmtime", "datetime.now", "datetime.utcnow", "date.today"}
USES = {
    "l7proxy/agent/cluster_status/clock.py": "times of conditions, Events and Leases, which nothing here reads",
    "l7proxy/agent/exporters.py": "since when a file is in force, for metrics",
    "l7proxy/agent/flow_recorder.py": "times of flows",
    "l7proxy/agent/metrics.py": "whether an exporter's `end` is past, for metrics",
    "l7proxy/cli/flow_time.py": "`--since 5m`, by the times of flows",
    "l7proxy/flows/sinks/jsonl.py": "names of files",
    "l7proxy/hubble/status.py": "the rate of flows and the last hour's namespaces, by the times of flows",
    "l7proxy/proxy/worker.py": "times of records: half of the `Clock` of a gate, whose other half limits",
    "l7proxy/sources/kubernetes/saved.py": "the age of what was saved, for `status`",
    "l7proxy/sources/files/scan.py": "a file that was written just now waits for its writer: against its own time",
}


def calls(tree: ast.AST) -> Iterator[str]:
    """Dotted names that are read, such as `time.time`, and the same names imported from `time`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            yield from (f"time.{name.name}" for name in node.names)


def reads_wall_clock(path: Path) -> bool:
    return not WALL.isdisjoint(calls(ast.parse(path.read_text())))


@pytest.mark.parametrize("code", ["import time\ntime.time()", "from time import time_ns", "datetime.now(UTC)"])
def test_each_way_to_read_it_is_seen(tmp_path: Path, code: str) -> None:
    (tmp_path / "one.py").write_text(code)
    assert reads_wall_clock(tmp_path / "one.py")


def test_only_what_names_or_shows_times_reads_it() -> None:
    sources = [path for top in ("l7proxy", "tproxy_rules") for path in (ROOT / top).rglob("*.py")]
    assert len(sources) > 100
    assert {str(path.relative_to(ROOT)) for path in sources if reads_wall_clock(path)} == USES.keys()
