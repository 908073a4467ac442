"""Starts agent and workers (`l7proxy run`), or the workers alone, as child processes; restarts those that exit.

Handles processes and exit codes only. If a child exits with code 2 at its first start (setting, privilege, missing
tool), all are stopped, since a retry would not help. A child that exits later is restarted after a pause that grows
with each failure. Children end when the supervisor is killed: an orphan would keep the sockets.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from l7proxy.agent.configuration import Configuration
from l7proxy.agent.ready_file import ReadyFile
from l7proxy.errors import ConfigError
from l7proxy.process import CANNOT_START, exit_code, make_run_dir
from l7proxy.setting_definitions import Settings
from l7proxy.settings.origin import Origin

log = logging.getLogger(__name__)

FIRST_PAUSE: Final = 0.2
LAST_PAUSE: Final = 10.0
LIVED: Final = 10.0
"""Seconds after which a child counts as started: its next pause is the shortest again."""
GRACE: Final = 5.0
"""Seconds after the drain time until a child that has not exited is killed."""
PYTHON: Final = (sys.executable, "-P", "-m")
"""-P: modules in the current directory are not imported."""
STANDARD_INPUT: Final = "0"
_PR_SET_PDEATHSIG: Final = 1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Child:
    """A command to keep running."""

    name: str
    argv: tuple[str, ...]
    says_when_ready: bool = False
    """It takes one more argument: a descriptor to which it writes a byte once it is ready."""
    takes_settings: bool = False
    """It reads changed settings from its standard input, a line for each change."""


def run_all(settings: Settings, origin: Origin) -> int:
    """Run until SIGTERM or SIGINT, which are passed on to the children. Returns the exit code. `origin`: where the
    settings are read again when they change."""
    return exit_code(lambda: asyncio.run(_run_all(settings, origin)), ConfigError)


def run_workers(settings: Settings, origin: Origin, ready_file: Path | None) -> int:
    """The same without an agent. `ready_file` exists while every worker serves connections."""
    return exit_code(lambda: asyncio.run(_run_workers(settings, origin, ready_file)), ConfigError)


async def _run_workers(settings: Settings, origin: Origin, ready_file: Path | None) -> None:
    make_run_dir(settings.run_dir)
    workers = [worker(settings, index) for index in range(settings.workers)]
    ready = ReadyFile(ready_file, [one.name for one in workers]) if ready_file is not None else None
    configuration = Configuration(settings, origin)
    await keep_running(workers, grace=settings.drain + GRACE, ready=ready, configuration=configuration)


async def _run_all(settings: Settings, origin: Origin) -> None:
    make_run_dir(settings.run_dir)
    workers = [worker(settings, index) for index in range(settings.workers)]
    # The agent starts first: its messages about wrong settings are the best. It ends last: draining workers send flows.
    await keep_running(
        workers,
        around=agent(settings, origin),
        grace=settings.drain + GRACE,
        configuration=Configuration(settings, origin),
    )


def agent(settings: Settings, origin: Origin) -> Child:
    return Child("agent", (*PYTHON, "l7proxy.agent", settings.dump(), origin.dump()))


def worker(settings: Settings, index: int) -> Child:
    """A worker of this supervisor, which tells it changed settings."""
    argv = (*lone_worker(settings, index).argv, STANDARD_INPUT)
    return Child(f"worker {index}", argv, says_when_ready=True, takes_settings=True)


def lone_worker(settings: Settings, index: int) -> Child:
    """A worker whose settings do not change."""
    return Child(f"worker {index}", (*PYTHON, "l7proxy.proxy", settings.of_workers.dump(), str(index)))


async def keep_running(
    wanted: Sequence[Child],
    *,
    around: Child | None = None,
    grace: float,
    ready: ReadyFile | None = None,
    configuration: Configuration | None = None,
    first_pause: float = FIRST_PAUSE,
    last_pause: float = LAST_PAUSE,
    lived: float = LIVED,
) -> None:
    """Start all and restart those that exit, until a signal. ConfigError when a child cannot start at all.

    `around` starts before the wanted children, and is stopped after they have ended. `ready` is told which children are
    ready, and `configuration` has the settings that children take while they run.
    """
    stop, stop_last = _Stop(), _Stop()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.send, number)

    made = partial(
        _Keeper,
        grace=grace,
        ready=ready,
        configuration=configuration,
        first_pause=first_pause,
        last_pause=last_pause,
        lived=lived,
    )
    outer = made(around, stop_last) if around is not None else None
    keepers = [made(child, stop) for child in wanted]

    def configured(_: frozenset[str]) -> None:
        for keeper in keepers:
            keeper.tell_settings()

    async with asyncio.TaskGroup() as tasks:
        if outer is not None:
            tasks.create_task(outer.run(), name=outer.name)
        running = [tasks.create_task(keeper.run(), name=keeper.name) for keeper in keepers]
        following = tasks.create_task(configuration.run(configured), name="settings") if configuration else None
        await asyncio.wait(running)
        if following is not None:
            following.cancel()
        stop_last.send(signal.SIGTERM)


class _Stop:
    """Passes each signal on to the children, also a second one, which makes them exit sooner."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.heard: list[Callable[[int], None]] = []

    def send(self, number: int) -> None:
        self.asked.set()
        for send in self.heard:
            send(number)


