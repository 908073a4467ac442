"""The chunked coding: any split gives the same end, and h11 reads the same data where both accept."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.errors import PeerError
from l7proxy.wire.chunked import MAX_EXTENSIONS, MAX_LINE, MAX_TRAILERS, ChunkedBody
from l7proxy.wire.head import Header

Outcome = int | str
"""Where the body ended; -1 if it has not; or the reason of the refusal."""


def read(data: bytes, cuts: list[int]) -> Outcome:
    """The outcome when `data` is fed in the pieces between `cuts`."""
    reader = ChunkedBody()
    taken = 0
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    try:
        for begin, end in pairwise(places):
            piece = data[begin:end]
            step = reader.feed(piece)
            assert step <= len(piece)
            taken += step
            if reader.done:
                return taken
            assert step == len(piece)
    except PeerError as error:
        assert error.status in (400, 431)
        return "refused"
    return -1


@st.composite
def coded(draw: st.DrawFn) -> bytes:
    """A chunked body, sometimes mutated, followed by other bytes."""
    parts = []
    for data in draw(st.lists(st.binary(min_size=1, max_size=20), max_size=4)):
        extension = draw(st.sampled_from([b"", b"", b"", b";a", b";a=b", b';a="b c"', b"; a", b" "]))
        parts.append(b"%x%b\r\n%b\r\n" % (len(data), extension, data))
    parts.append(draw(st.sampled_from([b"0\r\n", b"000\r\n", b"0;a\r\n"])))
    parts.append(draw(st.sampled_from([b"", b"", b"A: b\r\n", b"A: b\r\nC:\r\n", b"Host: x\r\n", b"A : b\r\n"])))
    body = bytearray(b"".join(parts) + b"\r\n" + draw(st.sampled_from([b"", b"GET / HTTP/1.1\r\n\r\n"])))
    if draw(st.booleans()):
        at = draw(st.integers(0, len(body)))
        body[at : at + draw(st.integers(0, 1))] = draw(st.sampled_from([b"", b"\n", b"\r", b"x", b"0", b"-", b"\0"]))
    return bytes(body)


@settings(max_examples=300, deadline=None)
@given(coded(), st.lists(st.integers(0, 1000), max_size=6))
def test_cuts_change_nothing(data: bytes, cuts: list[int]) -> None:
    whole = read(data, [])
    assert read(data, cuts) == whole
    assert read(data, list(range(len(data)))) == whole


@settings(max_examples=300, deadline=None)
@given(coded())
def test_h11_finds_the_same_end(data: bytes) -> None:
    end = read(data, [])
    if isinstance(end, str) or end < 0:
        return
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + data)
    while not isinstance(connection.next_event(), h11.EndOfMessage):
        pass
    assert len(data) - len(connection.trailing_data[0]) == end


@pytest.mark.parametrize("line", [b"1" * 17, b"5;" + b"a" * MAX_LINE, b"5" + b" " * MAX_LINE])
def test_a_line_without_end_is_refused_before_it_ends(line: bytes) -> None:
    """An attacker may send an endless size line; it is not buffered without limit."""
    reader = ChunkedBody()
    with pytest.raises(PeerError):
        for _ in range(MAX_LINE):
            reader.feed(line)


def test_extensions_are_bounded_over_the_whole_body() -> None:
    reader = ChunkedBody()
    chunk = b"1;" + b"a" * 200 + b"\r\nx\r\n"
    with pytest.raises(PeerError, match="extensions"):
        for _ in range(MAX_EXTENSIONS // 200 + 1):
            reader.feed(chunk)


def test_trailers_are_bounded_over_the_whole_body() -> None:
    reader = ChunkedBody()
    reader.feed(b"0\r\n")
    with pytest.raises(PeerError) as refusal:
        for _ in range(MAX_TRAILERS):
            reader.feed(b"A: b\r\n")
    assert refusal.value.status == 431


@pytest.mark.parametrize("trailer", [b"X-A: 1", b"x-a:1", b"X_A: 1"])
def test_a_trailer_does_not_repeat_a_field_of_the_head(trailer: bytes) -> None:
    body = ChunkedBody([(b"host", b"h"), (b"x-a", b"0")])
    body.feed(b"0\r\nX-B: 1\r\n")
    with pytest.raises(PeerError, match="is in both the headers and the trailers"):
        body.feed(trailer + b"\r\n\r\n")


def test_many_trailers_behind_a_head_of_many_fields_cost_linear_work() -> None:
    """Comparing each trailer with each field would be half a million comparisons for 10 kB of request."""

    class Read(list[Header]):
        times = 0

        def __iter__(self) -> Iterator[Header]:
            self.times += 1
            return super().__iter__()

    head = Read((b"x-%d" % number, b"") for number in range(250))
    reader = ChunkedBody(head)
    reader.feed(b"0\r\n" + b"A:\r\n" * 1500 + b"\r\n")
    assert reader.done
    assert head.times == 1
