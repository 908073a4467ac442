"""Client of any Hubble API: an agent of l7proxy or Cilium, or Hubble Relay. What `hubble observe` sends and reads.

The server filters. ConfigError says why there are no flows, and what to do.
"""

from __future__ import annotations

import base64
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf import json_format

from l7proxy.errors import ConfigError
from l7proxy.flows import flow, timestamp
from l7proxy.hubble import mask, wire
from l7proxy.hubble.api.flow import flow_pb2
from l7proxy.hubble.api.observer import observer_pb2

GET_FLOWS: Final = "/observer.Observer/GetFlows"
TLS_SCHEME: Final = "tls://"
EVERYTHING: Final = 2**64 - 1
"""As a number of flows."""
PRINTED: Final = (*sorted(mask.STOCK), *mask.MISSED_BY_STOCK, "policy_log")
"""The fields that are printed, if not as JSON."""
LARGEST: Final = 64 << 20
"""Bytes of a message."""
HANDSHAKE: Final = 10.0
"""Seconds to fetch a certificate that is not verified."""


@dataclass(frozen=True, slots=True)
class Server:
    """`address`: HOST:PORT or unix:///path, without `tls://`. `timeout`: seconds to connect."""

    address: str
    tls: bool = False
    allow_insecure: bool = False
    server_name: str = ""
    ca_files: Sequence[str] = ()
    cert_file: str = ""
    key_file: str = ""
    username: str = ""
    password: str = ""
    timeout: float = 5.0

    def __str__(self) -> str:
        return self.address


def flows(server: Server, request: observer_pb2.GetFlowsRequest) -> Iterator[flow.Response]:
    """The responses as they arrive; closing the iterator ends the call."""
    with _channel(server) as channel:
        call = channel.unary_stream(
            GET_FLOWS,
            request_serializer=observer_pb2.GetFlowsRequest.SerializeToString,
            response_deserializer=observer_pb2.GetFlowsResponse.FromString,
        )(request, metadata=_metadata(server))
        try:
            for response in call:
                yield response_of(response)
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.CANCELLED:
                raise ConfigError(_why(server, error.code(), error.details() or "")) from error
        finally:
            call.cancel()


def request(wanted: Mapping[str, Any], paths: Sequence[str]) -> observer_pb2.GetFlowsRequest:
    """Of a request as the agent's `observe` takes it. `paths`: the field mask, empty for all fields."""
    filters = wanted.get("filters", {})
    first, last = wanted.get("first", 0), wanted.get("last", 0)
    asked = observer_pb2.GetFlowsRequest(
        number=first or last,
        first=bool(first),
        follow=bool(wanted.get("follow")),
        whitelist=[_filter(one) for one in filters.get("whitelist", ())],
        blacklist=[_filter(one) for one in filters.get("blacklist", ())],
    )
    for name in ("since", "until"):
        if name in wanted:
            moment = getattr(asked, name)
            moment.seconds, moment.nanos = divmod(timestamp.parse(wanted[name]), timestamp.SECOND)
    asked.field_mask.paths.extend(paths)
    return asked


def _filter(fields: Mapping[str, Any]) -> flow_pb2.FlowFilter:
    try:
        return json_format.ParseDict(dict(fields), flow_pb2.FlowFilter())
    except json_format.ParseError as error:
        raise ConfigError(f"invalid filter: {error}") from error


def response_of(message: observer_pb2.GetFlowsResponse) -> flow.Response:
    """As `flows.flow` has it. An extension of a type that is not known is left out."""
    known = {f"type.googleapis.com/{one.DESCRIPTOR.full_name}" for one in wire.EXTENSION_TYPES}
    if message.flow.HasField("extensions") and message.flow.extensions.type_url not in known:
        message.flow.ClearField("extensions")
    return flow.of_object(json_format.MessageToDict(message, preserving_proto_field_name=True))


# The connection.


def _channel(server: Server) -> grpc.Channel:
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", LARGEST),
        ("grpc.min_reconnect_backoff_ms", round(server.timeout * 1000)),
        ("grpc.enable_http_proxy", 0),
    ]
    if not server.tls:
        if server.cert_file or server.key_file:
            raise ConfigError(
                "--tls-client-cert-file and --tls-client-key-file need --tls, or a server tls://HOST:PORT"
            )
        if server.username:
            raise ConfigError("--basic-auth-username needs --tls: the password would be sent in clear text")
        return grpc.insecure_channel(server.address, options=options)
    if bool(server.cert_file) != bool(server.key_file):
        raise ConfigError("--tls-client-cert-file and --tls-client-key-file must be set together")
    roots, name = _fetched(server) if server.allow_insecure else (_roots(server.ca_files), "")
    name = server.server_name or name
    if name:
        options.append(("grpc.ssl_target_name_override", name))
    credentials = grpc.ssl_channel_credentials(
        root_certificates=roots,
        private_key=_read(server.key_file, "--tls-client-key-file") if server.key_file else None,
        certificate_chain=_read(server.cert_file, "--tls-client-cert-file") if server.cert_file else None,
    )
    return grpc.secure_channel(server.address, credentials, options=options)


