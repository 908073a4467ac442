"""What the cache of parts promises: complete or not there, made once, made anew when something changes."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from deploy.cluster import parts
from l7proxy.errors import ConfigError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "l7proxy" / "cluster"


def write(directory: Path) -> None:
    (directory / "program").touch()


def test_a_part_is_made_once() -> None:
    def never(directory: Path) -> None:
        raise AssertionError("made again")

    made = parts.Recipe("x", "1.0", (b"source",), write).kept()
    assert parts.Recipe("x", "1.0", (b"source",), never).kept() == made
    assert (made / "program").exists()


def test_other_sources_make_another_part(cache: Path) -> None:
    first = parts.Recipe(
        "x",
        "1.0",
        (
            b"a",
            b"b",
        ),
        write,
    ).kept()
    assert parts.Recipe("x", "1.0", (b"ab",), write).kept() != first
    assert len(list(cache.iterdir())) == 2


def test_an_interrupted_build_leaves_no_part_and_the_next_one_makes_it() -> None:
    def interrupted(directory: Path) -> None:
        write(directory)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        parts.Recipe("x", "1.0", (b"source",), interrupted).kept()

    def checks_that_it_is_empty(directory: Path) -> None:
        assert not list(directory.iterdir())
        write(directory)

    assert (parts.Recipe("x", "1.0", (b"source",), checks_that_it_is_empty).kept() / "program").exists()


def test_two_commands_at_once_make_it_once() -> None:
    made: list[Path] = []
    begun, go_on = threading.Event(), threading.Event()

    def slow(directory: Path) -> None:
        made.append(directory)
        begun.set()
        assert go_on.wait(30)

    threads = [threading.Thread(target=parts.Recipe("x", "1.0", (b"source",), slow).kept) for _ in range(2)]
    threads[0].start()
    assert begun.wait(30)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_versions_are_those_of_go_mod() -> None:
    text = (parts.GO_DIRECTORY / "go.mod").read_text()
    assert parts.version_of("k8s.io/kubernetes", text).startswith("1.")
    with pytest.raises(ConfigError, match="does not name"):
        parts.version_of("example.com/none", text)


def test_without_go_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(parts, "GO_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="`go` is not in PATH: install it"):
        parts.check_go()


def test_a_go_that_is_too_old_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "go"
    old.write_text('#!/bin/sh\n[ "$1" = version ] && echo go version go1.19.8 linux/amd64 || echo local\n')
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(ConfigError, match=r"go1\.19 is too old"):
        parts.check_go()
