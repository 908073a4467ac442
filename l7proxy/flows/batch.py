"""A batch of a worker's records on the link: stored in columns, with shared values sent once per batch.

The records of one connection share both ends and usually verdict, method and protocol. These are stored once, in a
FlowContext that the records refer to. Fields that nearly every record has are columns; rare fields are dicts keyed by
the record's position. Law: `pack(records).records()` equals `records`, in order.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec

from l7proxy.flows.records import Connection, HttpRequest, HttpResponse, Malformed, Nanoseconds, Record, TraceId
from l7proxy.model.policy_verdict import Conn, PolicyVerdict

WHOLE: Final = -1
"""Value of `party` for a record that is sent whole, without a FlowContext. There is one per connection."""
NO_STATUS: Final = -1
"""Value of `statuses` for a request record, which has no status."""
Status: TypeAlias = Annotated[int, msgspec.Meta(ge=NO_STATUS, le=999)]
Place: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]


class FlowContext(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Shared by several records: connection, verdict (position in the batch), method and protocol."""

    conn: Conn
    policy_verdict: Place
    method: str
    protocol: str


class Flows(msgspec.Struct, frozen=True, tag="flows"):
    """One batch. `lost` counts the records dropped since the previous batch because the agent did not read."""

    parties: list[FlowContext]
    policy_verdicts: list[PolicyVerdict]
    times: list[Nanoseconds]
    party: list[int]
    urls: list[str]
    statuses: list[Status]
    latencies: list[Nanoseconds]
    headers: dict[int, tuple[tuple[str, str], ...]] = {}
    remarks: dict[int, tuple[str, ...]] = {}
    whole: dict[int, Connection | Malformed] = {}
    trace_ids: dict[int, TraceId] = {}
    lost: Place = 0

    def __post_init__(self) -> None:
        columns = (self.times, self.party, self.urls, self.statuses, self.latencies)
        if len({len(column) for column in columns}) != 1:
            raise ValueError("the columns of a batch differ in length")

    def records(self) -> list[Record]:
        """The packed records. LookupError when a record refers to an entry that is not in the batch."""
        return [self.record(place) for place in range(len(self.times))]

    def record(self, place: int) -> Record:
        """The record at this position."""
        if self.party[place] < 0:
            return self.whole[place]
        party = self.parties[self.party[place]]
        conn, policy_verdict = party.conn, self.policy_verdicts[party.policy_verdict]
        time_ns, url, status = self.times[place], self.urls[place], self.statuses[place]
        headers, trace_id = self.headers.get(place, ()), self.trace_ids.get(place, "")
        if status == NO_STATUS:
            remarks = self.remarks.get(place, ())
            return HttpRequest(
                time_ns, conn, policy_verdict, party.method, url, party.protocol, headers, remarks, trace_id
            )
        latency_ns = self.latencies[place]
        return HttpResponse(
            time_ns, conn, policy_verdict, party.method, url, party.protocol, status, latency_ns, headers, trace_id
        )
