"""Network namespaces without names: they live as long as a file descriptor, so a killed test run leaves nothing.

A thread enters one to work there; a socket created there stays there and can be used from anywhere.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import socket
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")
CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """The constructor raises PermissionError where no namespace may be made."""

    def __init__(self) -> None:
        with ThreadPoolExecutor(1) as thread:  # in a separate thread: the other threads keep their namespace
            self._fd = thread.submit(self._make).result()
        self.run("ip link set lo up")

    @staticmethod
    def _make() -> int:
        if _libc.unshare(CLONE_NEWNET):
            raise PermissionError("no network namespace may be made here")
        return os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY)

    @property
    def path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    def close(self) -> None:
        os.close(self._fd)

    def do(self, action: Callable[[], Result]) -> Result:
        """The result of `action`, run inside."""

        def inside() -> Result:
            if _libc.setns(self._fd, CLONE_NEWNET):
                raise PermissionError("setns")
            return action()

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(inside).result()

    def run(self, *commands: str, text: str = "") -> str:
        """Runs each command inside; returns the output of the last one."""
        out = ""
        for command in commands:
            done = subprocess.run(self.command(command), input=text, text=True, capture_output=True, check=False)
            assert done.returncode == 0, f"{command}: {done.stderr}"
            out = done.stdout
        return out

    def command(self, command: str) -> list[str]:
        """The argument list that runs a command inside."""
        return ["nsenter", f"--net={self.path}", *shlex.split(command)]

    def socket(self, family: int = socket.AF_INET) -> socket.socket:
        return self.do(lambda: socket.socket(family, socket.SOCK_STREAM))
