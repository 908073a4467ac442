"""Realistic policies with a part replaced by nonsense: accepted, or refused and denied.

Whatever the result, it can be compiled and evaluated, and no refused document lets its pods be reached.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.errors import PolicyError
from l7proxy.policy import lang
from tests.unit.policy.town import PEOPLE, Town

FOLDER = Path(__file__).parents[2] / "policies" / "real-world"
NONSENSE: tuple[Any, ...] = (
    *(None, True, 0, -1, 1.5, 2**70, float("nan"), "", "x", "a" * 2000, "\ud800", "\x00", "0.0.0.0/0", "::/0"),
    *([], {}, [None], [{}], [[]], {"": ""}, {"x": None}, {5: 6}, "(" * 500, "!has(x)", "all()", "global()"),
)  # fmt: skip


def documents() -> Iterator[dict[str, Any]]:
    for path in sorted(FOLDER.rglob("*.*")):
        for document in yaml.safe_load_all(path.read_text()):
            yield from (one for one in document.get("items", [document]) if lang.is_policy(one))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


WRITTEN = [
    (document, [path for path in places(document) if path[:1] in {("spec",), ("specs",)}]) for document in documents()
]


@st.composite
def mutants(draw: st.DrawFn) -> dict[str, Any]:
    document, paths = draw(st.sampled_from(WRITTEN))
    mutant: dict[str, Any] = copy.deepcopy(document)
    if "namespace" in mutant["metadata"]:
        mutant["metadata"]["namespace"] = "x"
    for path in draw(st.lists(st.sampled_from(paths), min_size=1, max_size=3)):
        place: Any = mutant
        try:
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = draw(st.sampled_from(NONSENSE))
        except (KeyError, IndexError, TypeError):
            continue  # an earlier mutation removed the place
    return mutant


@settings(max_examples=300, deadline=None)
@given(mutants())
def test_a_mutant_is_read_or_refused_and_never_more_open_for_being_refused(mutant: dict[str, Any]) -> None:
    try:
        lang.parse(mutant)
        refused = False
    except PolicyError as error:
        refused = True
        assert str(error) and "\n" not in str(error)
    town = Town(mutant)
    subjects = {rule.subject for rule in lang.refuse(mutant, "why")} if refused else set()
    for endpoint in town.view("n1").endpoints:
        who = f"{endpoint.namespace}/{endpoint.name}"
        other = next(one for one in PEOPLE if one != who)
        closed = not (town.allows(other, who) and town.allows(who, other))
        assert closed or not any(subject.matches(endpoint.labels) for subject in subjects)
