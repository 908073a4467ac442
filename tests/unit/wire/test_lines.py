"""Line parsing: the first fault of the stream is reported, for any split, with linear work."""

from __future__ import annotations

import time

from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.errors import PeerError
from l7proxy.wire import http1_strict
from l7proxy.wire.head import MAX_HEAD
from l7proxy.wire.lines import HeadLines
from tests.unit.wire import mutants
from tests.unit.wire.test_differential import mutant


def outcome(data: bytes, cuts: list[int]) -> str:
    """Where the head ends, or the refusal, when `data` grows by the given cuts."""
    lines = http1_strict.request_lines()
    try:
        for end in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
            size = lines.feed(data[:end])
            if size:
                return f"{lines.begin}-{size} {lines.start!r} {lines.headers}"
    except PeerError as error:
        return f"{error.status} {error}"
    return "more"


@settings(max_examples=300, deadline=None)
@given(mutant(), st.lists(st.integers(0, 1000), max_size=5))
def test_cuts_change_nothing(data: bytes, cuts: list[int]) -> None:
    whole = outcome(data, [])
    assert outcome(data, cuts) == whole
    assert outcome(data, list(range(len(data)))) == whole


def test_a_head_of_the_largest_size_is_read_and_one_byte_more_is_not() -> None:
    frame = b"GET / HTTP/1.1\r\nHost: h\r\nA: \r\n\r\n"
    fits = frame.replace(b"A: ", b"A: " + b"b" * (MAX_HEAD - len(frame)))
    assert len(fits) == MAX_HEAD
    assert outcome(fits, []) == outcome(fits, [MAX_HEAD - 1])
    assert outcome(fits, []).startswith("0-65536 ")
    over = fits.replace(b"A: ", b"A: b")
    assert outcome(over, []).startswith("431 ")
    assert outcome(over, [MAX_HEAD]).startswith("431 ")


def test_a_head_that_drips_in_costs_linear_work() -> None:
    """64 KiB byte by byte: a reader that restarted each time would scan two billion bytes."""
    data = bytearray()
    lines = HeadLines(lambda line: None, skip_empty=True)
    for byte in b"GET / HTTP/1.1\r\nA: " + b"b" * 65000:
        data.append(byte)
        assert lines.feed(data) == 0
    assert lines.start == b"GET / HTTP/1.1"


def cpu_of_heads(count: int, behind: int) -> float:
    """CPU seconds for `count` heads, each with `behind` more bytes in the buffer."""
    data = bytearray(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n" + b"a" * behind)
    begin = time.process_time()
    for _ in range(count):
        assert HeadLines(lambda line: None, skip_empty=True).feed(data) == 27
    return time.process_time() - begin


def test_a_head_costs_no_more_for_what_is_behind_it() -> None:
    """Otherwise pipelined requests, each scanning all the others, would have quadratic cost."""
    assert min(cpu_of_heads(300, MAX_HEAD) for _ in range(3)) < 10 * min(cpu_of_heads(300, 0) for _ in range(3))


def cpu_of_value(value: bytes) -> float:
    head = b"GET / HTTP/1.1\r\nHost: h\r\nA: " + value + b"\r\n\r\n"
    begin = time.process_time()
    assert HeadLines(lambda line: None, skip_empty=True).feed(head) == len(head)
    return time.process_time() - begin


def test_a_header_value_of_blanks_costs_no_more_than_one_of_letters() -> None:
    """A lazy regular expression would try to end the value at each blank, and scan the rest each time."""
    blanks, letters = b"b" + b" " * 8000 + b"b", b"b" * 8002
    assert min(cpu_of_value(blanks) for _ in range(3)) < 20 * min(cpu_of_value(letters) for _ in range(3))


def test_mutants_come_from_their_seed() -> None:
    assert mutants.request(mutants.dice(7)) == mutants.request(mutants.dice(7))
