"""The transition tables of gates and sessions are complete: each state has its row, and each is reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from l7proxy.gate import http1_state, http2_stream
from l7proxy.proxy.server import session
from tests.pages import names

Table = Mapping[Any, Mapping[Any, Any]]
TABLES = pytest.mark.parametrize("module", [http1_state, http2_stream, session], ids=lambda module: module.__name__)


@TABLES
def test_each_state_has_a_row_and_each_event_a_use(module: Any) -> None:
    table: Table = module.NEXT
    assert list(table) == list(names(module.State))
    assert {event for row in table.values() for event in row} == set(names(module.Event))


@TABLES
def test_each_state_is_reached_from_the_first(module: Any) -> None:
    table: Table = module.NEXT
    reached = [next(iter(table))]
    for state in reached:
        reached += [following for following in table[state].values() if following not in reached]
    assert set(reached) == set(table)


def test_nothing_leads_out_of_the_last_states() -> None:
    assert not http1_state.NEXT[http1_state.State.CLOSED]
    assert not http2_stream.NEXT[http2_stream.ANSWERED]
    assert set(session.NEXT[session.CLOSED].values()) == {session.CLOSED}


def test_http1_answers_as_its_table_says() -> None:
    assert list(http1_state.PHASES) == list(http1_state.NEXT)
    for state, row in http1_state.NEXT.items():
        assert http1_state.phase(state) is http1_state.PHASES[state]
        for event in names(http1_state.Event):
            if event in row:
                assert http1_state.following(state, event) == row[event]
            else:
                with pytest.raises(RuntimeError, match=f"event {event} in the state {state}"):
                    http1_state.following(state, event)
