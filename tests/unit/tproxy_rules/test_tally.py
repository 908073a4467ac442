"""Sums of counters that restart from zero."""

from __future__ import annotations

import pytest

from tproxy_rules.marks import LogDirection, LogEvent, log_code, log_prefix, read_code, read_prefix
from tproxy_rules.tally import Tally


def test_what_was_counted_stays_counted() -> None:
    tally: Tally[str] = Tally()
    for counters in ({"a": 3}, {"a": 5, "b": 1}, {"b": 1}, {"a": 2, "b": 1}):
        tally.saw(counters)
    assert tally.total == {"a": 7, "b": 1}


def test_counters_that_begin_anew_and_pass_what_they_were() -> None:
    tally: Tally[str] = Tally()
    tally.saw({"a": 3})
    tally.anew()
    tally.saw({"a": 5})
    assert tally.total == {"a": 8}


@pytest.mark.parametrize("endpoint", [0, 1, 65536, (1 << 25) + 7])
@pytest.mark.parametrize("way", list(LogDirection))
@pytest.mark.parametrize("told", list(LogEvent))
def test_codes_and_prefixes_say_the_same(told: LogEvent, way: LogDirection, endpoint: int) -> None:
    code = log_code(told, way, endpoint)
    assert read_code(code) == read_prefix(log_prefix(told, way, endpoint)) == (told, way, endpoint)
    assert 3 << 24 < code < 1 << 32, "no identity of an agent's"


@pytest.mark.parametrize("code", [0, 1, 0x01000009, (1 << 32) - 1])
def test_other_numbers_are_no_codes(code: int) -> None:
    assert read_code(code) is None
