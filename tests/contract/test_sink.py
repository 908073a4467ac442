"""What every sink promises, whatever it writes to. A new sink is one more harness."""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Protocol

import pytest

from l7proxy.flows.event import Event
from l7proxy.flows.flow import Flow, from_json
from l7proxy.flows.ring import Ring
from l7proxy.flows.sinks.exporters import Chosen
from l7proxy.flows.sinks.feed import Feed
from l7proxy.flows.sinks.jsonl import JsonLinesFile, JsonLinesStream
from l7proxy.flows.sinks.sink import Sink


class Harness(Protocol):
    """A sink, and what it writes to."""

    @property
    def sink(self) -> Sink: ...

    def obstruct(self) -> None:
        """From now on its target takes nothing, or no more than it has room for."""

    def read(self) -> list[bytes]:
        """The lines that arrived, after close."""

    def end(self) -> None:
        """Release everything."""


class InMemory:
    """The smallest sink: a list. While `gate` is not set, its target does not answer."""

    def __init__(self) -> None:
        self.lost = 0
        self.problem = ""
        self.lines: list[bytes] = []
        self.gate = threading.Event()
        self.gate.set()
        self._hurried = False

    def consume(self, events: Sequence[Event]) -> None:
        while not self.gate.wait(0.01):
            if self._hurried:
                self.lost += len(events)
                self.problem = "its target does not answer"
                return
        self.lines += [event.line() for event in events]

    def hurry(self) -> None:
        self._hurried = True

    def close(self) -> None: ...


class Raising(InMemory):
    """A sink with a bug, until it is mended."""

    broken = True

    def consume(self, events: Sequence[Event]) -> None:
        if self.broken:
            raise RuntimeError("a bug")
        super().consume(events)


class MemoryHarness:
    def __init__(self, directory: Path) -> None:
        self.sink = InMemory()

    def obstruct(self) -> None:
        self.sink.gate.clear()

    def read(self) -> list[bytes]:
        return self.sink.lines

    def end(self) -> None: ...


class FileHarness:
    def __init__(self, directory: Path) -> None:
        self.path = directory / "logs" / "flows.jsonl"
        self.sink: Sink = JsonLinesFile(self.path, max_bytes=20_000, backups=1000)

    def obstruct(self) -> None:
        self.path.parent.write_text("a file where the directory should be")

    def read(self) -> list[bytes]:
        files = sorted(self.path.parent.glob("*"), key=lambda one: (one == self.path, one.name))
        return [line for one in files for line in one.read_bytes().splitlines(keepends=True)]

    def end(self) -> None: ...


