"""Parses HTTP/1 heads strictly: our line checks, our semantic checks, and h11 as a second opinion on the syntax.

A head must pass all of lines.py, the checks below (RFC 9110, RFC 9112) and h11, which is last because our messages are
clearer. A failure is a PeerError that names the fault; its status is the one sent to a client (a server's fault becomes
502 in the gate). The path is checked last: only an otherwise valid request is redirected.
"""

from __future__ import annotations

import re
from typing import Final

import h11

from l7proxy.errors import PeerError
from l7proxy.wire import authority, framing, upgrades
from l7proxy.wire.head import MAX_HEAD, UNTIL_CLOSE, Header, Miss, RequestHead, ResponseHead
from l7proxy.wire.lines import TOKEN, HeadLines, field
from l7proxy.wire.path import STRICT, PathRules, check_length, normalise

_REQUEST_LINE = re.compile(rb"(" + TOKEN + rb") ([!-~]+) HTTP/([0-9])\.([0-9])")
_STATUS_LINE = re.compile(rb"HTTP/([0-9])\.([0-9]) ([1-5][0-9]{2})(?: .*)?")
_WITH_PORT = re.compile(rb":0*[1-9][0-9]*$")
_ABSOLUTE = re.compile(rb"((?i:http)://)([^/?#]*)(.*)")

_PROBE: Final = h11.Request(
    method=b"GET", target=b"/", headers=[(b"host", b"probe"), (b"connection", b"upgrade"), (b"upgrade", b"any")]
)
"""h11 parses a response only after a request; this one allows every kind of response."""


def request(data: bytes, rules: PathRules = STRICT) -> RequestHead | Miss:
    """The head at the start of `data`, or NEED_MORE. PeerError if it is rejected."""
    lines = request_lines()
    size = refuse_tls(data) and lines.feed(data)
    return request_head(lines, data[lines.begin : size], rules) if size else Miss.NEED_MORE


def response(data: bytes, method: bytes) -> ResponseHead | Miss:
    """The head of the response to `method` at the start of `data`, or NEED_MORE. PeerError if it is rejected."""
    lines = response_lines()
    size = lines.feed(data)
    return response_head(lines, data[:size], method) if size else Miss.NEED_MORE


def request_lines() -> HeadLines:
    return HeadLines(_check_request_line, skip_empty=True)


def response_lines() -> HeadLines:
    return HeadLines(_check_status_line, skip_empty=False)


def refuse_tls(data: bytes | bytearray) -> bool:
    """PeerError on a TLS handshake record (RFC 8446 5.1); False while there are too few bytes to decide."""
    if data[:1] != b"\x16":
        return True
    if data[:2] == b"\x16\x03":
        raise PeerError("TLS on a port with plain HTTP rules")
    return len(data) > 1


def request_head(lines: HeadLines, raw: bytes, rules: PathRules) -> RequestHead:
    """Interpret a complete head. `raw` is the head without an empty line before it."""
    method, target, minor = _request_line(lines.start)
    headers = lines.headers
    if method == b"CONNECT" and not rules.allow_connect:
        raise PeerError("CONNECT is not allowed", status=405)
    said = framing.declared(headers, minor)
    options = framing.connection_options(headers)
    upgrade = framing.upgrade(headers, options, minor)
    host = _host(headers, minor)
    prefix, host, origin = _target_form(method, target, host, headers)
    expect_continue = _expects_continue(headers, minor)
    _ask_h11_request(raw, method, target, headers)
    path = normalise(origin, rules) if origin.startswith(b"/") else origin
    size = lines.begin + len(raw)
    if upgrades.offers_carrier(headers):
        raw = upgrades.without_carriers(raw)
        headers = [field(line) for line in raw[:-4].split(b"\r\n")[1:]]
        upgrade = framing.upgrade(headers, framing.connection_options(headers), minor)
    raw = framing.canonical(raw)
    if prefix + path != target:
        raw = b"%b %b%b HTTP/1.%d\r\n%b" % (method, prefix, path, minor, raw.partition(b"\r\n")[2])
    return RequestHead(
        method=method,
        target=target,
        path=path,
        minor=minor,
        host=host,
        framing=said or 0,
        keep_alive=framing.keep_alive(options, minor),
        expect_continue=expect_continue,
        upgrade=upgrade,
        raw=raw,
        size=size,
    )


def response_head(lines: HeadLines, raw: bytes, method: bytes) -> ResponseHead:
    minor, status = _status_line(lines.start)
    headers = lines.headers
    body = framing.response_framing(headers, minor, status, method)
    options = framing.connection_options(headers)
    upgrade = framing.upgrade(headers, options, minor)
    _ask_h11_response(raw, status, headers)
    return ResponseHead(
        status=status,
        minor=minor,
        framing=body,
        keep_alive=framing.keep_alive(options, minor) and body != UNTIL_CLOSE,
        upgrade=upgrade,
        raw=framing.canonical(raw),
    )


