"""A head with edited headers: the bytes match the edited list, and all else is unchanged."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7proxy.model.http import EditKind, HeaderEdit, edited
from l7proxy.wire import http1_strict, rewrite
from l7proxy.wire.head import RequestHead

HEAD = b"POST /a?q=1 HTTP/1.1\r\nHost: h:80\r\nX-First:  1 \r\nx-token: old\r\nContent-Length: 2\r\nX-Last:\r\n\r\n"
ADD, REMOVE, SET = EditKind


def test_add_appends_in_the_spelling_given() -> None:
    assert rewrite.head(HEAD, [HeaderEdit(ADD, b"X-Token", b"new")]) == HEAD[:-2] + b"X-Token: new\r\n\r\n"


def test_set_takes_the_place_of_the_first() -> None:
    twice = HEAD.replace(b"X-Last:\r\n", b"X-Last:\r\nX-TOKEN: more\r\nx_token: alike\r\n")
    assert rewrite.head(twice, [HeaderEdit(SET, b"X-Token", b"new")]) == HEAD.replace(b"x-token: old", b"X-Token: new")


def test_set_appends_what_is_not_there() -> None:
    assert rewrite.head(HEAD, [HeaderEdit(SET, b"X-New", b"v")]) == HEAD[:-2] + b"X-New: v\r\n\r\n"


def test_remove_takes_every_line_of_the_name() -> None:
    twice = HEAD.replace(b"X-First", b"X-Token: 0\r\nX-First")
    assert rewrite.head(twice, [HeaderEdit(REMOVE, b"X-TOKEN")]) == HEAD.replace(b"x-token: old\r\n", b"")


def test_no_edit_changes_nothing() -> None:
    assert rewrite.head(HEAD, []) == HEAD
    assert rewrite.head(HEAD, [HeaderEdit(REMOVE, b"X-Other")]) == HEAD


def test_a_name_inside_another_or_inside_a_value_is_not_it() -> None:
    raw = b"GET / HTTP/1.1\r\nHost: x-token\r\nMy-X-Token: x-token: 1\r\nX-Tokens: 2\r\n\r\n"
    assert rewrite.head(raw, [HeaderEdit(REMOVE, b"X-Token")]) == raw


@pytest.mark.parametrize("raw", [b"GET / HTTP/1.0\r\n\r\n", b"GET /x-token: HTTP/1.1\r\nHost: h\r\n\r\n"])
def test_a_head_without_headers_gets_one(raw: bytes) -> None:
    assert rewrite.head(raw, [HeaderEdit(SET, b"X-Token", b"v")]) == raw[:-2] + b"X-Token: v\r\n\r\n"


TOKENS = st.text("abX-_", min_size=1, max_size=4).map(str.encode)
VALUES = st.text("v w:\t,é", max_size=5).map(lambda text: text.strip(" \t").encode())
LINES = st.lists(st.tuples(TOKENS, VALUES, st.sampled_from([b":", b": ", b":\t "])), max_size=8)
EDITS = st.lists(st.builds(HeaderEdit, st.sampled_from(EditKind), TOKENS, VALUES), max_size=4)


@given(LINES, EDITS)
def test_bytes_and_lists_are_edited_alike(lines: list[tuple[bytes, bytes, bytes]], edits: list[HeaderEdit]) -> None:
    """Law: reading the rewritten head gives the edited headers of the original head; nothing else differs."""
    raw = b"GET /p HTTP/1.1\r\nHost: h\r\n" + b"".join(n + colon + v + b"\r\n" for n, v, colon in lines) + b"\r\n"
    before, after = http1_strict.request(raw), http1_strict.request(rewrite.head(raw, edits))
    assert isinstance(before, RequestHead)
    assert isinstance(after, RequestHead)
    assert after.headers == edited(before.headers, edits)
    assert (after.method, after.target, after.host, after.framing) == (before.method, before.target, before.host, 0)
    untouched = {edit.name.lower().replace(b"_", b"-") for edit in edits}
    kept = [
        line for line in raw.split(b"\r\n")[1:] if line.partition(b":")[0].lower().replace(b"_", b"-") not in untouched
    ]
    assert [line for line in rewrite.head(raw, edits).split(b"\r\n")[1:] if line in kept][: len(kept)] == kept
