"""Flows as OpenTelemetry logs, sent to a small real HTTP server."""

from __future__ import annotations

import base64
import gzip
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2

from l7proxy.errors import ConfigError
from l7proxy.flows.event import Event, Lost
from l7proxy.flows.flow import IP, Endpoint, Flow, Http, Layer4, Layer7, Policy, Ports, TraceContext, TraceParent
from l7proxy.flows.sinks import otlp
from l7proxy.flows.sinks.otlp import Otlp
from tests.unit.hubble.authority import Authority

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
    trace_context=TraceContext(parent=TraceParent(trace_id="0af7651916cd43dd8448eb211c80319c")),
    summary="HTTP/1.1 GET http://a/b",
)


class Collector(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[tuple[int, bytes]] = []
        """For the next requests; then 200."""
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.connections = 0
        self.release = threading.Event()
        """Until it is set, requests wait for their answers."""
        self.release.set()

    @property
    def records(self) -> list[Any]:
        return [one for _, _, body in self.requests for one in body["resourceLogs"][0]["scopeLogs"][0]["logRecords"]]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Collector

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_POST(self) -> None:
        packed = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.release.wait(20)
        request = logs_service_pb2.ExportLogsServiceRequest.FromString(gzip.decompress(packed))
        body = MessageToDict(request)
        status, answer = self.server.answers.pop(0) if self.server.answers else (200, b"")
        if status == 200:
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.server.requests.append((self.path, headers, body))
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.send_header("Retry-After", "0")
        self.send_header("Location", "/elsewhere")
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


def partial(rejected: int) -> bytes:
    answer = logs_service_pb2.ExportLogsServiceResponse()
    answer.partial_success.rejected_log_records = rejected
    return answer.SerializeToString()


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
    assert path == "/v1/logs" and headers["content-type"] == "application/x-protobuf"
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
    assert base64.b64decode(flow["traceId"]).hex() == "0af7651916cd43dd8448eb211c80319c"
    assert plain(gap["attributes"])["l7proxy.lost"] == "3"


def test_many_flows_go_in_batches_over_one_connection(collector: Collector) -> None:
    sink = to(collector)
    events: list[Event] = [DENIED] * (2 * otlp.BATCH + 1)
    sink.consume(events)
    sink.close()
    assert len(collector.requests) == 3 and len(collector.records) == len(events)
    assert collector.connections == 1


def test_a_busy_collector_is_asked_again_and_a_refusing_one_is_not(collector: Collector) -> None:
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


@pytest.mark.parametrize("answer", [(302, b""), (200, partial(2)), (200, partial(2) + b"x" * 9000)])
def test_neither_a_redirection_nor_a_partial_success_counts_as_sent(collector: Collector, answer: Any) -> None:
    sink = to(collector)
    collector.answers = [answer]
    sink.consume([DENIED] * 3)
    sink.consume([])
    status, text = answer
    expected = (3, "answered 302") if status == 302 else (2, "rejected 2 flows") if len(text) < 9000 else (0, "")
    assert (sink.lost, expected[1] in sink.problem) == (expected[0], True)
    sink.consume([DENIED])
    sink.close()
    assert (sink.lost, sink.problem) == (expected[0], "")


def test_the_end_does_not_wait_for_a_collector_that_is_busy(collector: Collector) -> None:
    """It is between two tries, whose pause would be 1 s, 2 s, 4 s, …: the end breaks it off, and tries once more."""
    sink = to(collector)
    collector.answers = [(503, b"later")] * 100
    ended = threading.Event()

    def send() -> None:
        sink.consume([DENIED] * 2)
        sink.consume([DENIED])
        sink.close()
        ended.set()

    sender = threading.Thread(target=send)
    sender.start()
    while len(collector.answers) == 100:
        time.sleep(0.001)
    sink.hurry()
    sender.join(otlp.LAST + otlp.TIMEOUT)
    assert ended.is_set() and sink.lost == 3 and "answered 503" in sink.problem


def test_what_a_healthy_collector_is_sent_at_the_end_arrives(collector: Collector) -> None:
    sink = to(collector)
    sink.consume([DENIED])
    sink.hurry()
    sink.consume([DENIED] * 3)
    sink.close()
    assert (len(collector.records), sink.lost, sink.problem) == (4, 0, "")


class Secured:
    """What is in the directory of an authority, and a collector that has a certificate of it."""

    def __init__(self, directory: Path, *, clients: bool = False) -> None:
        Authority(directory)
        self.files = {"ca_file": str(directory / "ca.crt")}
        self.own = {"cert_file": str(directory / "tls.crt"), "key_file": str(directory / "tls.key")}
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(directory / "tls.crt", directory / "tls.key")
        if clients:
            self.context.verify_mode = ssl.CERT_REQUIRED
            self.context.load_verify_locations(directory / "ca.crt")


def lost_by(sink: Otlp) -> tuple[int, str]:
    """Of one flow, without waiting for another try."""
    sink.hurry()
    sink.consume([DENIED])
    sink.close()
    return sink.lost, sink.problem


def test_headers_are_sent_over_tls_and_are_in_no_message(tmp_path: Path) -> None:
    secured = Secured(tmp_path)
    path = tmp_path / "headers"
    path.write_text(f"authorization: {SECRET}\n\nx-scope: a\n")
    with collecting(secured.context) as server:
        url = f"https://127.0.0.1:{server.server_port}/in/v1/logs"
        lost, problem = lost_by(Otlp(url, headers_file=str(path)))
        assert lost == 1 and SECRET not in problem and "certificate verify failed" in problem and not server.requests
        known = Otlp(url, headers_file=str(path), **secured.files)
        known.consume([DENIED])
        path.write_text("authorization: Bearer new\n")
        known.consume([DENIED])
        path.write_text("s3cr3t")
        known.consume([DENIED])
        known.close()
        assert (known.lost, "headers:1: must be `name: value`" in known.problem) == (1, True), known.problem
        (target, first, _), (_, second, _) = server.requests
        assert target == "/in/v1/logs" and (first["authorization"], first["x-scope"]) == (SECRET, "a")
        assert second["authorization"] == "Bearer new" and "x-scope" not in second


def test_a_client_certificate_is_shown_and_read_again(tmp_path: Path) -> None:
    (mine := tmp_path / "mine").mkdir()
    (other := tmp_path / "other").mkdir()
    secured, stranger = Secured(mine, clients=True), Secured(other)
    with collecting(secured.context) as server:
        url = f"https://127.0.0.1:{server.server_port}"
        assert lost_by(Otlp(url, **secured.files))[0] == 1
        assert lost_by(Otlp(url, **secured.files, **stranger.own))[0] == 1
        assert not server.requests
        changing = Otlp(url, **secured.files, **stranger.own)
        for name in ("tls.crt", "tls.key"):
            (other / name).write_bytes((mine / name).read_bytes())
        assert lost_by(changing) == (0, "")
        assert len(server.records) == 1


def test_the_environment_chooses_no_proxy_and_no_certificate(
    collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secured = Secured(tmp_path)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    for name in ("REQUESTS_CA_BUNDLE", "OTEL_EXPORTER_OTLP_CERTIFICATE", "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"):
        monkeypatch.setenv(name, str(tmp_path / "ca.crt"))
    assert lost_by(to(collector)) == (0, "")
    with collecting(secured.context) as server:
        lost, problem = lost_by(Otlp(f"https://127.0.0.1:{server.server_port}"))
        assert lost == 1 and "certificate verify failed" in problem


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


def test_certificates_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    secured = Secured(tmp_path)
    own, junk = secured.own, tmp_path / "junk"
    junk.write_text("no PEM")
    for options, fault in (
        ({"ca_file": str(junk)}, f"flow_otlp_ca_file {junk}: not PEM certificates"),
        ({"cert_file": own["cert_file"]}, "flow_otlp_cert_file, flow_otlp_key_file: each needs the other"),
        ({**own, "key_file": str(junk)}, f"flow_otlp_key_file {junk}: not a PEM certificate and its unencrypted key"),
        ({**own, "cert_file": str(tmp_path / "none")}, "not a PEM certificate and its unencrypted key"),
    ):
        with pytest.raises(ConfigError) as raised:
            Otlp("https://a", **options)
        assert fault in str(raised.value)
    with pytest.raises(ConfigError, match="flow_otlp_cert_file: its secrets are sent over https:// only"):
        Otlp("http://a", **own)
