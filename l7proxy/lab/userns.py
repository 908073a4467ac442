"""The lab without root: a user namespace in which this user is root, with its own network and mount namespaces.

unshare(1) creates it and a sleeping process holds it; each command executes itself again inside (nsenter(1)). /run is
a tmpfs there, so named network namespaces can be mounted. Files belong to the user, and pids are the machine's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from l7proxy import sbin
from l7proxy.errors import ConfigError
from l7proxy.lab.processes import Process, identify
from l7proxy.lab.state import ROOT_VARIABLE, Lab, root

_HELD: Final = "mount -t tmpfs -o mode=755 tmpfs /run && mkdir /run/netns && echo ready && exec sleep infinity"
_HELP: Final = (
    "the lab requires root or user namespaces, which are disabled ({reason}). Run it as root, or see sysctl "
    "user.max_user_namespaces kernel.unprivileged_userns_clone kernel.apparmor_restrict_unprivileged_userns"
)


def enter(lab: Lab, *, create: bool = False) -> None:
    """As root: does nothing. Otherwise executes the same command again inside the lab's user namespace.

    Returns without root only if the lab has no holder and `create` is False: then there is nothing to enter.
    """
    sbin.reach()
    if os.geteuid() == 0:
        return
    _own_directory(root())
    holder = _read(lab)
    if holder is None or not holder.alive:
        if not create:
            return
        holder = _hold(lab)
    os.environ[ROOT_VARIABLE] = str(root())
    command = ["nsenter", f"--target={holder.pid}", "--user", "--net", "--mount", "--preserve-credentials"]
    command += [f"--wdns={Path.cwd()}", sys.executable, *sys.orig_argv[1:]]
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise ConfigError("nsenter is not installed (package util-linux)") from error


def leave(lab: Lab) -> None:
    """When the lab is down, or did not come up: end its holder, and with it all namespaces.

    Takes the lab's lock: another command that holds it is still working inside.
    """
    if (holder := _read(lab)) is None:
        return
    with contextlib.suppress(ConfigError), lab.locked():
        if not lab.directory.exists():
            _file(lab).unlink(missing_ok=True)
            holder.kill(signal.SIGKILL)


@contextlib.contextmanager
def entered(lab: Lab) -> Iterator[None]:
    """Enter the user namespace, creating it if needed. At the end, also on errors, end its holder if no lab is left."""
    enter(lab, create=True)
    try:
        yield
    finally:
        leave(lab)


def _own_directory(directory: Path) -> None:
    """Its name can be guessed and all users can write /tmp: it must belong to this user, writable by no other."""
    directory.mkdir(mode=0o700, exist_ok=True)
    resources = directory.lstat()
    if not directory.is_dir() or directory.is_symlink() or resources.st_uid != os.getuid() or resources.st_mode & 0o077:
        raise ConfigError(f"{directory} must be a directory that only you can write: remove it, or set {ROOT_VARIABLE}")


def _file(lab: Lab) -> Path:
    return root() / f".{lab.name}.holder"


def _read(lab: Lab) -> Process | None:
    try:
        return msgspec.json.decode(_file(lab).read_bytes(), type=Process)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _hold(lab: Lab) -> Process:
    """Start the process that keeps the namespaces."""
    command = ["unshare", "--user", "--map-root-user", "--net", "--mount", "sh", "-c", _HELD]
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
    except FileNotFoundError as error:
        raise ConfigError("unshare is not installed (package util-linux): run the lab as root") from error
    assert child.stdout is not None and child.stderr is not None
    if child.stdout.readline() != "ready\n":
        raise ConfigError(_HELP.format(reason=child.stderr.read().strip() or f"exit code {child.wait()}"))
    holder = identify(child.pid)
    _file(lab).write_bytes(msgspec.json.encode(holder))
    return holder
