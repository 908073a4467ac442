"""sd_notify: what a service manager receives."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

import pytest

from l7proxy.agent.service_manager import ServiceManager


@pytest.mark.parametrize("abstract", [False, True])
def test_ready_is_told_once_and_stopping(tmp_path: Path, abstract: bool) -> None:
    name = f"@l7proxy-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name[1:] if abstract else name)
        manager.settimeout(5)
        told = ServiceManager({"NOTIFY_SOCKET": name})
        told.ready()
        told.ready()
        told.stopping()
        assert manager.recv(4096).split(b"\n")[0] == b"READY=1"
        assert manager.recv(4096).split(b"\n")[0] == b"STOPPING=1"


def test_without_a_manager_nothing_is_told(caplog: pytest.LogCaptureFixture) -> None:
    ServiceManager({}).ready()
    assert not caplog.records


def test_a_manager_that_is_gone_is_logged_and_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "none")}).ready()
    assert "the service manager cannot be told" in caplog.text
