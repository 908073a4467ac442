"""`l7proxy run`: one agent and its workers as children, restarted when they die.

Knows processes and exit codes, nothing else. A child that says at its first start that it cannot begin (exit code 2: a
setting, a privilege, a missing tool) ends everything, since trying again would not help; one that dies later is started
again, after a pause that grows while it keeps dying. Children end when we are killed: an orphan would hold the sockets.
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
from pathlib import Path
from typing import Final

from l7proxy.agent.run import CANNOT_START, exit_code, prepare_run_dir
from l7proxy.errors import ConfigError
from l7proxy.settings import Settings

log = logging.getLogger(__name__)

FIRST_PAUSE: Final = 0.2
LAST_PAUSE: Final = 10.0
LIVED: Final = 10.0
"""Seconds after which a child counts as having started: it begins anew with the shortest pause."""
GRACE: Final = 5.0
"""Seconds beyond the drain that a child has to end before it is killed."""
CONFIG: Final = "run.json"
_PR_SET_PDEATHSIG: Final = 1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Child:
    """What to keep running."""

    name: str
    argv: tuple[str, ...]


def run_all(settings: Settings) -> int:
    """Until SIGTERM or SIGINT, which the children get too. The exit code."""
    return exit_code(lambda: asyncio.run(_run_all(settings)))


async def _run_all(settings: Settings) -> None:
    prepare_run_dir(settings.run_dir)
    config = settings.run_dir / CONFIG
    try:
        config.write_text(settings.dump())
    except OSError as error:
        raise ConfigError(f"run_dir: {config} cannot be written: {error.strerror}") from error
    await keep_running(children(settings, config), grace=settings.drain + GRACE)


def children(settings: Settings, config: Path) -> list[Child]:
    """The agent first: what is wrong with the settings, it says best."""
    program = (sys.executable, "-m", "l7proxy.cli.main")
    agent = Child("agent", (*program, "agent", "--config", str(config)))
    workers = [
        Child(f"worker {index}", (*program, "proxy", "--config", str(config), "--worker", str(index)))
        for index in range(settings.workers)
    ]
    return [agent, *workers]


async def keep_running(
    wanted: Sequence[Child],
    *,
    grace: float,
    first_pause: float = FIRST_PAUSE,
    last_pause: float = LAST_PAUSE,
    lived: float = LIVED,
) -> None:
    """Start all, restart what dies, until a signal. ConfigError when a child cannot start at all."""
    stop = _Stop()
    async with asyncio.TaskGroup() as tasks:
        for child in wanted:
            keeper = _Keeper(child, stop, grace=grace, first_pause=first_pause, last_pause=last_pause, lived=lived)
            tasks.create_task(keeper.run(), name=child.name)


class _Stop:
    """The signals we got: the children get each of them too, so that a second one hurries them."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.heard: list[Callable[[int], None]] = []
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signal, number)

    def _signal(self, number: int) -> None:
        self.asked.set()
        for send in self.heard:
            send(number)


class _Keeper:
    """Keeps one child running."""

    def __init__(
        self, child: Child, stop: _Stop, *, grace: float, first_pause: float, last_pause: float, lived: float
    ) -> None:
        self._child = child
        self._stop = stop
        self._grace = grace
        self._first_pause = first_pause
        self._last_pause = last_pause
        self._lived = lived
        self._process: asyncio.subprocess.Process | None = None
        self._deadline = asyncio.timeout(None)
        stop.heard.append(self._send)

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
        """One life of the child, its exit code. Whatever ends this, the child does not outlive it."""
        process = await asyncio.create_subprocess_exec(*self._child.argv, preexec_fn=_die_with(os.getpid()))
        log.info("%s started, pid %d", self._child.name, process.pid)
        self._process = process
        try:
            async with asyncio.timeout(None) as self._deadline:
                if self._stop.asked.is_set():  # it came while the child was being made
                    self._send(signal.SIGTERM)
                return await process.wait()
        except TimeoutError:
            log.warning("%s did not exit within %g s: killed", self._child.name, self._grace)
            return await _end(process, 0)
        finally:
            self._process = None
            if process.returncode is None:
                await _end(process, self._grace)

    def _send(self, number: int) -> None:
        """Pass a signal on. From the first one on the child's time is counted."""
        if self._process is None or self._process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            self._process.send_signal(number)
        if self._deadline.when() is None:
            self._deadline.reschedule(asyncio.get_running_loop().time() + self._grace)


async def _end(process: asyncio.subprocess.Process, grace: float) -> int:
    """End it, by force when it takes longer than the grace."""
    with suppress(ProcessLookupError):
        if grace:
            process.terminate()
            with suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    return await process.wait()
        process.kill()
    return await process.wait()


def _die_with(parent: int) -> Callable[[], None]:
    """For the child, before it becomes its program: SIGTERM when the parent is gone (prctl(2), PR_SET_PDEATHSIG)."""

    def arrange() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it went before we asked
            os._exit(CANNOT_START)

    return arrange


def _why(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
