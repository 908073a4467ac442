"""Encodes and decodes header blocks of HTTP/2 (HPACK, RFC 7541), with caches for repeated blocks.

A long-lived connection repeats its header blocks, which are then a few table indices. Such a block means the same until
the table changes, so its decoded and encoded forms are cached until then.
Work is linear in the bytes of a block. Fields that a peer marked never-indexed stay so on the next hop (7.1.3).
The Huffman code and the static table come from the library `hpack`; the tests compare this module with it. Its public
interface has only whole encoders and decoders, so both are imported from its modules, here only; pyproject.toml
excludes the next major version.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from hpack.exceptions import HPACKError
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

from l7proxy.model.cache import remember
from l7proxy.wire.head import MAX_HEAD, Header
from l7proxy.wire.http2_frames import Code, Http2Error

TABLE_SIZE: Final = 4096
"""Bytes of a dynamic table: the default, which neither side of a connection raises."""

MAX_BLOCK: Final = MAX_HEAD
"""Bytes of an encoded block."""

MAX_FIELDS: Final = 2 * MAX_HEAD
"""A larger block ends decoding and the connection. Between MAX_HEAD and this a request gets status 431."""

MAX_INFLATION: Final = 3 * TABLE_SIZE
"""How far the fields of a block may exceed twice its encoded bytes (the Huffman code saves less). All entries of the
static and the dynamic table, each once, are smaller. A block that repeats the same entry attacks memory and CPU time
(CVE-2016-6581, the "HPACK bomb")."""

ENTRY: Final = 32
"""Overhead that is counted for each field (RFC 7541 4.1)."""

STATIC: Final[tuple[Header, ...]] = HeaderTable.STATIC_TABLE

_STATIC_SIZE: Final = len(STATIC)
_INDEXED: Final = {field: bytes((0x80 | index,)) for index, field in enumerate(STATIC, 1)}
_NAME_INDEX: Final = {name: index for index, (name, _) in reversed(list(enumerate(STATIC, 1)))}
_MOST_KNOWN: Final = 64
_LONGEST_KNOWN: Final = 1024
_MAX_INTEGER: Final = 1 << 24
_VOLATILE: Final = frozenset({b"content-length", b"date", b"etag", b"grpc-timeout", b"if-none-match", b"x-request-id"})
"""Values that rarely repeat: an entry in the table would evict a more useful one."""


@dataclass(slots=True, eq=False)
class FieldBlock:
    """Fields in order; `size` as RFC 9113 10.5.1 counts it; `secret` are the positions of never-indexed fields.

    The other attributes are caches of the code that reads and writes the block.
    """

    fields: list[Header]
    size: int = 0
    secret: frozenset[int] = frozenset()
    inflated: bool = False
    """Larger than MAX_INFLATION allows: the message must be rejected."""

    reading: Any = None
    """The result of wire/http2_head."""

    written: bytes = b""
    writer: Any = None
    changes: int = -1
    """`written` is what `writer` wrote last, when its table's `changes` had this value."""


class _Table:
    """A dynamic table: the newest entry has index 62. `changes` counts the changes that invalidate indices."""

    __slots__ = ("changes", "entries", "limit", "size")

    def __init__(self) -> None:
        self.entries: deque[Header] = deque()
        self.size = 0
        self.limit = TABLE_SIZE
        self.changes = 0

    def add(self, field: Header) -> None:
        self.changes += 1
        self.entries.appendleft(field)
        self.size += len(field[0]) + len(field[1]) + ENTRY
        if self.size > self.limit:
            self._evict()

    def resize(self, limit: int) -> None:
        self.changes += 1
        self.limit = limit
        self._evict()

    def _evict(self) -> None:
        while self.size > self.limit:
            name, value = self.entries.pop()
            self.size -= len(name) + len(value) + ENTRY


# --- reading ---------------------------------------------------------------------------------------------------------


def _bad(what: str) -> Http2Error:
    return Http2Error(f"a header block cannot be decoded: {what}", Code.COMPRESSION_ERROR)


class FieldReader:
    """Decodes the blocks of one direction. Every block must be decoded, in order, even when it is not needed."""

    __slots__ = ("_known", "_table")

    def __init__(self) -> None:
        self._table = _Table()
        self._known: dict[bytes, FieldBlock] = {}

    def read(self, data: bytes) -> FieldBlock:
        known = self._known.get(data)
        if known is not None:
            return known
        before = self._table.changes
        try:
            block = self._decode(data)
        except IndexError:
            raise _bad("it is truncated") from None
        if self._table.changes != before:
            self._known.clear()
        elif len(data) <= _LONGEST_KNOWN and block.size <= TABLE_SIZE:
            remember(self._known, data, block, _MOST_KNOWN)
        return block

    def _decode(self, data: bytes) -> FieldBlock:
        """IndexError when the block ends inside a field."""
        fields: list[Header] = []
        secret: list[int] = []
        at, end, size = 0, len(data), 0
        while at < end:
            first = data[at]
            if first & 0x80:  # an indexed field
                if first == 0xFF:
                    index, at = _integer(data, at, 0x7F)
                else:
                    index, at = first & 0x7F, at + 1
                field = self._entry(index)
            elif first & 0xE0 == 0x20:
                if fields:
                    raise _bad("a table size update follows a field")
                limit, at = _integer(data, at, 0x1F)
                if limit > TABLE_SIZE:
                    raise _bad("a table size update exceeds the limit")
                self._table.resize(limit)
                continue
            else:  # a literal: with, without or never with indexing
                index, at = _integer(data, at, 0x3F if first & 0x40 else 0x0F)
                if index:
                    name = self._entry(index)[0]
                else:
                    name, at = _string(data, at)
                value, at = _string(data, at)
                field = (name, value)
                if first & 0x40:
                    self._table.add(field)
                elif first & 0x10:
                    secret.append(len(fields))
            fields.append(field)
            size += len(field[0]) + len(field[1]) + ENTRY
            if size > MAX_FIELDS:
                raise Http2Error(f"the headers are longer than {MAX_FIELDS} bytes", Code.ENHANCE_YOUR_CALM, status=431)
        inflated = size > 2 * end + MAX_INFLATION
        return FieldBlock(fields, size, frozenset(secret) if secret else frozenset(), inflated)

    def _entry(self, index: int) -> Header:
        if 0 < index <= _STATIC_SIZE:
            return STATIC[index - 1]
        if index == 0 or index - _STATIC_SIZE > len(self._table.entries):
            raise _bad("invalid table index")
        return self._table.entries[index - _STATIC_SIZE - 1]


