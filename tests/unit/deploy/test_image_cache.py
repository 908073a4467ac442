"""The cache of the image's layers does not grow without end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deploy.image import build


def test_the_last_used_archives_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for number in range(build.KEPT + 3):
        for name in ("l7proxy", "builder"):
            made = build.cache() / f"{name}-{number}.tar"
            made.touch()
            os.utime(made, (number, number))
    build.forget("l7proxy")
    assert {path.name for path in build.cache().glob("l7proxy-*")} == {
        f"l7proxy-{number}.tar" for number in range(3, build.KEPT + 3)
    }
    assert len(list(build.cache().glob("builder-*"))) == build.KEPT + 3
