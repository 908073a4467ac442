"""A request head with its headers changed: the bytes to forward in the place of those received.

Only the lines that an edit names are touched: the start line, the order and the spelling of all others stay. Nothing is
checked here: who makes an edit sees to it that its name is a token, its value a field value (RFC 9110 5.5) and the
framing of the message left alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from l7proxy.model.http import HeaderEdit, edited


def head(raw: bytes, edits: Iterable[HeaderEdit]) -> bytes:
    """`raw` is a whole head that a reader has accepted, blank line included."""
    start, *lines = raw[:-4].split(b"\r\n")
    named = [(line.partition(b":")[0].lower(), line) for line in lines]
    written = [replace(edit, value=b"%b: %b" % (edit.name, edit.value)) for edit in edits]
    return b"\r\n".join([start, *(line for _, line in edited(named, written)), b"", b""])
