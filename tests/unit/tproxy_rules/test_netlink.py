from __future__ import annotations

import errno
import sys

from hypothesis import given
from hypothesis import strategies as st

from tproxy_rules.netlink import attribute, attributes, error_code, messages, request

KINDS = st.integers(0, 0x3FFF)
ATTRIBUTES = st.lists(st.tuples(KINDS, st.binary(max_size=40)), max_size=6)


@given(requests=st.lists(st.tuples(st.integers(0, 0xFFFF), ATTRIBUTES), max_size=4))
def test_what_is_written_is_read_back(requests: list[tuple[int, list[tuple[int, bytes]]]]) -> None:
    data = b"".join(request(kind, 0, b"".join(attribute(*one) for one in listed)) for kind, listed in requests)
    assert [(kind, list(attributes(body[4:]))) for kind, body in messages(data)] == requests


@given(data=st.binary(max_size=200))
def test_any_bytes_are_accepted(data: bytes) -> None:
    for _, body in messages(data):
        assert len(list(attributes(body))) <= len(body) // 4


@given(listed=ATTRIBUTES.filter(len), cut=st.integers(1, 3))
def test_a_truncated_message_is_skipped_with_all_after_it(listed: list[tuple[int, bytes]], cut: int) -> None:
    whole, other = request(1, 0, b"".join(attribute(*one) for one in listed)), request(2)
    assert [kind for kind, _ in messages(other + whole[:-cut])] == [2]


def test_a_request_names_family_and_resource() -> None:
    ((kind, body),) = messages(request(0x401, 4, family=7, resource=77))
    assert (kind, body) == (0x401, bytes((7, 0, 0, 77)))


def test_the_code_of_an_error_is_an_errno() -> None:
    assert error_code((-errno.EPERM).to_bytes(4, sys.byteorder, signed=True) + bytes(16)) == errno.EPERM
    assert error_code(bytes(4)) == 0
