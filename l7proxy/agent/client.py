"""Client of the agent's socket: sends one JSON line, reads one or many."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from l7proxy.errors import ConfigError, LinkError

SOCKET_NAME: Final = "agent.sock"
PATIENCE: Final = 10.0
"""Seconds to wait for the response; following has no timeout."""
MAX_LINE: Final = 64 << 20


def ask(path: Path, method: str, **arguments: Any) -> Any:
    """The single response. ConfigError when there is no agent, or with the agent's message when it refuses."""
    for line in stream(path, {"method": method, **arguments}, patience=PATIENCE):
        return line
    raise LinkError(f"the agent at {path} closed the connection without a response")


def stream(path: Path, request: Mapping[str, Any], *, patience: float | None = None) -> Iterator[Any]:
    """Every line of the response, decoded."""
    with closing(_connect(path, patience)) as connection:
        try:
            connection.sendall(json.dumps(request).encode() + b"\n", socket.MSG_NOSIGNAL)
            connection.shutdown(socket.SHUT_WR)  # the request is complete: the agent closes after its last line
            for line in _lines(connection):
                yield _answer(line)
        except TimeoutError as error:
            raise ConfigError(f"the agent at {path} did not respond within {patience:.0f} s: see its log") from error
        except (ConnectionError, BrokenPipeError) as error:
            raise ConfigError(f"the agent at {path} closed the connection: {error.strerror}") from error


def _lines(connection: socket.socket) -> Iterator[bytes]:
    with connection.makefile("rb") as file:
        while line := file.readline(MAX_LINE):
            if not line.endswith(b"\n"):
                raise LinkError("the response of the agent is incomplete")
            if line.strip():
                yield line


def _answer(line: bytes) -> Any:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise LinkError(f"the response of the agent is not valid JSON: {error}") from error
    if isinstance(found, dict) and set(found) == {"error"}:
        raise ConfigError(str(found["error"]))
    return found


def _connect(path: Path, patience: float | None) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(patience)
    try:
        connection.connect(os.fspath(path))
    except OSError as error:
        connection.close()
        raise ConfigError(_why(path, error)) from error
    return connection


def _why(path: Path, error: OSError) -> str:
    """What failed, and how to fix it."""
    if isinstance(error, FileNotFoundError):
        return f"no agent at {path}: start it with `l7proxy run`, or set --run-dir or --server"
    if isinstance(error, PermissionError):
        return f"no permission to connect to the agent at {path}: run this as the agent's user (usually root)"
    if isinstance(error, ConnectionRefusedError):
        return f"no agent is listening at {path}: start it with `l7proxy run`"
    return f"cannot connect to the agent at {path}: {error.strerror or error}"
