"""The watched directory of manifests, with real files. See also tests/contract/test_source.py."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from l7proxy.model.resources import Change, Delete, Resource, ResourceKey, Upsert
from l7proxy.sources.files.scan import QUIET
from l7proxy.sources.files.source import FileSource
from tests.support.manifests import POLICY, names, pod, said, write


class Watching:
    """A watched source; `until` applies batches until a condition holds."""

    def __init__(self, source: FileSource, batches: AsyncGenerator[list[Change], None]) -> None:
        self.source = source
        self._batches = batches
        self.resources: dict[ResourceKey, Resource] = {}
        self.log: list[str] = []

    @property
    def files(self) -> Mapping[str, int | str]:
        return self.source.health().detail

    async def next(self) -> list[str]:
        async with asyncio.timeout(10):
            changes = await anext(self._batches)
        for change in changes:
            if isinstance(change, Upsert):
                self.resources[change.resource.key] = change.resource
            elif isinstance(change, Delete):
                del self.resources[change.key]
        self.log += said(changes)
        return said(changes)

    async def until_names(self, *expected: str) -> None:
        while names(self.resources) != sorted(expected):
            await self.next()


def skip_if_too_busy(too_slow: list[int]) -> None:
    """`too_slow`: the pauses of a writer that were longer than it meant."""
    if len(too_slow) >= 5:
        pytest.skip("no thread can write slowly, but not too slowly, on this busy machine")


@asynccontextmanager
async def watching(path: Path) -> AsyncIterator[Watching]:
    source = FileSource(path)
    batches = source.watch()
    async with aclosing(batches):
        watch = Watching(source, batches)
        first = await watch.next()
        assert first[-1] == "synced"
        yield watch


async def test_create_edit_rename_and_delete_are_seen(tmp_path: Path) -> None:
    async with watching(tmp_path) as watch:
        write(tmp_path / "a.yaml", pod("a"))
        await watch.until_names("Pod default/a")
        assert watch.files == {"a.yaml": (tmp_path / "a.yaml").stat().st_mtime_ns}
        (tmp_path / "a.yaml").write_text(pod("b"))
        await watch.until_names("Pod default/b")
        (tmp_path / "a.yaml").rename(tmp_path / "z.yaml")
        await watch.next()
        assert list(watch.files) == ["z.yaml"]
        (tmp_path / "z.yaml").unlink()
        await watch.until_names()
        assert watch.files == {}


async def test_new_directories_are_watched_with_what_is_in_them(tmp_path: Path) -> None:
    async with watching(tmp_path) as watch:
        write(tmp_path / "deep" / "er" / "a.yaml", pod("a"))
        await watch.until_names("Pod default/a")
        write(tmp_path / "deep" / "er" / "b.yml", pod("b"))
        await watch.until_names("Pod default/a", "Pod default/b")
        assert sorted(watch.files) == ["deep/er/a.yaml", "deep/er/b.yml"]


async def test_a_mounted_config_map_is_read_once_and_its_swap_is_seen(tmp_path: Path) -> None:
    write(tmp_path / "..v1" / "a.yaml", pod("a"))
    (tmp_path / "..data").symlink_to("..v1")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    async with watching(tmp_path) as watch:
        assert names(watch.resources) == ["Pod default/a"]
        assert watch.source.health().problems == ()
        write(tmp_path / "..v2" / "a.yaml", pod("b"))
        (tmp_path / "..new").symlink_to("..v2")
        (tmp_path / "..new").rename(tmp_path / "..data")
        await watch.until_names("Pod default/b")


async def test_a_broken_edit_is_reported_and_mended(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", pod("a"))
    async with watching(tmp_path) as watch:
        write(tmp_path / "a.yaml", pod("a", "nonsense"))
        assert await watch.next() == []
        (problem,) = watch.source.health().problems
        assert (problem.file, problem.line, problem.field) == ("a.yaml", 4, "status.podIP")
        assert names(watch.resources) == ["Pod default/a"]
        assert watch.files == {"a.yaml": (tmp_path / "a.yaml").stat().st_mtime_ns}
        write(tmp_path / "a.yaml", pod("a", "10.0.0.8"))
        assert await watch.next() == ["+Pod default/a"]
        assert watch.source.health().problems == ()


async def test_a_file_written_bit_by_bit_is_never_believed_half(tmp_path: Path) -> None:
    text = pod("a", extra=f"---\n{pod('b', '10.0.0.6')}")
    write(tmp_path / "a.yaml", text)
    async with watching(tmp_path) as watch:
        for _ in range(3):
            with (tmp_path / "a.yaml").open("w") as file:
                for start in range(0, len(text), 40):
                    file.write(text[start : start + 40])
                    file.flush()
                    await asyncio.sleep(0.01)
        write(tmp_path / "end.yaml", pod("end", "10.0.0.9"))
        await watch.until_names("Pod default/a", "Pod default/b", "Pod default/end")
        assert not [word for word in watch.log if word.startswith("-")]


class Writer:
    """Repeats an action in a separate thread until stopped."""

    def __init__(self, work: Callable[[int], None], seconds: float) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(work, seconds))

    def _run(self, work: Callable[[int], None], seconds: float) -> None:
        number = 0
        while not self._over.wait(seconds):
            work(number)
            number += 1

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def restless(*paths: Path) -> Writer:
    """Files that begin to change one after the other, and from then on keep changing."""
    return Writer(lambda number: os.utime(paths[number % min(len(paths), 1 + number // 50)]), QUIET / 5)


async def test_what_is_taken_away_goes_although_others_change_for_ever(tmp_path: Path) -> None:
    moving = [tmp_path / f"{number}.yaml" for number in range(3)]
    for number, path in enumerate(moving):
        write(path, pod(f"m{number}", f"10.0.1.{number}"))
    write(tmp_path / "a.yaml", f"{pod('a')}---\n{POLICY}")
    write(tmp_path / "b.yaml", pod("b"))
    async with watching(tmp_path) as watch:
        with restless(*moving):
            await asyncio.sleep(QUIET)
            write(tmp_path / "a.yaml", pod("a"))
            (tmp_path / "b.yaml").unlink()
            moving[0].write_text("# nobody is left\n")
            async with asyncio.timeout(8):
                await watch.until_names("Pod default/a", "Pod default/m1", "Pod default/m2")


async def test_files_that_change_for_ever_do_not_keep_us_from_beginning(tmp_path: Path) -> None:
    moving = [tmp_path / f"{number}.yaml" for number in range(3)]
    for number, path in enumerate(moving):
        write(path, pod(f"m{number}", f"10.0.1.{number}"))
    with restless(*moving):
        async with asyncio.timeout(8), watching(tmp_path) as watch:
            assert names(watch.resources) == ["Pod default/m0", "Pod default/m1", "Pod default/m2"]


async def test_a_slow_writer_is_waited_for_however_often_we_are_nudged(tmp_path: Path) -> None:
    text = pod("a", extra=f"{'# a long story' * 20}\n---\n{pod('b', '10.0.0.6')}")

    too_slow = []

    def edit() -> None:
        with (tmp_path / "a.yaml").open("w") as file:
            for start in range(0, len(text), 2):
                began = time.monotonic()
                file.write(text[start : start + 2])
                file.flush()
                time.sleep(QUIET / 10)
                too_slow.extend([start] * (time.monotonic() - began > 0.9 * QUIET))  # on a busy machine
        write(tmp_path / "end.yaml", pod("end", "10.0.0.9"))

    write(tmp_path / "a.yaml", text)
    async with watching(tmp_path) as watch:
        editor = threading.Thread(target=edit)
        editor.start()
        with Writer(lambda number: (tmp_path / "nudge.txt").touch(), 0.0005):
            await watch.until_names("Pod default/a", "Pod default/b", "Pod default/end")
        editor.join()
        skip_if_too_busy(too_slow)
        assert len([word for word in watch.log if word.startswith("-")]) <= len(too_slow)


async def test_many_edits_at_once_are_few_batches(tmp_path: Path) -> None:
    async with watching(tmp_path) as watch:
        for number in range(100):
            write(tmp_path / f"{number:03}.yaml", pod(f"p{number}", f"10.0.1.{number}"))
        batches = 0
        while len(watch.resources) < 100:
            await watch.next()
            batches += 1
        assert batches <= 10


async def test_a_directory_that_goes_away_keeps_what_was_read(tmp_path: Path) -> None:
    root = tmp_path / "src"
    write(root / "a.yaml", pod("a"))
    async with watching(root) as watch:
        root.rename(tmp_path / "elsewhere")
        await watch.next()
        assert names(watch.resources) == ["Pod default/a"]
        assert "cannot be read" in watch.source.health().problems[0].message
        (tmp_path / "elsewhere").rename(root)
        while watch.source.health().problems:
            await watch.next()
        assert names(watch.resources) == ["Pod default/a"]


@pytest.mark.parametrize("make", ["loop", "pipe"])
async def test_a_file_that_cannot_be_read_keeps_what_was_read(tmp_path: Path, make: str) -> None:
    write(tmp_path / "a.yaml", pod("a"))
    async with watching(tmp_path) as watch:
        if make == "loop":
            (tmp_path / ".new").symlink_to("a.yaml")
        else:
            os.mkfifo(tmp_path / ".new")
        (tmp_path / ".new").rename(tmp_path / "a.yaml")
        await watch.next()
        assert names(watch.resources) == ["Pod default/a"]
        assert "cannot be read" in watch.source.health().problems[0].message


async def test_a_policy_that_moves_between_files_is_in_force_throughout(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", POLICY)
    async with watching(tmp_path) as watch:
        (tmp_path / "b.yaml").write_text(POLICY)
        (tmp_path / "a.yaml").unlink()
        while list(watch.files) != ["b.yaml"]:
            await watch.next()
        assert names(watch.resources) == ["CiliumNetworkPolicy shop/p"]
        assert not [word for word in watch.log if word.startswith("-")]


async def test_a_policy_that_is_cut_from_one_file_and_pasted_into_another_is_in_force_throughout(
    tmp_path: Path,
) -> None:
    in_time: list[bool] = []

    def edit() -> None:
        while in_time.count(True) < 5 and len(in_time) < 60:  # on a busy machine some take too long
            number = len(in_time)
            here, there = (tmp_path / f"{name}.yaml" for name in ("ab" if number % 2 else "ba"))
            start = time.monotonic()
            here.write_text(f"{pod(here.stem)}# {number}\n")
            time.sleep(QUIET * 2 / 3)
            there.write_text(f"{POLICY}# {number}\n")
            in_time.append(time.monotonic() - start < QUIET)
            time.sleep(QUIET / 2)
            write(tmp_path / "nudge.yaml", pod("nudge"))  # triggers a scan when only the first is quiet
            time.sleep(3 * QUIET)
        write(tmp_path / "end.yaml", pod("end"))

    write(tmp_path / "b.yaml", POLICY)
    write(tmp_path / "a.yaml", pod("a"))
    async with watching(tmp_path) as watch:
        editor = threading.Thread(target=edit)
        editor.start()
        while "Pod default/end" not in names(watch.resources):
            await watch.next()
        editor.join()
        assert in_time.count(True) == 5
        assert watch.log.count("-CiliumNetworkPolicy shop/p") <= in_time.count(False)


async def test_an_editor_that_puts_the_old_file_aside_takes_nothing_out_of_force(tmp_path: Path) -> None:
    too_slow = []

    def edit() -> None:
        for number in range(10):
            start = time.monotonic()
            (tmp_path / "a.yaml").rename(tmp_path / "a.yaml~")
            time.sleep(QUIET / 3)  # a scan happens in between
            (tmp_path / "a.yaml").write_text(f"{POLICY}# {number}\n")
            too_slow.extend([number] * (time.monotonic() - start > QUIET))  # on a busy machine
            (tmp_path / "a.yaml~").unlink()
            time.sleep(2 * QUIET)
        write(tmp_path / "end.yaml", pod("end"))

    write(tmp_path / "a.yaml", POLICY)
    async with watching(tmp_path) as watch:
        editor = threading.Thread(target=edit)
        editor.start()
        await watch.until_names("CiliumNetworkPolicy shop/p", "Pod default/end")
        editor.join()
        skip_if_too_busy(too_slow)
        assert len([word for word in watch.log if word.startswith("-")]) <= len(too_slow)
        (tmp_path / "a.yaml").unlink()
        await watch.until_names("Pod default/end")


async def test_a_renamed_file_is_not_said_twice(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", POLICY)
    async with watching(tmp_path) as watch:
        for before, after in (("a.yaml", "b.yaml"), ("b.yaml", "a.yaml")):
            (tmp_path / before).rename(tmp_path / after)
            while list(watch.files) != [after]:
                await watch.next()
                assert watch.source.health().problems == ()
        assert [word for word in watch.log if word.startswith("-")] == []


async def test_a_link_that_leads_nowhere_keeps_what_was_read(tmp_path: Path) -> None:
    """As in a ConfigMap with one key removed, until its link is removed, too."""
    write(tmp_path / "..v1" / "a.yaml", POLICY)
    (tmp_path / "..v2").mkdir()
    (tmp_path / "..data").symlink_to("..v1")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    async with watching(tmp_path) as watch:
        (tmp_path / "..new").symlink_to("..v2")
        (tmp_path / "..new").rename(tmp_path / "..data")
        await watch.next()
        assert names(watch.resources) == ["CiliumNetworkPolicy shop/p"]
        assert [str(problem) for problem in watch.source.health().problems] == [
            "a.yaml: cannot be read: No such file or directory"
        ]
        (tmp_path / "a.yaml").unlink()
        await watch.until_names()
        assert watch.source.health().problems == ()