class _Keeper:
    """Keeps one child running."""

    def __init__(
        self,
        child: Child,
        stop: _Stop,
        *,
        grace: float,
        ready: ReadyFile | None,
        configuration: Configuration | None,
        first_pause: float,
        last_pause: float,
        lived: float,
    ) -> None:
        self._child = child
        self._stop = stop
        self._grace = grace
        self._ready = ready
        self._configuration = configuration
        self._first_pause = first_pause
        self._last_pause = last_pause
        self._lived = lived
        self._process: asyncio.subprocess.Process | None = None
        self._deadline = asyncio.timeout(None)
        stop.heard.append(self._send)
        if ready is not None and child.says_when_ready:
            stop.heard.append(lambda number: ready.stop())

    @property
    def name(self) -> str:
        return self._child.name

    async def run(self) -> None:
        pause, ever_lived = self._first_pause, False
        loop = asyncio.get_running_loop()
        while not self._stop.asked.is_set():
            began = loop.time()
            code = await self._once()
            if self._stop.asked.is_set():
                return
            lived = loop.time() - began >= self._lived
            ever_lived |= lived
            if code == CANNOT_START and not ever_lived:
                raise ConfigError(f"the {self._child.name} cannot start: see its message above")
            pause = self._first_pause if lived else pause
            log.warning("%s exited (%s): restarting in %.1f s", self._child.name, _why(code), pause)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stop.asked.wait()
            pause = min(pause * 2, self._last_pause)

    async def _once(self) -> int:
        """Run the child once; returns its exit code. The child has ended when this returns or raises."""
        if self._ready is None or not self._child.says_when_ready:
            return await self._until_exit(*self._child.argv)
        with self._ready.channel(self._child.name) as descriptor:
            return await self._until_exit(*self._child.argv, str(descriptor), inherited=(descriptor,))

    async def _until_exit(self, *argv: str, inherited: tuple[int, ...] = ()) -> int:
        # A process group of its own: Ctrl-C in a terminal reaches the supervisor only, which keeps the order.
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE if self._child.takes_settings else None,
            pass_fds=inherited,
            preexec_fn=_die_with(os.getpid()),
            process_group=0,
        )
        log.info("%s started, pid %d", self._child.name, process.pid)
        self._process = process
        self.tell_settings()
        try:
            async with asyncio.timeout(None) as self._deadline:
                if self._stop.asked.is_set():  # the signal came while the child was being created
                    self._send(signal.SIGTERM)
                return await process.wait()
        except TimeoutError:
            log.warning("%s did not exit within %g s: killed", self._child.name, self._grace)
            return await _end(process, 0)
        finally:
            self._process = None
            if process.returncode is None:
                await _end(process, self._grace)

    def tell_settings(self) -> None:
        """Write the settings in force to the child, if it takes them and runs."""
        if self._configuration is None or self._process is None or self._process.stdin is None:
            return
        self._process.stdin.write(f"{self._configuration.settings.of_workers.dump()}\n".encode())

    def _send(self, number: int) -> None:
        """Pass a signal on. The first one starts the child's grace time."""
        if self._process is None or self._process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            self._process.send_signal(number)
        if self._deadline.when() is None:
            self._deadline.reschedule(asyncio.get_running_loop().time() + self._grace)


async def _end(process: asyncio.subprocess.Process, grace: float) -> int:
    """Terminate the process, and kill it if it has not exited within `grace` seconds."""
    with suppress(ProcessLookupError):
        if grace:
            process.terminate()
            with suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    return await process.wait()
        process.kill()
    return await process.wait()


def _die_with(parent: int) -> Callable[[], None]:
    """A preexec_fn that requests SIGTERM when the parent exits (prctl(2), PR_SET_PDEATHSIG)."""

    def arrange() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # the parent exited before the prctl call
            os._exit(CANNOT_START)

    return arrange


def _why(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
