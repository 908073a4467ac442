"""One process per pod and per node: holds its namespaces, runs its containers, and writes their status to a file.

Started as `python -m l7proxy.lab.sandbox SPEC.json`, outside the namespaces. It enters the network namespace, creates
its own mount and UTS namespace (/etc/hosts, /etc/resolv.conf, /sys), starts the containers and the built-in servers,
and keeps `status.json` up to date until SIGTERM. Its children die with it (PR_SET_PDEATHSIG, prctl(2)).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from l7proxy.errors import ConfigError
from l7proxy.lab import netns
from l7proxy.lab.containers import Container, Listener

GRACE: Final = 5.0
"""Seconds between SIGTERM and SIGKILL for the containers."""
_PR_SET_PDEATHSIG: Final = 1
_libc = ctypes.CDLL(None, use_errno=True)


class Spec(msgspec.Struct, frozen=True):
    """What to run and where. `directory` gets `status.json` and one log per container."""

    name: str
    namespace: str
    directory: str
    hosts: str
    containers: tuple[Container, ...] = ()
    listeners: tuple[Listener, ...] = ()
    environment: dict[str, str] = {}


class ContainerStatus(msgspec.Struct, omit_defaults=True):
    """`state`: running, exited (with `code`), failed (with `reason`: it could not be started), idle."""

    name: str
    state: str
    pid: int = 0
    code: int | None = None
    reason: str = ""


class Status(msgspec.Struct):
    """The content of `status.json`. `ready`: everything is started; `error`: why nothing is."""

    ready: bool = False
    error: str = ""
    containers: list[ContainerStatus] = []
    listeners: list[str] = []


def read_status(directory: Path) -> Status:
    try:
        return msgspec.json.decode((directory / "status.json").read_bytes(), type=Status)
    except FileNotFoundError:
        return Status()


def _isolate(spec: Spec) -> None:
    netns.enter(netns.path_of(spec.namespace), netns.CLONE_NEWNET)
    netns.unshare(netns.CLONE_NEWNS | netns.CLONE_NEWUTS)
    netns.mount(
        "none", "/", None, netns.MS_SLAVE | netns.MS_REC
    )  # mounts made here stay here; the machine's unmounts propagate
    socket.sethostname(spec.name[:64])
    netns.mount(spec.hosts, "/etc/hosts", None, netns.MS_BIND)
    resolver = Path(spec.directory, "resolv.conf")
    resolver.write_text("# names are in /etc/hosts; there is no DNS in the lab\noptions attempts:1 timeout:1\n")
    with contextlib.suppress(OSError):  # the machine has no such file
        netns.mount(str(resolver), Path("/etc/resolv.conf").resolve(strict=True), None, netns.MS_BIND)
    with contextlib.suppress(OSError):  # refused in some containers: /sys/class/net then shows the machine's links
        netns.mount("sysfs", "/sys", "sysfs", netns.MS_NOSUID_NOEXEC_NODEV)


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Sandbox:
    """Runs one spec until SIGTERM."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.directory = Path(spec.directory)
        self.status = Status()
        self._children: dict[str, asyncio.subprocess.Process] = {}

    async def run(self) -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        servers = []
        for listener in self.spec.listeners:
            from l7proxy.lab import echo  # ssl and h11 are loaded only in pods that serve

            servers.append(await echo.start(listener, self.spec.name))
            self.status.listeners.append(f"{listener.kind}:{listener.port}")
        async with asyncio.TaskGroup() as group:
            for container in self.spec.containers:
                self.status.containers.append(status := await self._start(container))
                if child := self._children.get(container.name):
                    group.create_task(self._wait(child, status), name=f"container {container.name}")
            self.status.ready = True
            self.write_status()
            await stop.wait()
            await self._stop()
        for server in servers:
            server.close()

    async def _start(self, container: Container) -> ContainerStatus:
        if not container.argv:
            return ContainerStatus(
                container.name, "idle", reason="no command: images are not supported by the lab, so it must be set"
            )
        environment: Mapping[str, str] = {**os.environ, **self.spec.environment, **dict(container.environment)}
        with (self.directory / f"{container.name}.log").open("ab") as log:
            try:
                child = await asyncio.create_subprocess_exec(
                    *container.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    cwd=container.directory or None,
                    start_new_session=True,
                    preexec_fn=_die_with_parent,
                )
            except OSError as error:
                log.write(f"{container.argv[0]}: {error.strerror}\n".encode())
                return ContainerStatus(container.name, "failed", reason=f"{container.argv[0]}: {error.strerror}")
        self._children[container.name] = child
        return ContainerStatus(container.name, "running", pid=child.pid)

    async def _wait(self, child: asyncio.subprocess.Process, status: ContainerStatus) -> None:
        status.code = await child.wait()
        status.state, status.pid = "exited", 0
        self.write_status()

    async def _stop(self) -> None:
        """SIGTERM to every container's session leader, SIGKILL to its whole group after the grace."""
        running = [child for child in self._children.values() if child.returncode is None]
        for child in running:
            child.terminate()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                for child in running:
                    await child.wait()
        for child in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)

    def write_status(self) -> None:
        fresh = self.directory / "status.json.new"
        fresh.write_bytes(msgspec.json.encode(self.status))
        fresh.replace(self.directory / "status.json")


def main(path: str) -> int:
    spec = msgspec.json.decode(Path(path).read_bytes(), type=Spec)
    sandbox = Sandbox(spec)
    try:
        _isolate(spec)
        asyncio.run(sandbox.run())
    except (OSError, ConfigError) as error:
        sandbox.status.error = str(error)
        sandbox.write_status()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
