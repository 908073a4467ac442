"""YAML with lines: what is read, what is refused, and that no file can harm the reader."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from l7proxy.errors import SourceError
from l7proxy.sources.files import yaml_lines
from l7proxy.sources.files.yaml_lines import Document, UnparsableDocument, read


def value_of(text: str) -> Any:
    (document,) = read(text.encode())
    assert isinstance(document, Document), document
    return document.value


def torn(text: str) -> SourceError:
    (part,) = read(text.encode())
    assert isinstance(part, UnparsableDocument), part
    return part.error


def test_every_field_has_the_line_it_is_written_in() -> None:
    first, second = read(b"a: 1\n---\n# remark\nspec:\n  ingress:\n  - x: 1\n    y: [p,\n      q]\n")
    assert isinstance(first, Document)
    assert isinstance(second, Document)
    assert first.lines() == {"a": 1}
    assert second.line == 4
    assert second.lines() == {
        "spec": 4,
        "spec.ingress": 5,
        "spec.ingress[0]": 6,
        "spec.ingress[0].x": 6,
        "spec.ingress[0].y": 7,
        "spec.ingress[0].y[0]": 7,
        "spec.ingress[0].y[1]": 8,
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("x: 2024-01-01T00:00:00Z", "2024-01-01T00:00:00Z"),
        ("x: 1:30", "1:30"),
        ("x: 017", 15),
        ("x: -0x1f", -31),
        ("x: 1_000", 1000),
        ("x: '1'", "1"),
        ("x: !!str 5", "5"),
        ("x: on", True),
        ("x: No", False),
        ("x: ~", None),
        ("x:", None),
        ("x: 1.5", 1.5),
        ("x: {a: [1]}", {"a": [1]}),
        ("a: &a {p: 1, q: 2}\nx:\n  <<: *a\n  q: 3", {"p": 1, "q": 3}),
        ("a: &a [1]\nx: [*a, *a]", [[1], [1]]),
    ],
)
def test_values_are_those_of_json(text: str, value: object) -> None:
    assert value_of(text)["x"] == value


def test_a_number_as_a_key_is_its_text() -> None:
    assert value_of("8080: x") == {"8080": "x"}


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\nb: 2\na: 3", 3, "duplicate key 'a' (first defined in line 1)"),
        ("x:\n  on: 1", 2, "the key on is not a string"),
        ("? [a]\n: 1", 1, "a mapping or a list cannot be a key"),
        ("a:\n- !!python/object/apply:os.system [id]", 2, "python/object/apply:os.system is not JSON's"),
        ("a: !!binary aGk=", 1, "is not JSON's"),
        ("a: !!set {b}", 1, "is not JSON's"),
        ("a: .nan", 1, "cannot be read as a number"),
        ("a: *b", 1, "refers to an anchor that is not defined"),
        ("&a [*a]", 1, "refers to a node that contains it"),
        ("a: [\nb: }", 2, "not valid YAML"),
        ("a: 1\n\tb: 2", 2, "not valid YAML"),
        ("a: \x00", None, "control characters"),
        ("a: &a 1\n<<: *a", 2, "<< must be a mapping"),
        ("[" * 200 + "]" * 200, 1, "nested deeper than 100"),
    ],
)
def test_what_could_be_read_two_ways_is_refused_by_line(text: str, line: int | None, message: str) -> None:
    error = torn(text)
    assert message in error.message
    assert error.line == line


def test_a_billion_laughs_are_refused_before_anybody_laughs() -> None:
    text = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n"
    text += "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
    began = time.perf_counter()
    assert "values after aliases are expanded" in torn(text).message
    assert time.perf_counter() - began < 1


def test_a_million_brackets_are_refused_and_not_followed() -> None:
    began = time.perf_counter()
    assert "nested deeper" in torn("[" * 1_000_000).message
    assert time.perf_counter() - began < 5


def test_a_file_that_is_too_large_or_no_text_is_refused_whole() -> None:
    with pytest.raises(SourceError, match="the limit is"):
        read(b"a" * (yaml_lines.MAX_BYTES + 1))
    with pytest.raises(SourceError, match="not UTF-8") as caught:
        read(b"a: 1\nb: \xff\n")
    assert caught.value.line == 2


def test_too_many_documents_are_refused() -> None:
    with pytest.raises(SourceError, match="documents"):
        read(b"---\n" * (yaml_lines.MAX_DOCUMENTS + 5))


def test_a_broken_document_does_not_hide_its_neighbours() -> None:
    parts = read(b"ok: 1\n---\na: [\n---\nok: 2\n")
    assert [part.value if isinstance(part, Document) else part.error.line for part in parts] == [
        {"ok": 1},
        4,
        {"ok": 2},
    ]
    last = parts[2]
    assert isinstance(last, Document)
    assert last.lines() == {"ok": 5}


def test_json_has_lines_too_and_tabs_and_pairs_of_surrogates() -> None:
    (document,) = read(b'{\n\t"a": {\n\t\t"b": 1}}', as_json=True)
    assert isinstance(document, Document)
    assert (document.value, document.lines()) == ({"a": {"b": 1}}, {"a": 2, "a.b": 3})
    (document,) = read(b'{"a": "\\ud83d\\ude00"}', as_json=True)
    assert isinstance(document, Document)
    assert document.value == {"a": "😀"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "duplicate key 'a'"),
        ('{"a": NaN}', "NaN is not a valid JSON number"),
        ('{"a": ', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("a: 1", "not valid JSON"),
    ],
)
def test_json_is_read_as_strictly(text: str, message: str) -> None:
    (part,) = read(text.encode(), as_json=True)
    assert isinstance(part, UnparsableDocument)
    assert message in part.error.message


texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


@given(values)
def test_whatever_is_dumped_is_read_back(value: object) -> None:
    assert value_of(yaml.safe_dump({"x": value}, allow_unicode=True))["x"] == value
    (document,) = read(json.dumps({"x": value}).encode(), as_json=True)
    assert isinstance(document, Document)
    assert document.value == {"x": value}


@given(st.binary(max_size=200) | st.text("{}[]:-&*!|>'\"#%@`, \n\tab01<~", max_size=80).map(str.encode))
def test_no_bytes_bring_anything_but_a_source_error(data: bytes) -> None:
    for as_json in (False, True):
        try:
            parts = read(data, as_json=as_json)
        except SourceError:
            continue
        for part in parts:
            if isinstance(part, Document):
                part.lines()
