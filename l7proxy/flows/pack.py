"""Packs records into a batch: runs in the worker for each record, so it is compiled.

Shared values are found by identity: two equal verdicts that are two objects only cost bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import astuple

from l7proxy.flows.batch import NO_STATUS, WHOLE, FlowContext, Flows
from l7proxy.flows.records import Connection, HttpRequest, HttpResponse, Malformed, Record
from l7proxy.model.policy_verdict import Conn, PolicyVerdict


def pack(records: Sequence[Record], lost: int = 0) -> Flows:
    """`lost` is the batch's `lost`."""
    batch = _Batch()
    for place, record in enumerate(records):
        batch.add(place, record)
    return batch.flows(lost)


class _Last:
    """The shared values of a connection's last record."""

    __slots__ = ("method", "place", "policy_verdict", "protocol")

    def __init__(self, policy_verdict: PolicyVerdict, method: str, protocol: str, place: int) -> None:
        self.policy_verdict = policy_verdict
        self.method = method
        self.protocol = protocol
        self.place = place


class _Batch:
    """A batch under construction."""

    def __init__(self) -> None:
        self._parties: list[FlowContext] = []
        self._policy_verdicts: list[PolicyVerdict] = []
        self._last: dict[int, _Last] = {}  # keyed by id(), as below: valid as long as the records live
        self._party_places: dict[tuple[int, int, str, str], int] = {}
        self._policy_verdict_places: dict[int, int] = {}
        self._times: list[int] = []
        self._party: list[int] = []
        self._urls: list[str] = []
        self._statuses: list[int] = []
        self._latencies: list[int] = []
        self._headers: dict[int, tuple[tuple[str, str], ...]] = {}
        self._remarks: dict[int, tuple[str, ...]] = {}
        self._whole: dict[int, Connection | Malformed] = {}
        self._trace_ids: dict[int, str] = {}

    def flows(self, lost: int) -> Flows:
        return Flows(
            self._parties,
            self._policy_verdicts,
            self._times,
            self._party,
            self._urls,
            self._statuses,
            self._latencies,
            self._headers,
            self._remarks,
            self._whole,
            self._trace_ids,
            lost,
        )

    def add(self, place: int, record: Record) -> None:
        """Hot. Types are compared with `is`, and all fields are taken at once: isinstance() and each struct field cost
        a lookup."""
        if type(record) is HttpRequest:
            time_ns, conn, policy_verdict, method, url, protocol, headers, remarks, trace_id = astuple(record)
            if remarks:
                self._remarks[place] = remarks
            status, latency_ns = NO_STATUS, 0
        elif type(record) is HttpResponse:
            time_ns, conn, policy_verdict, method, url, protocol, status, latency_ns, headers, trace_id = astuple(
                record
            )
        else:
            assert isinstance(record, (Connection, Malformed))
            self._whole[place] = record
            self._append(record.time_ns, WHOLE, "", NO_STATUS, 0)
            return
        if headers:
            self._headers[place] = headers
        if trace_id:
            self._trace_ids[place] = trace_id
        self._append(time_ns, self._place(conn, policy_verdict, method, protocol), url, status, latency_ns)

    def _append(self, time_ns: int, party: int, url: str, status: int, latency_ns: int) -> None:
        self._times.append(time_ns)
        self._party.append(party)
        self._urls.append(url)
        self._statuses.append(status)
        self._latencies.append(latency_ns)

    def _place(self, conn: Conn, policy_verdict: PolicyVerdict, method: str, protocol: str) -> int:
        """Nearly always the FlowContext of the connection's last record."""
        last = self._last.get(id(conn))
        if (
            last is not None
            and last.policy_verdict is policy_verdict
            and last.method == method
            and last.protocol == protocol
        ):
            return last.place
        place = self._party_place(conn, policy_verdict, method, protocol)
        self._last[id(conn)] = _Last(policy_verdict, method, protocol, place)
        return place

    def _party_place(self, conn: Conn, policy_verdict: PolicyVerdict, method: str, protocol: str) -> int:
        key = (id(conn), id(policy_verdict), method, protocol)
        place = self._party_places.get(key)
        if place is None:
            place = self._party_places[key] = len(self._parties)
            self._parties.append(FlowContext(conn, self._policy_verdict_place(policy_verdict), method, protocol))
        return place

    def _policy_verdict_place(self, policy_verdict: PolicyVerdict) -> int:
        place = self._policy_verdict_places.get(id(policy_verdict))
        if place is None:
            place = self._policy_verdict_places[id(policy_verdict)] = len(self._policy_verdicts)
            self._policy_verdicts.append(policy_verdict)
        return place