def _roots(files: Sequence[str]) -> bytes | None:
    """The given CAs, else those of the system; None: those of the library."""
    if files:
        found = [_read(name, "--tls-ca-cert-files") for name in files]
        for name, content in zip(files, found, strict=True):
            if b"-----BEGIN CERTIFICATE-----" not in content:
                raise ConfigError(f"--tls-ca-cert-files {name}: must hold PEM encoded certificates")
        return b"\n".join(found)
    of_system = ssl.get_default_verify_paths().cafile
    return Path(of_system).read_bytes() if of_system and Path(of_system).is_file() else None


def _read(name: str, option: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise ConfigError(f"{option} {name}: {error.strerror or error}") from error


def _fetched(server: Server) -> tuple[bytes, str]:
    """The server's own certificate, and a name in it: gRPC cannot trust any, so exactly this one is trusted. The second
    connection trusts it too, since only a verified certificate is shown with its names."""
    anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    certificate = ssl.DER_cert_to_PEM_cert(_peer(server, anyone, binary=True))
    this = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    this.check_hostname = False
    this.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    this.load_verify_locations(cadata=certificate)
    names = [value for _, value in _peer(server, this, binary=False).get("subjectAltName", ())]
    return certificate.encode(), str(names[0]).replace("*", "any") if names else ""


def _peer(server: Server, context: ssl.SSLContext, *, binary: bool) -> Any:
    context.set_alpn_protocols(["h2"])
    host, _, port = server.address.rpartition(":")
    host = host.strip("[]")
    try:
        if server.cert_file:
            context.load_cert_chain(server.cert_file, server.key_file)
        with (
            socket.create_connection((host, int(port)), timeout=HANDSHAKE) as plain,
            context.wrap_socket(plain, server_hostname=server.server_name or host) as connection,
        ):
            return connection.getpeercert(binary_form=binary)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot fetch the certificate of {server}: {error}") from error


def _metadata(server: Server) -> tuple[tuple[str, str], ...]:
    if bool(server.username) != bool(server.password):
        raise ConfigError("--basic-auth-username and --basic-auth-password must be set together")
    if not server.username:
        return ()
    encoded = base64.b64encode(f"{server.username}:{server.password}".encode()).decode()
    return (("authorization", f"Basic {encoded}"),)


def _why(server: Server, code: grpc.StatusCode, details: str) -> str:
    """What failed, and what to do. The server's own words about a request are passed on as they are."""
    if code == grpc.StatusCode.UNKNOWN:
        return details
    if code == grpc.StatusCode.UNAVAILABLE:
        return f"cannot read flows from {server}: {_hint(server, details)} ({details})"
    if code == grpc.StatusCode.UNIMPLEMENTED:
        return f"{server} does not serve Hubble's API ({details}): check the address"
    return f"rpc error: code = {code.name} desc = {details}"


def _hint(server: Server, details: str) -> str:
    lowered = details.lower()
    if "lookup" in lowered or "resolution" in lowered:
        return "its name is not known: check the address"
    if "certificate_verify_failed" in lowered or "unknown_ca" in lowered or "self signed" in lowered:
        return "its certificate is not trusted: give its CA by --tls-ca-cert-files"
    if "not in peer certificate" in lowered or "hostname verification" in lowered:
        return "its certificate is for another name: give that by --tls-server-name"
    if "certificate_required" in lowered or "certificate required" in lowered:
        return "it asks for a client certificate: --tls-client-cert-file, --tls-client-key-file"
    if "wrong_version_number" in lowered:
        return "it does not use TLS: leave out --tls"
    if "handshake" in lowered or "ssl" in lowered:
        return "the TLS handshake failed: check --tls-ca-cert-files, --tls-client-cert-file and --tls-server-name"
    if "refused" in lowered or "no such file" in lowered:
        return "nothing listens there: check the address, and that Hubble is enabled"
    if "closed" not in lowered and "reset" not in lowered:
        return "it cannot be reached: check the address and the network"
    if server.tls:
        return "the connection was closed: does it ask for a client certificate (--tls-client-cert-file)?"
    return "the connection was closed: if it uses TLS, add --tls"
