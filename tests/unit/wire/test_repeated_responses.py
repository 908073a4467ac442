"""A cached head equals a freshly parsed one."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from l7proxy.wire import http1_fast
from l7proxy.wire.head import Miss, ResponseHead
from l7proxy.wire.http1_fast import Responses
from tests.unit.wire import mutants

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"


@given(st.lists(st.tuples(st.integers(0, 40), st.sampled_from([b"GET", b"HEAD", b"POST", b"CONNECT"])), max_size=12))
def test_any_row_of_answers_is_read_as_each_alone(row: list[tuple[int, bytes]]) -> None:
    """Few seeds, so that answers repeat: also with another body, cut off, or to another method."""
    responses = Responses()
    for seed, method in row:
        data = mutants.response(random.Random(seed // 2).randrange) + b"x" * (seed % 2)
        for part in (data, data[: seed * 8], PLAIN + data):
            assert responses.read(part, method) == http1_fast.response(part, method)


def test_the_same_head_is_read_once() -> None:
    responses = Responses()
    first = responses.read(PLAIN + b"hello", b"GET")
    assert isinstance(first, ResponseHead) and responses.read(PLAIN + b"other", b"GET") is first


def test_a_head_to_another_method_has_another_body() -> None:
    responses = Responses()
    framings = [
        head.framing for m in (b"GET", b"HEAD", b"GET") if isinstance(head := responses.read(PLAIN, m), ResponseHead)
    ]
    assert framings == [5, 0, 5]


def test_a_head_that_only_begins_as_the_last_one_is_another() -> None:
    responses = Responses()
    responses.read(PLAIN, b"GET")
    assert responses.read(PLAIN[:-2], b"GET") is Miss.NEED_MORE
    longer = responses.read(PLAIN[:-2] + b"Connection: close\r\n\r\n", b"GET")
    assert isinstance(longer, ResponseHead) and not longer.keep_alive


def test_long_heads_are_not_kept() -> None:
    long = PLAIN[:-2] + b"X-Long: " + b"y" * 2000 + b"\r\n\r\n"
    responses = Responses()
    first = responses.read(long, b"GET")
    again = responses.read(long, b"GET")
    assert first == again and first is not again
