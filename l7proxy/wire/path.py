"""Normalises request paths: the result is what is evaluated and forwarded. There is no other normaliser.

Cilium semantics: `#` is rejected; escaped slashes (%2F, %5C) get a redirect to the normalised form; then
RFC 3986 normalisation (dot segments, also as %2e; needless escapes; upper-case hex), `\\` read as `/`, and
slashes merged. The query is not changed. Beyond Cilium, matrix parameters (`;`, %3B) are rejected by default: servlet
containers remove them, other servers do not, so two servers see two paths. Where they are allowed, rules are matched
against both paths (policy.match.http), but dot segments with one are rejected: `/..;/` goes up on some servers only.
Law: normalise(normalise(x)) == normalise(x).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from l7proxy.errors import PeerError

SEGMENTS: Final = rb"/[!\"$&-:<=>@-\[\]-~]*+"
"""Paths of bytes without special meaning: visible ASCII except # % ; ? \\ (may contain dot segments)."""

QUERY: Final = rb"\?[!\"$-~]*+"

_PLAIN = re.compile(SEGMENTS)
_QUERY = re.compile(QUERY)
_VISIBLE = re.compile(rb"[!-~]+")
_PIECES = re.compile(rb"%[0-9A-Fa-f]{2}|[^%]+")
_BARE_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ESCAPED_CONTROL = re.compile(rb"%(?:[01][0-9A-Fa-f]|7[Ff])")
_ESCAPED_SLASH = re.compile(rb"%2[Ff]|%5[Cc]")
_SLASHES = re.compile(rb"//+")
_DOTS_WITH_MATRIX = re.compile(rb"(?:[/\\]|%2F|%5C)\.\.?(?:;|%3B)")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_BYTES: Final = {
    b"%" + (first + second).encode(): bytes((int(first + second, 16),))
    for first in "0123456789abcdefABCDEF"
    for second in "0123456789abcdefABCDEF"
}
"""Each spelling of an escape → its byte."""
_PLAINEST: Final = {escape: byte if byte[0] in _UNRESERVED else escape.upper() for escape, byte in _BYTES.items()}
"""Each spelling of an escape → its normal form: needless escapes decoded, hex in upper case (RFC 3986 6.2.2)."""

MAX_PATH: Final = 8 << 10
"""Bytes of a path as sent, without its query: nginx and Apache httpd reject longer request lines by default."""

MAX_TARGET: Final = 32 << 10
"""Bytes of a path with its query. Larger, because a query is cheaper to process."""


@dataclass(frozen=True, slots=True)
class PathRules:
    """How strictly request targets are checked. The defaults are Cilium's, but stricter about `;`."""

    allow_matrix: bool = False
    redirect_escaped_slashes: bool = True
    allow_connect: bool = False
    """CONNECT requests are evaluated, not rejected. The content of the tunnel is never evaluated."""


STRICT: Final = PathRules()


class EscapedSlashError(PeerError):
    """The path contains an escaped slash. The client is redirected to `location`, the normalised form."""

    def __init__(self, location: bytes) -> None:
        super().__init__("the path contains an escaped slash; redirected to the normalised path", status=307)
        self.location = location


def check_length(target: bytes) -> None:
    """PeerError (414) when the target or the path in it is too long."""
    if len(target) > MAX_TARGET:
        raise PeerError(f"the request target is longer than {MAX_TARGET} bytes", status=414)
    if len(target) > MAX_PATH and target.find(b"?", 0, MAX_PATH + 1) < 0:
        raise PeerError(f"the path is longer than {MAX_PATH} bytes", status=414)


def normalise(target: bytes, rules: PathRules = STRICT) -> bytes:
    """The normal form of an origin-form target (`/path?query`). PeerError if there is none."""
    check_length(target)
    path, mark, query = target.partition(b"?")
    if _PLAIN.fullmatch(path) and b"//" not in path and b"/." not in path and _QUERY.fullmatch(mark + query or b"?"):
        return target
    if b"#" in target:
        raise PeerError("the request target contains a fragment (#)")
    if not _VISIBLE.fullmatch(target):
        raise PeerError("the request target contains a byte that is not visible ASCII")
    if not path.startswith(b"/"):
        raise PeerError("the path does not start with a slash")
    if b"%" in path:
        path = _plainest(path)
    if not rules.allow_matrix and (b";" in path or b"%3B" in path):
        raise PeerError("the path contains a matrix parameter (;), which servers parse differently")
    if _DOTS_WITH_MATRIX.search(path):
        raise PeerError("a dot segment of the path has a matrix parameter (..;), which servers parse differently")
    if _ESCAPED_SLASH.search(path):
        if not rules.redirect_escaped_slashes:
            raise PeerError("the path contains an escaped slash (%2F or %5C)")
        raise EscapedSlashError(_flatten(_ESCAPED_SLASH.sub(b"/", path)) + mark + query)
    return _flatten(path) + mark + query


def _plainest(path: bytes) -> bytes:
    """Normalise escapes. Runs no Python code per escape, because a path may consist of them."""
    if _BARE_PERCENT.search(path):
        raise PeerError("the path contains a % without two hex digits")
    if _ESCAPED_CONTROL.search(path):
        raise PeerError("the path contains an escaped control byte")
    pieces = _PIECES.findall(path)
    _demand_utf8(b"".join(map(_BYTES.get, pieces, pieces)))
    return b"".join(map(_PLAINEST.get, pieces, pieces))


def _demand_utf8(path: bytes) -> None:
    """PeerError on overlong or invalid UTF-8 (%C0%AE for a dot): some servers decode it, others reject it."""
    try:
        path.decode()
    except UnicodeDecodeError as error:
        raise PeerError("the escapes in the path are not UTF-8") from error


def _flatten(path: bytes) -> bytes:
    """RFC 3986 5.2.4 over segments split at both slashes, then slashes merged."""
    kept: list[bytes] = []
    segments = path.replace(b"\\", b"/").split(b"/")[1:]
    for segment in segments:
        if segment == b"..":
            del kept[-1:]
        elif segment != b".":
            kept.append(segment)
    if segments[-1] in (b".", b".."):
        kept.append(b"")
    return _SLASHES.sub(b"/", b"/" + b"/".join(kept))
