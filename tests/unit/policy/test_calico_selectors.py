"""Calico's selector grammar: the meaning of each form, the labels it sees, and the text of each error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7proxy.model.expression import AllOf, AnyOf, Holds, Not, keys
from l7proxy.model.labels import Label, LabelSet, Requirement, Selects
from l7proxy.policy.lang import calico_selector
from l7proxy.policy.lang.calico_selector import SelectorError


def leaf(term: Requirement | Holds) -> Selects:
    return term


def labels(**found: str) -> LabelSet:
    return LabelSet.of(Label("", key, value) for key, value in found.items())


LABELS = labels(a="x", b="yes/no", n="in")
MEANING = [
    ("", True),
    (" \t", True),
    ("all()", True),
    ("all( )", True),
    ("a == 'x'", True),
    ('a == "x"', True),
    ("a=='x'", True),
    ("a == 'X'", False),
    ("a == 'xx'", False),
    ("a == ''", False),
    ("a != 'y'", True),
    ("a != 'x'", False),
    ("gone == ''", False),
    ("gone != 'x'", True),
    ("gone in {'x'}", False),
    ("gone not in {'x'}", True),
    ("gone contains 'x'", False),
    ("gone starts with ''", False),
    ("gone ends with ''", False),
    ("has(a)", True),
    ("has( a )", True),
    ("has(gone)", False),
    ("!has(gone)", True),
    ("! ! has(a)", True),
    ("!!!has(a)", False),
    ("a in {'x'}", True),
    ("a in {'y', 'x'}", True),
    ("a in{'y','x',}", True),
    ("a in {}", False),
    ("a not in {}", True),
    ("a not in {'x'}", False),
    ("a notin {'y'}", True),
    ("b contains 's/n'", True),
    ("b starts with 'yes'", True),
    ("b startswith 'no'", False),
    ("b ends with 'no'", True),
    ("b endswith 'yes'", False),
    ("n in {'in'}", True),
    ("a == 'x' && b == 'z' || has(n)", True),
    ("a == 'x' && (b == 'z' || has(n))", True),
    ("a == 'y' && (b == 'z' || has(n))", False),
    ("has(n) || has(gone) && has(gone)", True),
    ("!has(gone) && has(a)", True),
    ("!(has(gone) || has(a))", False),
    ("((all()))", True),
]


@pytest.mark.parametrize(("text", "wanted"), MEANING)
def test_what_a_selector_means(text: str, wanted: bool) -> None:
    assert calico_selector.parse(text, leaf).matches(LABELS) is wanted


ERRORS = [
    ("a", 'expected operator after label "a" at 1'),
    ("a x", 'expected operator after label "a" at 2'),
    ("a = 'x'", "expected == at 2, not \"= 'x'\""),
    ("a == 'x' & b == 'y'", "expected && at 9, not \"& b == 'y'\""),
    ("a == 'x' | b == 'y'", "expected || at 9, not \"| b == 'y'\""),
    ("a == x", "expected a string in quotes at 5"),
    ("a == 'x", "unterminated string at 5"),
    ('a == "x', "unterminated string at 5"),
    ("a inx {'x'}", 'expected operator after label "a" at 2'),
    ("a in 'x'", "expected { at 5"),
    ("a in {'x' 'y'}", "expected } at 10"),
    ("a in {'x'", "expected } at 9"),
    ("a in {,}", "expected a string in quotes at 6"),
    ("(a == 'x'", "expected ) at 9"),
    ("a == 'x')", 'expected && or || or the end at 8, not ")"'),
    ("a == 'x' b == 'y'", 'expected && or || or the end at 9, not "b"'),
    ("&& a == 'x'", 'expected a label, has(), all() or ( at 0, not "&&"'),
    ("a == 'x' &&", "unexpected end of the selector: expected a label, has(), all() or ("),
    ("!", "unexpected end of the selector: expected a label, has(), all() or ("),
    ("has (a)", 'expected operator after label "has" at 4'),
    ("has(a", 'expected operator after label "has" at 3'),
    ("all (a)", 'expected operator after label "all" at 4'),
    ("a\n== 'x'", "expected operator after label at 1, not \"\\x0a== 'x'\""),
    ("ä == 'x'", "unexpected characters at 0: \"ä == 'x'\""),
    ("global()", "global() must stand alone and is allowed only in namespaceSelector"),
    ("a == 'x' || global()", "global() must stand alone and is allowed only in namespaceSelector"),
    ("a == '" + "x" * 1024 + "'", "selector is longer than 1024 characters"),
    ("a" * 513 + " == 'x'", "label is longer than 512 characters"),
    ("(" * 101 + "all()" + ")" * 101, "parentheses are nested deeper than 100"),
]


@pytest.mark.parametrize(("text", "message"), ERRORS, ids=[row[0][:30] for row in ERRORS])
def test_the_words_of_an_error(text: str, message: str) -> None:
    with pytest.raises(SelectorError) as caught:
        calico_selector.parse(text, leaf)
    assert str(caught.value) == message


def test_global_is_known_whole() -> None:
    assert calico_selector.is_global(" global( ) ")
    assert not calico_selector.is_global("global() && has(a)")


@given(st.text(alphabet="ab '\"=!&|(){},hasin\t", max_size=60))
def test_any_text_is_a_selector_or_an_error(text: str) -> None:
    try:
        found = calico_selector.parse(text, leaf)
    except SelectorError:
        return
    assert found.matches(LABELS) in (True, False)
    assert found == calico_selector.parse(text, leaf)
    hash(found)


NAMES = st.sampled_from(("a", "b", "n", "gone"))
WORDS = st.sampled_from(("x", "yes/no", "in", ""))
TEXTS = st.recursive(
    st.one_of(
        st.tuples(NAMES, st.sampled_from(("==", "!=", "contains", "starts with", "ends with")), WORDS).map(
            lambda part: (f"{part[0]} {part[1]} '{part[2]}'", _compared(*part))
        ),
        NAMES.map(lambda name: (f"has({name})", bool(LABELS.values("any", name)))),
        st.tuples(NAMES, st.lists(WORDS), st.booleans()).map(
            lambda part: (
                f"{part[0]} {'in' if part[2] else 'not in'} {{{', '.join(repr(one) for one in part[1])}}}",
                (_value(part[0]) in part[1]) is part[2],
            )
        ),
    ),
    lambda inner: st.one_of(
        inner.map(lambda one: (f"!({one[0]})", not one[1])),
        st.tuples(inner, inner).map(lambda two: (f"({two[0][0]}) && ({two[1][0]})", two[0][1] and two[1][1])),
        st.tuples(inner, inner).map(lambda two: (f"({two[0][0]}) || ({two[1][0]})", two[0][1] or two[1][1])),
    ),
    max_leaves=12,
)


def _value(name: str) -> str | None:
    return {"a": "x", "b": "yes/no", "n": "in"}.get(name)


def _compared(name: str, operator: str, text: str) -> bool:
    value = _value(name)
    if operator == "!=":
        return value != text
    if value is None:
        return False
    match operator:
        case "==":
            return value == text
        case "contains":
            return text in value
        case "starts with":
            return value.startswith(text)
    return value.endswith(text)


@given(TEXTS)
def test_selectors_mean_what_python_says(made: tuple[str, bool]) -> None:
    text, wanted = made
    if len(text) <= calico_selector.MAX_LENGTH:
        assert calico_selector.parse(text, leaf).matches(LABELS) is wanted


def test_an_expression_tells_which_labels_it_asks_for() -> None:
    found = calico_selector.parse("a == 'x' && !(has(b) || c contains 'y')", leaf)
    assert sorted(keys(found)) == [("", "a"), ("", "b"), ("", "c")]
    assert str(found) == ":a=x && !(:b || :c contains 'y')"
    assert (str(AllOf()), str(AnyOf()), str(Not(AnyOf()))) == ("everything", "nothing", "!nothing")
