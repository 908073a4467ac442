"""YAML with comments: whatever the texts are, a reader gets the same document back."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from l7proxy.learn import text
from l7proxy.learn.text import Commented
from l7proxy.sources.files.yaml_lines import Document, read

odd = st.text(max_size=20) | st.sampled_from(
    ["yes", "No", "null", "~", "1e3", "0x10", "2025-11-23", "- a", "a: b", "# c", "'", '"', "\\", "\\d", "*x", "&x", "",
     "!!python/object:os.system", "{{ x }}", "a\n---\nkind: Secret", "\u2028", "\x85", "\ufeff", "é", "😀", "\x07"]
)  # fmt: skip
whole = odd.filter(lambda one: not any(0xD800 <= ord(char) < 0xE000 for char in one))
values = st.recursive(
    whole | st.integers(-(10**9), 10**9) | st.booleans() | st.none(),
    lambda inner: (
        st.dictionaries(whole.filter(lambda key: key not in ("<<", "=")), inner, max_size=3)
        | st.lists(inner.filter(lambda one: not isinstance(one, list)), max_size=3)
    ),
    max_leaves=12,
)


@given(st.dictionaries(whole.filter(lambda key: key not in ("<<", "=")), values, min_size=1, max_size=3), st.lists(odd))
def test_it_reads_back_the_same(value: dict[str, Any], comments: list[str]) -> None:
    written = text.document(value, comments)
    assert yaml.safe_load(written) == value
    (found,) = read(written.encode())
    assert isinstance(found, Document)
    assert found.value == value


@given(odd, odd)
def test_a_comment_is_one_line_and_adds_nothing(said: str, value: str) -> None:
    value = value.encode("utf-8", "replace").decode()
    item = Commented({"path": value}, (said, said))
    written = text.document({"http": [item]}, [said])
    assert yaml.safe_load(written) == {"http": [{"path": value}]} == text.bare({"http": [item]})
    assert len(written.split("\n")) == 6


@pytest.mark.parametrize(
    ("value", "written"),
    [("backend", "backend"), ("80", '"80"'), (80, "80"), ("yes", '"yes"'), (r"/a\.b", r"'/a\.b'"), ("/api", '"/api"')],
)
def test_scalars(value: Any, written: str) -> None:
    assert text.scalar(value) == written
