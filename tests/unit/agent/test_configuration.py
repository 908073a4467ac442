"""A changed configuration file in a running process: what is taken over, what needs a restart, and faults."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from l7proxy.agent.configuration import Configuration
from l7proxy.agent.report import settings as shown
from l7proxy.setting_definitions import DEFINITIONS, WORKERS, Settings
from l7proxy.settings.origin import Origin


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)
    logging.captureWarnings(False)


def started(file: Path, **flags: str | bool) -> Configuration:
    origin = Origin(file=str(file), flags={"node": "n1", **flags})
    return Configuration(origin.load(), origin)


class ConfigMap:
    """A directory as the kubelet mounts it: config.yaml → ..data/config.yaml, and ..data is swapped."""

    def __init__(self, directory: Path, text: str) -> None:
        self.file = directory / "config.yaml"
        self._directory, self._version = directory, 0
        self.write(text)
        self.file.symlink_to("..data/config.yaml")

    def write(self, text: str) -> None:
        self._version += 1
        version = self._directory / f"..{self._version}"
        version.mkdir()
        (version / "config.yaml").write_text(text)
        (self._directory / "..data_tmp").symlink_to(version.name)
        (self._directory / "..data_tmp").rename(self._directory / "..data")


@asynccontextmanager
async def following(configuration: Configuration) -> AsyncIterator[asyncio.Queue[frozenset[str]]]:
    seen: asyncio.Queue[frozenset[str]] = asyncio.Queue()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(configuration.run(seen.put_nowait), name="settings")
        try:
            yield seen
        finally:
            running.cancel()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110 -- a file is waited for
            await asyncio.sleep(0.02)


async def test_a_config_map_that_the_kubelet_swaps_is_taken_over(tmp_path: Path) -> None:
    mounted = ConfigMap(tmp_path, "audit: false\n")
    configuration = started(mounted.file)
    async with following(configuration) as seen, asyncio.timeout(30):
        mounted.write("audit: true\nlog-rate: 5\n")
        assert await seen.get() == {"audit", "log_rate"}
        assert (configuration.settings.audit, configuration.settings.log_rate) == (True, 5)
        mounted.write("")
        assert await seen.get() == {"audit", "log_rate"}
        assert configuration.settings == Settings(node="n1")


async def test_what_needs_a_restart_is_named_and_keeps_its_value(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mounted = ConfigMap(tmp_path, "flow-ring: 15\n")
    configuration = started(mounted.file)
    async with following(configuration) as seen, asyncio.timeout(30):
        mounted.write("flow-ring: 31\nproxy-port: 9\nrefuse: drop\n")
        assert await seen.get() == {"refuse"}
        assert (configuration.settings.flow_ring, configuration.settings.proxy_port) == (15, 15001)
        assert shown(configuration) == {"error": "", "restart_needed": ["proxy-port", "flow-ring"]}
        assert "restart needed: flow-ring" in caplog.text
        mounted.write("flow-ring: 15\n")
        assert await seen.get() == {"refuse"}
        assert configuration.restart_needed == ()


async def test_a_fault_keeps_the_last_good_settings_and_is_named_with_its_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mounted = ConfigMap(tmp_path, "audit: true\n")
    configuration = started(mounted.file)
    async with following(configuration) as seen, asyncio.timeout(30):
        mounted.write("audit: false\nlog-rate: much\n")
        await until(lambda: bool(configuration.error))
        assert configuration.error == (
            f"{mounted.file}:2: log-rate: must be a whole number from 1 to 1000000, not 'much'"
        )
        assert configuration.settings.audit
        assert f"{configuration.error}; the last good settings stay in force" in caplog.text
        mounted.write("audit: false\n")
        assert await seen.get() == {"audit"}
        assert configuration.error == ""


async def test_a_file_that_is_gone_keeps_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("audit: true\n")
    configuration = started(file)
    async with following(configuration), asyncio.timeout(30):
        file.unlink()
        await until(lambda: "cannot read the configuration" in configuration.error)
        assert configuration.settings.audit


async def test_sighup_reads_the_file_again(tmp_path: Path) -> None:
    """Here it is a link to a file in another directory, where nothing is watched."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "elsewhere.yaml").write_text("")
    file = tmp_path / "etc" / "c.yaml"
    file.symlink_to("../elsewhere.yaml")
    configuration = started(file)
    async with following(configuration) as seen, asyncio.timeout(30):
        await asyncio.sleep(0)
        (tmp_path / "elsewhere.yaml").write_text("deny-header: true\n")
        os.kill(os.getpid(), signal.SIGHUP)
        assert await seen.get() == {"deny_header"}


def test_a_flag_wins_over_a_changed_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("")
    configuration = started(file, refuse="drop", audit=True)
    file.write_text("refuse: reset\naudit: false\nlog-level: error\n")
    assert configuration.reload() == {"log_level"}
    assert logging.getLogger().level == logging.ERROR
    assert (configuration.settings.refuse, configuration.settings.audit) == ("drop", True)


def test_workers_do_not_read_the_variables_of_the_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("")
    monkeypatch.setenv("L7PROXY_AUDIT", "true")
    monkeypatch.setenv("L7PROXY_WORKER_MEMORY", "64")
    origin = Origin(file=str(file), used_by=WORKERS)
    assert (origin.load().audit, origin.load().worker_memory) == (False, 64)


def test_settings_of_sockets_kernel_objects_and_files_are_not_live() -> None:
    """Nothing would move them while the process runs."""
    fixed = {"run_dir", "node", "source", "state_dir", "backend", "proxy_port", "mark_proxy", "mark_upstream", "drain"}
    fixed |= {"route_table", "rule_priority", "nflog_group", "flow_log", "flow_ring", "workers", "health_address"}
    assert not {name for name in fixed if DEFINITIONS[name].about.live}
