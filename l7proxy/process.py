"""What l7proxy's processes have in common: the form of the log, and the exit code of a failed start."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from l7proxy.errors import ConfigError

CANNOT_START: Final = 2


def start_log(level: str) -> None:
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)


def exit_code(serve: Callable[[], object], *known: type[Exception]) -> int:
    """Call `serve`. Errors of the types `known`, which the operator can fix, become one line each on standard error."""
    try:
        serve()
    except known as error:
        print(f"error: {error}", file=sys.stderr)
        return CANNOT_START
    except BaseExceptionGroup as group:
        ours, rest = group.split(known)
        if rest is not None or ours is None:
            raise
        for each in _leaves(ours):
            print(f"error: {each}", file=sys.stderr)
        return CANNOT_START
    return 0


def make_run_dir(path: Path) -> None:
    """Create the directory of the sockets. The sockets themselves have mode 0600."""
    try:
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"run-dir: {path} cannot be created: {error.strerror}") from error


def _leaves(group: BaseExceptionGroup[Any]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