class FilteredHarness(FileHarness):
    """A file that gets what its filters accept; here, all."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.sink = Chosen(self.sink, keep=lambda _: True, sampling=1, end_ns=1 << 62)


class StdoutHarness:
    """A pipe, as container runtimes read standard output; obstructed, nobody reads it until the end."""

    def __init__(self, directory: Path) -> None:
        self.out, self.into = os.pipe()
        self.sink = JsonLinesStream(self.into, patience=0.01)

    def obstruct(self) -> None:
        fcntl.fcntl(self.into, fcntl.F_SETPIPE_SZ, 4096)

    def read(self) -> list[bytes]:
        os.close(self.into)
        self.into = -1
        with os.fdopen(self.out, "rb", closefd=False) as pipe:
            return pipe.readlines()

    def end(self) -> None:
        for descriptor in {self.out, self.into} - {-1}:
            os.close(descriptor)


HARNESSES: Final[dict[str, Callable[[Path], Harness]]] = {
    "memory": MemoryHarness,
    "jsonl file": FileHarness,
    "filtered jsonl file": FilteredHarness,
    "jsonl stdout": StdoutHarness,
}


@pytest.fixture(params=HARNESSES)
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Harness]:
    made = HARNESSES[request.param](tmp_path)
    yield made
    made.end()


COUNT: Final = 600
"""Flows that a pipe of 64 KiB holds."""


def flow(number: int) -> Flow:
    return Flow(uuid=str(number), time="2025-11-23T20:00:00Z")


def numbers(lines: list[bytes]) -> list[int]:
    """The numbers of the flows that arrived; every line must be whole."""
    flows = (from_json(line).flow for line in lines)
    return [int(one.uuid) for one in flows if one is not None]


@asynccontextmanager
async def fed(*feeds: Feed) -> AsyncIterator[None]:
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(feed.run(), name=feed.name) for feed in feeds]
        await asyncio.sleep(0)
        yield
        for task in running:
            task.cancel()


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110  (what is watched belongs to another thread)
        await asyncio.sleep(0.001)


async def test_each_event_arrives_once_and_in_order(harness: Harness) -> None:
    ring = Ring(1023)
    feed = Feed("sink", harness.sink, ring)
    async with fed(feed):
        for number in range(COUNT):
            ring.append(flow(number))
            if number % 37 == 0:
                await asyncio.sleep(0.001)
            if number == COUNT // 2:
                ring.append_lost(7, time_ns=1)
    lines = harness.read()
    assert numbers(lines) == list(range(COUNT))
    lost = from_json(lines[COUNT // 2 + 1]).lost_events
    assert lost is not None
    assert lost.num_events_lost == "7"
    assert (feed.written, feed.lost, feed.problem) == (COUNT + 1, 0, "")


async def test_close_flushes_what_the_ring_holds(harness: Harness) -> None:
    ring = Ring(1023)
    feed = Feed("sink", harness.sink, ring)
    async with fed(feed):
        for number in range(COUNT):
            ring.append(flow(number))
    assert numbers(harness.read()) == list(range(COUNT))
    assert feed.written == COUNT


async def test_a_sink_that_cannot_keep_up_loses_with_a_count_and_delays_nobody(harness: Harness) -> None:
    ring = Ring(255)
    other = InMemory()
    feed, beside = Feed("sink", harness.sink, ring), Feed("other", other, ring)
    harness.obstruct()
    total = 5000
    async with fed(feed, beside):
        for number in range(total):
            ring.append(flow(number))
            if number % 100 == 99:
                await until(lambda count=number: len(other.lines) > count)  # type: ignore[misc]
    assert numbers(other.lines) == list(range(total))
    assert (beside.written, beside.lost) == (total, 0)
    assert feed.lost > 0
    assert feed.problem


async def test_what_was_lost_and_what_arrived_are_all(harness: Harness) -> None:
    ring = Ring(255)
    feed = Feed("sink", harness.sink, ring)
    harness.obstruct()
    async with fed(feed):
        for number in range(200):  # no more than the ring holds: so only the sink itself loses any
            ring.append(flow(number))
    assert feed.written + feed.lost == 200
    got = numbers(harness.read())
    assert got == sorted(set(got))
    assert len(got) == feed.written


async def test_a_sink_that_raises_is_reported_and_stops_no_other(harness: Harness) -> None:
    ring = Ring(1023)
    raising = Raising()
    broken, feed = Feed("broken", raising, ring), Feed("sink", harness.sink, ring)
    async with fed(broken, feed):
        for number in range(COUNT // 2):
            ring.append(flow(number))
        await until(lambda: broken.lost == COUNT // 2)
        assert broken.problem == "broken: RuntimeError: a bug"
        raising.broken = False
        for number in range(COUNT // 2, COUNT):
            ring.append(flow(number))
    assert numbers(harness.read()) == list(range(COUNT))
    assert (feed.written, feed.lost, feed.problem) == (COUNT, 0, "")
    assert numbers(raising.lines) == list(range(COUNT // 2, COUNT)), "it goes on with the next batch"
    assert (broken.written, broken.lost, broken.problem) == (COUNT // 2, COUNT // 2, "")
