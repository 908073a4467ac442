"""Terminal output. Text from pods and manifests cannot control the terminal: control characters are escaped."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, TextIO

ESCAPE: Final = "\x1b"
COLOURS: Final = {
    "bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34", "magenta": "35", "cyan": "36",
}  # fmt: skip


class Format(StrEnum):
    """Values of `-o` for commands with a table and JSON."""

    TABLE = "table"
    JSON = "json"


class When(StrEnum):
    """When to use colours."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class Paint:
    """Colours text if `on`."""

    def __init__(self, *, on: bool) -> None:
        self._on = on

    def __call__(self, text: str, colour: str) -> str:
        return f"{ESCAPE}[{COLOURS[colour]}m{text}{ESCAPE}[0m" if self._on else text


def paint(when: When = When.AUTO, stream: TextIO | None = None) -> Paint:
    """Without `--color always`: no colours in a pipe, in a file or under NO_COLOR (no-color.org)."""
    stream = stream or sys.stdout
    able = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return Paint(on=when is When.ALWAYS or (when is When.AUTO and able))


def plain(text: str) -> str:
    """Escapes everything that moves the cursor, changes the writing direction or ends the line."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str = "") -> None:
    """Prints columns as wide as needed, separated by two blanks; prints `empty` if there are no rows."""
    cells = [[plain(str(cell)) for cell in row] for row in rows]
    if not cells and empty:
        print(empty)
        return
    widths = [max(len(row[column]) for row in [list(headers), *cells]) for column in range(len(headers))]
    print(paint()(_joined(headers, widths), "bold"))
    for row in cells:
        print(_joined(row, widths))


def _joined(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def counted(counts: Mapping[str, int]) -> str:
    """`2 denied, 5 unchanged`, in the order of the words; empty without counts."""
    return ", ".join(f"{count} {word}" for word, count in sorted(counts.items()))


def show_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=not _speaks_unicode()))


def show_list(
    found: Sequence[Mapping[str, Any]],
    output: Format,
    headers: Sequence[str],
    row: Callable[[Mapping[str, Any]], Sequence[object]],
    *,
    empty: str,
) -> None:
    """The objects as JSON, or a table with a row for each."""
    if output is Format.JSON:
        show_json(found)
    else:
        table(headers, map(row, found), empty=empty)


def complain(text: str) -> None:
    """Prints an error as one line on standard error."""
    print(f"{paint(stream=sys.stderr)('error:', 'red')} {plain(text)}", file=sys.stderr)


def _speaks_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
