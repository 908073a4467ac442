"""The transition tables of gates and sessions are complete: each state has its row, and each is reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from l7proxy.gate import http1_state, http2_stream
from l7proxy.proxy.server import session

Table = Mapping[Any, Mapping[Any, Any]]
TABLES = pytest.mark.parametrize("module", [http1_state, http2_stream, session], ids=lambda module: module.__name__)


@TABLES
def test_each_state_has_a_row_and_each_event_a_use(module: Any) -> None:
    table: Table = module.NEXT
    assert list(table) == list(module.State)
    used = {event for row in table.values() for event in row}
    assert used == set(module.Event) - {http1_state.MORE if module is http1_state else None}


@TABLES
def test_each_state_is_reached_from_the_first(module: Any) -> None:
    table: Table = module.NEXT
    reached = [next(iter(table))]
    for state in reached:
        reached += [following for following in table[state].values() if following not in reached]
    assert set(reached) == set(table)


def test_nothing_leads_out_of_the_last_states() -> None:
    assert not http1_state.NEXT[http1_state.CLOSED]
    assert not http2_stream.NEXT[http2_stream.ANSWERED]
    assert set(session.NEXT[session.CLOSED].values()) == {session.CLOSED}


def test_each_state_of_http1_has_its_phase() -> None:
    assert list(http1_state.PHASES) == list(http1_state.State)
