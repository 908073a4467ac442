"""A feed hands the ring's events to a sink, and reports what goes wrong once."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from l7proxy.flows.event import Event
from l7proxy.flows.flow import Flow
from l7proxy.flows.ring import Ring
from l7proxy.flows.sinks import jsonl
from l7proxy.flows.sinks.feed import Feed
from l7proxy.flows.sinks.jsonl import JsonLinesFile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


def flow(number: int) -> Flow:
    return Flow(uuid=str(number))


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110  (what is watched belongs to another thread)
        await asyncio.sleep(0.001)


@asynccontextmanager
async def running(feed: Feed) -> AsyncIterator[None]:
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(feed.run(), name=feed.name)
        await asyncio.sleep(0)
        yield
        task.cancel()


class Faulty:
    """Raises for a flow `bad`, after it has counted what came before it in the batch as lost."""

    def __init__(self) -> None:
        self.lost = 0
        self.problem = ""
        self.closed = False

    def consume(self, events: Sequence[Event]) -> None:
        for event in events:
            flow = event.flow()
            if flow is not None and flow.uuid == "bad":
                raise ValueError("no such thing")
            self.lost += 1

    def hurry(self) -> None: ...

    def close(self) -> None:
        self.closed = True
        raise OSError("cannot flush")


async def test_the_sink_follows_the_ring_and_what_is_in_it_at_the_end_goes_out(tmp_path: Path) -> None:
    ring = Ring(4095)
    path = tmp_path / "flows.jsonl"
    feed = Feed("flow log", JsonLinesFile(path), ring)
    async with running(feed):
        for number in range(500):
            ring.append(flow(number))
            if number % 100 == 0:
                await asyncio.sleep(0.001)
    assert [int(json.loads(line)["flow"]["uuid"]) for line in path.read_text().splitlines()] == list(range(500))
    assert (feed.written, feed.lost, feed.problem) == (500, 0, "")


async def test_trouble_is_logged_once_and_so_is_its_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    ring = Ring(255)
    (tmp_path / "blocker").write_text("")
    feed = Feed("flow log", JsonLinesFile(tmp_path / "blocker" / "flows.jsonl", clock=lambda: now), ring)
    async with running(feed):
        for number in range(3):
            ring.append(flow(number))
            await until(lambda count=number: feed.lost > count)  # type: ignore[misc]
        (tmp_path / "blocker").unlink()
        now += jsonl.RETRY_AFTER
        ring.append(flow(3))
        await until(lambda: len(caplog.records) >= 2)
    assert [record.message.count("recovered") for record in caplog.records] == [0, 1]
    assert "File exists" in caplog.records[0].message
    assert (feed.written, feed.lost) == (1, 3)


async def test_an_exception_costs_its_batch_once_and_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    ring, sink = Ring(255), Faulty()
    feed = Feed("broken", sink, ring)
    for uuid in ("1", "bad", "3"):
        ring.append(Flow(uuid=uuid))
    async with running(feed):
        await until(lambda: bool(feed.problem))
        assert feed.problem == "broken: ValueError: no such thing"
        assert (sink.lost, feed.lost, feed.written) == (1, 3, 0)
        ring.append(flow(4))
        await until(lambda: not feed.problem)
    assert (feed.lost, feed.written, sink.closed) == (4, 0, True)
    assert [record.message for record in caplog.records] == [
        "broken: ValueError: no such thing; 3 events lost so far",
        "broken: recovered; 4 events lost so far",
        "broken: cannot be closed",
    ]
    assert all(record.exc_info for record in caplog.records[::2]), "with where it was raised"
