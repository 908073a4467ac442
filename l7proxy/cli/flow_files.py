"""Recorded flows as `observe --input-file` reads them: one JSON object per line, plain or compressed with gzip.

Read are exports of l7proxy and Hubble and the output of `observe -o json`, and flows without the exporter's envelope
(`hubble observe -o json` in its legacy form).
"""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any, Final, cast

import msgspec

from l7proxy.cli.terminal import plain
from l7proxy.errors import ConfigError, SourceError
from l7proxy.flows import flow

GZIP: Final = b"\x1f\x8b"
LONGEST: Final = 1 << 20
"""Bytes of a line: Hubble's exporter writes at most 64 KiB."""
BARE: Final = frozenset({"verdict", "IP", "l4", "l7", "source", "destination", "event_type", "eventType"})
"""A field of these shows that an object is a flow itself."""


def responses(name: str, warn: Callable[[str], None]) -> Iterator[flow.Response]:
    """Line by line; an invalid line is reported to `warn` and skipped. `-` is standard input."""
    try:
        with nullcontext(sys.stdin.buffer) if name == "-" else Path(name).open("rb") as file:
            buffered = io.BufferedReader(cast("io.RawIOBase", file), LONGEST)
            head = buffered.peek(len(GZIP))[: len(GZIP)]
            lines = cast("IO[bytes]", gzip.GzipFile(fileobj=buffered) if head == GZIP else buffered)
            yield from _from_lines(lines, name, warn)
    except (OSError, EOFError, zlib.error) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigError(f"--input-file {name}: {why}") from error


def _from_lines(file: IO[bytes], name: str, warn: Callable[[str], None]) -> Iterator[flow.Response]:
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        try:
            yield _response(line)
        except SourceError as error:
            warn(f"{name}:{number}: {plain(str(error))}: skipped")


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Of a line that is too long only the beginning."""
    while line := file.readline(LONGEST + 1):
        yield line
        while not line.endswith(b"\n") and (line := file.readline(LONGEST)):
            pass


def _response(line: bytes) -> flow.Response:
    if len(line) > LONGEST:
        raise SourceError(f"longer than {LONGEST} bytes")
    try:
        found: Any = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SourceError(f"not a JSON object: {error}") from error
    response = flow.of_object(found)
    if response == flow.Response(node_name=response.node_name, time=response.time):
        if BARE.isdisjoint(found):
            raise SourceError("no flow, lost events or node status")
        response = flow.of_object({"flow": found})
    return response
