"""Parses HTTP/1 heads fast: only the common, unambiguous cases.

http1_usual reads the most common heads, natively where the package is compiled; a regular expression matches less
common, unambiguous heads, whose headers are then examined. Neither guesses nor repairs. The result is a head, NEED_MORE
or ODD; on ODD the caller gives the same bytes to http1_strict. Law: whenever this returns a head, http1_strict returns
the same one.
"""

from __future__ import annotations

import re
from typing import Final

from l7proxy.errors import PeerError
from l7proxy.wire import authority, http1_usual
from l7proxy.wire.head import CHUNKED, MAX_HEAD, MAX_HEADERS, UNTIL_CLOSE, Header, Miss, RequestHead, ResponseHead
from l7proxy.wire.path import MAX_PATH, MAX_TARGET, QUERY, SEGMENTS, STRICT, PathRules, normalise

# Names without punctuation except the hyphen (some servers equate others with it); values in ASCII, without tabs and
# without a space at the end. The strict reader handles the rest.
_LINE: Final = rb"[\-0-9A-Za-z]++:[ -~]*+(?<! )\r\n"
_REQUEST_LINE: Final = rb"([A-Z]{1,16}+) ((" + SEGMENTS + rb")(?:" + QUERY + rb")?+) HTTP/1\.1\r\n"
_STATUS_LINE: Final = rb"HTTP/1\.1 ([2-5][0-9]{2})(?: [ -~]*+)?+\r\n"

_REQUEST: Final = re.compile(_REQUEST_LINE + rb"((?:" + _LINE + rb")*+)\r\n")
_RESPONSE: Final = re.compile(_STATUS_LINE + rb"((?:" + _LINE + rb")*+)\r\n")
_FIELD: Final = re.compile(rb"([^:]++): *+([^\r]*+)\r\n")
_FRAMING_FIELD: Final = re.compile(rb"\n(content-length|transfer-encoding|connection|upgrade): *+([^\r]*+)")
_KEEP_ALIVE: Final = {None: True, b"keep-alive": True, b"Keep-Alive": True, b"close": False}
_RARE: Final = frozenset({b"transfer-encoding", b"connection", b"expect", b"upgrade"})
_SINGLE: Final = _RARE | {b"host", b"content-length"}
_MANY_BYTES: Final = 4 * MAX_HEADERS
"""A head of at most this many bytes cannot contain too many headers."""

_DOUBTFUL: Final = re.compile(rb"/[/.]")
"""A path that matches may need normalisation."""
_ZERO: Final = ord("0")


def request(data: bytes, rules: PathRules = STRICT) -> RequestHead | Miss:
    usual = http1_usual.request(data)
    if usual is None:
        return _unusual_request(data, rules)
    method, target, host, framing, keep_alive, traced, size = usual
    raw = data if size == len(data) else data[:size]
    return RequestHead(method, target, target, 1, host, framing, keep_alive, False, (), raw, size, traced)


def _unusual_request(data: bytes, rules: PathRules) -> RequestHead | Miss:
    match = _REQUEST.match(data)
    if match is None:
        return _miss(data)
    method, target, path, block = match.groups()
    headers = [(name.lower(), value) for name, value in _FIELD.findall(block)]
    named = dict(headers)
    if len(named) != len(headers) and _repeats(headers):
        return Miss.ODD
    size = match.end()
    host = named.get(b"host", b"")
    body = _body(named, data, size, 0)
    if body is None or not host or not authority.is_plain(host):
        return Miss.ODD
    return _request(data, rules, method, target, path, host, *body, size)


def _request(
    data: bytes,
    rules: PathRules,
    method: bytes,
    target: bytes,
    path: bytes,
    host: bytes,
    framing: int,
    keep_alive: bool,
    size: int,
) -> RequestHead | Miss:
    if method == b"CONNECT" or len(path) > MAX_PATH or len(target) > MAX_TARGET:
        return Miss.ODD
    raw = data if size == len(data) else data[:size]
    if _DOUBTFUL.search(path) is not None:
        try:
            path = normalise(target, rules)
        except PeerError:
            return Miss.ODD
        if path != target:
            raw = b"%b %b HTTP/1.1\r\n%b" % (method, path, raw.partition(b"\r\n")[2])
    else:
        path = target
    return RequestHead(method, target, path, 1, host, framing, keep_alive, False, (), raw, size)


def response(data: bytes, method: bytes) -> ResponseHead | Miss:
    usual = http1_usual.response(data)
    if usual is None:
        return _unusual_response(data, method)
    status, framing, keep_alive, size = usual
    return _response(data, method, status, framing, keep_alive, size)


def _unusual_response(data: bytes, method: bytes) -> ResponseHead | Miss:
    match = _RESPONSE.match(data)
    if match is None:
        return _miss(data)
    digits, block = match.groups()
    lower = block.lower()
    found = _FRAMING_FIELD.findall(b"\n" + lower)
    named = dict(found)
    if len(named) != len(found):
        return Miss.ODD
    if b"transfer-encoding" in named and block.count(b"chunked") != lower.count(b"chunked"):  # not in lower case
        return Miss.ODD
    size = match.end()
    body = _body(named, data, size, UNTIL_CLOSE)
    return Miss.ODD if body is None else _response(data, method, int(digits), *body, size)


def _response(
    data: bytes, method: bytes, status: int, framing: int, keep_alive: bool, size: int
) -> ResponseHead | Miss:
    if status == 204 or status == 304 or method != b"GET":
        if method == b"CONNECT" or (status == 204 and framing not in (0, UNTIL_CLOSE)):
            return Miss.ODD
        if status == 204 or status == 304 or method == b"HEAD":
            framing = 0
    raw = data if size == len(data) else data[:size]
    return ResponseHead(status, 1, framing, keep_alive and framing != UNTIL_CLOSE, (), raw)


def _miss(data: bytes) -> Miss:
    return Miss.ODD if b"\r\n\r\n" in data else Miss.NEED_MORE


def _too_much(data: bytes, size: int) -> bool:
    """More bytes or headers than allowed. The start line and the empty line are not headers."""
    return size > MAX_HEAD or data.count(b"\n", 0, size) - 2 > MAX_HEADERS


def _repeats(headers: list[Header]) -> bool:
    """True when a header that may occur only once is repeated."""
    single = [name for name, _ in headers if name in _SINGLE]
    return len(single) != len(set(single))


def _body(named: dict[bytes, bytes], data: bytes, size: int, framing: int) -> tuple[int, bool] | None:
    """(framing, keep_alive). `framing` is the default without framing headers. None when anything is uncommon."""
    if size > _MANY_BYTES and _too_much(data, size):
        return None
    length = named.get(b"content-length")
    if length is not None:
        if not length.isdigit() or len(length) > 18 or (length[0] == _ZERO and length != b"0"):
            return None
        framing = int(length)
    if _RARE.isdisjoint(named):
        return framing, True
    coding = named.get(b"transfer-encoding")
    if coding is not None:
        if coding != b"chunked" or length is not None:
            return None
        framing = CHUNKED
    keep_alive = _KEEP_ALIVE.get(named.get(b"connection"))
    if keep_alive is None or b"expect" in named or b"upgrade" in named:
        return None
    return framing, keep_alive
