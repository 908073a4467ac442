"""The agent that a command asks: the options that choose its socket, and lists that it answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from l7proxy.agent import client
from l7proxy.errors import ConfigError

RUN_DIR: Final = Path("/run/l7proxy")
UNEXPECTED: Final = "unexpected response from the agent: check that the agent and this command have the same version"

RunDir = Annotated[
    Path,
    typer.Option("--run-dir", envvar="L7PROXY_RUN_DIR", help="Run directory of the agent to query."),
]
Server = Annotated[
    str,
    typer.Option("--server", envvar="L7PROXY_SERVER", help="Socket of the agent; overrides --run-dir."),
]


def path_of(run_dir: Path, server: str = "") -> Path:
    """`--server` may be a path or `unix:///path`."""
    return Path(server.removeprefix("unix://")) if server else run_dir / client.SOCKET_NAME


def ask_list(run_dir: Path, server: str, method: str, **arguments: Any) -> list[dict[str, Any]]:
    """The list that the response holds under the name of the method."""
    items = as_object(client.ask(path_of(run_dir, server), method, **arguments)).get(method)
    if not isinstance(items, list):
        raise ConfigError(UNEXPECTED)
    return items


def as_object(found: Any) -> Mapping[str, Any]:
    if not isinstance(found, Mapping):
        raise ConfigError(UNEXPECTED)
    return found
