"""The arithmetic of the table: ratios, goals, percentiles, and the text when there is nothing to compare."""

from __future__ import annotations

import json

import pytest

from bench.report import document, markdown, number
from bench.row import Goal, Row, compared, not_measured, percentile


def test_a_ratio_is_the_median_of_the_turns_own_ratios() -> None:
    row = compared("cpu", "µs", [10.0, 10.0, 100.0], [20.0, 40.0, 50.0], against="envoy", goal=Goal(0.4))
    assert (row.ours, row.peer, row.ratio) == (10.0, 40.0, 0.5)  # of 0.5, 0.25 and 2.0
    assert (row.goal, row.met) == ("≤ 0.4 ×", False)


@pytest.mark.parametrize(
    ("goal", "ours", "ratio", "met"),
    [
        (Goal(0.4), 1.0, 0.4, True),
        (Goal(0.4), 1.0, 0.41, False),
        (Goal(1.5, at_least=True), 1.0, 1.5, True),
        (Goal(1.5, at_least=True), 1.0, 1.49, False),
        (Goal(60, absolute=True), 60.0, None, True),
        (Goal(60, absolute=True), 61.0, 0.1, False),
        (Goal(0.4), 1.0, None, None),
    ],
    ids=["at most, just met", "at most, missed", "at least, just met", "at least, missed", "absolute, just met",
         "absolute, missed though below the peer", "no peer, no answer"],
)  # fmt: skip
def test_a_goal_is_met_at_its_value(goal: Goal, ours: float, ratio: float | None, met: bool | None) -> None:
    assert goal.met(ours, ratio) is met


def test_goals_say_what_they_are_of() -> None:
    goals = [Goal(0.4), Goal(1.5, at_least=True), Goal(60, absolute=True)]
    assert [str(goal) for goal in goals] == ["≤ 0.4 ×", "≥ 1.5 ×", "≤ 60"]


def test_an_absolute_figure_needs_no_peer() -> None:
    row = compared("compile", "s", [3.0, 1.0, 2.0], goal=Goal(5, absolute=True))
    assert (row.ours, row.peer, row.ratio, row.met) == (2.0, None, None, True)


def test_turns_without_their_pair_are_an_error() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        compared("cpu", "µs", [1.0, 2.0], [1.0])


def test_what_was_not_measured_says_why_and_is_neither_met_nor_missed() -> None:
    row = not_measured("gRPC", "µs", "no HTTP/2 yet", against="envoy", goal=Goal(1.0))
    assert (row.ours, row.met, row.note) == (None, None, "not measured: no HTTP/2 yet")


@pytest.mark.parametrize(
    ("part", "value"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.001, 1)], ids=["median", "p99", "largest", "smallest"]
)
def test_percentiles_are_values_that_were_seen(part: float, value: float) -> None:
    assert percentile(list(range(100, 0, -1)), part) == value


def test_a_p99_of_few_values_is_the_largest() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.99) == 3.0


def test_the_document_holds_the_machine_and_every_row_with_its_fields() -> None:
    row = Row("cpu", "µs", 27.58412, 46.563, "envoy", 0.59241, "≤ 0.4 ×", False)
    whole = json.loads(document([row], {"cores": 2}, quick=True))
    assert whole["machine"] == {"cores": 2}
    assert whole["quick"] is True
    assert whole["figures"] == [
        {
            "name": "cpu",
            "unit": "µs",
            "ours": 27.58,
            "peer": 46.56,
            "against": "envoy",
            "ratio": 0.5924,
            "goal": "≤ 0.4 ×",
            "met": False,
            "note": "",
        }
    ]


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (21061.4, "21 061"), (46.99, "47.0"), (1.296, "1.30"), (0.5667, "0.567")]
)
def test_numbers_are_shown_with_the_digits_that_matter(value: float | None, text: str) -> None:
    assert number(value) == text


def test_a_row_of_markdown_has_every_column() -> None:
    lines = markdown([not_measured("gRPC", "µs", "why", against="envoy", goal=Goal(1.0))]).splitlines()
    assert {line.count("|") for line in lines} == {9}
    assert lines[2] == "| gRPC | µs | – | – | envoy |  | ≤ 1 × |  |"
