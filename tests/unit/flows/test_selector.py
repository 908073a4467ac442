"""Label selectors of filters: what they parse to, and what is refused."""

from __future__ import annotations

import pytest

from l7proxy.errors import ConfigError
from l7proxy.flows.selector import LONGEST, selector
from l7proxy.model.labels import ANY, Operator, Requirement


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", []),
        ("app", [(ANY, "app", Operator.EXISTS, ())]),
        ("!k8s:app", [("k8s", "app", Operator.DOES_NOT_EXIST, ())]),
        ("app=web", [(ANY, "app", Operator.IN, ("web",))]),
        ("app==", [(ANY, "app", Operator.IN, ("",))]),
        ("k8s:app != web", [("k8s", "app", Operator.NOT_IN, ("web",))]),
        ("app in (a, b)", [(ANY, "app", Operator.IN, ("a", "b"))]),
        ("app notin (a), tier", [(ANY, "app", Operator.NOT_IN, ("a",)), (ANY, "tier", Operator.EXISTS, ())]),
    ],
)
def test_what_a_selector_requires(text: str, wanted: list[tuple[str, str, Operator, tuple[str, ...]]]) -> None:
    assert selector(text).requirements == tuple(Requirement(*one) for one in wanted)


@pytest.mark.parametrize("text", ["a b", "a in x", "=x", "a,,b", "a in (b"])
def test_what_is_no_selector_is_refused_at_its_place(text: str) -> None:
    with pytest.raises(ConfigError, match="invalid source label filter: invalid selector at"):
        selector(text, what="source_label")


def test_the_length_is_bounded() -> None:
    with pytest.raises(ConfigError, match=f"longer than {LONGEST} characters"):
        selector("a" * (LONGEST + 1))


def test_blanks_before_a_fault_take_linear_time() -> None:
    """With backtracking this takes minutes."""
    for _ in range(2000):
        with pytest.raises(ConfigError):
            selector("a" + " " * (LONGEST - 2) + "(")
