"""Notifications of changes in real directories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from l7proxy.sources.files.notify import ChangeNotifier


def _rename(folder: Path) -> None:
    (folder / "a").rename(folder / "b")


CHANGES: list[Callable[[Path], object]] = [
    lambda folder: (folder / "a").write_text("changed"),
    lambda folder: (folder / "new").touch(),
    lambda folder: (folder / "new").mkdir(),
    lambda folder: (folder / "a").unlink(),
    lambda folder: (folder / "a").chmod(0o600),
    _rename,
]


@pytest.mark.parametrize("change", CHANGES, ids=["write", "create", "mkdir", "delete", "chmod", "rename"])
async def test_each_change_is_notified_once(tmp_path: Path, change: Callable[[Path], object]) -> None:
    (tmp_path / "a").write_text("a")
    with ChangeNotifier() as notifier:
        notifier.watch(tmp_path)
        notifier.watch(tmp_path)
        assert not await notifier.wait(0.01)
        change(tmp_path)
        assert await notifier.wait(10)
        assert not await notifier.wait(0.01)


async def test_other_directories_are_not_watched(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with ChangeNotifier() as notifier:
        notifier.watch(tmp_path / "in")
        (tmp_path / "out").touch()
        assert not await notifier.wait(0.05)
