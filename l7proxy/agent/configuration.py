"""Takes over changes of the configuration file while the process runs: when the file changes, and on SIGHUP.

Only settings that are defined as live change. Others keep the value of the start, and are named as those that
need a restart. An invalid file changes nothing: the last good settings stay in force, and the error is shown until the
file is valid. The directory is watched, not the file: kubelet swaps the symbolic link `..data` beside it, and
editors rename.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from l7proxy import log_output
from l7proxy.errors import ConfigError
from l7proxy.setting_definitions import DEFINITIONS, Settings
from l7proxy.settings.origin import Origin
from l7proxy.sources.files.notify import ChangeNotifier

log = logging.getLogger(__name__)

CHECK: Final = 10.0
"""Seconds after which the file is looked at without a notification: there may be no inotify."""
SETTLE: Final = 0.1
"""Seconds for which a file must not change before it is read: an editor may write it in parts."""


class Configuration:
    """The settings in force. `origin`: None if they do not come from a place that can be read again."""

    def __init__(self, settings: Settings, origin: Origin | None = None) -> None:
        self.settings = settings
        self.error = ""
        """Why the file as it is now is not in force; empty: it is."""
        self.restart_needed: tuple[str, ...] = ()
        """Settings, by their names in the file, that have another value there than in this process."""
        self._origin = origin or Origin()
        self._read: bytes | None = None
        self._asked = True

    def reload(self) -> frozenset[str]:
        """Read again. Returns the names of the settings that have another value now."""
        try:
            wanted = self._origin.load()
        except ConfigError as error:
            if self.error != str(error):
                log.error("settings: %s; the last good settings stay in force", error)
            self.error = str(error)
            return frozenset()
        if self.error:
            log.info("settings: the file is right again")
        self.error = ""
        differing = {name: value for name, value in _values(wanted).items() if value != getattr(self.settings, name)}
        live = {name: value for name, value in differing.items() if DEFINITIONS[name].about.live}
        self.settings = msgspec.structs.replace(self.settings, **live)
        if live:
            log.info("settings: in force now: %s", ", ".join(_shown(name, value) for name, value in live.items()))
        self._tell_restart(tuple(DEFINITIONS[name].key for name in differing if name not in live))
        if "log_level" in live or "log_format" in live:
            log_output.start(self.settings.log_level, self.settings.log_format, self.settings.node)
        return frozenset(live)

    async def run(self, apply: Callable[[frozenset[str]], None]) -> None:
        """Loop forever. `apply` is called with the names of what has changed."""
        with ChangeNotifier() as notifier:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._hang_up, notifier)
            while True:
                if (path := self._origin.path) is not None:  # without a file SIGHUP has no effect
                    notifier.watch(path.parent)
                    await self._look(path, apply)
                await notifier.wait(CHECK)

    def _hang_up(self, notifier: ChangeNotifier) -> None:
        self._asked = True
        notifier.notify()

    async def _look(self, path: Path, apply: Callable[[frozenset[str]], None]) -> None:
        """Reading costs time: only what has changed is read, or what is asked for."""
        content = await _settled(path)
        if content == self._read and not self._asked:
            return
        self._asked, self._read = False, content
        if changed := self.reload():
            apply(changed)

    def _tell_restart(self, names: tuple[str, ...]) -> None:
        for name in sorted(set(names) - set(self.restart_needed)):
            log.warning("settings: restart needed: %s", name)
        self.restart_needed = names


async def _settled(path: Path) -> bytes | None:
    """What the file holds once it no longer changes; None: it cannot be read."""
    before = _content(path)
    while True:
        await asyncio.sleep(SETTLE)
        if (now := _content(path)) == before:
            return now
        before = now


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _values(settings: Settings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in DEFINITIONS}


def _shown(name: str, value: Any) -> str:
    return f"{DEFINITIONS[name].key}: {msgspec.json.encode(value, enc_hook=str).decode()}"
