"""Runs a worker process: one event loop, one set of listeners, one link to the agent. No Kubernetes, no kernel tables.

SIGTERM drains: no new connections, open ones may finish until a deadline, flow records are sent, exit 0. SIGINT, or a
second signal, does the same with a deadline of HURRY_SECONDS.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import uvloop

from l7proxy import log_output
from l7proxy.gate.clock import Clock
from l7proxy.link import fence
from l7proxy.link.client import LinkClient
from l7proxy.link.outbox import Outbox
from l7proxy.proxy import stats
from l7proxy.proxy.policy_store import PolicyStore
from l7proxy.proxy.server import listener, pipes
from l7proxy.proxy.server.context import Timeouts, WorkerContext
from l7proxy.proxy.server.memory import Memory
from l7proxy.proxy.server.server import ProxyServer
from l7proxy.proxy.server.steering import Steering, Transparent
from l7proxy.proxy.server.timer_wheel import TimerWheel
from l7proxy.setting_definitions import WorkerSettings, parse

log = logging.getLogger(__name__)

HURRY_SECONDS: Final = 1.0
FLUSH_SECONDS: Final = 2.0
SPARE_DESCRIPTORS: Final = 64 + pipes.DESCRIPTORS
GC_THRESHOLDS: Final = (20_000, 20, 50)


def run_worker(
    settings: WorkerSettings,
    worker: int = 0,
    *,
    steering: Steering | None = None,
    changes: int | None = None,
    ready: int | None = None,
) -> int:
    """Serve until a signal arrives. Returns exit code 0. ConfigError when the worker cannot start.

    `changes`: descriptor from which changed settings are read. `ready`: descriptor to which a byte
    is written once connections are served.
    """
    descriptors = listener.take_descriptors()
    way = steering or Transparent(settings.proxy_port, mark_upstream=settings.mark_upstream)
    bound = way.listen()
    carried = max(1, (descriptors - SPARE_DESCRIPTORS) // 2)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, worker, way, bound, carried, changes, ready))
    return 0


class _Stop:
    """Stop requests from signals. `seconds` is the time to drain; `hurried` shortens it."""

    def __init__(self, drain_seconds: float) -> None:
        self.seconds = drain_seconds
        self.asked = asyncio.Event()
        self.hurried = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._term)
        loop.add_signal_handler(signal.SIGINT, self._hurry)

    def _term(self) -> None:
        if self.asked.is_set():
            self.hurried.set()
        self.asked.set()

    def _hurry(self) -> None:
        self.hurried.set()
        self.asked.set()


async def _serve(
    settings: WorkerSettings,
    worker: int,
    steering: Steering,
    bound: Sequence[socket.socket],
    carried: int,
    changes: int | None,
    ready: int | None,
) -> None:
    stop = _Stop(settings.drain)
    outbox = Outbox()
    page = fence.Fence.of(fence.beside(settings.link_socket))
    async with asyncio.TaskGroup() as tasks:
        ctx = WorkerContext(
            policy_store=PolicyStore(page),
            steering=steering,
            timers=TimerWheel(asyncio.get_running_loop().time()),
            records=outbox.put,
            clock=Clock(time.time_ns, time.monotonic_ns),
            timeouts=Timeouts(),
            limit=min(settings.worker_connections, carried),
            memory=Memory(settings.worker_memory << 20),
        )
        server = ProxyServer(ctx, bound, on_open=partial(_tell, ready))
        link = LinkClient(
            settings.link_socket,
            worker,
            outbox=outbox,
            on_snapshot=server.publish,
            stats=lambda: stats.collect(ctx, outbox),
        )
        running = [
            tasks.create_task(link.run(), name="link"),
            tasks.create_task(server.tick(), name="wheel"),
        ]
        if changes is not None:
            running.append(tasks.create_task(_follow(changes, settings, ctx, carried), name="settings"))
        gc.set_threshold(*GC_THRESHOLDS)
        gc.collect()
        gc.freeze()  # modules, tables and code live as long as the process: the collector skips them
        await stop.asked.wait()
        await _drain(server, stop, tasks)
        if not await link.flush(FLUSH_SECONDS):
            log.warning("%d flow records were not delivered to the agent", len(outbox))
        for task in running:
            task.cancel()


async def _follow(changes: int, settings: WorkerSettings, ctx: WorkerContext, carried: int) -> None:
    """Take over the live settings of each line, until the writer has gone. What is not live stays as it was."""
    lines = asyncio.StreamReader()
    reading = os.fdopen(changes, "rb", buffering=0)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), reading)
    while line := await lines.readline():
        wanted = parse(line.decode(), WorkerSettings)
        if (wanted.log_level, wanted.log_format) != (settings.log_level, settings.log_format):
            log_output.start(wanted.log_level, wanted.log_format, settings.node)
        ctx.limit = min(wanted.worker_connections, carried)
        ctx.memory.resize(wanted.worker_memory << 20)
        settings = wanted


def _tell(ready: int | None) -> None:
    """Say that connections are served. The reader may have gone: it no longer matters then."""
    if ready is not None:
        with suppress(BrokenPipeError):
            os.write(ready, b"\n")
        os.close(ready)


async def _drain(server: ProxyServer, stop: _Stop, tasks: asyncio.TaskGroup) -> None:
    """Drain for `stop.seconds`; a signal to hurry shortens that."""
    listener.warn_if_queues_are_lost()
    if stop.hurried.is_set():
        await server.drain(HURRY_SECONDS)
        return
    log.info("draining for at most %g s", stop.seconds)
    draining = tasks.create_task(server.drain(stop.seconds), name="drain")
    hurried = tasks.create_task(stop.hurried.wait(), name="hurry")
    await asyncio.wait({draining, hurried}, return_when=asyncio.FIRST_COMPLETED)
    hurried.cancel()
    if not draining.done():
        draining.cancel()
        await server.drain(HURRY_SECONDS)
