"""Checks and interprets the fields of an HTTP/2 message (RFC 9113 8): strictly, for policy the same as in HTTP/1.

Laws: what is evaluated is what is forwarded, in the order received, nothing added, only `:path` in its normal form.
What HTTP/1 rejects is rejected here with the same reason and status. A PeerError concerns only the one message; its
status is the one sent to a client (a server's fault becomes 502 in the gate).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from l7proxy.errors import PeerError
from l7proxy.model.cache import remember
from l7proxy.model.http import Headers, Rewrite, alike, edited
from l7proxy.wire import authority
from l7proxy.wire.framing import content_length
from l7proxy.wire.head import MAX_HEAD, MAX_HEADERS, Header
from l7proxy.wire.http2_fields import TABLE_SIZE, FieldBlock
from l7proxy.wire.lines import passes_for_framing
from l7proxy.wire.path import PathRules, normalise

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_LOWER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_IN_VALUES: Final = bytes({0x09, *range(0x20, 0x100)} - {0x7F})
_STATUS = re.compile(rb"[1-5][0-9]{2}")
_CONTENT: Final = b"content-length"
_CONNECTION_SPECIFIC: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"http2-settings"}
)
_WATCHED: Final = frozenset({b"host", _CONTENT, b"te", b"expect", b"cookie", b"content-type"})
_NO_TRAILERS: Final = frozenset(
    b"authorization content-encoding content-length content-range content-type cookie expect host max-forwards "
    b"proxy-authorization range set-cookie te trailer www-authenticate".split()
)
"""Fields that frame, route or authorise a message must come before its content (RFC 9110 6.5.1)."""

Paths = dict[bytes, bytes]
"""Normalised targets of one connection: as received → normal form."""

MOST_PATHS: Final = 4
"""Entries kept. HPACK's table cannot hold more long targets, and only long ones are expensive."""

_LONG_NAME: Final = 64
_PSEUDO: Final = frozenset({b":method", b":scheme", b":authority", b":path"})
_GRPC: Final = re.compile(rb"application/grpc(?:[+;].*)?", re.IGNORECASE | re.DOTALL)


@dataclass(slots=True)
class RequestHead:
    """`headers` is what policy sees: `host` is the authority, split Cookie fields are joined (RFC 9113 8.2.3).
    `instead` is forwarded when the path was normalised. The head must not refer to the block it was read from: the
    block caches the head, and only the garbage collector would free the cycle."""

    method: bytes
    path: bytes
    host: bytes
    headers: Headers
    instead: FieldBlock | None
    length: int | None
    grpc: bool


@dataclass(slots=True)
class ResponseHead:
    status: int
    headers: Headers
    length: int | None


def request(block: FieldBlock, rules: PathRules, paths: Paths | None = None) -> RequestHead:
    """Cached in the block, which must always be read with the same rules. `paths`: those of its connection."""
    known = block.reading
    if known.__class__ is RequestHead:
        head: RequestHead = known
        return head
    head = block.reading = _request(block, rules, {} if paths is None else paths)
    return head


def response(block: FieldBlock) -> ResponseHead:
    known = block.reading
    if known.__class__ is ResponseHead:
        head: ResponseHead = known
        return head
    head = block.reading = _response(block)
    return head


def check_trailers(block: FieldBlock) -> None:
    if block.reading is check_trailers:
        return
    _check_size(block)
    for name, value in block.fields:
        if name[:1] == b":":
            raise PeerError("pseudo-headers are not allowed in trailers")
        _check(name, value)
        if alike(name) in _NO_TRAILERS:
            raise PeerError(f"{name.decode()} is not allowed in trailers")
    block.reading = check_trailers


def check_repeats(trailers: FieldBlock, judged: Iterable[Header]) -> None:
    """PeerError when a trailer repeats a header: recipients may merge trailers into the head (RFC 9110 6.5.2)."""
    names = {alike(name) for name, _ in judged}
    for name, _ in trailers.fields:
        if alike(name) in names:
            raise PeerError(f"field {name.decode()} is in both the headers and the trailers")


def rewritten(block: FieldBlock, rewrite: Rewrite) -> FieldBlock:
    """The block with its headers edited. Secret headers are never indexed."""
    pseudo = [field for field in block.fields if field[0][:1] == b":"]
    hidden = {block.fields[place] for place in block.secret}
    hidden.update((edit.name.lower(), edit.value) for edit in rewrite.edits if edit.secret)
    fields = [*pseudo, *edited(block.fields[len(pseudo) :], rewrite.edits)]
    return FieldBlock(fields, block.size, frozenset(place for place, field in enumerate(fields) if field in hidden))


def is_grpc(fields: list[Header]) -> bool:
    """Also safe for fields that are not checked yet."""
    return any(name == b"content-type" and _GRPC.fullmatch(value) for name, value in fields)


# --- requests --------------------------------------------------------------------------------------------------------


def _request(block: FieldBlock, rules: PathRules, paths: Paths) -> RequestHead:
    _check_size(block)
    pseudo, start = _pseudo(block.fields)
    regular = block.fields[start:]
    special = _special(regular)
    method, target, named = _request_line(pseudo)
    host = _host(named, special.get(b"host", []))
    length = content_length(special.get(_CONTENT, []))
    if any(value != b"trailers" for value in special.get(b"te", ())):
        raise PeerError("TE must be `trailers`")
    if any(value.lower() != b"100-continue" for value in special.get(b"expect", ())):
        raise PeerError("Expect must be `100-continue`", status=417)
    path = target if target == b"*" else _normal(target, rules, paths)
    headers = regular if b"host" in special else [(b"host", host), *regular]
    if len(special.get(b"cookie", ())) > 1:
        headers = _joined_cookies(headers, special[b"cookie"])
    instead = None
    if path != target:
        fields = [(name, path if name == b":path" else value) for name, value in block.fields]
        instead = FieldBlock(fields, block.size, block.secret)
    grpc = any(_GRPC.fullmatch(value) for value in special.get(b"content-type", ()))
    return RequestHead(method, path, host, headers, instead, length, grpc)


