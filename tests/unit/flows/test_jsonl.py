"""The flow log: whole lines, bounded files, and errors that are reported and counted instead of raised."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import resource
import threading
import time
from pathlib import Path

from l7proxy.flows.flow import Flow
from l7proxy.flows.sinks import jsonl
from l7proxy.flows.sinks.jsonl import JsonLinesFile, JsonLinesStream

START = 1_763_928_000.0  # 2025-11-23T20:00:00Z


def flows(*numbers: int) -> list[Flow]:
    return [Flow(uuid=f"{number:06d}", summary="x" * 60) for number in numbers]


LENGTH = len(flows(0)[0].line())


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


def read(path: Path) -> list[int]:
    """The numbers of a file's flows; every line must be whole."""
    return [int(json.loads(line)["flow"]["uuid"]) for line in path.read_text().splitlines()]


def test_lines_are_appended_to_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "flows.jsonl"
    for number in range(3):
        sink = JsonLinesFile(path)
        sink.consume(flows(number))
        sink.close()
    assert read(path) == [0, 1, 2]
    assert path.stat().st_mode & 0o077 == 0o040, "for the group to read, for nobody else"


def test_files_are_bounded_and_named_by_their_time_and_the_oldest_go(tmp_path: Path) -> None:
    clock = Clock()
    path = tmp_path / "flows.jsonl"
    sink = JsonLinesFile(path, max_bytes=LENGTH * 3, backups=2, now=clock)
    for number in range(14):
        clock.now = START + number
        sink.consume(flows(number))
    sink.close()
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        "flows-2025-11-23T20-00-09.000.jsonl",
        "flows-2025-11-23T20-00-12.000.jsonl",
        "flows.jsonl",
    ]
    assert read(path) == [12, 13]
    assert read(tmp_path / "flows-2025-11-23T20-00-12.000.jsonl") == [9, 10, 11]
    assert (sink.lost, sink.problem) == (0, "")


def test_one_batch_may_fill_several_files_in_the_same_millisecond(tmp_path: Path) -> None:
    sink = JsonLinesFile(tmp_path / "flows.jsonl", max_bytes=LENGTH * 2, backups=100, now=Clock())
    sink.consume(flows(*range(9)))
    sink.close()
    found = sorted(tmp_path.iterdir(), key=lambda one: (one.name == "flows.jsonl", one.name))
    assert [number for one in found for number in read(one)] == list(range(9))
    assert all(one.stat().st_size <= LENGTH * 2 for one in found)


def test_no_backups_means_none(tmp_path: Path) -> None:
    sink = JsonLinesFile(tmp_path / "flows.jsonl", max_bytes=LENGTH, backups=0, now=Clock())
    sink.consume(flows(1, 2, 3))
    sink.close()
    assert [one.name for one in tmp_path.iterdir()] == ["flows.jsonl"]


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    others = ["flows-old.jsonl", "flows-2025-11-23T20-00-09.000.txt", "other-2025-11-23T20-00-09.000.jsonl"]
    for name in others:
        (tmp_path / name).write_text("mine")
    sink = JsonLinesFile(tmp_path / "flows.jsonl", max_bytes=LENGTH, backups=1, now=Clock())
    sink.consume(flows(*range(5)))
    sink.close()
    assert all((tmp_path / name).read_text() == "mine" for name in others)


def test_a_file_that_others_rotate_is_followed(tmp_path: Path) -> None:
    """As logrotate does: `create` renames, `copytruncate` truncates; and somebody removes it."""
    path = tmp_path / "flows.jsonl"
    sink = JsonLinesFile(path, max_bytes=LENGTH * 4)
    sink.consume(flows(1, 2))
    path.rename(tmp_path / "flows.jsonl.1")
    sink.consume(flows(3))
    assert read(tmp_path / "flows.jsonl.1") == [1, 2]
    os.truncate(path, 0)
    sink.consume(flows(4, 5))
    assert read(path) == [4, 5]
    path.unlink()
    sink.consume(flows(6))
    assert read(path) == [6]
    (tmp_path / "other").write_bytes(b"")
    (tmp_path / "other").replace(path)
    sink.consume(flows(7))
    assert read(path) == [7]
    sink.close()
    assert (sink.lost, sink.problem) == (0, "")


def test_rotated_files_are_compressed_whole_and_counted_as_backups(tmp_path: Path) -> None:
    clock = Clock()
    sink = JsonLinesFile(tmp_path / "flows.jsonl", max_bytes=LENGTH, backups=2, compress=True, now=clock)
    for number in range(5):
        clock.now = START + number
        sink.consume(flows(number))
    sink.close()
    packed = sorted(tmp_path.glob("*.gz"))
    assert len(packed) == 2
    assert len(list(tmp_path.iterdir())) == 3, "no other file is left"
    assert [gzip.decompress(one.read_bytes()) for one in packed] == [one.line() for one in flows(2, 3)]
    assert all(one.stat().st_mode & 0o777 == 0o640 for one in packed)
    assert (sink.lost, sink.problem) == (0, "")


