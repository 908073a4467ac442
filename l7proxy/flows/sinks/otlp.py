"""Flows as OpenTelemetry logs, sent by OpenTelemetry's own exporter: OTLP over HTTP, as protobuf.

The exporter encodes, compresses and retries. This module adds the rest: only our settings choose the endpoint and the
certificates, never the environment; a redirect or a partial success is not counted as success; `problem` has the
collector's last answer. If the collector is slow or unavailable, flows are lost and counted, and traffic does not wait:
the sink has a thread of its own, and the ring is its queue. Header values are secret: they are in no message.
"""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import certifi
import requests
from google.protobuf.message import DecodeError
from opentelemetry.exporter.otlp.proto.http import Compression, _log_exporter
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.sdk._logs.export import LogRecordExportResult

from l7proxy.errors import ConfigError
from l7proxy.flows.event import Event
from l7proxy.flows.sinks.otlp_records import LogRecords

BATCH: Final = 512
"""Flows in one request."""
TIMEOUT: Final = 10.0
"""Seconds for the collector to take a request, and to answer it."""
RETRY_FOR: Final = 40.0
"""Seconds that a batch may take with all tries: the exporter pauses for 1, 2, 4, 8, 16 s, so it tries for half a
minute, unless a busy collector names another time."""
LAST: Final = 2.0
"""The same for a batch at the end: the agent must not wait for a collector that is away."""
ANSWER: Final = 4096
"""Bytes that are read of an answer: a collector must not fill our memory."""

# `problem` has each error already, with the collector's answer.
logging.getLogger(_log_exporter.__name__).setLevel(logging.CRITICAL)


class Otlp:
    """`endpoint`: http:// or https://HOST[:PORT][/PATH]; without a path `/v1/logs`. `headers_file`: lines
    `name: value`, read again for each request. `ca_file`: PEM; empty: those of the system, or of certifi where it has
    none. `cert_file` and `key_file`: PEM, the client certificate for mutual TLS; read again for each connection.
    ConfigError says what is wrong."""

    def __init__(
        self,
        endpoint: str,
        *,
        headers_file: str = "",
        ca_file: str = "",
        cert_file: str = "",
        key_file: str = "",
        node: str = "",
        cluster: str = "",
    ) -> None:
        self.lost = 0
        self.problem = ""
        url = _checked(endpoint)
        secrets = {"headers_file": headers_file, "cert_file": cert_file, "key_file": key_file}
        for name, given in secrets.items():
            if given and not url.startswith("https:"):
                raise ConfigError(f"flow_otlp_{name}: its secrets are sent over https:// only")
        _check_certificates(ca_file, cert_file, key_file)
        self._host = urlsplit(url).hostname
        self._session = _Session(Path(headers_file) if headers_file else None)
        self._patient, self._brief = (
            OTLPLogExporter(url, timeout=seconds, compression=Compression.Gzip, session=self._session)
            for seconds in (RETRY_FOR, LAST)
        )
        self._session.verify = ca_file or _authorities()  # after the exporters, which set what the environment says
        self._session.cert = (cert_file, key_file) if cert_file else None
        self._records = LogRecords(node=node, cluster=cluster)
        self._hurried = threading.Event()

    def consume(self, events: Sequence[Event]) -> None:
        for start in range(0, len(events), BATCH):
            some = events[start : start + BATCH]
            if self._hurried.is_set() and self.problem:
                self.lost += len(some)
            else:
                self._send(some)

    def hurry(self) -> None:
        if not self._hurried.is_set():
            self._hurried.set()
            self._patient.shutdown()  # type: ignore[no-untyped-call]  # ends its pause before the next try

    def close(self) -> None:
        self.hurry()
        self._brief.shutdown()  # type: ignore[no-untyped-call]

    def _send(self, events: Sequence[Event]) -> None:
        taken = self._export([self._records.of(event) for event in events])
        self.lost += self._session.rejected if taken else len(events)
        problem = self._session.problem
        self.problem = f"OTLP {self._host}: {problem}" if problem else ""

    def _export(self, records: Sequence[Any]) -> bool:
        """Whether the collector took them, as far as it did not reject some."""
        self._session.forget()
        if not self._hurried.is_set() and self._exported(self._patient, records):
            return True
        # hurry() may have shut down the patient exporter before its first attempt.
        return self._hurried.is_set() and self._exported(self._brief, records)

    def _exported(self, exporter: OTLPLogExporter, records: Sequence[Any]) -> bool:
        """The exporter itself reports a redirect as success."""
        result = exporter.export(records)
        if result is not LogRecordExportResult.SUCCESS and not self._session.problem:
            self._session.problem = "the flows cannot be encoded"
        return result is LogRecordExportResult.SUCCESS and not self._session.refused