def _normal(target: bytes, rules: PathRules, paths: Paths) -> bytes:
    """Cached: a path in HPACK's table can be repeated with one byte, and must not be normalised each time."""
    known = paths.get(target) if paths else None
    if known is not None:
        return known
    path = normalise(target, rules)
    if path is not target and len(target) <= TABLE_SIZE:
        remember(paths, target, path, MOST_PATHS)
    return path


def _pseudo(fields: list[Header]) -> tuple[dict[bytes, bytes], int]:
    """The pseudo-headers of a request, and the index of the first other field."""
    found: dict[bytes, bytes] = {}
    for place, (name, value) in enumerate(fields):
        if name[:1] != b":":
            return found, place
        if name == b":protocol":
            raise PeerError("extended CONNECT (:protocol) is not supported", status=405)
        if name not in _PSEUDO:
            raise PeerError(f"unknown pseudo-header {name[:40].decode('latin-1')!a} in a request")
        if name in found:
            raise PeerError(f"duplicate {name.decode()}")
        found[name] = value
    return found, len(fields)


def _request_line(pseudo: dict[bytes, bytes]) -> tuple[bytes, bytes, bytes | None]:
    """(method, path, authority)."""
    method = pseudo.get(b":method", b"")
    if not _TOKEN.fullmatch(method):
        raise PeerError(":method is missing or invalid")
    if method == b"CONNECT":
        raise PeerError("CONNECT is not supported in HTTP/2", status=405)
    if pseudo.get(b":scheme") not in (b"http", b"https"):
        raise PeerError(":scheme must be http or https")
    target = pseudo.get(b":path", b"")
    if target[:1] != b"/" and not (target == b"*" and method == b"OPTIONS"):
        raise PeerError(":path is missing or does not start with a slash")
    return method, target, pseudo.get(b":authority")


def _host(named: bytes | None, hosts: list[bytes]) -> bytes:
    if len(hosts) > 1:
        raise PeerError("duplicate Host")
    if named is None and not hosts:
        raise PeerError(":authority is missing")
    if named is not None and hosts and hosts[0] != named:
        raise PeerError(":authority and Host differ")
    host = hosts[0] if named is None else named
    if not authority.is_plain(host):
        raise PeerError(":authority is not a name or address with an optional port")
    return host


def _joined_cookies(headers: Headers, crumbs: list[bytes]) -> Headers:
    joined: Headers = []
    for header in headers:
        if header[0] != b"cookie":
            joined.append(header)
        elif crumbs:
            joined.append((b"cookie", b"; ".join(crumbs)))
            crumbs = []
    return joined


# --- responses -------------------------------------------------------------------------------------------------------


def _response(block: FieldBlock) -> ResponseHead:
    _check_size(block)
    fields = block.fields
    if not fields or fields[0][0] != b":status" or not _STATUS.fullmatch(fields[0][1]):
        raise PeerError(":status is missing or invalid")
    status = int(fields[0][1])
    if status == 101:
        raise PeerError("status 101 is not allowed in HTTP/2")
    headers = fields[1:]
    special = _special(headers)
    return ResponseHead(status, headers, content_length(special.get(_CONTENT, [])))


# --- both ------------------------------------------------------------------------------------------------------------


def _check_size(block: FieldBlock) -> None:
    if block.inflated:
        raise PeerError("the headers expand to many times their compressed size", status=431)
    if block.size > MAX_HEAD:
        raise PeerError(f"the headers are longer than {MAX_HEAD} bytes", status=431)
    if len(block.fields) > MAX_HEADERS:
        raise PeerError(f"more than {MAX_HEADERS} headers", status=431)


def _special(headers: Headers) -> dict[bytes, list[bytes]]:
    """Check all regular fields, and collect the values of those in _WATCHED."""
    special: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        _check(name, value)
        if name in _WATCHED:
            special.setdefault(name, []).append(value)
    return special


def _check(name: bytes, value: bytes) -> None:
    fault = _fault_of(name) if len(name) <= _LONG_NAME else _fault_of.__wrapped__(name)
    if fault:
        raise PeerError(fault)
    if value.translate(None, _IN_VALUES) or value.strip(b" \t") != value:
        raise PeerError(f"the value of {name.decode()} contains an invalid byte, or leading or trailing whitespace")


@lru_cache(maxsize=512)
def _fault_of(name: bytes) -> str:
    """What is wrong with a field of this name; empty if nothing. Bounded: untrusted peers fill it."""
    shown = repr(name[:40].decode("latin-1").encode("ascii", "backslashreplace").decode())
    if name[:1] == b":":
        return f"the pseudo-header {shown} follows a regular header"
    if name in _CONNECTION_SPECIFIC:
        return f"header {name.decode()} is connection-specific, which is not allowed in HTTP/2"
    if passes_for_framing(name):
        return f"header {name.decode()} is read as a framing header by some servers"
    if _LOWER.fullmatch(name):
        return ""
    return f"header name {shown} must be a lower-case token"
