"""HPACK against the library hpack: each reads what the other writes, over long-lived tables, and damaged input."""

from __future__ import annotations

import random

import pytest
from hpack import Decoder, Encoder
from hpack.exceptions import HPACKError
from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.wire.http2_fields import ENTRY, MAX_FIELDS, FieldBlock, FieldReader, FieldWriter
from l7proxy.wire.http2_frames import Code, Http2Error

NAMES = st.sampled_from([b"a", b":path", b":method", b"cookie", b"content-type", b"grpc-timeout", b"x-" + b"y" * 70])
VALUES = st.one_of(st.sampled_from([b"", b"GET", b"/", b"one", b"two", b"z" * 300, b"q" * 3000]), st.binary(max_size=9))
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=7)
SIZES = st.sampled_from([0, 60, 500, 4096, 10_000])
BLOCKS = st.lists(st.tuples(FIELDS, st.none() | SIZES, st.sets(st.integers(0, 6))), min_size=1, max_size=12)


def plain(decoder: Decoder, data: bytes) -> list[tuple[bytes, bytes]]:
    return [(bytes(name), bytes(value)) for name, value in decoder.decode(data, raw=True)]


@settings(max_examples=300, deadline=None)
@given(BLOCKS)
def test_what_we_write_hpack_reads(blocks: list[tuple[list[tuple[bytes, bytes]], int | None, set[int]]]) -> None:
    writer, decoder = FieldWriter(), Decoder()
    for fields, size, secret in blocks:
        if size is not None:
            writer.resize(size)
            decoder.max_allowed_table_size = max(size, 4096)
        hidden = frozenset(place for place in secret if place < len(fields))
        block = FieldBlock(fields, secret=hidden)
        for _ in range(3):  # the third comes from the cache, if any does
            read = list(decoder.decode(writer.write(block), raw=True))
            assert [tuple(field) for field in read] == fields
            assert {place for place, field in enumerate(read) if not field.indexable} == hidden
        table = decoder.header_table
        assert sum(len(name) + len(value) + ENTRY for name, value in table.dynamic_entries) <= min(table.maxsize, 4096)


@settings(max_examples=300, deadline=None)
@given(BLOCKS, st.booleans())
def test_what_hpack_writes_we_read(
    blocks: list[tuple[list[tuple[bytes, bytes]], int | None, set[int]]], huffman: bool
) -> None:
    reader, encoder, decoder = FieldReader(), Encoder(), Decoder()
    for fields, size, secret in blocks:
        if size is not None:
            encoder.header_table_size = min(size, 4096)
        for _ in range(3):
            data = encoder.encode(
                [(name, value, place in secret) for place, (name, value) in enumerate(fields)], huffman=huffman
            )
            read = reader.read(data)
            assert read.fields == fields
            assert read.size == sum(len(name) + len(value) + ENTRY for name, value in fields)
            theirs = decoder.decode(data, raw=True)
            assert read.secret == {place for place, field in enumerate(theirs) if not field.indexable}


def test_any_bytes_mean_the_same_to_both_or_nothing_to_either() -> None:
    """Damaged blocks, one after the other on the same tables until one fails."""
    dice = random.Random(20)
    agreed = refused = 0
    for _ in range(3000):
        reader, decoder, encoder = FieldReader(), Decoder(MAX_FIELDS), Encoder()
        for _ in range(4):
            fields = [(b"n%d" % dice.randrange(5), b"v" * dice.randrange(40)) for _ in range(dice.randrange(1, 6))]
            data = bytearray(encoder.encode(fields, huffman=dice.random() < 0.5))
            for _ in range(dice.randrange(3)):
                data[dice.randrange(len(data))] = dice.randrange(256)
            try:
                theirs = plain(decoder, bytes(data))
            except (HPACKError, IndexError, UnicodeDecodeError):
                theirs = None
            try:
                ours = reader.read(bytes(data)).fields
            except Http2Error as error:
                assert error.code == Code.COMPRESSION_ERROR
                ours = None
            assert ours == theirs, bytes(data)
            if ours is None:
                refused += 1
                break
            agreed += 1
    assert agreed > 1000
    assert refused > 500


@pytest.mark.parametrize(
    "data", [b"\x82\x20", b"\x3f\xe2\x1f", b"\xff\x80\x80\x80\x80\x80\x80\x01", b"\x00\x7f\xff\xff\xff\xff\x0f"]
)
def test_tables_and_numbers_out_of_bounds_are_refused(data: bytes) -> None:
    with pytest.raises(Http2Error) as caught:
        FieldReader().read(data)
    assert caught.value.code == Code.COMPRESSION_ERROR


def test_a_remembered_block_is_forgotten_when_the_table_changes() -> None:
    reader, encoder = FieldReader(), Encoder()
    for value in (b"1", b"2", b"3"):
        reader.read(encoder.encode([(b"x", value)]))
    newest = b"\xbe"
    assert reader.read(newest).fields == [(b"x", b"3")]
    assert reader.read(newest) is reader.read(newest)
    reader.read(encoder.encode([(b"x", b"4")]))
    assert reader.read(newest).fields == [(b"x", b"4")]
    reader.read(b"\x20\x3f\xe1\x1f")  # emptied, then as large as before
    with pytest.raises(Http2Error):
        reader.read(newest)


def test_a_list_longer_than_the_bound_ends_the_connection_early() -> None:
    reader = FieldReader()
    reader.read(b"\x40\x01x\x7f\xa1\x1e" + b"y" * 4000)
    with pytest.raises(Http2Error) as caught:
        reader.read(b"\xbe" * 60_000)
    assert (caught.value.code, caught.value.status) == (Code.ENHANCE_YOUR_CALM, 431)
