from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7proxy.flows import timestamp


@pytest.mark.parametrize(
    ("time_ns", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1_763_928_000_015_000_000, "2025-11-23T20:00:00.015Z"),
        (1_763_928_000_015_250_000, "2025-11-23T20:00:00.015250Z"),
        (1_763_928_000_000_000_001, "2025-11-23T20:00:00.000000001Z"),
        (1_763_928_000_100_000_000, "2025-11-23T20:00:00.100Z"),
    ],
)
def test_text_has_three_six_or_nine_digits_as_protobuf_writes_it(time_ns: int, text: str) -> None:
    assert timestamp.text(time_ns) == text


@given(st.integers(min_value=0, max_value=4_000_000_000_000_000_000))
def test_what_is_written_is_read_again(time_ns: int) -> None:
    assert timestamp.parse(timestamp.text(time_ns)) == time_ns


@pytest.mark.parametrize(
    ("text", "time_ns"),
    [
        ("2025-11-23T21:00:00+01:00", 1_763_928_000_000_000_000),
        ("2025-11-23T15:30:00.5-04:30", 1_763_928_000_500_000_000),
        ("2025-11-23 20:00:00z", 1_763_928_000_000_000_000),
        ("2025-11-23T20:00:00.1234567899999Z", 1_763_928_000_123_456_789),
    ],
)
def test_any_offset_is_understood(text: str, time_ns: int) -> None:
    assert timestamp.parse(text) == time_ns


@pytest.mark.parametrize(
    "text", ["", "now", "2025-11-23", "2025-11-23T20:00:00", "2025-13-23T20:00:00Z", "2025-11-23T20:00:00.Z"]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="time"):
        timestamp.parse(text)
