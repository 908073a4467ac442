"""Every word and number that flows use is one of the API's."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from l7proxy.flows import hubble_constants as hubble
from l7proxy.hubble.api.flow import flow_pb2
from l7proxy.model.verdict import Direction, DropReason, Verdict
from tests import protos

POINTS = [f"{point.upper().replace('-', '_')}" for point in hubble.TRACE_POINTS]
INDEXED = {
    "Verdict": hubble.VERDICTS,
    "FlowType": hubble.FLOW_TYPES,
    "L7FlowType": hubble.L7_TYPES,
    "TrafficDirection": hubble.DIRECTIONS,
    "IPVersion": hubble.IP_VERSIONS,
    "LostEventSource": hubble.LOST_SOURCES,
}


def numbers(enum: str) -> dict[str, int]:
    """As the .proto file has them."""
    found = {one.name: one for one in protos.described()["flow/flow.proto"].enum_type}[enum]
    return {value.name: value.number for value in found.value}


@pytest.mark.parametrize(("enum", "words"), INDEXED.items())
def test_tables_hold_all_words_by_number(enum: str, words: Iterable[str]) -> None:
    assert {word: number for number, word in enumerate(words)} == numbers(enum)


def test_our_verdicts_directions_and_drop_reasons_have_the_apis_numbers() -> None:
    assert [numbers("Verdict")[hubble.VERDICTS[one]] for one in Verdict] == [one.value for one in Verdict]
    assert [numbers("TrafficDirection")[hubble.DIRECTIONS[one]] for one in Direction] == [0, 1, 2]
    known = numbers("DropReason")
    assert {one.name: known[one.name] for one in DropReason if one} == {
        one.name: one.value for one in DropReason if one
    }


def test_drop_texts_are_of_known_reasons() -> None:
    """Lower numbers are Cilium's monitor codes, which are no drop reasons."""
    assert {number for number in hubble.DROP_TEXTS if number >= 130} <= set(numbers("DropReason").values())


def test_trace_points_are_numbered_as_sub_types_but_for_to_endpoint() -> None:
    known = numbers("TraceObservationPoint")
    assert [known[point] for point in POINTS[1:]] == list(range(1, len(POINTS)))
    assert known[POINTS[hubble.TO_ENDPOINT]] == 101
    assert set(known) == {"UNKNOWN_POINT", *POINTS}


def test_tcp_flags_are_those_of_the_message() -> None:
    assert sorted(name for name, _ in hubble.TCP_FLAGS) == sorted(flow_pb2.TCPFlags.DESCRIPTOR.fields_by_name)
