"""A worker's records as they cross the link: what many of them share is sent once per batch.

The records of one connection share both ends and, as a rule, the judgement; by that they refer to a Party of their
batch. Law: `pack(records).records()` are the records, in their order. Sharing is by identity: two equal judgements that
are two objects cost bytes, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from l7proxy.flows.records import Conn, Connection, HttpRequest, HttpResponse, Judgement, Malformed, Record

_WHOLE: Final = (Connection, Malformed)
"""Records that cross as they are: there is one per connection. (A tuple: a union would be made anew each time.)"""


class Party(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Between whom, and the place of the judgement in the batch."""

    conn: Conn
    judgement: int


class Asked(msgspec.Struct, frozen=True, array_like=True, tag="q", gc=False):
    """An HttpRequest; `party` is a place in the batch. Field for field its order otherwise."""

    time_ns: int
    party: int
    method: str
    url: str
    protocol: str
    headers: tuple[tuple[str, str], ...] = ()
    remarks: tuple[str, ...] = ()


class Answered(msgspec.Struct, frozen=True, array_like=True, tag="s", gc=False):
    """An HttpResponse, likewise."""

    time_ns: int
    party: int
    method: str
    url: str
    protocol: str
    status: int
    latency_ns: int
    headers: tuple[tuple[str, str], ...] = ()


class Flows(msgspec.Struct, frozen=True, tag="flows"):
    """One batch; `lost` counts the records dropped since the last one because the agent did not read."""

    parties: tuple[Party, ...]
    judgements: tuple[Judgement, ...]
    told: tuple[Asked | Answered | Connection | Malformed, ...]
    lost: int = 0

    def records(self) -> list[Record]:
        """What was packed. IndexError when a record refers to what is not in the batch."""
        return [self.record(told) for told in self.told]

    def record(self, told: Asked | Answered | Connection | Malformed) -> Record:
        """One of `told`, whole again."""
        if isinstance(told, _WHOLE):
            return told
        party = self.parties[told.party]
        judgement = self.judgements[party.judgement]
        if isinstance(told, Asked):
            return HttpRequest(
                told.time_ns,
                party.conn,
                judgement,
                told.method,
                told.url,
                told.protocol,
                told.headers,
                told.remarks,
            )
        return HttpResponse(
            told.time_ns,
            party.conn,
            judgement,
            told.method,
            told.url,
            told.protocol,
            told.status,
            told.latency_ns,
            told.headers,
        )


def pack(records: Iterable[Record], lost: int = 0) -> Flows:
    """Hot: once per record in a worker."""
    table = _Table()
    told: list[Asked | Answered | Connection | Malformed] = []
    places = table.places
    for record in records:
        if isinstance(record, _WHOLE):
            told.append(record)
            continue
        key = (id(record.conn), id(record.judgement))  # alive as long as the records are
        party = places.get(key)
        if party is None:
            party = places[key] = table.add(record.conn, record.judgement)
        if isinstance(record, HttpRequest):
            told.append(
                Asked(
                    record.time_ns,
                    party,
                    record.method,
                    record.url,
                    record.protocol,
                    record.headers,
                    record.remarks,
                )
            )
        else:
            told.append(
                Answered(
                    record.time_ns,
                    party,
                    record.method,
                    record.url,
                    record.protocol,
                    record.status,
                    record.latency_ns,
                    record.headers,
                )
            )
    return Flows(tuple(table.parties), tuple(table.judgements), tuple(told), lost)


class _Table:
    """The parties of a batch in the making."""

    def __init__(self) -> None:
        self.places: dict[tuple[int, int], int] = {}
        self.parties: list[Party] = []
        self.judgements: list[Judgement] = []
        self._judgement_places: dict[int, int] = {}

    def add(self, conn: Conn, judgement: Judgement) -> int:
        place = self._judgement_places.get(id(judgement))
        if place is None:
            place = self._judgement_places[id(judgement)] = len(self.judgements)
            self.judgements.append(judgement)
        self.parties.append(Party(conn, place))
        return len(self.parties) - 1
