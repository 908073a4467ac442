"""Path normalisation: its forms, its refusals, and that it is idempotent."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from l7proxy.errors import PeerError
from l7proxy.wire.path import EscapedSlashError, PathRules, normalise

LENIENT = PathRules(allow_matrix=True)


@pytest.mark.parametrize(
    ("given_path", "normal"),
    [
        ("/", "/"),
        ("/a/b?c", "/a/b?c"),
        ("//", "/"),
        ("/a//b", "/a/b"),
        ("/a/./b", "/a/b"),
        ("/a/../b", "/b"),
        ("/a/b/..", "/a/"),
        ("/a/b/../..", "/"),
        ("/..", "/"),
        ("/../../a", "/a"),
        ("/a//../b", "/a/b"),
        ("/a/%2e%2E/b", "/b"),
        ("/a/.%2e/b", "/b"),
        ("/a\\..\\b", "/b"),
        ("/%61%7Eb", "/a~b"),
        ("/%c3%a9", "/%C3%A9"),
        ("/a%20b", "/a%20b"),
        ("/%252e%252e/a", "/%252e%252e/a"),
        ("/...", "/..."),
        ("/a?../../x//y%2f%zz", "/a?../../x//y%2f%zz"),
        ("/?", "/?"),
    ],
)
def test_normal_forms(given_path: str, normal: str) -> None:
    assert normalise(given_path.encode()) == normal.encode()


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/a#b", "fragment"),
        ("/a?#", "fragment"),
        ("/a;b", "matrix"),
        ("/a%3bb", "matrix"),
        ("/a%", "hex"),
        ("/a%2", "hex"),
        ("/a%g0", "hex"),
        ("/%00", "control"),
        ("/%7f", "control"),
        ("/a b", "visible"),
        ("/a\x00", "visible"),
        ("/é", "visible"),
        ("/a?é", "visible"),
        ("/%c0%af", "UTF-8"),
        ("/%ff", "UTF-8"),
        ("a", "slash"),
    ],
)
def test_refusals(path: str, why: str) -> None:
    with pytest.raises(PeerError, match=why) as refusal:
        normalise(path.encode())
    assert refusal.value.status == 400


@pytest.mark.parametrize(
    "path", ["/a/..;/b", "/a/..;x=y/b", "/.;/b", "/a/%2e%2E%3b/b", "/a\\..;\\b", "/a%2f..;%5Cb", "/..;"]
)
def test_dot_segments_have_no_matrix_parameters_where_these_pass(path: str) -> None:
    """Tomcat reads `/..;/` as a parent; servers that keep parameters see an ordinary segment."""
    with pytest.raises(PeerError, match="dot segment"):
        normalise(path.encode(), LENIENT)
    assert normalise(b"/a;..;b/..a;", LENIENT) == b"/a;..;b/..a;"


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("/a%2Fb", "/a/b"),
        ("/a%2f..%5Cb?q=%2F", "/b?q=%2F"),
        ("/%2F%2Fevil.example", "/evil.example"),
        ("/%5c%5cevil.example", "/evil.example"),
    ],
)
def test_escaped_slashes_lead_to_the_normal_form(path: str, location: str) -> None:
    with pytest.raises(EscapedSlashError) as redirect:
        normalise(path.encode())
    assert redirect.value.location == location.encode()
    assert normalise(redirect.value.location) == redirect.value.location


DOTS = [".", "..", "%2e", "%2E", "2e", "%25"]
SLASHES = ["/", "/", "//", "\\", "%2f", "%5C"]
OTHERS = ["a", "b~", "%61", "%3b", ";", "?", "%c3%a9", "%20", "*"]
PIECES = st.sampled_from(DOTS + SLASHES + OTHERS)


@settings(max_examples=600, deadline=None)
@given(st.lists(PIECES, max_size=14).map(lambda pieces: "/" + "".join(pieces)))
@example("/%2525")
@example("/a/..//.")
def test_once_is_enough_and_nothing_hides(path: str) -> None:
    try:
        normal = normalise(path.encode(), LENIENT)
    except EscapedSlashError as redirect:
        normal = redirect.location
    except PeerError as refusal:
        assert "(..;)" in str(refusal)
        return
    assert normalise(normal, LENIENT) == normal
    plain, _, query = normal.decode().partition("?")
    assert query == path.partition("?")[2]
    assert plain.startswith("/")
    assert not {"", ".", ".."} & set(plain.split("/")[1:-1])
    assert not {".", ".."} & {re.split(";|%3B", segment)[0] for segment in plain.split("/")}
    assert not re.search(r"\\|%2[eEfF]|%5[cC]|%[0-9A-F]?[a-f]", plain)
