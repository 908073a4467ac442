"""A worker's records as they cross the link: in columns, and what many of them share is sent once per batch.

The records of one connection share both ends and, as a rule, judgement, method and protocol; by these they refer to a
Party of their batch. What nearly every record has is a column; what few have stands beside them, by place. Law:
`pack(records).records()` are the records, in their order.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec

from l7proxy.flows.records import Connection, HttpRequest, HttpResponse, Malformed, Record
from l7proxy.model.policy_verdict import Conn, PolicyVerdict

WHOLE: Final = -1
"""In place of a party: a record that crosses as it is. There is one of these per connection."""
NO_STATUS: Final = -1
"""In place of a status: the record is of a request."""
Place: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]


class FlowContext(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Between whom, judged how (a place in the batch), and asked in which words."""

    conn: Conn
    judgement: Place
    method: str
    protocol: str


class Flows(msgspec.Struct, frozen=True, tag="flows"):
    """One batch; `lost` counts the records dropped since the last one because the agent did not read."""

    parties: list[FlowContext]
    judgements: list[PolicyVerdict]
    times: list[int]
    party: list[int]
    urls: list[str]
    statuses: list[int]
    latencies: list[int]
    headers: dict[int, tuple[tuple[str, str], ...]] = {}
    remarks: dict[int, tuple[str, ...]] = {}
    whole: dict[int, Connection | Malformed] = {}
    lost: int = 0

    def __post_init__(self) -> None:
        columns = (self.times, self.party, self.urls, self.statuses, self.latencies)
        if len({len(column) for column in columns}) != 1:
            raise ValueError("the columns of a batch differ in length")

    def records(self) -> list[Record]:
        """What was packed. LookupError when a record refers to what is not in the batch."""
        return [self.record(place) for place in range(len(self.times))]

    def record(self, place: int) -> Record:
        """One of them, whole again."""
        if self.party[place] < 0:
            return self.whole[place]
        party = self.parties[self.party[place]]
        conn, judgement = party.conn, self.judgements[party.judgement]
        time_ns, url, status = self.times[place], self.urls[place], self.statuses[place]
        headers = self.headers.get(place, ())
        if status == NO_STATUS:
            remarks = self.remarks.get(place, ())
            return HttpRequest(time_ns, conn, judgement, party.method, url, party.protocol, headers, remarks)
        latency_ns = self.latencies[place]
        return HttpResponse(time_ns, conn, judgement, party.method, url, party.protocol, status, latency_ns, headers)
