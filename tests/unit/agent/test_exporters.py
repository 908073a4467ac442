"""The file of exporters is followed: exporters come, change and go, and no flow is written twice or left out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from l7proxy.agent.exporters import Exporters
from l7proxy.errors import ConfigError
from l7proxy.flows.flow import Flow
from l7proxy.flows.ring import Ring
from l7proxy.flows.sinks.feed import Feed


def written(path: Path) -> list[str]:
    return [json.loads(line)["flow"]["uuid"] for line in path.read_text().splitlines()] if path.exists() else []


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110  (files are written by threads)
            await asyncio.sleep(0.005)


def config(path: Path, *entries: str) -> None:
    new = path.with_suffix(".new")
    new.write_text("flowLogs:\n" + "".join(f"- {entry}\n" for entry in entries))
    new.rename(path)


async def test_the_file_is_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, one, two = tmp_path / "flowlogs.yaml", tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    config(path, f"{{name: one, filePath: {one}}}")
    ring, feeds = Ring(255), list[Feed]()
    made = Exporters(path, ring, feeds)
    async with made.running():
        assert [feed.name for feed in feeds] == ["exporter one"]
        ring.append(Flow(uuid="1", verdict="FORWARDED"))
        await until(lambda: written(one) == ["1"])

        config(path, f"{{name: one, filePath: {one}, fieldMask: [uuid]}}", f"{{name: two, filePath: {two}}}")
        await until(lambda: len(feeds) == 2)
        ring.append(Flow(uuid="2", verdict="FORWARDED"))
        await until(lambda: written(two) == ["2"])
        await until(lambda: written(one) == ["1", "2"])
        assert "verdict" not in one.read_text().splitlines()[1]

        path.write_text("flowLogs: [{name: one}]")
        await until(lambda: bool(made.problem))
        assert "flowLogs[0]" in made.problem and "filePath" in made.problem
        ring.append(Flow(uuid="3"))
        await until(lambda: written(two) == ["2", "3"])

        config(path, f"{{name: two, filePath: {two}}}")
        await until(lambda: [feed.name for feed in feeds] == ["exporter two"])
        assert made.problem == ""
        ring.append(Flow(uuid="4"))
    assert (written(one), written(two)) == (["1", "2", "3"], ["2", "3", "4"])
    assert (feeds[0].written, feeds[0].lost) == (3, 0)
    assert made.changes == {"add": 2, "update": 1, "failure": 1, "remove": 1}


@pytest.mark.parametrize("text", ["flowLogs: [", "a: b", "flowLogs: []\n---\nflowLogs: []"])
async def test_a_wrong_file_at_start_is_an_error_that_names_the_setting(tmp_path: Path, text: str) -> None:
    path = tmp_path / "flowlogs.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"flow-logs-config: {path}: "):
        Exporters(path, Ring(1), [])
    path.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        Exporters(path, Ring(1), [])
