"""What l7proxy's processes have in common: the exit code of a failed start, and the run directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from l7proxy.errors import ConfigError
from l7proxy.log_output import complain

CANNOT_START: Final = 2


def exit_code(serve: Callable[[], object], *known: type[Exception]) -> int:
    """Call `serve`. Errors of the types `known`, which the operator can fix, become one line each on standard error.
    Other errors of the same group are raised."""
    code = 0
    try:
        serve()
    except* known as group:
        for each in _leaves(group):
            complain(str(each))
        code = CANNOT_START
    return code


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
