"""Recorded flows as `observe --input-file` reads them: an invalid line is a warning.

Read are exports of l7proxy and Hubble and the output of `observe -o json`, and flows without the exporter's envelope
(`hubble observe -o json` in its legacy form).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import IO, Final

from l7proxy.cli.terminal import plain
from l7proxy.errors import ConfigError, SourceError
from l7proxy.flows import flow, recorded_lines

BARE: Final = frozenset({"verdict", "IP", "l4", "l7", "source", "destination", "event_type", "eventType"})
"""A field of these shows that an object is a flow itself."""


def responses(name: str, warn: Callable[[str], None]) -> Iterator[flow.Response]:
    """Line by line; an invalid line is reported to `warn` and skipped. `-` is standard input."""
    try:
        with recorded_lines.opened(name) as file:
            yield from _from_lines(file, name, warn)
    except (OSError, EOFError, zlib.error) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigError(f"--input-file {name}: {why}") from error


def _from_lines(file: IO[bytes], name: str, warn: Callable[[str], None]) -> Iterator[flow.Response]:
    for number, line in enumerate(recorded_lines.lines(file), 1):
        if not line.strip():
            continue
        try:
            yield recorded_lines.response(line, BARE)
        except SourceError as error:
            warn(f"{name}:{number}: {plain(str(error))}: skipped")
