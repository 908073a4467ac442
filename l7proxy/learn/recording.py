"""Reads the flows of files. A line that cannot be read is reported by its number, and does not stop the others."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Final

from l7proxy.errors import ConfigError, SourceError
from l7proxy.flows import recorded_lines
from l7proxy.flows.flow import Flow, LostEvents
from l7proxy.model.shorten import shortened

BARE: Final = ("verdict",)
"""The field of a flow without the exporter's envelope: one without a verdict says nothing here."""
NAMED: Final = 3
"""Lines that are quoted of a file that has no flow."""


@dataclass
class Recording:
    """The flows of files; `-` is standard input. `problems` and `lost` grow while they are read.

    `problems`: FILE:LINE: what is wrong. `lost`: flows that the recorder reports as lost.
    """

    names: Sequence[str]
    strict: bool = False
    problems: list[str] = field(default_factory=list)
    lost: int = 0

    def flows(self) -> Iterator[Flow]:
        """ConfigError for a file that cannot be read, or has no readable line; if `strict` for the first bad line."""
        for name in self.names:
            try:
                with recorded_lines.opened(name) as file:
                    yield from self._of(file, name)
            except OSError as error:
                raise ConfigError(f"{name}: {error.strerror or error}") from error

    def _of(self, file: IO[bytes], name: str) -> Iterator[Flow]:
        before, readable = len(self.problems), 0
        for number, line in _numbered(file, name):
            if not line.strip():
                continue
            try:
                found = recorded_lines.response(line, BARE)
            except SourceError as error:
                self._bad(f"{name}:{number}: {error}")
                continue
            readable += 1
            if found.flow is not None:
                yield found.flow
            elif found.lost_events is not None:
                self.add_lost(found.lost_events)
        if (bad := self.problems[before:]) and not readable:
            raise ConfigError(f"{name}: holds no flows of l7proxy or Hubble: {shortened(bad, NAMED, '; ', '; ')}")

    def add_lost(self, lost: LostEvents) -> None:
        count = lost.num_events_lost
        self.lost += int(count) if count.isascii() and count.isdigit() else 0

    def _bad(self, problem: str) -> None:
        if self.strict:
            raise ConfigError(problem)
        self.problems.append(problem)


def _numbered(file: IO[bytes], name: str) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        for number, line in enumerate(recorded_lines.lines(file), 1):
            yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{name}: cannot be read after line {number}: {error}") from error
