"""Requests on the socket are validated before they are answered."""

from __future__ import annotations

from typing import Any

import pytest

from l7proxy.errors import ConfigError
from l7proxy.flows import observer
from l7proxy.flows.flow import Flow
from l7proxy.flows.ring import Ring


async def test_a_request_is_answered_event_by_event() -> None:
    ring = Ring(15)
    for number in range(6):
        ring.append(Flow(uuid=str(number), verdict="DROPPED" if number % 2 else "FORWARDED"))
    asked = {"method": "observe", "last": 2, "filters": {"whitelist": [{"verdict": ["DROPPED"]}]}}
    assert [item.uuid async for item in observer.observe(ring, asked) if isinstance(item, Flow)] == ["3", "5"]
    assert len([item async for item in observer.observe(ring, {})]) == 6


@pytest.mark.parametrize(
    ("asked", "fault"),
    [
        ({"lats": 1}, "unknown field 'lats'"),
        ({"last": -1}, "last"),
        ({"last": "many"}, "last"),
        ({"last": True}, "last"),
        ({"last": 1.5}, "last"),
        ({"first": 1, "follow": True}, "first"),
        ({"first": 1, "last": 1}, "first"),
        ({"since": "yesterday"}, "since"),
        ({"until": []}, "until"),
        ({"filters": []}, "filters"),
        ({"filters": {"whitelist": [{"verdict": ["NO"]}]}}, "verdict"),
        ({"filters": {"whitelist": [7]}}, "whitelist"),
    ],
)
def test_a_wrong_request_names_its_field(asked: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        observer.observe(Ring(1), asked)
