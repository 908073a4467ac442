"""Flows as OpenTelemetry logs, sent to a small real HTTP server."""

from __future__ import annotations

import gzip
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from l7proxy.errors import ConfigError
from l7proxy.flows.event import Event, Lost
from l7proxy.flows.flow import IP, Endpoint, Flow, Http, Layer4, Layer7, Policy, Ports
from l7proxy.flows.sinks import otlp
from l7proxy.flows.sinks.otlp import Otlp
from tests.unit.hubble.authority import NAME, Authority

SECRET = "Bearer s3cr3t"
DENIED = Flow(
    time="1970-01-01T00:00:01Z",
    uuid="u1",
    verdict="DROPPED",
    drop_reason_desc="POLICY_DENIED",
    ip=IP(source="10.0.0.1", destination="10.0.0.2", version="IPv4"),
    l4=Layer4(tcp=Ports(source_port=40000, destination_port=80)),
    source=Endpoint(namespace="shop", pod_name="web", identity=7),
    l7=Layer7(type="REQUEST", http=Http(method="GET", url="http://a/b", protocol="HTTP/1.1")),
    ingress_denied_by=(Policy(name="p", namespace="shop"),),
    policy_log=("no rule matched",),
    summary="HTTP/1.1 GET http://a/b",
)


class Collector(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[tuple[int, bytes]] = []
        """For the next requests; then 200."""
        self.requests: list[tuple[str, dict[str, str], Any]] = []

    @property
    def records(self) -> list[Any]:
        return [one for _, _, body in self.requests for one in body["resourceLogs"][0]["scopeLogs"][0]["logRecords"]]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Collector

    def do_POST(self) -> None:
        body = json.loads(gzip.decompress(self.rfile.read(int(self.headers["Content-Length"]))))
        status, answer = self.server.answers.pop(0) if self.server.answers else (200, b"{}")
        if status == 200:
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.server.requests.append((self.path, headers, body))
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002


@contextmanager
def collecting(tls: ssl.SSLContext | None = None) -> Iterator[Collector]:
    with Collector() as server:
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as server:
        yield server


def to(server: Collector, **options: Any) -> Otlp:
    return Otlp(f"http://127.0.0.1:{server.server_port}", **options)


def plain(attributes: list[Any]) -> dict[str, Any]:
    return {one["key"]: next(iter(one["value"].values())) for one in attributes}


def test_a_flow_is_a_log_record_with_the_attributes_of_the_conventions(collector: Collector) -> None:
    sink = to(collector, node="n1", cluster="kind")
    lost = Lost(3, "HUBBLE_RING_BUFFER", 9)
    sink.consume([DENIED, lost])
    sink.close()
    assert (sink.lost, sink.problem) == (0, "")
    ((path, headers, body),) = collector.requests
    assert path == "/v1/logs" and headers["content-type"] == "application/json"
    assert plain(body["resourceLogs"][0]["resource"]["attributes"])["k8s.node.name"] == "n1"
    flow, gap = collector.records
    assert (flow["timeUnixNano"], flow["severityText"]) == ("1000000000", "WARN")
    assert flow["body"] == {"stringValue": "HTTP/1.1 GET http://a/b"}
    found = plain(flow["attributes"])
    assert found["http.request.method"] == "GET" and found["url.full"] == "http://a/b"
    assert found["source.port"] == "40000" and found["network.transport"] == "tcp"
    assert found["l7proxy.verdict"] == "DROPPED" and found["l7proxy.source.pod"] == "web"
    assert found["l7proxy.policies"] == {"values": [{"stringValue": "shop/p"}]}
    assert "http.response.status_code" not in found
    assert plain(gap["attributes"])["l7proxy.lost"] == "3"


def test_many_flows_go_in_batches_over_one_connection(collector: Collector) -> None:
    sink = to(collector)
    events: list[Event] = [DENIED] * (2 * otlp.BATCH + 1)
    sink.consume(events)
    sink.close()
    assert len(collector.requests) == 3 and len(collector.records) == len(events)


def test_a_busy_collector_is_asked_again_and_a_refusing_one_is_not(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otlp, "PAUSES", (0.01, 0.01))
    sink = to(collector)
    collector.answers = [(503, b""), (429, b"")]
    sink.consume([DENIED])
    assert (len(collector.records), sink.lost, sink.problem) == (1, 0, "")
    collector.answers = [(400, b"no")]
    sink.consume([DENIED] * 2)
    assert sink.lost == 2 and "answered 400" in sink.problem
    sink.consume([DENIED])
    sink.close()
    assert (len(collector.records), sink.lost, sink.problem) == (2, 2, "")


def test_a_collector_that_is_away_costs_flows_and_ends_with_the_agent(collector: Collector) -> None:
    gone = Otlp("http://127.0.0.1:1")
    gone.hurry()
    gone.consume([DENIED] * 5)
    gone.close()
    assert gone.lost == 5 and gone.problem.startswith("OTLP 127.0.0.1: ")


def test_headers_are_sent_over_tls_and_are_in_no_message(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    path = tmp_path / "headers"
    path.write_text(f"authorization: {SECRET}\n\nx-scope: a\n")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    with collecting(context) as server:
        url = f"https://127.0.0.1:{server.server_port}/in/v1/logs"
        stranger = Otlp(url, headers_file=str(path))
        stranger.hurry()
        stranger.consume([DENIED])
        assert stranger.lost == 1 and SECRET not in stranger.problem and not server.requests
        known = Otlp(url, headers_file=str(path), ca_file=str(tmp_path / "ca.crt"))
        assert known._tls is not None
        known._tls.check_hostname = False  # the certificate's name is NAME, and no resolver knows it
        known.consume([DENIED])
        known.close()
        assert (known.lost, known.problem) == (0, ""), NAME
        ((target, headers, _),) = server.requests
        assert target == "/in/v1/logs" and (headers["authorization"], headers["x-scope"]) == (SECRET, "a")
    assert authority.certificate


@pytest.mark.parametrize(
    ("endpoint", "headers", "fault"),
    [
        ("collector:4318", None, "flow_otlp_endpoint: must be http"),
        ("https://user:s3cr3t@a/", None, "flow_otlp_endpoint: must be http"),
        ("https://a:port/", None, "flow_otlp_endpoint: must be http"),
        ("http://a", "authorization: s3cr3t", "flow_otlp_headers_file: its secrets are sent over https:// only"),
        ("https://a", "s3cr3t", "headers:1: must be `name: value`"),
        ("https://a", "a: b\nx y: s3cr3t", "headers:2: must be `name: value`"),
    ],
)
def test_what_is_wrong_is_named_without_secrets(tmp_path: Path, endpoint: str, headers: str | None, fault: str) -> None:
    path = tmp_path / "headers"
    path.write_text(headers or "")
    with pytest.raises(ConfigError) as raised:
        Otlp(endpoint, headers_file=str(path) if headers else "")
    assert fault in str(raised.value) and "s3cr3t" not in str(raised.value)
