"""The lab's directory: what is saved for later commands, and for the next `up` after a crash.

Names are saved before they are created: a name in `lab.json` may exist, one that is not there does not.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from l7proxy.errors import ConfigError
from l7proxy.lab.cluster import Pod
from l7proxy.lab.manifests import Store
from l7proxy.lab.processes import Process
from l7proxy.lab.settings import Settings

ROOT_VARIABLE: Final = "L7PROXY_LAB_ROOT"
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?")


class Box(msgspec.Struct):
    """A node or a pod: its namespace and the process that holds it. `spec` shows whether a pod must be recreated."""

    namespace: str
    node: str = ""
    interface: str = ""
    process: Process | None = None
    spec: str = ""

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.alive


class State(msgspec.Struct):
    """`lab.json`. `up` is set when the lab has come up completely."""

    settings: Settings
    wire: str
    up: bool = False
    nodes: dict[str, Box] = {}
    pods: dict[str, Box] = {}

    @property
    def boxes(self) -> list[Box]:
        return [*self.pods.values(), *self.nodes.values()]

    def namespaces(self) -> list[str]:
        return [*(box.namespace for box in self.boxes if box.namespace), self.wire]


def root() -> Path:
    """The directory of all labs: /run for root; another one for users, whose /run differs inside the user namespace."""
    if chosen := os.environ.get(ROOT_VARIABLE):
        return Path(chosen)
    return Path("/run/l7proxy-lab") if os.geteuid() == 0 else Path(f"/tmp/l7proxy-lab-{os.getuid()}")


class Lab:
    """One lab's directory."""

    def __init__(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"--name {name!r}: must be up to 40 lower case letters, digits and '-'")
        self.name = name
        self.directory = root() / name
        self.store = Store(self.directory / "manifests")
        self._file = self.directory / "lab.json"

    def node_directory(self, node: str) -> Path:
        return self.directory / "nodes" / node

    def pod_directory(self, pod: Pod) -> Path:
        return self.directory / "pods" / f"{pod.namespace}_{pod.name}"

    def run_directory(self, node: str) -> Path:
        """The agent's run directory: short, because a unix socket's path is limited to 107 bytes (unix(7))."""
        return self.node_directory(node) / "run"

    def cni_directory(self, node: str) -> Path:
        return self.node_directory(node) / "cni"

    def namespace_name(self, *parts: str) -> str:
        return "_".join(("l7lab", self.name, *parts))

    @property
    def exists(self) -> bool:
        return self._file.exists()

    def load(self) -> State:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=State)
        except FileNotFoundError:
            others = ", ".join(names()) or "none"
            raise ConfigError(
                f"lab {self.name!r} not found (running: {others}): start it with `l7proxy lab up`"
            ) from None
        except msgspec.DecodeError as error:
            raise ConfigError(
                f"{self._file} is damaged ({error}): run `l7proxy lab down --name {self.name}`"
            ) from error

    def save(self, state: State) -> None:
        fresh = self._file.with_suffix(".new")
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(state)))
        fresh.replace(self._file)

    def make(self) -> None:
        for directory in (self.directory, self.store.directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def remove(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Only one command changes a lab at a time. The kernel releases the lock when its holder ends (flock(2))."""
        self.directory.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path = self.directory.parent / f".{self.name}.lock"
        with path.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"another command is using the lab {self.name!r}: wait until it has finished"
                ) from None
            yield
            if not self.directory.exists():
                path.unlink(missing_ok=True)


def names() -> list[str]:
    """The names of all labs with a `lab.json`."""
    return sorted(path.parent.name for path in root().glob("*/lab.json"))
