"""When a process has ended, as the lab and `make cluster` see it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from l7proxy.lab import processes

LISTENS_IN_A_SECOND_THREAD = """
import ctypes, os, platform, socket, sys, threading, time
listener = socket.create_server(("127.0.0.1", 0))
def wait():
    print(listener.getsockname()[1], flush=True)
    sys.stdin.read()
    time.sleep(0.3)
    os._exit(0)
threading.Thread(target=wait).start()
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[platform.machine()], 0)  # exit(2): of this thread alone
"""


def is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_program_has_ended_when_its_last_thread_has() -> None:
    """And its port is free for the next one, though /proc calls it a zombie from the end of the first thread on."""
    command = [sys.executable, "-c", LISTENS_IN_A_SECOND_THREAD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdin
        assert program.stdout
        port = int(program.stdout.readline())
        while not is_zombie(program.pid):
            time.sleep(0.01)
        process = processes.identify(program.pid)
        assert processes.started(program.pid) == process.started > 0
        socket.create_connection(("127.0.0.1", port)).close()
        processes.kill([process])
        assert not process.alive
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


def test_a_zombie_has_ended_though_it_is_not_waited_for_yet() -> None:
    with subprocess.Popen(["true"]) as program:
        process = processes.identify(program.pid)
        while not is_zombie(program.pid):
            time.sleep(0.01)
        assert processes.started(program.pid) is None
        assert not process.alive


def test_what_has_ended_before_is_not_waited_for() -> None:
    with subprocess.Popen(["true"]) as program:
        program.wait()
    processes.kill([processes.Process(program.pid, 0)])
