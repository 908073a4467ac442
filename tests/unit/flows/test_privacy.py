"""What is private leaves by no exit: neither file, nor standard output, nor Hubble's API, nor OpenTelemetry."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs

from l7proxy.flows.enrich import Enricher
from l7proxy.flows.event import Event
from l7proxy.flows.pack import pack
from l7proxy.flows.records import HttpRequest, HttpResponse, Record
from l7proxy.flows.sinks.jsonl import JsonLinesFile, JsonLinesStream
from l7proxy.flows.sinks.otlp_records import LogRecords
from l7proxy.flows.template import TemplateCache, TemplatedFlow, Uuids
from l7proxy.hubble.encode import Encoder
from l7proxy.model.endpoint import NamedPod
from l7proxy.model.policy_verdict import Conn, PolicyVerdict
from l7proxy.model.verdict import Direction, Verdict

SECRET = "s3cr3t"
CONN = Conn("10.0.0.1", 40000, "10.0.0.2", 80, 1, 2)
VERDICTS = [PolicyVerdict(one, Direction.INGRESS) for one in (Verdict.FORWARDED, Verdict.DROPPED, Verdict.AUDIT)]
URLS = [
    f"http://a/b?token={SECRET}",
    f"http://user:{SECRET}@a/b",
    f"http://{SECRET}@a/b",
    f"http://a/b#{SECRET}",
    f"/b?{SECRET}",
    f"/b?a=http://x@{SECRET}",
]
HEADERS = (("authorization", SECRET), ("cookie", f"a={SECRET}"), ("x-id", "shown"))


class Book:
    def pod(self, address: str) -> NamedPod | None:
        return None

    def identity_labels(self, identity: int) -> Sequence[str]:
        return ()

    def service(self, address: str, port: int, protocol: int) -> tuple[str, str] | None:
        return None


def records() -> list[Record]:
    made: list[Record] = [HttpRequest(1, CONN, VERDICTS[0], "GET", "http://a/plain", "HTTP/1.1")]
    for url, verdict, headers in itertools.product(URLS, VERDICTS, ((), HEADERS)):
        made.append(HttpRequest(1, CONN, verdict, "GET", url, "HTTP/1.1", headers))
        made.append(HttpResponse(1, CONN, verdict, "GET", url, "HTTP/1.1", 200, 5, headers))
    return made


def by_file(events: Sequence[Event], directory: Path) -> bytes:
    sink = JsonLinesFile(directory / "flows.jsonl")
    sink.consume(events)
    sink.close()
    return (directory / "flows.jsonl").read_bytes()


def by_stream(events: Sequence[Event], directory: Path) -> bytes:
    with (directory / "out").open("wb") as out:
        sink = JsonLinesStream(os.dup(out.fileno()))
        sink.consume(events)
    return (directory / "out").read_bytes()


def by_hubble(events: Sequence[Event], directory: Path) -> bytes:
    return b"".join(Encoder({}, "n1").responses(list(events)))


def by_otlp(events: Sequence[Event], directory: Path) -> bytes:
    encoded: bytes = encode_logs([*map(LogRecords(node="", cluster="").of, events)]).SerializeToString()
    return encoded


@pytest.mark.parametrize("leave", [by_file, by_hubble, by_otlp, by_stream])
@pytest.mark.parametrize("allowed", [frozenset(), frozenset({"x-id"}), frozenset({"x-id", "authorization", "cookie"})])
def test_no_secret_leaves(
    leave: Callable[[Sequence[Event], Path], bytes], allowed: frozenset[str], tmp_path: Path
) -> None:
    if leave is by_stream:
        tmp_path.joinpath("out").touch()
    enricher = Enricher(Book(), headers=allowed, secret_headers=frozenset({"authorization", "cookie"}))
    events = TemplateCache(enricher, Uuids()).items(pack(records()))
    assert any(isinstance(event, TemplatedFlow) for event in events)
    out = leave(events, tmp_path)
    assert SECRET.encode() not in out
    assert (b"shown" in out) is bool(allowed) and b"10.0.0.1" in out
