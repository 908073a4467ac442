"""Reads files of recorded flows: one JSON object per line, as l7proxy's and Hubble's exporters and `observe -o json`
write them, plain or compressed with gzip.
"""

from __future__ import annotations

import gzip
import io
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Final, cast

from l7proxy.errors import SourceError
from l7proxy.flows import flow

LONGEST: Final = 1 << 20
"""Bytes of a line: Hubble's exporter writes at most 64 KiB."""
GZIP: Final = b"\x1f\x8b"


@contextmanager
def opened(name: str) -> Iterator[IO[bytes]]:
    """The file, decompressed if it begins like gzip; `-` is standard input. OSError."""
    with nullcontext(sys.stdin.buffer) if name == "-" else Path(name).open("rb") as file:
        buffered = io.BufferedReader(cast("io.RawIOBase", file), LONGEST)
        head = buffered.peek(len(GZIP))[: len(GZIP)]
        yield cast("IO[bytes]", gzip.GzipFile(fileobj=buffered) if head == GZIP else buffered)


def lines(file: IO[bytes]) -> Iterator[bytes]:
    """Of a line that is too long only the beginning. OSError, EOFError or zlib.error when the file is damaged."""
    while line := file.readline(LONGEST + 1):
        yield line
        while not line.endswith(b"\n") and (line := file.readline(LONGEST)):
            pass


def response(line: bytes, bare: Collection[str]) -> flow.Response:
    """One line. An object without the exporter's envelope is a flow if it has one of the fields `bare`. SourceError."""
    if len(line) > LONGEST:
        raise SourceError(f"longer than {LONGEST} bytes")
    found = flow.decoded(line)
    read = flow.of_object(found)
    if read != flow.Response(node_name=read.node_name, time=read.time):
        return read
    if not any(name in found for name in bare):
        raise SourceError("no flow, lost events or node status")
    return flow.of_object({"flow": found})
