"""The raw messages of tests/corpus/http and the expected result of each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from l7proxy.wire.head import CHUNKED

ROOT: Final = Path(__file__).parents[2] / "corpus" / "http"


@dataclass(frozen=True)
class Valid:
    name: str
    method: bytes
    host: bytes
    path: bytes
    framing: int
    data: bytes

    def __str__(self) -> str:
        return self.name


def valid() -> list[Valid]:
    found = []
    for line in (ROOT / "valid" / "expected.tsv").read_text().splitlines()[1:]:
        name, method, host, path, framing = line.split("\t")
        path = re.sub(r"\{([^}]+)\*(\d+)\}", lambda times: times[1] * int(times[2]), path)
        data = (ROOT / "valid" / f"{name}.http").read_bytes()
        length = CHUNKED if framing == "chunked" else int(framing)
        found.append(Valid(name, method.encode(), host.encode(), path.encode(), length, data))
    return found


def files(directory: str) -> list[Path]:
    """Sorted by name; an empty directory would make tests that cannot fail."""
    found = sorted((ROOT / directory).glob("*.http"))
    assert found
    return found


def forwarded(data: bytes) -> bytes:
    """The forwarded message differs only in the coding's spelling: `chunked`."""
    return re.sub(rb"(\r\nTransfer-Encoding: )(?i:chunked)\r\n", rb"\1chunked\r\n", data, count=1)


def status(path: Path) -> int:
    return int(path.name[:3])