class _Session(requests.Session):
    """Keeps the collector's last answer: the exporter returns only success or failure."""

    def __init__(self, headers_file: Path | None) -> None:
        super().__init__()
        self.trust_env = False  # no proxy from the environment, and no password from ~/.netrc
        self._headers_file = headers_file
        if headers_file:
            _headers(headers_file)
        self.forget()

    def forget(self) -> None:
        self.problem = ""
        self.refused = False
        self.rejected = 0

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        self.forget()
        self.refused = True
        timeout = min(options.pop("timeout", None) or TIMEOUT, TIMEOUT)
        try:
            if self._headers_file:
                request.headers.update(_headers(self._headers_file))
            answer = super().send(request, **options | {"stream": True, "timeout": timeout})
            said = answer.raw.read(ANSWER + 1)
        except Exception as error:
            self.problem = _cause(error)
            raise
        if len(said) > ANSWER:
            answer.close()
        self.refused = answer.status_code >= 300
        if self.refused:
            self.problem = f"the collector answered {answer.status_code} {answer.reason}"
        else:
            self.rejected = _rejected(said)
            self.problem = f"the collector rejected {self.rejected} flows" if self.rejected else ""
        return answer


def _checked(endpoint: str) -> str:
    """With the path of logs, if it has none."""
    fault = (
        f"flow_otlp_endpoint: must be http:// or https://HOST[:PORT][/PATH], not {_without_secrets(endpoint)!r:.200}"
    )
    try:
        url = urlsplit(endpoint)
        _ = url.port
    except ValueError as error:
        raise ConfigError(fault) from error
    if url.scheme not in ("http", "https") or not url.hostname or url.username or url.query or url.fragment:
        raise ConfigError(fault)
    return url._replace(path=url.path.rstrip("/") or "/v1/logs").geturl()


def _without_secrets(endpoint: str) -> str:
    """A user may have put a password into the URL by mistake."""
    return endpoint.rpartition("@")[2].partition("?")[0]


def _check_certificates(ca_file: str, cert_file: str, key_file: str) -> None:
    """As they are at start. Empty names are files that are not used."""
    if bool(cert_file) != bool(key_file):
        raise ConfigError("flow_otlp_cert_file, flow_otlp_key_file: each needs the other")
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"flow_otlp_ca_file {ca_file}: not PEM certificates: {error}") from error
    if cert_file:
        try:
            context.load_cert_chain(cert_file, key_file, password=lambda: "")
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"flow_otlp_cert_file {cert_file}, flow_otlp_key_file {key_file}: "
                f"not a PEM certificate and its unencrypted key: {error}"
            ) from error


def _authorities() -> str:
    """A file, or a directory."""
    paths = ssl.get_default_verify_paths()
    if paths.cafile:
        return paths.cafile
    filled = paths.capath and next(Path(paths.capath).glob("*.0"), None)
    return paths.capath if filled and paths.capath else certifi.where()


def _headers(path: Path) -> dict[str, str]:
    """ConfigError names the line, never what is in it."""
    try:
        lines = path.read_text("ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"flow_otlp_headers_file {path}: cannot be read as ASCII text") from error
    found = {}
    for number, line in enumerate(lines, 1):
        name, colon, value = line.partition(":")
        if line.strip():
            if not colon or not name.strip().replace("-", "").isalnum() or not value.strip().isprintable():
                raise ConfigError(f"flow_otlp_headers_file {path}:{number}: must be `name: value`")
            found[name.strip()] = value.strip()
    return found


def _rejected(answer: bytes) -> int:
    """A collector may take a part of the batch only."""
    try:
        return int(ExportLogsServiceResponse.FromString(answer).partial_success.rejected_log_records)
    except DecodeError:  # not protobuf: only the status code counts
        return 0


def _cause(error: BaseException) -> str:
    """The first of a chain of errors: the others name the URL and the attempts."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(error) or type(error).__name__