# --- start lines -----------------------------------------------------------------------------------------------------


def _request_line(line: bytes) -> tuple[bytes, bytes, int]:
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise PeerError("the request line is not `METHOD target HTTP/1.1`")
    method, target, major, minor = match.groups()
    if line == b"PRI * HTTP/2.0":
        raise PeerError("invalid HTTP/2 connection preface", status=505)
    if major != b"1" or minor not in (b"0", b"1"):
        raise PeerError("the HTTP version is neither 1.0 nor 1.1", status=505)
    check_length(target)
    return method, target, int(minor)


def _check_request_line(line: bytes) -> None:
    _request_line(line)


def _status_line(line: bytes) -> tuple[int, int]:
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise PeerError("the status line is not `HTTP/1.1 NNN reason`")
    major, minor, status = match.groups()
    if major != b"1" or minor not in (b"0", b"1"):
        raise PeerError("the HTTP version is neither 1.0 nor 1.1")
    return int(minor), int(status)


def _check_status_line(line: bytes) -> None:
    _status_line(line)


# --- h11, the second opinion -----------------------------------------------------------------------------------------


def _ask_h11_request(raw: bytes, method: bytes, target: bytes, headers: list[Header]) -> None:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD + 1)
    event = _next_event(connection, raw)
    if not isinstance(event, h11.Request) or (bytes(event.method), bytes(event.target)) != (method, target):
        raise PeerError("ambiguous request line")
    _demand_same(event, headers)


def _ask_h11_response(raw: bytes, status: int, headers: list[Header]) -> None:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD + 1)
    connection.send(_PROBE)
    event = _next_event(connection, raw)
    if not isinstance(event, h11.Response | h11.InformationalResponse) or event.status_code != status:
        raise PeerError("ambiguous status line")
    _demand_same(event, headers)


def _next_event(connection: h11.Connection, raw: bytes) -> object:
    connection.receive_data(raw)
    try:
        return connection.next_event()
    except h11.RemoteProtocolError as error:
        raise PeerError(str(error)[:120]) from error


def _demand_same(event: h11.Request | h11.Response | h11.InformationalResponse, headers: list[Header]) -> None:
    """PeerError when h11 parsed other headers than we did. Framing headers are not compared: h11 normalises them."""
    tidied = (b"content-length", b"transfer-encoding")
    theirs = [(bytes(name), bytes(value)) for name, value in event.headers if name not in tidied]
    if theirs != [header for header in headers if header[0] not in tidied]:
        raise PeerError("ambiguous headers")


# --- semantics of a request head -------------------------------------------------------------------------------------


def _host(headers: list[Header], minor: int) -> bytes:
    hosts = framing.values(headers, b"host")
    if len(hosts) > 1:
        raise PeerError("duplicate Host")
    if not hosts:
        if minor == 1:
            raise PeerError("Host is missing")
        return b""
    if hosts[0] and not authority.is_plain(hosts[0]):
        raise PeerError("Host is not a name or address with an optional port")
    return hosts[0]


def _target_form(method: bytes, target: bytes, host: bytes, headers: list[Header]) -> tuple[bytes, bytes, bytes]:
    """RFC 9112 3.2: (prefix before the path, authority, path with query). CONNECT has no path."""
    if method == b"CONNECT":
        return target, _tunnel_target(target, headers), b""
    if target.startswith(b"/"):
        return b"", host, target
    if target == b"*":
        if method != b"OPTIONS":
            raise PeerError("the request target * is allowed only with OPTIONS")
        return b"", host, target
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise PeerError("the request target must be a path, * or an http:// URL")
    scheme, named, rest = match.groups()
    if not authority.is_plain(named):
        raise PeerError("the authority of the request target is not a name or address with an optional port")
    _demand_host(headers, named)
    return scheme + named, named, rest if rest.startswith(b"/") else b"/" + rest


def _tunnel_target(target: bytes, headers: list[Header]) -> bytes:
    """RFC 9112 3.2.3: the authority that CONNECT names, with its mandatory port."""
    if not _WITH_PORT.search(target) or not authority.is_plain(target):
        raise PeerError("the target of CONNECT is not a name or address with a port")
    if framing.declared(headers, 1):
        raise PeerError("CONNECT must not have a body")
    _demand_host(headers, target)
    return target


def _demand_host(headers: list[Header], named: bytes) -> None:
    if framing.values(headers, b"host") not in ([], [named]):
        raise PeerError("the request target and Host differ")


def _expects_continue(headers: list[Header], minor: int) -> bool:
    expectations = framing.values(headers, b"expect")
    if not expectations:
        return False
    if len(expectations) > 1 or expectations[0].lower() != b"100-continue":
        raise PeerError("Expect must be `100-continue`", status=417)
    return minor == 1
