"""The chart is a readable SVG: a bar for each ratio, on one scale, with a colour for met and missed goals."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from bench import chart
from bench.row import Goal, Row, compared, not_measured

SVG = "{http://www.w3.org/2000/svg}"


def row(ratio: float, *, unit: str = "µs", goal: Goal | None = None) -> Row:
    return compared("a <figure> & more", unit, [ratio], [1.0], against="envoy", goal=goal)


def bars(rows: list[Row]) -> list[ElementTree.Element]:
    return ElementTree.fromstring(chart.chart(rows, "here & now")).findall(f"{SVG}rect")


def test_every_ratio_has_a_bar_and_what_was_not_measured_has_none() -> None:
    rows = [row(0.5), not_measured("gRPC", "µs", "why"), row(2.0), compared("compile", "s", [1.0])]
    assert len(bars(rows)) == 2


def test_longer_bars_are_larger_ratios_and_one_is_where_its_line_is() -> None:
    widths = [float(bar.attrib["width"]) for bar in bars([row(0.5), row(1.0), row(3.0)])]
    assert widths == sorted(widths)
    assert float(bars([row(1.0)])[0].attrib["x"]) + widths[1] == pytest.approx(chart.position(1.0), abs=0.2)


def test_where_more_is_better_the_bar_is_turned_round() -> None:
    assert chart.cost(row(2.0, unit="1/s")) == 0.5
    assert chart.cost(row(2.0)) == 2.0


def test_colours_tell_met_from_missed_from_no_goal() -> None:
    rows = [row(0.3, goal=Goal(0.4)), row(0.5, goal=Goal(0.4)), row(0.5)]
    assert [bar.attrib["fill"] for bar in bars(rows)] == [chart.GOOD, chart.BAD, chart.PLAIN]


@pytest.mark.parametrize("ratio", [0.0001, 5000.0])
def test_ratios_beyond_the_scale_stay_in_the_snapshot(ratio: float) -> None:
    assert chart.position(0.1) <= chart.position(ratio) <= chart.position(10.0)
