"""`l7proxy cleanup`: undoes what agents have done to a node.

What is in the run directory stays: workers that still run share its fence with the next agent.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from l7proxy.errors import ConfigError
from l7proxy.setting_definitions import Settings
from l7proxy.sources.kubernetes.saved import SavedObjects
from tproxy_rules import detect
from tproxy_rules.backend import KernelError
from tproxy_rules.sysctl import Restored, Sysctls


def cleanup(settings: Settings) -> Iterator[str]:
    """Remove rules, routes, tables and sets of all backends, and saved objects; set sysctls back. One line for each.

    ConfigError when something is left: what, and why. All the rest has been done then.
    """
    if _alive(settings.agent_socket):
        raise ConfigError(
            f"an agent is running ({settings.agent_socket}): stop it first, or it would restore its rules"
        )
    yield from _rules(settings.backend)
    failed: list[str] = []
    for step in (_sysctls(settings.sysctls_record, failed), _saved_objects(settings.state_dir, failed)):
        yield from step
    if failed:
        raise ConfigError("cleanup is not complete: " + "; ".join(failed))


def _rules(backend: str) -> Iterator[str]:
    names = [name for name in detect.NAMES if name != "auto"] if backend == "auto" else [backend]
    done, failed = [], []
    for name in names:
        try:
            detect.choose(name).remove()
        except KernelError as error:
            failed.append(str(error))
            done.append(f"{name}: skipped: {error}")
        else:
            done.append(f"{name}: rules removed")
    if len(failed) == len(names):  # an unavailable backend has left no rules, but at least one must be available
        raise ConfigError("cleanup failed: " + "; ".join(failed))
    yield from done


def _sysctls(record: Path, failed: list[str]) -> Iterator[str]:
    try:
        done = Sysctls(record).restore()
    except (OSError, ValueError) as error:
        failed.append(f"{record}: which sysctls were changed cannot be read: {error}; see docs/kernel.md, remove it")
        return
    for one in done:
        if one.error:
            failed.append(f"sysctl {_dotted(one)} was {one.change.before} before l7proxy, cannot be set: {one.error}")
        else:
            yield f"sysctl {_dotted(one)}: {one.change.before} again"


def _dotted(one: Restored) -> str:
    """As sysctl(8) writes it, which exchanges `/` and `.`."""
    return one.change.name.translate(str.maketrans("/.", "./"))


def _saved_objects(state_dir: Path, failed: list[str]) -> Iterator[str]:
    try:
        number = SavedObjects(state_dir).remove()
    except OSError as error:
        failed.append(f"saved objects: {error}")
    else:
        if number:
            yield f"{state_dir}: saved objects of {number} kinds removed"


def _alive(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, suppress(OSError):
        probe.connect(str(path))
        return True
    return False