def _integer(data: bytes, at: int, mask: int) -> tuple[int, int]:
    """RFC 7541 5.1: (number, where it ends)."""
    number = data[at] & mask
    at += 1
    if number < mask:
        return number, at
    shift = 0
    while True:
        byte = data[at]
        at += 1
        number += (byte & 0x7F) << shift
        if number > _MAX_INTEGER or shift > 28:
            raise _bad("an integer is too large")
        if byte < 0x80:
            return number, at
        shift += 7


def _string(data: bytes, at: int) -> tuple[bytes, int]:
    huffman = data[at] & 0x80
    length, at = _integer(data, at, 0x7F)
    end = at + length
    if end > len(data):
        raise IndexError
    text = data[at:end]
    if huffman:
        text = _short_huffman(text) if length <= 64 else _huffman(text)
    return text, end


def _huffman(text: bytes) -> bytes:
    try:
        return decode_huffman(text)
    except HPACKError:
        raise _bad("invalid Huffman code") from None


_short_huffman = lru_cache(maxsize=1024)(_huffman)
"""Bounded: untrusted peers fill it."""


# --- writing ---------------------------------------------------------------------------------------------------------


class FieldWriter:
    """Encodes the blocks of one direction. No Huffman code: inside a node it costs more than the saved bytes."""

    __slots__ = ("_added", "_numbers", "_resized", "_table")

    def __init__(self) -> None:
        self._table = _Table()
        self._numbers: dict[Header, int] = {}  # which insertion holds a field, counted from 1
        self._added = 0
        self._resized = False

    def resize(self, limit: int) -> None:
        """What the peer's SETTINGS_HEADER_TABLE_SIZE allows."""
        limit = min(limit, TABLE_SIZE)
        if limit != self._table.limit:
            self._numbers.clear()
            self._table.resize(0)  # empties the table on both sides: simplest to keep in step
            self._table.resize(limit)
            self._resized = True

    def write(self, block: FieldBlock) -> bytes:
        table = self._table
        if block.writer is self and block.changes == table.changes and not self._resized:
            return block.written
        parts: list[bytes] = []
        if self._resized:
            self._resized = False
            parts += [b"\x20", _number(table.limit, 0x1F, 0x20)]
        before = table.changes
        secret = block.secret
        for place, field in enumerate(block.fields):
            if secret and place in secret:
                parts.append(self._literal(field, 0x10, 0x0F))
            else:
                parts.append(_INDEXED.get(field) or self._field(field))
        data = b"".join(parts)
        if table.changes == before:
            block.writer, block.changes, block.written = self, before, data
        return data

    def _field(self, field: Header) -> bytes:
        index = self._index(field)
        if index:
            return _number(index, 0x7F, 0x80)
        size = len(field[0]) + len(field[1]) + ENTRY
        if field[0] in _VOLATILE or size > self._table.limit >> 1:
            return self._literal(field, 0x00, 0x0F)
        literal = self._literal(field, 0x40, 0x3F)
        self._table.add(field)
        self._added += 1
        self._numbers[field] = self._added
        if len(self._numbers) > 2 * len(self._table.entries) + 16:
            self._forget()
        return literal

    def _index(self, field: Header) -> int:
        number = self._numbers.get(field)
        if number is None:
            return 0
        age = self._added - number
        return _STATIC_SIZE + 1 + age if age < len(self._table.entries) else 0

    def _forget(self) -> None:
        """Remove evicted entries from `_numbers`."""
        oldest = self._added - len(self._table.entries)
        self._numbers = {field: number for field, number in self._numbers.items() if number > oldest}

    def _literal(self, field: Header, kind: int, mask: int) -> bytes:
        name, value = field
        index = _NAME_INDEX.get(name, 0)
        head = _number(index, mask, kind)
        if not index:
            head += _number(len(name), 0x7F, 0) + name
        return head + _number(len(value), 0x7F, 0) + value


def _number(number: int, mask: int, kind: int) -> bytes:
    if number < mask:
        return bytes((kind | number,))
    parts = [kind | mask]
    number -= mask
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)
