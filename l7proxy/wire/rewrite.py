"""Applies header edits to a request head: returns the bytes to forward.

Only the lines that an edit names change: the start line, and the order and spelling of other lines stay. Nothing is
checked here: the maker of an edit ensures that its name is a token, its value a field value (RFC 9110 5.5), and that
it does not change the framing of the message.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from l7proxy.model.http import HeaderEdit, edited


def head(raw: bytes, edits: Iterable[HeaderEdit]) -> bytes:
    """`raw` is a complete head that a reader has accepted, with its empty line."""
    start, *lines = raw[:-4].split(b"\r\n")
    named = [(line.partition(b":")[0].lower(), line) for line in lines]
    written = [replace(edit, value=b"%b: %b" % (edit.name, edit.value)) for edit in edits]
    return b"\r\n".join([start, *(line for _, line in edited(named, written)), b"", b""])
