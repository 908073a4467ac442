"""A full disk for the flow log: traffic and policy continue, and status reports the lost flows."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.labs import COMBINATIONS, AttackLab
from tests.attacks.test_pressure import verdicts_hold
from tests.lab.conftest import missing, unable

pytestmark = pytest.mark.lab
ROOM = 256 << 10


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A separate, small file system."""
    if reason := missing() or ("" if os.geteuid() == 0 else "a file system is mounted: run as root"):
        unable(reason)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", tmp_path], check=True)
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


@pytest.fixture
def logging_lab(disk: Path) -> Iterator[AttackLab]:
    made = AttackLab(f"disk{os.getpid()}", COMBINATIONS[0], flow_logs=str(disk))
    try:
        yield made
    finally:
        made.down()


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def flow_log(lab: AttackLab, fits: Callable[[dict[str, Any]], bool], *, seconds: float = 10) -> dict[str, Any]:
    """The flow log in status, as soon as the condition holds or the time is up."""
    deadline = time.monotonic() + seconds
    while True:
        log: dict[str, Any]
        (log,) = lab.status("node-1")["flows"]["sinks"]
        if fits(log) or time.monotonic() > deadline:
            return log
        verdicts_hold(lab)  # produces flows to be written


def test_a_full_disk_stops_nobody_and_is_told(logging_lab: AttackLab, disk: Path) -> None:
    lab, log = logging_lab, disk / "node-1.jsonl"
    found = flow_log(lab, lambda one: log.exists() and one["written"] > 0)
    assert (found["lost"], found["problem"]) == (0, "")
    fill(disk / "filler")
    told = flow_log(lab, lambda one: one["lost"] > 0, seconds=60)
    assert told["lost"] > 0
    assert "No space left on device" in told["problem"]
    verdicts_hold(lab)
    (disk / "filler").unlink()
    written = log.stat().st_size
    assert flow_log(lab, lambda one: not one["problem"], seconds=20)["problem"] == ""
    assert log.stat().st_size > written
    assert all(line.startswith(b"{") and line.endswith(b"}\n") for line in log.read_bytes().splitlines(keepends=True))
