"""The lock of a directory, whose holder may move the directory away."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from deploy.cluster import lock


def test_all_who_wait_get_a_directory_though_holders_move_theirs_away(tmp_path: Path) -> None:
    held: list[str] = []

    def hold(name: str) -> None:
        for number in range(500):
            with lock.exclusive(tmp_path / "new") as begun:
                begun.rename(tmp_path / f"{name}{number}")
                held.append(name)

    threads = [threading.Thread(target=hold, args=(name,)) for name in "abc"]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # many chances to meet between two calls
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert [held.count(name) for name in "abc"] == [500] * 3


def test_a_file_in_its_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    with pytest.raises(FileExistsError), lock.exclusive(tmp_path / "new"):
        pass