def test_what_cannot_be_compressed_stays_plain(tmp_path: Path) -> None:
    first = "flows-2025-11-23T20-00-00.000.jsonl"
    (tmp_path / f"{first}.gz.part").mkdir()
    sink = JsonLinesFile(tmp_path / "flows.jsonl", max_bytes=LENGTH, backups=9, compress=True, now=Clock())
    sink.consume(flows(0, 1, 2))
    sink.close()
    assert read(tmp_path / first) == [0]
    assert gzip.decompress((tmp_path / "flows-2025-11-23T20-00-00.001.jsonl.gz").read_bytes()) == flows(1)[0].line()
    assert read(tmp_path / "flows.jsonl") == [2]
    assert (sink.lost, sink.problem) == (0, "")


def test_a_line_larger_than_a_file_gets_a_file_of_its_own(tmp_path: Path) -> None:
    sink = JsonLinesFile(tmp_path / "flows.jsonl", max_bytes=10, backups=9, now=Clock())
    sink.consume(flows(1, 2))
    sink.close()
    assert len(list(tmp_path.iterdir())) == 2
    assert sink.lost == 0


def test_half_a_line_at_the_end_is_ended_first(tmp_path: Path) -> None:
    path = tmp_path / "flows.jsonl"
    path.write_bytes(b'{"flow":{"uu')
    sink = JsonLinesFile(path)
    sink.consume(flows(7))
    sink.close()
    half, whole = path.read_bytes().splitlines()
    assert half == b'{"flow":{"uu'
    assert json.loads(whole)["flow"]["uuid"] == "000007"


def test_a_path_that_cannot_be_written_is_said_counted_and_tried_again(tmp_path: Path) -> None:
    clock = Clock()
    (tmp_path / "blocker").write_text("a file where a directory should be")
    sink = JsonLinesFile(tmp_path / "blocker" / "flows.jsonl", clock=clock)
    sink.consume(flows(1, 2))
    assert sink.lost == 2
    assert "flows.jsonl" in sink.problem
    (tmp_path / "blocker").unlink()
    sink.consume(flows(3))
    assert sink.lost == 3, "not tried again at once"
    clock.now += jsonl.RETRY_AFTER
    sink.consume(flows(4))
    assert (sink.lost, sink.problem) == (3, "")
    assert read(tmp_path / "blocker" / "flows.jsonl") == [4]
    sink.close()


def test_a_wall_clock_that_is_set_back_does_not_put_off_the_next_try(tmp_path: Path) -> None:
    wall, clock = Clock(), Clock()
    (tmp_path / "blocker").write_text("")
    sink = JsonLinesFile(tmp_path / "blocker" / "flows.jsonl", now=wall, clock=clock)
    sink.consume(flows(1))
    (tmp_path / "blocker").unlink()
    wall.now -= 86_400
    clock.now += jsonl.RETRY_AFTER
    sink.consume(flows(2))
    sink.close()
    assert read(tmp_path / "blocker" / "flows.jsonl") == [2]


def test_a_pipe_or_a_directory_under_that_name_is_refused_and_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        sink = JsonLinesFile(tmp_path / name)
        sink.consume(flows(1))
        assert sink.lost == 1
        assert sink.problem
        sink.close()


def test_a_full_disk_costs_lines_but_never_half_of_one(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes the kernel fail like a full disk: in the middle of a write."""
    clock = Clock()
    path = tmp_path / "flows.jsonl"
    sink = JsonLinesFile(path, clock=clock)
    sink.consume(flows(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LENGTH + LENGTH // 2, before[1]))
    try:
        sink.consume(flows(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (sink.lost, read(path)) == (1, [1])
    assert "File too large" in sink.problem
    clock.now += jsonl.RETRY_AFTER
    sink.consume(flows(3))
    sink.close()
    assert (read(path), sink.problem) == ([1, 3], "")


def lines_of(data: bytes) -> list[int]:
    return [int(json.loads(line)["flow"]["uuid"]) for line in data.splitlines()]


def test_a_stream_that_nobody_reads_loses_lines_and_keeps_them_whole() -> None:
    out, into = os.pipe()
    fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, 16384)
    sink = JsonLinesStream(into, patience=0.05)
    sink.consume(flows(*range(500)))
    assert sink.lost > 0
    assert "no reader" in sink.problem
    taken = os.read(out, 1 << 16)
    sink.consume(flows(500, 501))
    sink.close()
    os.close(into)
    with os.fdopen(out, "rb") as rest:
        got = lines_of(taken + rest.read())
    assert got[-2:] == [500, 501]
    assert len(got) == 502 - sink.lost
    assert sink.problem == ""


def test_a_closed_stream_is_said_and_counted() -> None:
    out, into = os.pipe()
    os.close(out)
    sink = JsonLinesStream(into)
    sink.consume(flows(1, 2))
    assert sink.lost == 2
    assert "Broken pipe" in sink.problem
    os.close(into)


def test_closing_frees_a_blocked_write() -> None:
    out, into = os.pipe()
    fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, 4096)
    sink = JsonLinesStream(into, patience=600)
    writing = threading.Thread(target=sink.consume, args=(flows(*range(100)),))
    writing.start()
    time.sleep(0.05)
    sink.hurry()
    writing.join(timeout=30)
    assert not writing.is_alive()
    os.close(out)
    os.close(into)


def test_a_line_whose_end_could_not_be_written_is_lost() -> None:
    out, into = os.pipe()
    fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, 4096)
    sink = JsonLinesStream(into, patience=0.05)
    sink.consume([Flow(uuid="1", summary="x" * 6000)])
    assert sink.lost == 0, "the rest may still go out"
    sink.close()
    assert sink.lost == 1
    os.close(out)
    os.close(into)
