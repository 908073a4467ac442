"""Patterns of paths: they match what was seen, are whole-string, and say what more they allow."""

from __future__ import annotations

import string
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7proxy.learn.paths import PathTree, quoted, readable
from l7proxy.policy.match.pattern import PatternSet, check

VISIBLE = "".join(chr(code) for code in range(0x21, 0x7F))
segments = st.text(alphabet=VISIBLE.replace("/", ""), min_size=0, max_size=12)
raw_paths = st.lists(segments, min_size=1, max_size=5).map(lambda some: "/" + "/".join(some))
few_paths = st.lists(
    st.lists(st.sampled_from(["api", "users", "1", "22", "a", "b", "c", "d", ""]), min_size=1, max_size=4).map(
        lambda some: "/" + "/".join(some)
    ),
    min_size=1,
    max_size=30,
)


def readables(paths: Iterable[str]) -> list[str]:
    found = []
    for path in paths:
        try:
            found.append(readable(path))
        except ValueError:
            continue
    return found


def patterns(paths: Iterable[str], limit: int = 10, *, any_query: bool = False) -> list[str]:
    tree = PathTree(limit, any_query=any_query)
    for path in paths:
        tree.add(path)
    return [one.pattern for one in tree.templates(1000)[0]]


def matches(found: list[str], path: str) -> bool:
    return bool(PatternSet(found).find(path.encode()))


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["/api/x"], ["/api/x"]),
        (["/"], ["/"]),
        (["*"], [r"\*"]),
        (["/users/17", "/users/18"], ["/users/[^/?]+"]),
        (["/users/17/cart", "/users/me"], ["/users/me", "/users/[^/?]+/cart"]),
        (["/o/1b4e28ba-2fa1-11d2-883f-0016d3cca427"], ["/o/[^/?]+"]),
        (["/c/deadbeef1"], ["/c/[^/?]+"]),
        (["/c/deadbeef"], ["/c/deadbeef"]),  # a word without a digit
        (["/v1/items", "/v2/items"], ["/v1/items", "/v2/items"]),
        (["/day/2025-11-23"], ["/day/[^/?]+"]),
        (["/key/abcdefghij0123456789"], ["/key/[^/?]+"]),
        (["/a.b", "/a+b(c)[d]{e}^$|\\"], [r"/a\+b\(c\)\[d\]\{e\}\^\$\|/", r"/a\.b"]),  # \ is a slash (wire.path)
    ],
)
def test_templates(paths: list[str], expected: list[str]) -> None:
    assert sorted(patterns(readables(paths))) == sorted(expected)


def test_more_values_than_the_limit_become_any_segment_and_a_note_says_so() -> None:
    tree = PathTree(3, any_query=False)
    for name in ("ann", "bob", "cid", "dan", "eve"):
        tree.add(f"/users/{name}/cart")
    found, left_out = tree.templates(10)
    assert [(one.pattern, one.count, one.note) for one in found] == [
        ("/users/[^/?]+/cart", 5, "[^/?]+ for 5 seen: ann, bob, cid")
    ]
    assert left_out == 0


def test_a_query_cannot_pose_as_a_further_segment() -> None:
    found = patterns(["/users/1/public"], any_query=True)
    assert matches(found, "/users/2/public?x=1")
    assert not matches(found, "/users/2?x=/public")


def test_queries_only_where_seen() -> None:
    found = patterns(["/a?x=1", "/b"])
    assert matches(found, "/a?y=2")
    assert matches(found, "/a")
    assert not matches(found, "/b?x=1")


def test_only_the_most_frequent_paths_are_kept_and_the_others_counted() -> None:
    tree = PathTree(10, any_query=False)
    for path in ("/a", "/a", "/b", "/c"):
        tree.add(path)
    found, left_out = tree.templates(1)
    assert [one.pattern for one in found] == ["/a"]
    assert left_out == 2


@pytest.mark.parametrize("path", ["/a\nb", "/a#b", "/ü", "/a b", "/a%zz", "/%ff", "/a\x00", "x", "/\udcff", "/a" * 100])
def test_what_no_worker_would_judge_is_not_learned(path: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        readable(path)


@given(raw_paths)
def test_a_learned_path_matches_itself(path: str) -> None:
    for one in readables([path]):
        found = patterns([one])
        assert matches(found, one)
        check(found[0])


@given(raw_paths, raw_paths)
def test_a_path_without_identifiers_matches_nothing_else(path: str, other: str) -> None:
    for one in readables([path.translate(str.maketrans("", "", string.digits))]):
        for another in readables([other]):
            if one.partition("?")[0] != another.partition("?")[0] and "[^/?]+" not in (found := patterns([one]))[0]:
                assert not matches(found, another)


@given(few_paths, st.randoms())
def test_the_order_does_not_matter(paths: list[str], random: object) -> None:
    shuffled = list(paths)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert patterns(paths, 2) == patterns(shuffled, 2)


@given(few_paths, few_paths)
def test_more_paths_only_add(paths: list[str], more: list[str]) -> None:
    before, after = patterns(paths, 2), patterns([*paths, *more], 2)
    for path in [*paths, *more]:
        assert matches(after, path)
        assert not matches(before, path) or matches(after, path)


@given(st.text(max_size=30))
def test_quoted_text_matches_only_itself(text: str) -> None:
    if "\x00" in text or any(0xD800 <= ord(char) < 0xE000 for char in text):
        return
    assert matches([quoted(text)], text)
    assert not matches([quoted(text)], text + "x")
