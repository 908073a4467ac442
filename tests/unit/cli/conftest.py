"""A real unix socket that speaks the agent's protocol, and command lines run as processes."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import pytest

from l7proxy.cli.main import invoke

Answer = Callable[[Mapping[str, Any]], Iterator[Any]]


class Agent:
    """A fake agent: answers as configured (lines of type bytes go out unchanged), and records the requests."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[Any] = []
        self.answers: dict[str, Answer] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._open: list[socket.socket] = []
        self._serving = threading.Thread(target=self._serve)
        self._serving.start()

    def says(self, method: str, *lines: Any) -> None:
        self.answers[method] = lambda question: iter(lines)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._serving.join()
        self._listener.close()
        for connection in self._open:
            connection.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._open.append(connection)
                with suppress(BrokenPipeError, ConnectionResetError):
                    self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as file:
            question = json.loads(file.readline())
        self.asked.append(question)
        answer = self.answers.get(question["method"])
        for line in answer(question) if answer else ({"error": f"unknown method {question['method']!r}"},):
            connection.sendall(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")
        connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(tmp_path / "agent.sock")
    yield agent
    agent.close()


Run = Callable[..., "subprocess.CompletedProcess[str]"]
WIDTH = {"COLUMNS": "120"}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run("status", …)`: one command line against the fake agent of this test, in this process for speed."""
    for name in [name for name in os.environ if name.startswith(("L7PROXY_", "NO_COLOR"))]:
        monkeypatch.delenv(name)

    def run(*arguments: str, stdin: str = "", **extra: str) -> subprocess.CompletedProcess[str]:
        with monkeypatch.context() as inside, redirect_stdout(_text()) as out, redirect_stderr(_text()) as err:
            for name, value in (WIDTH | {"L7PROXY_RUN_DIR": str(tmp_path)} | extra).items():
                inside.setenv(name, value)
            inside.setattr("sys.stdin", _text(stdin))
            code = invoke(arguments)
        return subprocess.CompletedProcess(arguments, code, _read(out), _read(err))

    return run


@pytest.fixture
def process(tmp_path: Path) -> Run:
    """The same as users start it: in a separate process."""

    def process(*arguments: str, stdin: str = "", **extra: str) -> subprocess.CompletedProcess[str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("L7PROXY_", "NO_COLOR"))}
        return subprocess.run(
            [sys.executable, "-m", "l7proxy", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=clean | WIDTH | {"L7PROXY_RUN_DIR": str(tmp_path)} | extra,
        )

    return process


def _text(content: str = "") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(content.encode()), encoding="utf-8")


def _read(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()
