"""Reads recorded flows: one JSON object per line, as l7proxy's and Hubble's exporters and `observe -o json` write them.

A file may be compressed with gzip. A line that cannot be read is reported by its number, and does not stop the others.
"""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final, cast

import msgspec

from l7proxy.errors import ConfigError, SourceError
from l7proxy.flows import flow
from l7proxy.flows.flow import Flow, LostEvents

MAX_LINE: Final = 1 << 20
"""Bytes of one line: Hubble's exporter writes at most 64 KiB."""
GZIP: Final = b"\x1f\x8b"


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
        """ConfigError for a file that cannot be read, and if `strict` for the first line that cannot."""
        for name in self.names:
            with _opened(name) as file:
                yield from self._of(file, name)

    def _of(self, file: IO[bytes], name: str) -> Iterator[Flow]:
        for number, line in _lines(file, name):
            if not line.strip():
                continue
            try:
                found = response(line)
            except SourceError as error:
                self._bad(f"{name}:{number}: {error}")
                continue
            if found.flow is not None:
                yield found.flow
            elif found.lost_events is not None:
                self.add_lost(found.lost_events)
            elif found.node_status is None:
                self._bad(f"{name}:{number}: no flow, lost events or node status")

    def add_lost(self, lost: LostEvents) -> None:
        count = lost.num_events_lost
        self.lost += int(count) if count.isascii() and count.isdigit() else 0

    def _bad(self, problem: str) -> None:
        if self.strict:
            raise ConfigError(problem)
        self.problems.append(problem)


def response(line: bytes) -> flow.Response:
    """One line. A flow without the exporter's envelope counts, too. SourceError if it cannot be read."""
    if len(line) > MAX_LINE:
        raise SourceError(f"longer than {MAX_LINE} bytes")
    found = flow.from_json(line)
    if found.flow or found.lost_events or found.node_status:
        return found
    return flow.from_json(b'{"flow":' + line.rstrip(b"\n") + b"}") if _is_flow(line) else found


def _is_flow(line: bytes) -> bool:
    bare = msgspec.json.decode(line)
    return isinstance(bare, dict) and "verdict" in bare


def _lines(file: IO[bytes], name: str) -> Iterator[tuple[int, bytes]]:
    """(number, line); of a line that is too long no more than its beginning is kept."""
    number = 0
    try:
        while line := file.readline(MAX_LINE + 1):
            number += 1
            yield number, line
            while not line.endswith(b"\n") and (line := file.readline(MAX_LINE)):
                pass
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{name}: cannot be read after line {number}: {error}") from error


@contextmanager
def _opened(name: str) -> Iterator[IO[bytes]]:
    """The file, decompressed if it begins like gzip."""
    try:
        with nullcontext(sys.stdin.buffer) if name == "-" else Path(name).open("rb") as file:
            buffered = io.BufferedReader(cast("io.RawIOBase", file), MAX_LINE)
            head = buffered.peek(len(GZIP))[: len(GZIP)]
            yield cast("IO[bytes]", gzip.GzipFile(fileobj=buffered) if head == GZIP else buffered)
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror or error}") from error
