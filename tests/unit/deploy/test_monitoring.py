"""Dashboards and alerts: every query is valid PromQL and asks only for metrics that docs/metrics.md has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

DEPLOY: Final = Path(__file__).resolve().parents[3] / "deploy"
ALERTS: Final = DEPLOY / "prometheus" / "alerts.yaml"
DASHBOARDS: Final = sorted((DEPLOY / "grafana").glob("*.json"))
DOCUMENT: Final = (DEPLOY.parent / "docs" / "metrics.md").read_text()
NAME: Final = re.compile(r"\b(?:l7proxy|hubble|cilium)_[a-z0-9_]+")


def queries(path: Path) -> Iterator[str]:
    panels: list[dict[str, Any]] = json.loads(path.read_text())["panels"]
    for panel in panels:
        yield from (target["expr"] for target in panel["targets"])


def alerts() -> list[dict[str, Any]]:
    rules: list[dict[str, Any]] = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
    return rules


def undocumented(query: str) -> set[str]:
    names = (name.removesuffix("_bucket") for name in NAME.findall(query))
    return {name for name in names if f"`{name}`" not in DOCUMENT}


def test_there_are_dashboards_and_alerts() -> None:
    assert len(DASHBOARDS) == 2
    assert {path.stem for path in DASHBOARDS} == {json.loads(path.read_text())["uid"] for path in DASHBOARDS}
    assert len({rule["alert"] for rule in alerts()}) == len(alerts())


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_ask_for_documented_metrics(path: Path) -> None:
    found = list(queries(path))
    assert found
    assert not {name for query in found for name in undocumented(query)}


def test_alerts_ask_for_documented_metrics() -> None:
    assert not {name for rule in alerts() for name in undocumented(rule["expr"])}


def test_promtool_reads_every_query(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("not installed: promtool")
    plain = [
        {"record": f"q{number}", "expr": query.replace("$__rate_interval", "5m").replace("$instance", ".*")}
        for number, query in enumerate(query for path in DASHBOARDS for query in queries(path))
    ]
    rules = tmp_path / "queries.yaml"
    rules.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": plain}]}))
    for path in (ALERTS, rules):
        done = subprocess.run([promtool, "check", "rules", str(path)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
