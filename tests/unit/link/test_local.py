"""Unix sockets that only our user and root may use: modes, files that are in the way, removal at the end."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from l7proxy.errors import ConfigError
from l7proxy.link import local


def test_only_our_user_may_connect_and_the_file_goes_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with local.listening(path) as listener, listener:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert os.get_inheritable(listener.fileno()) is False
        with pytest.raises(ConfigError, match="in use by another"):
            local.listen(path)
    assert not path.exists()


def test_the_socket_of_a_later_process_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with local.listening(path) as first:
        first.close()
        later = local.listen(path)
    with later:
        assert path.is_socket()


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    with local.listening(path) as listener, listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(os.fspath(path))


def test_a_full_backlog_is_a_live_socket(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as live, socket.socket(socket.AF_UNIX) as first:
        live.bind(os.fspath(path))
        live.listen(0)
        first.connect(os.fspath(path))
        with pytest.raises(ConfigError, match="in use by another"):
            local.listen(path)


def test_a_path_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "link.sock"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="not a socket"):
        local.listen(path)
    assert path.read_text() == "precious"
    with pytest.raises(ConfigError, match="cannot listen"):
        local.listen(tmp_path / "missing" / "link.sock")


def test_a_path_that_is_too_long_is_named_with_the_limit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at most 107 bytes: set a shorter run_dir"):
        local.listen(tmp_path / ("a" * local.MAX_PATH))
    directory = tmp_path / ("b" * (local.MAX_PATH - len(os.fsencode(tmp_path)) - 3))
    directory.mkdir()
    longest = directory / "s"
    assert len(os.fsencode(longest)) == local.MAX_PATH
    local.listen(longest).close()
